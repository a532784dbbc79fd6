"""Who imports whom: imports point one way, the web process stays small, and so does every file."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = """
import gc, json, os, sys, time
started = time.perf_counter()
from clipcap_site.wsgi import application
kept = gc.get_freeze_count()
from django.test import RequestFactory
from django.urls import get_resolver

def walk(resolver):
    for pattern in resolver.url_patterns:
        walk(pattern) if hasattr(pattern, "url_patterns") else pattern.callback

walk(get_resolver())
answer = application(RequestFactory().get("/api/health/live").environ, lambda status, headers: print(status))
seconds = time.perf_counter() - started
memory = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]

import numpy

numpy.ones((1000, 1000)) @ numpy.ones(1000)
found = {"torch": "torch" in sys.modules, "kilobytes": int(memory[0]), "seconds": seconds}
found["share kept from the garbage collector"] = kept / (kept + len(gc.get_objects()))
print(json.dumps(found | {"threads": len(os.listdir("/proc/self/task"))}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak memory and its threads")
def test_the_web_process_loads_no_torch_stays_below_200_megabytes_and_computes_without_threads(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    environment = {
        "CLIPCAP_HOME": str(tmp_path),
        "CLIPCAP_SECRET_KEY": "k" * 50,
        "CLIPCAP_ALLOWED_HOSTS": "testserver",
        "CLIPCAP_HTTPS": "0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-P", "-c", WEB], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, report = done.stdout.splitlines()
    found = json.loads(report)
    record_property("seconds to start", found["seconds"])
    assert status == "200 OK"
    assert not found["torch"]
    assert found["kilobytes"] < 200_000
    assert found["threads"] == 1
    assert found["share kept from the garbage collector"] > 0.9


# From the bottom to the top: each may import what stands above it in this list, and nothing in its own line.
LAYERS = [
    ["clipcap"],
    ["captioner.errors", "captioner.bodies", "captioner.csv_lines", "captioner.reports", "captioner.checks"],
    ["captioner.jobs", "captioner.sane_input", "captioner.admission"],
    ["captioner.models"],
    ["captioner.storage", "captioner.audit", "captioner.search", "captioner.uploads", "captioner.webhooks"],
    ["captioner.services"],
    ["captioner.http", "captioner.templatetags"],
    ["captioner.api", "captioner.web", "captioner.admin"],
    ["captioner.workers"],
    ["captioner.inference"],
    ["captioner.apps", "captioner.tasks", "captioner.management"],
    ["accounts", "training"],
    ["clipcap_site"],
    ["recipes", "benchmarks"],
]
# What no code of captioner says: the other app's name as a module, label, queue or prefix, its settings, models and
# commands, and the pages that only it registers.
OF_TRAINING = re.compile(
    r"training[._:]\w|[\"'`]training[\"'`]|TRAINING|Training[A-Z]|trainingrun|train_style|import_examples|prepare_base"
    r"|captioner_basemodels_|captioner_style_(dataset|import|retrain|sentences|take|train)"
)


def layer_of(module: str) -> tuple[int, str] | None:
    """The number of the layer that the module lies in, and which entry of it."""
    entries = {name: number for number, names in enumerate(LAYERS) for name in names}
    return next(((entries[name], name) for name in parents(module) if name in entries), None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_part_of_captioner_has_its_layer() -> None:
    parts = {module_of(path) for path in (ROOT / "captioner").glob("*.py")}
    parts |= {f"captioner.{path.parent.name}" for path in (ROOT / "captioner").glob("*/__init__.py")}
    listed = [name for names in LAYERS for name in names if name.startswith("captioner.")]
    assert sorted(listed) == sorted(parts - {"captioner", "captioner.migrations"})


@pytest.mark.parametrize("package", ["clipcap", "captioner", "accounts", "training", "clipcap_site"])
def test_imports_run_one_way(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        module = module_of(path)
        own = layer_of(module)
        for name in imported(path):
            other = layer_of(name)
            if own is None or other is None or other[0] < own[0] or other == own:
                continue
            wrong.append(f"{module} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("package", ["clipcap", "captioner", "accounts", "training", "clipcap_site"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    """Also within a package. What is imported for types alone does not count."""
    paths = {module_of(path): path for path in (ROOT / package).rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        homes = {next((home for home in parents(name) if home in paths), module) for name in imported(path)}
        graph[module] = homes - {module, *parents(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def parents(name: str) -> list[str]:
    """A module's name and those of its packages, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def test_captioner_does_not_know_training_even_by_string() -> None:
    paths = [path for path in (ROOT / "captioner").rglob("*.py") if path.parent.name != "migrations"]
    for folder in ("templates/captioner", "templates/admin/captioner"):
        paths += (ROOT / folder).rglob("*.html")
    paths += (ROOT / "templates/admin").glob("*.html")
    assert len(paths) > 150
    found = {
        (str(path.relative_to(ROOT)), said[0]) for path in paths for said in OF_TRAINING.finditer(path.read_text())
    }
    assert found == set()


def test_the_library_is_imported_without_django() -> None:
    program = (
        "import sys, clipcap; clipcap.Captioner, clipcap.train_mapper; print(any('django' in m for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.stdout == b"False\n", done.stderr


def test_no_file_is_above_450_lines() -> None:
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, text=True)
    paths = [ROOT / name for name in listed.splitlines() if "/migrations/" not in name and (ROOT / name).exists()]
    assert len(paths) > 200
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: lines for name, lines in lengths.items() if lines > 450} == {}


def imported(path: Path) -> list[str]:
    """The modules that a file imports, also within its functions, but for those of which it needs types alone."""
    names = []
    tree = ast.parse(path.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(node) for branch in typing for part in branch.body for node in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
