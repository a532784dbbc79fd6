"""`./run bench posts`: how long clients wait for the answer to a request for captions, against one client alone.

Each client uploads photos one after the other, in all styles, and waits for each answer. With no worker all that is
measured is the web process; workers take its processor, and on SQLite its turn to write.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import urllib3

from benchmarks.service import photos_of, post, service


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table.

    Returns:
        0; a request that is refused raises RuntimeError.
    """
    parser = argparse.ArgumentParser(prog="run bench posts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="at once (8)")
    parser.add_argument("--each", type=int, default=10, metavar="N", help="photos that each client uploads (10)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="caption workers beside them (0)")
    options = parser.parse_args(arguments)
    photos = list(photos_of(5 + options.each * (options.clients + 1)))
    with (
        tempfile.TemporaryDirectory(prefix="clipcap-bench-") as home,
        service(Path(home), options.workers) as address,
    ):
        _upload(address, [photos.pop() for _ in range(5)], [])  # warm
        alone: list[float] = []
        _upload(address, [photos.pop() for _ in range(options.each)], alone)
        together: list[float] = []
        clients = [
            threading.Thread(target=_upload, args=(address, [photos.pop() for _ in range(options.each)], together))
            for _ in range(options.clients)
        ]
        began = time.monotonic()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        took = time.monotonic() - began
    one = statistics.median(alone)
    together.sort()
    print(f"{options.clients} clients, {options.workers} worker(s); in times of one client's median, {one:.3f} s:")
    for name, share in (("median", 0.5), ("p95", 0.95), ("longest", 1.0)):
        took_at_most = together[int(share * (len(together) - 1))]
        print(f"{name}: {took_at_most / one:.1f} ({took_at_most:.2f} s)")
    print(f"answers in the time of one: {len(together) / (took / one):.2f}")
    return 0


def _upload(address: str, photos: list[bytes], seconds: list[float]) -> None:
    pool = urllib3.PoolManager()
    for photo in photos:
        began = time.monotonic()
        post(pool, address, photo, "all", 0)
        seconds.append(time.monotonic() - began)
