"""`./run bench pictures`: the memory that a web process takes for many large pictures at once, against one of them."""

import argparse
import io
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3
from PIL import Image

from benchmarks.service import PHOTOS, post, service

SIDE = 7000  # pixels: 49 megapixels
INTERVAL = 0.05  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table.

    Returns:
        0, or 1 if a picture was not taken.
    """
    parser = argparse.ArgumentParser(prog="run bench pictures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="pictures (6)")
    parser.add_argument("--format", default="WEBP", help="of the pictures, as Pillow calls it (WEBP)")
    options = parser.parse_args(arguments)
    pictures = list(_large(1 + options.at_once, options.format))
    with tempfile.TemporaryDirectory(prefix="clipcap-bench-") as home, service(Path(home), 0) as address:
        post(urllib3.PoolManager(), address, next(_large(1, "JPEG", side=500)), "factual", 0)  # warm
        with _memory() as one:
            taken = [_taken(address, pictures[0])]
        with _memory() as many, ThreadPoolExecutor(options.at_once) as clients:
            taken += clients.map(lambda picture: _taken(address, picture), pictures[1:])
    print(
        f"{options.at_once} pictures of {SIDE**2 / 1e6:.0f} megapixels at once: {many.growth / one.growth:.2f}x "
        f"the memory of one ({many.growth:.0f} MB of {one.growth:.0f} MB more than idle)"
    )
    print(f"kept afterwards: {many.kept:.0f} MB more than idle")
    print(f"taken: {sum(taken)} of {len(taken)}")
    return 0 if all(taken) else 1


def _large(count: int, kind: str, side: int = SIDE) -> Iterator[bytes]:
    """So many different square pictures."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    for number in range(count):
        with Image.open(paths[number % len(paths)]) as image:
            out = io.BytesIO()
            image.convert("RGB").resize((side, side)).save(out, kind, **({"method": 0} if kind == "WEBP" else {}))
            yield out.getvalue()


def _taken(address: str, picture: bytes) -> bool:
    """Whether the service has taken it; told to come again, a client does."""
    retries = urllib3.Retry(10, status_forcelist=(503,), allowed_methods=None)
    try:
        post(urllib3.PoolManager(retries=retries), address, picture, "factual", 0)
    except (RuntimeError, urllib3.exceptions.HTTPError):
        return False
    return True


@dataclass
class _Memory:
    """Megabytes of the web processes: before, at most meanwhile, and afterwards."""

    before: float
    most: float = 0.0
    after: float = 0.0

    @property
    def growth(self) -> float:
        return self.most - self.before

    @property
    def kept(self) -> float:
        return self.after - self.before


@contextmanager
def _memory() -> Iterator[_Memory]:
    processes = [process for child in _children(os.getpid()) for process in (child, *_children(child))]
    found, over = _Memory(_resident(processes)), threading.Event()

    def look() -> None:
        while not over.wait(INTERVAL):
            found.most = max(found.most, _resident(processes))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
        found.after = statistics.median(_resident(processes) for _ in range(5))


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _resident(processes: list[int]) -> float:
    """Resident memory in megabytes."""
    pages = (int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in processes)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6
