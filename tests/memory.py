"""How much memory something takes."""

from collections.abc import Callable
from pathlib import Path

import pytest


def peak_growth(action: Callable[[], object]) -> float:
    """MB by which the process grows at its peak during `action`; Pillow's memory is not Python's to trace."""

    def memory(field: str) -> int:
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index(f"{field}:") + 1])

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    except OSError:
        pytest.skip("only Linux tells a process its peak memory")
    before = memory("VmRSS")
    action()
    return (memory("VmHWM") - before) / 1000
