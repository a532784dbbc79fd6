"""Looks for known vulnerabilities in what the requirements files pin.

Fails where there are some, and never because nobody could be asked: what could not be looked up is counted and said.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("requirements.txt", "requirements-torch.txt", "requirements-dev.txt")
PATIENCE = 600  # seconds


def main(command: list[str]) -> int:
    """Ask, and say what is known.

    Args:
        command: the program that asks, pip-audit.

    Returns:
        The exit code: 1 if there are vulnerabilities.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "20"]
        command += ["--format", "json", "--output", str(report)]
        for name in FILES:
            command += ["--requirement", str(ROOT / name)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
            found = json.loads(report.read_text())["dependencies"]
        except subprocess.TimeoutExpired:
            print(f"The dependencies could not be audited: no answer within {PATIENCE} s.")
            return 0
        except (OSError, ValueError, KeyError, TypeError):
            last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
            print(f"The dependencies could not be audited: {last}")
            return 0
    vulnerable = [(one, what) for one in found for what in one.get("vulns", ())]
    for one, what in vulnerable:
        fixed = ", ".join(what.get("fix_versions", ())) or "no release yet"
        print(f"{one['name']} {one['version']}: {what['id']}, fixed in {fixed}")
    unknown = sum("skip_reason" in one for one in found)
    print(f"{len(found)} dependencies: {len(vulnerable)} vulnerabilities known; {unknown} could not be looked up.")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [sys.executable, "-m", "pip_audit"]))
