"""How time and memory are measured, so that the numbers mean something on a machine that others use too."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch

from benchmarks.comparisons import GROUPS, Comparison
from benchmarks.subjects import Sizes, Subject


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ours is: the median over the pairs, and the extremes."""

    median: float
    lowest: float
    highest: float


def compare(comparison: Comparison, pairs: int, device: torch.device) -> Ratio:
    """Run the two sides in turns. What else the machine does slows both of a pair, so their ratio hardly changes."""
    ratios = []
    for _ in range(pairs):
        ours = _seconds(comparison.ours, device) / comparison.ours_items
        other = _seconds(comparison.other, device) / comparison.other_items
        ratios.append(other / ours)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def peak_memory(subject: Subject, group: str, row: int, side: Literal["ours", "other"]) -> int:
    """Bytes at most in use while one side of a group's row runs once, in a process of its own.

    On a CPU all of the process counts, Python and the models with it; on CUDA what torch allocated there.
    """
    # Spawned, not forked: a forked process would hold this one's models too.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(
            _peak, type(subject), subject.sizes, subject.device, torch.get_num_threads(), group, row, side
        ).result()


def _peak(
    kind: type[Subject], sizes: Sizes, device: torch.device, threads: int, group: str, row: int, side: str
) -> int:
    torch.set_num_threads(threads)
    subject = kind(sizes, device)
    comparison = GROUPS[group](subject).comparisons[row]
    assert subject.prefixes  # built now, and not when they are first used
    # Building the models takes more for a moment than they do afterwards; the high-water mark starts again after it.
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif reset.exists():
        reset.write_text("5")
    (comparison.ours if side == "ours" else comparison.other)()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if status.exists():  # on Linux getrusage cannot be reset
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the GPU computes while Python goes on
    return time.perf_counter() - start
