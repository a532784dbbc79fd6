"""Who imports whom: imports point one way, the web process stays small, and so does every file."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = """
import json, sys, time
started = time.perf_counter()
from clipcap_site.wsgi import application
from django.test import RequestFactory
from django.urls import get_resolver

def walk(resolver):
    for pattern in resolver.url_patterns:
        walk(pattern) if hasattr(pattern, "url_patterns") else pattern.callback

walk(get_resolver())
answer = application(RequestFactory().get("/api/health/live").environ, lambda status, headers: print(status))
seconds = time.perf_counter() - started
memory = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps({"torch": "torch" in sys.modules, "kilobytes": int(memory[0]), "seconds": seconds}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak memory")
def test_the_web_process_loads_no_torch_and_stays_below_200_megabytes(
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


# From the bottom to the top: each may import those above it in this list, and those in its own line.
LAYERS = [
    ["clipcap"],
    ["captioner.errors", "captioner.bodies", "captioner.csv_lines", "captioner.reports"],
    ["captioner.jobs.job", "captioner.jobs.registry", "captioner.jobs.wakeup", "captioner.jobs.database"],
    ["captioner.models"],
    ["captioner.jobs"],
    ["captioner.storage", "captioner.admission", "captioner.audit", "captioner.search"],
    ["captioner.uploads", "captioner.webhooks.client", "captioner.webhooks.networks"],
    ["captioner.services"],
    ["captioner"],
    ["accounts", "training"],
    ["clipcap_site"],
    ["recipes", "benchmarks"],
]
APART = [("accounts", "training"), ("training", "accounts")]


def layer_of(module: str) -> int | None:
    """The layer of the longest name in the table that the module lies in."""
    found = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1] if found else None


@pytest.mark.parametrize("package", ["clipcap", "captioner", "accounts", "training", "clipcap_site"])
def test_imports_run_one_way(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = layer_of(module)
        for name in imported(path):
            other = layer_of(name)
            if own is not None and other is not None and other > own:
                wrong.append(f"{module} imports {name}")
            wrong += [f"{module} imports {name}" for a, b in APART if module.startswith(a) and name.startswith(b)]
    assert wrong == []


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
    """The modules that a file imports, also within its functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
