"""Who imports whom: imports point one way, and the web process stays small."""

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


@pytest.mark.parametrize(
    ("package", "above_it"),
    [
        ("clipcap", {"captioner", "accounts", "training", "clipcap_site", "recipes", "benchmarks"}),
        ("captioner", {"accounts", "training", "recipes", "benchmarks"}),
        ("accounts", {"training", "recipes", "benchmarks"}),
        ("training", {"accounts", "recipes", "benchmarks"}),
    ],
)
def test_imports_point_one_way(package: str, above_it: set[str]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imported(path)
        if name.split(".")[0] in above_it
    ]
    assert wrong == []


def imported(path: Path) -> list[str]:
    """The modules that a file imports, also within its functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names
