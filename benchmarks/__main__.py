"""`./run bench`: one table of how ours compares with the original's algorithm.

`./run bench NAME`, of service, posts, pictures, slow, fairness, large, loading, search and training, is the module of
that name.

On a machine that others use too, seconds mean little; so the table has ratios only, each the median over pairs of
measurements taken in turns in one process.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import fairness, large, loading, pictures, posts, search, service, slow, training
from benchmarks.comparisons import GROUPS, DisagreementError
from benchmarks.measuring import compare, peak_memory
from benchmarks.subjects import QUICK, WEIGHT_SETS, Sizes, Subject, subjects
from clipcap.device import multiplies_bfloat16, pick_device

MEMORY = {"greedy": 1, "training": 0}  # groups whose memory is measured, and the number of the row in the group
NOTES = f"""\
Before a row is timed, both sides must answer the same: token by token when decoding (every image that the original
captions; all {{beams}} hypotheses of a beam, of which two may change places whose scores differ by less than 0.00001),
the loss when training. "range" is the lowest and highest of the pairs.
GPT-2 + ViT-B/32 have random weights (GPT-2's of deviation 0.1, so that no two logits nearly tie) and prefixes from a
normal distribution; their captions all have {{limit}} tokens, for the end token cannot win.
Mixed styles are full-sized Transformer mappers, each run on its own; their weights are equal, so that captions are,
but lie in {WEIGHT_SETS} places in memory. Ours is compared with ours there, by the time of a whole batch.
Memory is the peak of a whole process while it captions or trains, models and libraries included (ours / original).
The original captions one image at a time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for and print the table.

    Returns:
        0, or 1 if ours and the original disagree anywhere.
    """
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        device = pick_device(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = QUICK if options.quick else Sizes()
    groups = options.only or [*GROUPS, "memory"]
    measured = subjects(sizes, device)
    try:
        rows = [row for subject in measured for row in _measure(subject, groups, judged=not options.quick)]
    except DisagreementError as error:
        print(f"OURS AND THE ORIGINAL DISAGREE, so nothing is timed.\n{error}", file=sys.stderr)
        return 1
    print(_machine(device))
    print()
    _print_table([("models", "what", "ours against original", "range", "target", ""), *rows])
    print()
    print(NOTES.format(beams=5, limit=sizes.limit))
    if options.quick:
        print("--quick measures tiny models: it shows that everything runs and agrees, and nothing about speed.")
    if len(measured) == 1:
        print("Left out: models/base, which has not all of encoder/, lm/ and styles/*.safetensors.")
    if not multiplies_bfloat16(device):
        print("Left out: training in bf16, which this device does not multiply in hardware.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run bench", description="Compare ours with the original's algorithm: speed and memory, as ratios."
    )
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads of the CPU (1)")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument(
        "--only", nargs="+", choices=[*GROUPS, "memory"], metavar="GROUP", help=", ".join([*GROUPS, "memory"])
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (auto)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _measure(subject: Subject, groups: list[str], *, judged: bool) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, build in GROUPS.items():
        if name not in groups:
            continue
        _progress(f"{subject.name}: {name}: checking that both sides answer the same")
        group = build(subject)
        group.check()
        for row in group.comparisons:
            ratio = compare(row, subject.sizes.pairs, subject.device)
            _progress(f"{subject.name}: {row.name}: {ratio.median:.2f}x")
            judgement = ("", "")
            if row.target is not None and judged:
                judgement = (f">= {row.target:g}x", "met" if ratio.median >= row.target else "MISSED")
            spread = f"{ratio.lowest:.2f} - {ratio.highest:.2f}"
            label = f"{row.name} ({row.note})" if row.note else row.name
            rows.append((subject.name, label, f"{ratio.median:.2f}x the speed", spread, *judgement))
    if "memory" in groups:
        for name, number in MEMORY.items():
            row_name = GROUPS[name](subject).comparisons[number].name
            _progress(f"{subject.name}: peak memory: {row_name}")
            ours, other = (peak_memory(subject, name, number, side) / 2**20 for side in ("ours", "other"))
            sizes = f"{ours:.0f} / {other:.0f} MiB"
            rows.append((subject.name, f"peak memory, {row_name}", f"{ours / other:.2f}x the memory", sizes, "", ""))
    return rows


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _machine(device: torch.device) -> str:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = (
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        )
        cpu = next(models, cpu)
    where = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    threads = torch.get_num_threads()
    return f"{cpu}, {platform.system()}, torch {torch.__version__}, threads {threads}, device {where}, float32"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    others = {
        "service": service.main,
        "posts": posts.main,
        "pictures": pictures.main,
        "slow": slow.main,
        "fairness": fairness.main,
        "large": large.main,
        "loading": loading.main,
        "search": search.main,
        "training": training.main,
    }
    sys.exit(others[sys.argv[1]](sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in others else main())
