"""Continuous integration fails for a known vulnerability, and never for want of a network. Every pin has its hash."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VULNERABLE = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}


def audit(folder: Path, report: object, code: int) -> subprocess.CompletedProcess[str]:
    """Run the audit with a stand-in for pip-audit."""
    stub = folder / "stub.py"
    stub.write_text(f"""
import sys
report = {json.dumps(report)!r}
if report != "null":
    open(sys.argv[sys.argv.index("--output") + 1], "w").write(report)
print("ERROR: the network is unreachable", file=sys.stderr)
sys.exit({code})
""")
    return subprocess.run(
        [sys.executable, ROOT / ".ci/audit.py", sys.executable, stub], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("report", "code", "expected", "said"),
    [
        ({"dependencies": [VULNERABLE]}, 1, 1, "a 1: PYSEC-1, fixed in 2"),
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, 0, "0 vulnerabilities known"),
        ({"dependencies": [{"name": "a", "skip_reason": "not found"}]}, 0, 0, "1 could not be looked up"),
        (None, 1, 0, "could not be audited: ERROR: the network is unreachable"),
        ("not a report", 1, 0, "could not be audited"),
    ],
)
def test_only_a_vulnerability_fails(tmp_path: Path, report: object, code: int, expected: int, said: str) -> None:
    done = audit(tmp_path, report, code)
    assert (done.returncode, done.stderr) == (expected, "")
    assert said in done.stdout


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_pin_has_its_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    pins = re.findall(
        r"^([A-Za-z0-9_.-]+)==\S+(?: ;[^\\\n]*)? ?(\\\n    --hash=sha256:[0-9a-f]{64})?", text, re.MULTILINE
    )
    assert len(pins) > 50
    assert [package for package, digest in pins if not digest] == []
    assert not {package for package, _ in pins} & {"torch", "torchvision"}
