"""`./run bench service`: the whole service under load, against the library called directly in one process.

Real processes: gunicorn, caption workers, SQLite and a broker that is a folder, in a home of their own. Clients upload
photos over HTTP and poll until every caption has ended; then all are counted. The library captions photos from the
same files in batches of the same size, in one process with one thread, before the service starts and after it has
stopped. Throughput is measured at full batches: from the first claim to the last result.
"""

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import urllib3
from PIL import Image, ImageEnhance

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "coco_cc"
MODELS = ROOT / "models" / "base"
BATCH = 32
MANAGE = [sys.executable, "-P", str(ROOT / "manage.py")]
STYLES = 3
PATIENCE = 600.0  # seconds for everything to end
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and print the table.

    Returns:
        0, or 1 if a caption was lost, doubled or did not end.
    """
    options = _parser().parse_args(arguments)
    photos = list(photos_of(-(-options.captions // STYLES)))
    print(
        f"{options.captions} captions, {options.clients} clients, {options.workers} worker(s) of one thread", flush=True
    )
    before = _directly(photos[: options.direct])
    with tempfile.TemporaryDirectory(prefix="clipcap-bench-") as home, service(Path(home), options.workers) as address:
        idle = _idle(address, photos[0], options.single)
        ended = _load(address, photos, options.clients, options.captions)
        memory = _memory(address)
    after = _directly(photos[: options.direct])
    direct = statistics.fmean([before, after])
    started = min(_when(c["started_at"]) for c in ended.values())
    finished = max(_when(c["finished_at"]) for c in ended.values())
    throughput = len(ended) / (finished - started)
    statuses = Counter(c["status"] for c in ended.values())
    print(f"ended: {dict(statuses)}; lost: {options.captions - len(ended)}")
    print(f"library alone, one process: {before:.1f} and {after:.1f} captions/s (before and after)")
    print(f"service: {throughput:.1f} captions/s, {throughput / direct:.2f} of the library")
    print(f"a worker's memory at most: {memory:.0f} MB")
    overhead = sorted(c["timings"]["total_ms"] - c["timings"]["encode_ms"] - c["timings"]["decode_ms"] for c in idle)
    print(
        f"overhead of the queue when idle, {len(idle)} requests one after the other: p50 "
        f"{statistics.median(overhead):.0f} ms, p99 {overhead[int(0.99 * (len(overhead) - 1))]:.0f} ms "
        f"(of a total of p50 {statistics.median(c['timings']['total_ms'] for c in idle):.0f} ms)"
    )
    return 0 if len(ended) == options.captions and set(statuses) == {"succeeded"} else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run bench service", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=2000, metavar="N")
    parser.add_argument("--clients", type=int, default=20, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--single", type=int, default=100, metavar="N", help="requests to the idle service (100)")
    parser.add_argument("--direct", type=int, default=160, metavar="N", help="photos for the library alone (160)")
    return parser


def photos_of(count: int) -> Iterator[bytes]:
    """So many different files: the example photos, a little brighter or darker each time round."""
    paths = sorted(PHOTOS.glob("*.jpg"))
    for number in range(count):
        with Image.open(paths[number % len(paths)]) as image:
            out = io.BytesIO()
            ImageEnhance.Brightness(image.convert("RGB")).enhance(1 + 0.01 * (number // len(paths))).save(out, "JPEG")
            yield out.getvalue()


def _directly(photos: list[bytes]) -> float:
    """Captions a second of the library in this process."""
    import torch

    from clipcap.captioner import Captioner
    from clipcap.encoder import Encoder
    from clipcap.language_model import LanguageModel

    torch.set_num_threads(1)
    captioner = Captioner(
        Encoder.load(f"local-dir:{MODELS / 'encoder'}"), LanguageModel.load(f"local-dir:{MODELS / 'lm'}")
    )
    models = [captioner.load_model(path) for path in sorted((MODELS / "styles").glob("*.safetensors"))]
    captioner.caption(captioner.encoder.encode(photos[:1]), models[:1])  # warm
    rows = [(photo, model) for photo in range(len(photos)) for model in models]
    vectors: dict[int, Any] = {}
    started = time.monotonic()
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        missing = sorted({photo for photo, _ in batch} - vectors.keys())
        if missing:
            vectors |= dict(zip(missing, captioner.encoder.encode([photos[i] for i in missing]), strict=True))
        captioner.caption(torch.stack([vectors[photo] for photo, _ in batch]), [model for _, model in batch])
    return len(rows) / (time.monotonic() - started)


@contextmanager
def service(home: Path, workers: int, **more: str) -> Iterator[str]:
    """The service's address, when its workers are ready; `more` are further variables of its environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = environment_of(home) | more
    for command in (["migrate", "-v0"], ["install_styles"], ["collectstatic", "--noinput", "-v0"]):
        subprocess.run([*MANAGE, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    web = ["-m", "gunicorn", "clipcap_site.wsgi", "--bind", f"127.0.0.1:{port}"]
    processes = [subprocess.Popen([sys.executable, "-P", *web, "--log-level", "warning"], env=environment, cwd=ROOT)]
    for number in range(workers):
        command = [*MANAGE, "worker", "captions", "--name", f"bench-{number}"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: sum(_metrics(address, "clipcap_workers{")) >= workers)
        yield address
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def environment_of(home: Path) -> dict[str, str]:
    """The variables of a service that lives in `home`."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CLIPCAP_HOME": str(home),
        "CLIPCAP_SECRET_KEY": "only for a benchmark, " * 3,
        "CLIPCAP_ALLOWED_HOSTS": "127.0.0.1",
        "CLIPCAP_HTTPS": "0",
        "CLIPCAP_ANONYMOUS": "1",
        "CLIPCAP_BATCH_SIZE": str(BATCH),
        "CLIPCAP_THROTTLE_ANONYMOUS": "1000000/minute",
        "CLIPCAP_WEB_THREADS": "48",
        "CLIPCAP_LOG_LEVEL": "WARNING",
        "DJANGO_SETTINGS_MODULE": "clipcap_site.settings",
    }


def _until(condition: Any) -> None:
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            if condition():
                return
        except (urllib3.exceptions.HTTPError, OSError, KeyError):
            pass
        if time.monotonic() > ends:
            raise TimeoutError("the service did not get ready")
        time.sleep(0.2)


def _metrics(address: str, name: str) -> list[float]:
    text = urllib3.request("GET", f"{address}/api/metrics", retries=False).data.decode()
    return [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)]


def _memory(address: str) -> float:
    """The most that a worker has used, in megabytes."""
    return max(_metrics(address, "clipcap_worker_memory_megabytes"))


def post(pool: urllib3.PoolManager, address: str, photo: bytes, style: str, wait: int) -> Any:
    answer = pool.request(
        "POST",
        f"{address}/api/captions/",
        fields={"image": ("photo.jpg", photo, "image/jpeg"), "style": style},
        headers={"Prefer": f"wait={wait}"} if wait else {},
    )
    if answer.status not in (200, 202):
        raise RuntimeError(f"{answer.status}: {answer.data[:300]!r}")
    return answer.json()


def _idle(address: str, photo: bytes, count: int) -> list[Any]:
    """Finished captions of single requests to a service that has nothing else to do."""
    pool = urllib3.PoolManager()
    return [post(pool, address, photo, "factual", 30)["captions"][0] for _ in range(count)]


def _load(address: str, photos: list[bytes], clients: int, captions: int) -> dict[str, Any]:
    """All captions by id, as they ended; of an id answered twice the program would know."""
    waiting: SimpleQueue[tuple[bytes, str]] = SimpleQueue()
    requests: SimpleQueue[str] = SimpleQueue()
    ended: dict[str, Any] = {}
    lock = threading.Lock()
    whole = captions - len(photos) * (STYLES - 1)  # photos; the last ones get one style less
    for place, photo in enumerate(photos):
        for styles in ("all",) if place < whole else ("factual", "humorous"):
            waiting.put((photo, styles))

    def client() -> None:
        pool = urllib3.PoolManager()
        for photo, styles in _taken_from(waiting):
            requests.put(post(pool, address, photo, styles, 0)["url"])

    def poll() -> None:
        pool = urllib3.PoolManager()
        for url in _taken_from(requests):
            made = pool.request("GET", url if url.startswith("http") else address + url).json()
            if any(c["status"] in ("queued", "running") for c in made["captions"]):
                requests.put(url)
                time.sleep(0.2)
                continue
            with lock:
                for caption in made["captions"]:
                    if caption["id"] in ended:
                        raise RuntimeError(f"doubled: {json.dumps(caption)}")
                    ended[caption["id"]] = caption

    for work in (client, poll):
        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    return ended


def _taken_from(queue: SimpleQueue[T]) -> Iterator[T]:
    """What it holds until it is empty; several threads may take from one."""
    with suppress(Empty):
        while True:
            yield queue.get_nowait()


def _when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
