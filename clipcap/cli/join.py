"""`clipcap join HOST:PORT`: train along with a training worker of another machine."""

import argparse
import os
import signal
import sys

from clipcap.cli.models import set_threads

KEY = "CLIPCAP_TRAINING_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `clipcap join` takes."""
    parser.add_argument(
        "address",
        metavar="HOST:PORT",
        help=f"where the other machine's training worker listens (its CLIPCAP_TRAINING_ADDRESS); {KEY} must be set as "
        "there",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="processes of this machine (one for each GPU, or 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of each (half the cores, divided)")


def run(options: argparse.Namespace) -> int:
    """Train along whenever the worker trains, until this process is ended.

    Raises:
        ValueError: the worker doesn't take this machine, or there are too few GPUs or cores; the message says why.
    """
    import torch

    from clipcap.device import check_processes, pick_device
    from clipcap.training.join import join

    key = os.environ.get(KEY)
    if not key:
        raise ValueError(f"{KEY} is not set; set it to the same value as on the machine of the training worker")
    processes = (torch.cuda.device_count() or 1) if options.processes is None else options.processes
    check_processes(processes, pick_device("auto"), "--processes")
    if options.threads is not None:
        set_threads(options)  # which checks it
    threads = options.threads or max(1, (os.cpu_count() or 1) // (2 * processes))
    for ends in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ends, lambda *_: sys.exit(0))
    join(options.address, key, processes, threads, lambda message: print(message, flush=True))
    return 0
