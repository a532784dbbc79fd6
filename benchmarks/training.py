"""`./run bench training`: the memory that a training worker takes for a dataset as large as people have.

A database of its own (SQLite in a temporary folder, or the empty one that `--database` names) gets photos without
files, random embeddings of the shipped encoder's size and five short captions each; then a process of its own does with
them what a training worker does before the first step, and some steps.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.database import add_database, own_database

EACH = 5  # captions a photo
PART = 2_000  # photos written at once
STEPS = 3
WORDS = (
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "cat",
    "train",
    "boat",
    "with",
    "on",
    "near",
    "red",
    "small",
    "beach",
    "waits",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the dataset and print how much memory each phase took at most.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="run bench training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=120_000, metavar="N", help=f"{EACH} captions each")
    add_database(parser)
    options = parser.parse_args(arguments)
    with own_database(options.database):
        for work in (_fill, _train):  # each in a process of its own: what the first one needed is not the second one's
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(work, options.photos).result()
    return 0


def _fill(photos: int) -> None:
    _set_up()
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection

    from captioner.models import Embedding, Image, Style
    from clipcap.encoder import Encoder
    from training.models import Example, is_held_out

    connection.cursor().execute("PRAGMA synchronous = OFF")
    call_command("migrate", verbosity=0)
    encoder = Encoder.load(settings.ENCODER, device="cpu")
    style, random, started = (
        Style.objects.create(slug="large", name="Large"),
        np.random.default_rng(0),
        time.monotonic(),
    )

    def made() -> Iterator[Image]:
        for number in range(photos):
            yield Image(sha256=f"{number:064x}", file="x.jpg", thumbnail="x.jpg", width=1, height=1, size=1)

    rows = made()
    while images := list(islice(rows, PART)):
        vectors = random.standard_normal((len(images), encoder.embedding_size)).astype("<f4")
        Image.objects.bulk_create(images)
        Embedding.objects.bulk_create(
            Embedding(image=image, encoder=encoder.identity, vector=vector.tobytes())
            for image, vector in zip(images, vectors, strict=True)
        )
        Example.objects.bulk_create(
            Example(
                style=style,
                image=image,
                text=" ".join(random.choice(WORDS, 9)) + f" {n}.",
                source=Example.Source.IMPORTED,
                held_out=is_held_out(image),
            )
            for image in images
            for n in range(EACH)
        )
    print(f"{photos:,} photos with {EACH} captions each, written in {time.monotonic() - started:.0f} s", flush=True)


def _train(photos: int) -> None:
    _set_up()
    from captioner.inference.engine import CaptionEngine
    from clipcap.model import ClipCaptionModel
    from clipcap.training import TrainingCanceled, TrainingOptions, new_mapper, train_mapper
    from training.examples import captioned_images, mapper_config
    from training.models import Example

    models = CaptionEngine.load("bench")
    captioner = models.captioner
    _tell("Python, Django and the models loaded")
    training, held_out, _ = captioned_images(models, Example.objects.all(), lambda *_: None)
    _tell("the examples read from the database")
    model = ClipCaptionModel(new_mapper(mapper_config(captioner, "transformer", 10, 4), training, seed=0))
    _tell("a new mapper made")
    with tempfile.TemporaryDirectory() as folder:
        try:
            train_mapper(
                model,
                captioner.language_model,
                captioner.encoder.identity,
                training,
                held_out,
                TrainingOptions(),
                Path(folder),
                lambda progress: progress.step < STEPS,
                on_tokens=lambda done, images: True,
            )
        except TrainingCanceled:
            _tell(f"tokenized, trained for {STEPS} steps, and the state stored")


def _set_up() -> None:
    import django

    django.setup()
    from django.conf import settings

    settings.DEBUG = False  # it remembers queries


def _tell(what: str) -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, now = (int(status[name].split()[0]) // 1024 for name in ("VmHWM", "VmRSS"))
    print(f"{peak:6,} MB at most, {now:6,} MB now: {what}", flush=True)
