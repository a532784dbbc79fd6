"""The library as a package: built as a wheel, installed on its own, used outside of the clone."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from textwrap import dedent

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import clipcap

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_OPEN_CLIP = {"timm", "torchvision"}  # which imports them; here for the releases that fit


def names_of(requirements: list[str]) -> list[str]:
    return [canonicalize_name(Requirement(line).name) for line in requirements]


def needed(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring on this machine."""
    found: set[str] = set()
    left = [Requirement(line) for line in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in found and extras == {""}:
            continue
        found.add(name)
        for line in distribution(name).requires or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                left.append(inner)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel brings, in `site`, and links to the distributions that it declares, in `needed`."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build], check=True, cwd=folder, stdout=subprocess.PIPE)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    (folder / "needed").mkdir()
    for name in needed(PROJECT["dependencies"]):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (folder / "needed" / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def alone(installed: Path, *command: str, at: Path) -> bytes:
    """What Python prints that sees the wheel and what it declares, and no other package."""
    environment = os.environ | {"PYTHONPATH": f"{installed / 'site'}:{installed / 'needed'}"}
    done = subprocess.run([sys.executable, "-S", "-P", *command], cwd=at, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_the_wheel_holds_the_library_and_nothing_of_the_service(installed: Path) -> None:
    (wheel,) = installed.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"clipcap-{clipcap.__version__}.dist-info/METADATA").decode()
    top = {name.split("/")[0] for name in names}
    assert top == {"clipcap", f"clipcap-{clipcap.__version__}.dist-info"}
    assert "clipcap/py.typed" in names
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == {"server", "dev"}


def test_no_distribution_is_listed_twice() -> None:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = [name for requirements in lists for name in names_of(requirements)]
    assert sorted(set(names)) == sorted(names)


def test_the_library_imports_what_it_declares_and_nothing_else() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "clipcap").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"clipcap"}
    homes = packages_distributions()
    assert {canonicalize_name(homes[name][0]) for name in others} | OF_OPEN_CLIP == set(
        names_of(PROJECT["dependencies"])
    )
    assert "django" not in needed(PROJECT["dependencies"])


def test_the_installed_command_captions_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    photo = sorted((ROOT / "examples" / "coco_cc").glob("*.jpg"))[0]
    command = [installed / "site" / "bin" / "clipcap", "caption", photo, "--models", ROOT / "models" / "base"]
    printed = alone(installed, *map(str, command), "--style", "factual", "--json", at=tmp_path)
    assert json.loads(printed)["caption"]


def test_the_example_of_the_readme_captions_two_photos_in_two_styles(installed: Path, tmp_path: Path) -> None:
    found = re.search(r"^In Python:\n\n((?:    .*\n|\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found
    example = dedent(found[1])
    (tmp_path / "models").symlink_to(ROOT / "models")
    for name, photo in zip(("a.jpg", "b.jpg"), sorted((ROOT / "examples/coco_cc").glob("*.jpg")), strict=False):
        (tmp_path / name).symlink_to(photo)
    printed = alone(installed, "-c", f"{example}\nprint(tuple(embeddings.shape))", at=tmp_path).decode()
    captions, shape = printed.splitlines()
    assert shape == "(2, 512)"
    assert captions.count("Caption(") > 1, captions


def test_what_is_exported_is_there_and_versions_agree(installed: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, clipcap; found = [getattr(clipcap, name) for name in clipcap.__all__]; "
        "print(json.dumps([clipcap.__version__, clipcap.__file__, 'django' in sys.modules]))"
    )
    version, file, django = json.loads(alone(installed, "-c", program, at=tmp_path))
    assert version == PROJECT["version"]
    assert file.startswith(str(installed))
    assert not django
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        clipcap.nothing  # noqa: B018
