"""How long captions wait while a worker loads a style's own copy of the language model, as ratios of a batch's time.

As in the worker, another thread reads the file and builds the copy, and the thread that captions tries it out before
the batch after that. Batches go on meanwhile; the longest counts, against the longest of as many without a load.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.subjects import QUICK, RandomGPT2, Sizes
from clipcap.captioner import Captioner
from clipcap.checkpoint import MapperCheckpoint, load_mapper, save_mapper
from clipcap.device import pick_device
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a copy again and again while batches are captioned, and print how much longer the longest batch takes.

    Returns:
        0
    """
    parser = argparse.ArgumentParser(prog="run bench loading", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the CPU (1)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="photos in a batch (1)")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (auto)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    subject = RandomGPT2(QUICK if options.quick else Sizes(), pick_device(options.device))
    captioner = Captioner(subject.encoder, subject.lm)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as reader:
        path = Path(folder) / "copy.safetensors"
        altered = {name: 1.01 * weights.cpu().half() for name, weights in subject.lm.weights.items()}
        save_mapper(MapperCheckpoint(subject.mapper, None, None, weights=altered), path)
        size = path.stat().st_size
        while_read, while_tried, read, batches = [], [], [], 0
        _batch(subject, captioner, options.batch)  # which builds what the others find
        for _ in range(subject.sizes.pairs):
            started = time.perf_counter()
            future = reader.submit(lambda: captioner.build(load_mapper(path)))
            meanwhile = [_batch(subject, captioner, options.batch)]
            while not future.done():
                meanwhile.append(_batch(subject, captioner, options.batch))
            read.append(time.perf_counter() - started)
            with_trial = _batch(subject, captioner, options.batch, future.result())
            usual = max(_batch(subject, captioner, options.batch) for _ in range(len(meanwhile) + 1))
            while_read.append(max(meanwhile) / usual)
            while_tried.append(with_trial / usual)
            batches += len(meanwhile)
    print(f"{subject.name}, a copy of {size / 2**20:.0f} MiB, batches of {options.batch}, {options.threads} threads")
    for what, ratios in (("while it is read", while_read), ("that tries it out", while_tried)):
        print(
            f"longest batch {what:<18} {statistics.median(ratios):.2f}x a batch's time "
            f"({min(ratios):.2f} - {max(ratios):.2f})"
        )
    print(f"{batches} batches were captioned while it was read {len(read)} times, {statistics.median(read):.1f} s each")
    return 0


def _batch(subject: RandomGPT2, captioner: Captioner, count: int, tried: ClipCaptionModel | None = None) -> float:
    """Seconds that a batch takes, with the trial of a copy before it."""
    model, options = ClipCaptionModel(subject.mapper), DecodingOptions("greedy", max_length=subject.limit)
    started = time.perf_counter()
    if tried:
        captioner.try_out(tried)
    captioner.caption(subject.embeddings[:count], [model] * count, options)
    if subject.device.type == "cuda":
        torch.cuda.synchronize(subject.device)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
