"""The library as a package: built as a wheel, installed on its own, used outside of the clone."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import clipcap

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel brings and nothing else; what the library needs is there already."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build], check=True, cwd=folder, stdout=subprocess.PIPE)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder


def test_the_wheel_holds_the_library_and_nothing_of_the_service(installed: Path) -> None:
    (wheel,) = installed.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"clipcap", f"clipcap-{clipcap.__version__}.dist-info"}
    assert "clipcap/py.typed" in names
    assert not any("django" in line.lower() for line in PROJECT["dependencies"])
    assert any("django" in line for line in PROJECT["optional-dependencies"]["server"])


def test_the_installed_command_captions_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    photo = sorted((ROOT / "examples" / "coco_cc").glob("*.jpg"))[0]
    command = [installed / "site" / "bin" / "clipcap", "caption", photo, "--models", ROOT / "models" / "base"]
    environment = os.environ | {"PYTHONPATH": str(installed / "site")}
    done = subprocess.run(
        [*map(str, command), "--style", "factual", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["caption"]


def test_what_is_exported_is_there_and_versions_agree(installed: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, clipcap; found = [getattr(clipcap, name) for name in clipcap.__all__]; "
        "print(json.dumps([clipcap.__version__, clipcap.__file__, 'django' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed / "site")},
        capture_output=True,
        check=True,
    )
    version, file, django = json.loads(done.stdout)
    assert version == PROJECT["version"]
    assert file.startswith(str(installed))
    assert not django
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        clipcap.nothing  # noqa: B018
