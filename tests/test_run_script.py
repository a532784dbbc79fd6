"""`./run` itself, on a small repository of stub programs whose requirements are wheels written on the spot."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parent.parent / "run"

# What stands in for `python -m clipcap`: it reads its photos and says where it runs and which release of the
# requirement it found.
CAPTION = """
import importlib.util, json, sys
from pathlib import Path
import colours
print(json.dumps({
    "arguments": sys.argv[2:],
    "folder": str(Path.cwd()),
    "photos": [Path(name).read_text() for name in sys.argv[2:] if not name.startswith("--")],
    "colours": colours.RELEASE,
    "pytest": importlib.util.find_spec("pytest") is not None,
}))
"""
SHOW_ARGUMENTS = "import json, sys\nprint(json.dumps(sys.argv[1:]))\n"


def wheel(folder: Path, name: str, release: int, source: str) -> str:
    """Write the wheel of a package with one module, and return the line that requires it."""
    path = folder / f"{name}-{release}-py3-none-any.whl"
    info = f"{name}-{release}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", source)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name} @ {path.as_uri()} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Repository:
    """A folder with `run`, the stub programs and their requirements."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self) -> None:
        (self.root / "clipcap").mkdir(parents=True)
        shutil.copy(RUN, self.root)
        (self.root / "clipcap/__main__.py").write_text(CAPTION)
        (self.root / "benchmarks.py").write_text(SHOW_ARGUMENTS)
        (self.root / "manage.py").write_text(SHOW_ARGUMENTS)
        self.require_colours(1)
        (self.root / "requirements-torch.txt").write_text("# its builds differ by machine\n")
        (self.root / "requirements-dev.txt").write_text(
            wheel(self.root, "pytest", 1, SHOW_ARGUMENTS)
            + wheel(self.root, "ruff", 1, "import sys\nprint(*sys.argv[1:])\nsys.exit('--check' not in sys.argv)\n")
            + wheel(self.root, "mypy", 1, "print('types')\n")
            + wheel(self.root, "mkdocs", 1, "import sys\nprint(*sys.argv[1:])\n")
        )

    def require_colours(self, release: int) -> None:
        requirement = wheel(self.root, "colours", release, f"RELEASE = {release}\n")
        (self.root / "requirements.txt").write_text(requirement)

    def start(
        self,
        *arguments: str,
        program: Path | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.Popen(
            [program or self.root / "run", *arguments],
            cwd=cwd or self.root,
            env={**inherited, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a test can kill the script and all that it started
        )

    def run(self, *arguments: str, **started: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **started)
        stdout, stderr = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def packages(self) -> Path:
        (folder,) = (self.root / ".venv/lib").glob("python3.*/site-packages")
        return folder


@pytest.fixture
def bare(tmp_path: Path) -> Repository:
    """A repository as it is cloned: without an environment."""
    repository = Repository(tmp_path / "a bare repository")
    repository.fill()
    return repository


@pytest.fixture(scope="module")
def first_call(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, subprocess.CompletedProcess[str]]:
    """A repository and its first call, which made the environment."""
    repository = Repository(tmp_path_factory.mktemp("first call") / "a repository")
    repository.fill()
    return repository, repository.run("caption", "--json")


@pytest.fixture
def ready(first_call: tuple[Repository, object], tmp_path: Path) -> Repository:
    """A repository with its environment, of the test's own."""
    root = tmp_path / "a ready repository"
    shutil.copytree(first_call[0].root, root, symlinks=True)
    return Repository(root)


def fake_python(path: Path, pretence: str) -> Path:
    """Write a Python that first runs the statement `pretence` and then what `-I -c CODE` asks of it."""
    path.write_text(f"""#!/bin/sh\nexec "{sys.executable}" -c 'import sys; {pretence}; exec(sys.argv[3])' "$@"\n""")
    path.chmod(0o755)
    return path


def test_without_arguments_it_prints_its_commands(bare: Repository) -> None:
    result = bare.run()
    assert result.returncode == 0
    assert result.stderr == ""
    for command in ("demo", "caption", "worker", "manage", "bench", "test", "check", "docs"):
        assert f"\n  {command} " in result.stdout


def test_an_unknown_command_is_refused_with_the_commands_there_are(bare: Repository) -> None:
    result = bare.run("capture")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "there is no command 'capture'" in result.stderr
    assert "\n  caption " in result.stderr
    assert not (bare.root / ".venv").exists()


def test_the_first_call_makes_the_environment_and_prints_nothing_but_the_program_s_output(
    first_call: tuple[Repository, subprocess.CompletedProcess[str]],
) -> None:
    repository, result = first_call
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "arguments": ["--json"],
        "folder": str(repository.root),
        "photos": [],
        "colours": 1,
        "pytest": False,
    }
    assert "Installing the environment" in result.stderr


def test_the_second_call_says_nothing_and_needs_no_pip(ready: Repository) -> None:
    shutil.rmtree(ready.packages() / "pip")
    result = ready.run("caption")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["colours"] == 1
    assert result.stderr == ""


def test_a_photo_s_path_is_relative_to_the_user_s_folder_whatever_else_that_folder_holds(
    ready: Repository, tmp_path: Path
) -> None:
    link = tmp_path / "a link"
    link.symlink_to(ready.root / "run")
    photos = tmp_path / "holiday photos"
    photos.mkdir()
    (photos / "json.py").write_text("raise SystemExit('a file among the photos was imported')")
    (photos / "on the beach.jpg").write_text("sand")

    result = ready.run("caption", "on the beach.jpg", "--style", program=link, cwd=photos)

    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["photos"] == ["sand"]
    assert report["arguments"] == ["on the beach.jpg", "--style"]
    assert report["folder"] == str(photos)


@pytest.mark.parametrize("command", ["manage", "bench"])
def test_a_command_passes_its_arguments_on(ready: Repository, command: str) -> None:
    result = ready.run(command, "two words", "")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["two words", ""]


def test_the_requirements_of_development_are_installed_for_the_tests_and_kept(ready: Repository) -> None:
    first = ready.run("test", "-k", "two words")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == ["-k", "two words"]
    assert "Installing" in first.stderr
    second = ready.run("test")
    assert second.returncode == 0
    assert second.stderr == ""


def test_the_check_goes_on_after_a_failure_and_fails_in_the_end(ready: Repository) -> None:
    result = ready.run("check")
    assert result.stdout.splitlines() == ["check", "format --check", "types"]
    assert result.returncode == 1


def test_the_documents_are_built_strictly_and_their_place_is_the_last_line(ready: Repository) -> None:
    result = ready.run("docs")
    assert result.returncode == 0, result.stderr
    built, place = result.stdout.splitlines()
    assert "build --strict" in built
    assert place == str(ready.root / "var/docs/index.html")


def test_pictures_are_kept_of_every_page_or_of_those_named(ready: Repository) -> None:
    for given, place, more in (
        ((), ready.root / "var/screenshots", []),
        (("a folder", "home", "admin:index"), ready.root / "a folder", ["--page", "home", "--page", "admin:index"]),
    ):
        result = ready.run("screenshots", *given)
        assert result.returncode == 0, result.stderr
        arguments, last = result.stdout.splitlines()
        expected = ["--quiet", "tests/test_every_page.py", "--screenshots", str(place), *more, "-k", "not command"]
        assert json.loads(arguments) == expected
        assert last == str(place)
        assert place.is_dir()


def test_changed_requirements_are_installed(ready: Repository) -> None:
    ready.require_colours(2)
    result = ready.run("caption")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["colours"] == 2
    assert "Installing" in result.stderr


def test_an_environment_whose_python_is_gone_is_made_again(ready: Repository) -> None:
    for name in ("python", "python3"):
        (ready.root / ".venv/bin" / name).unlink()
        (ready.root / ".venv/bin" / name).symlink_to("/nowhere/python")
    result = ready.run("caption")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["colours"] == 1


def test_an_installation_that_was_killed_is_repaired_by_the_next_call(ready: Repository) -> None:
    os.mkfifo(ready.root / "never.txt")  # pip opens it and waits for good
    (ready.root / "requirements.txt").write_text(f"-r {ready.root.as_uri()}/never.txt\n")
    process = ready.start("caption")
    assert process.stderr is not None
    assert any("Installing" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)
    ready.require_colours(1)
    (ready.packages() / "colours.py").unlink()  # a pip killed at a bad moment leaves what only looks installed

    result = ready.run("caption")

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["colours"] == 1


def test_an_installation_that_fails_shows_why_and_the_next_call_tries_again(ready: Repository) -> None:
    (ready.root / "requirements.txt").write_text(f"no-such-package==1 --hash=sha256:{0:064}\n")
    result = ready.run("caption")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "No matching distribution found for no-such-package==1" in result.stderr
    assert f"the whole is in {ready.root}/.venv/install.log" in result.stderr
    ready.require_colours(2)
    assert json.loads(ready.run("caption").stdout)["colours"] == 2


def test_what_has_not_the_hash_that_is_written_down_is_not_installed(ready: Repository) -> None:
    ready.require_colours(2)
    requirements = ready.root / "requirements.txt"
    requirements.write_text(requirements.read_text()[:-5] + "0000\n")
    result = ready.run("caption")
    assert result.returncode == 1
    assert "DO NOT MATCH THE HASHES" in result.stderr
    requirements.write_text(requirements.read_text().partition(" --hash")[0] + "\n")
    result = ready.run("caption")
    assert result.returncode == 1
    assert "Hashes are required in --require-hashes mode" in result.stderr


def test_a_failed_installation_for_development_leaves_the_captions_working(ready: Repository) -> None:
    (ready.root / "requirements-dev.txt").write_text(f"no-such-package==1 --hash=sha256:{0:064}\n")
    for _ in range(2):
        assert ready.run("test").returncode == 1
        result = ready.run("caption")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""


def test_of_two_first_calls_at_once_one_installs_and_both_succeed(bare: Repository) -> None:
    processes = [bare.start("caption"), bare.start("caption")]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [json.loads(stdout)["colours"] for stdout, _ in outputs] == [1, 1]
    assert sum(stderr.count("Installing") for _, stderr in outputs) == 1


@pytest.mark.parametrize(
    ("pretence", "problem"),
    [
        ("sys.version_info = (3, 10, 13)", "is Python 3.10\n"),
        ("sys.version_info = (3, 14, 0)", "is Python 3.14\n"),
        (
            'sys.version_info = (3, 11, 7); sys.modules["ensurepip"] = None',
            "is Python 3.11 without venv; on Debian and Ubuntu: apt install python3.11-venv\n",
        ),
        ("sys.exit(127)", "does not run\n"),
    ],
)
def test_a_python_that_does_not_serve_is_named_with_its_fault_and_the_remedy(
    bare: Repository, tmp_path: Path, pretence: str, problem: str
) -> None:
    python = fake_python(tmp_path / "python", pretence)
    result = bare.run("caption", environment={"PYTHON": str(python)})
    assert result.returncode == 1
    assert result.stdout == ""
    assert f"{python} {problem}" in result.stderr
    assert "PYTHON=/path/to/python" in result.stderr
    assert not (bare.root / ".venv").exists()


def test_a_python_that_is_not_there_is_named(bare: Repository) -> None:
    result = bare.run("caption", environment={"PYTHON": "/nowhere/python"})
    assert result.returncode == 1
    assert "/nowhere/python was not found" in result.stderr


def test_without_a_named_python_the_first_that_serves_is_taken(ready: Repository, tmp_path: Path) -> None:
    fake_python(tmp_path / "python3.13", "sys.exit(127)")
    fake_python(tmp_path / "python3.12", "sys.version_info = (3, 10, 13)")
    (tmp_path / "python3.11").write_text(f'#!/bin/sh\ntouch "$0 was taken"\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "python3.11").chmod(0o755)
    ready.require_colours(2)
    result = ready.run("caption", environment={"PYTHON": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "python3.11 was taken").exists()
