"""`./run bench slow`: how long a page takes while slow clients keep connections open, against what it takes without.

A third of them never finish their headers, a third never finish a body, each with a byte a second, and a third read
nothing of what they have asked for. The page is asked for by one client, again and again.
"""

import argparse
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from benchmarks.service import service

LONGEST = 20.0  # seconds for one answer
PAGE = "/gallery/"
LARGE = "/static/admin/js/vendor/xregexp/xregexp.js"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table.

    Returns:
        0, or 1 if a request was not answered in time beside the slow clients.
    """
    parser = argparse.ArgumentParser(prog="run bench slow", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200, metavar="N", help="slow ones (200)")
    parser.add_argument("--requests", type=int, default=100, metavar="N", help="of the page, with and without (100)")
    parser.add_argument("--worker-class", default="", metavar="CLASS", help="of gunicorn, in place of our own")
    options = parser.parse_args(arguments)
    web = {"GUNICORN_CMD_ARGS": f"--worker-class {options.worker_class}"} if options.worker_class else {}
    with tempfile.TemporaryDirectory(prefix="clipcap-bench-") as home, service(Path(home), 0, **web) as address:
        _times(address, 10)  # warm
        alone = _times(address, options.requests)
        with _slow(address, options.clients):
            beside = _times(address, options.requests)
    unanswered = sum(seconds >= LONGEST for seconds in beside)
    for name, share in (("median", 0.5), ("p95", 0.95)):
        print(
            f"{name} beside {options.clients} slow clients: {_at(beside, share) / _at(alone, share):.2f}x that without"
        )
    print(f"not answered within {LONGEST:.0f} s: {unanswered} of {len(beside)}")
    return 1 if unanswered else 0


def _times(address: str, count: int) -> list[float]:
    """Seconds of each answer, one after the other; three in a row without an answer are enough."""
    times: list[float] = []
    while len(times) < count and (len(times) < 3 or min(times[-3:]) < LONGEST):
        began = time.monotonic()
        try:
            answer = urllib3.request("GET", address + PAGE, timeout=LONGEST, retries=False)
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.data[:300]!r}")
            times.append(time.monotonic() - began)
        except urllib3.exceptions.HTTPError:
            times.append(LONGEST)
    return times


def _at(times: list[float], share: float) -> float:
    return statistics.median(times) if share == 0.5 else sorted(times)[int(share * (len(times) - 1))]


@contextmanager
def _slow(address: str, count: int) -> Iterator[None]:
    """So many slow clients, all of them connected; who is thrown out comes again."""
    url = urlsplit(address)
    host = f"Host: {url.netloc}\r\n"
    beginnings = (
        f"GET {PAGE} HTTP/1.1\r\n{host}X-Slow: ",
        f"POST /api/captions/ HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n",
        f"GET {LARGE} HTTP/1.1\r\n{host}\r\n" * 5,  # more than any buffer takes
    )
    over, connected = threading.Event(), threading.Semaphore(0)

    def client(number: int) -> None:
        first = True
        while not over.is_set():
            try:
                with socket.create_connection((url.hostname, url.port), timeout=LONGEST) as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.sendall(beginnings[number % 3].encode())
                    if first:
                        connected.release()
                    first = False
                    while not over.wait(1) and number % 3 < 2:
                        connection.sendall(b"x")
                    over.wait()
            except OSError:
                over.wait(1)

    with ExitStack() as stack:
        stack.callback(over.set)
        for number in range(count):
            threading.Thread(target=client, args=(number,), daemon=True).start()
        for _ in range(count):
            connected.acquire(timeout=LONGEST)
        yield
