"""`./run bench search`: finding photos among 100,000, by words and by what they show.

A database of its own is filled (SQLite in a temporary folder, or the empty one that `--database` names): photos with a
caption in each of three styles and made-up embeddings in clusters, 99 of 100 of them one user's. Then a process that
has loaded what a web process loads asks the API, as that user, as one with the other photos and as an administrator
who sees all; no worker is needed, since what the texts mean is in the database already.
"""

import argparse
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZE, CLUSTERS, PART = 512, 300, 2_000
TEXTS = {"dog": "in a sixth of the captions", "zebra": "in one of 5,000", "xylophone": "in none"}
KINDS = ("dog", "street", "house", "beach", "table", "child", "tree", "river", "car", "bird", "person")
ENCODER = "made up"
PEOPLE = ("most", "few", "admin")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the database, ask, and print how long it takes.

    Returns:
        0, or 1 if a search was not answered.
    """
    from benchmarks.database import add_database, settings_of  # its package loads torch, as said below

    parser = argparse.ArgumentParser(prog="run bench search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=100_000, metavar="N")
    parser.add_argument("--searches", type=int, default=100, metavar="N", help="of each kind (100)")
    add_database(parser)
    parser.add_argument(
        "--home", default="", metavar="FOLDER", help="keep the database there; one that is there is used"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="clipcap-bench-") as folder:
        home = Path(options.home or folder).resolve()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings_of(str(home), options.database)}
        here = [sys.executable, "-P", __file__]  # not as a module: its package loads torch, which no web process does
        steps = [] if (home / "index").exists() else [["fill", str(options.photos)]]
        for step in [*steps, ["ask", str(options.searches)]]:
            code = subprocess.run([*here, *step], env=environment, check=False).returncode
            if code:
                return code
    return 0


def _fill(count: int) -> int:
    import numpy as np
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.utils import timezone

    from captioner.models import Caption, CaptionRequest, Embedding, Image, Style, TextEmbedding, Worker

    call_command("migrate", verbosity=0)
    most, few, _ = (get_user_model().objects.create(username=name, is_superuser=name == "admin") for name in PEOPLE)
    styles = [Style.objects.create(slug=slug, name=slug) for slug in ("factual", "humorous", "romantic")]
    requests = {person: CaptionRequest.objects.create(owner=person) for person in (most, few)}
    draw, numbers, now = random.Random(0), np.random.default_rng(0), timezone.now()
    centres = numbers.normal(size=(CLUSTERS, SIZE))
    started = time.monotonic()
    for first in range(0, count, PART):
        images, captions, embeddings = [], [], []
        for number in range(first, min(count, first + PART)):
            at = now - timedelta(minutes=count - number)
            image = Image(
                sha256=f"{number:064x}", width=640, height=480, size=9, file="a", thumbnail="b", created_at=at
            )
            owner = few if number % 100 == 0 else most
            images.append(image)
            for style in styles:
                rare = " and a zebra" if number % 5_000 == 7 else ""
                captions.append(
                    Caption(
                        request=requests[owner],
                        owner=owner,
                        image=image,
                        style=style,
                        status="succeeded",
                        text=f"A {draw.choice(KINDS)} near a {draw.choice(KINDS)}{rare} in a picture, seen from afar.",
                        options={"method": "beam", "captions": 3, "beam_size": 5, "max_length": 40},
                        alternatives=[{"text": "Another caption that was less likely.", "confidence": -1.0}] * 2,
                        created_at=at,
                        rank_at=at,
                        deadline_at=at,
                        started_at=at,
                        finished_at=at,
                    )
                )
            vector = centres[number % CLUSTERS] + numbers.normal(size=SIZE)
            embeddings.append(Embedding(image=image, encoder=ENCODER, vector=vector.astype("<f4").tobytes()))
        Image.objects.bulk_create(images)
        Caption.objects.bulk_create(captions)
        Embedding.objects.bulk_create(embeddings)
    for text, centre in zip(TEXTS, centres, strict=False):
        vector = (centre + numbers.normal(size=SIZE)).astype("<f4").tobytes()
        TextEmbedding.objects.create(
            encoder=ENCODER, text=text, vector=vector, status="succeeded", deadline_at=now, finished_at=now
        )
    Worker.objects.create(
        name="made up",
        queue="captions",
        models_loaded=ENCODER,
        encoder=ENCODER,
        text_encoder=ENCODER,
        seen_at=now + timedelta(days=1),
    )
    print(f"{time.monotonic() - started:9.1f} s  {count:,} photos with three captions each written", flush=True)
    started = time.monotonic()
    call_command("rebuild_index", stdout=io.StringIO())
    print(f"{time.monotonic() - started:9.1f} s  rebuild_index", flush=True)
    return 0


def _ask(times: int) -> int:
    import numpy as np  # not before what a web process loads, which sets it up
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.test import Client

    from captioner.models import Image

    call_command("migrate", verbosity=0)  # a kept database may be an earlier release's
    settings.ALLOWED_HOSTS = ["testserver"]
    before = _memory()
    ok = True
    for name in PEOPLE:
        client = Client(raise_request_exception=False)
        client.force_login(get_user_model().objects.get(username=name))
        mine = Image.objects.filter(captions__owner__username="few" if name == "few" else "most")
        for what, path in (
            ("the gallery's first page", "/gallery/"),
            *((f"a word {where}", f"/api/images/?q={text}") for text, where in TEXTS.items()),
            ("in the gallery, of one style", "/gallery/?q=zebra&style=romantic"),
            ("similar photos", f"/api/images/{mine.values_list('pk', flat=True)[0]}/similar/"),
        ):
            client.get(path)
            taken, worked = [], []
            for _ in range(times):
                started, began = time.perf_counter(), time.process_time()
                answer = client.get(path)
                taken.append(time.perf_counter() - started)
                worked.append(time.process_time() - began)
                ok = ok and answer.status_code == 200
            p50, p95 = np.quantile(taken, [0.5, 0.95])
            print(
                f"{p50:9.3f} s p50 {p95:.3f} s p95 ({np.quantile(worked, 0.95):.3f} s of the processor)  "
                f"{name}: {what}",
                flush=True,
            )
    print(f"memory at most: {before} MB before, {_memory()} MB after; torch loaded: {'torch' in sys.modules}")
    return 0 if ok else 1


def _memory() -> int:
    """Megabytes at most since the process began; `getrusage` would count those of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    from clipcap_site import wsgi  # noqa: F401 (all that a web process loads, as it loads it)

    sys.exit({"fill": _fill, "ask": _ask}[sys.argv[1]](int(sys.argv[2])))
