"""`./run bench large`: the admin's and API's lists, and imports, with as many rows as a busy installation gathers.

A database of its own is filled (SQLite in a temporary folder, or the empty one that `--database` names) and its pages
are asked for in this process, as an administrator would; the slowest of three times counts. Pictures are few and
shared, since lists show one page of them at a time, however many there are.
"""

import argparse
import io
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.database import add_database, own_database

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "coco_cc"
PART = 5_000  # rows written at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the database and print what takes how long.

    Returns:
        0, or 1 if a page was not answered or an import did not succeed.
    """
    parser = argparse.ArgumentParser(prog="run bench large", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--examples", type=int, default=100_000, metavar="N", help="five an image")
    add_database(parser)
    options = parser.parse_args(arguments)
    with own_database(options.database):
        import django

        django.setup()
        from django.conf import settings
        from django.core.management import call_command

        settings.ALLOWED_HOSTS = ["testserver"]
        settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
        call_command("migrate", verbosity=0)
        call_command("install_styles", stdout=io.StringIO())
        _timed(f"{options.captions:,} captions written", lambda: _fill_captions(options.captions))
        imported = _timed(
            f"{options.examples:,} examples imported (JSONL, stored images)", lambda: _import(options.examples)
        )
        answered = [_page(path) for path in _pages()]
        print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    return 0 if imported and all(answered) else 1


def _timed(what: str, action: Callable[[], Any]) -> Any:
    started = time.monotonic()
    answer = action()
    print(f"{time.monotonic() - started:9.2f} s  {what}", flush=True)
    return answer


def _fill_captions(count: int) -> None:
    """Captions over two years: most succeeded, one in a thousand failed, one in five hundred corrected."""
    from django.utils import timezone

    from captioner import uploads
    from captioner.jobs.job import queued_at
    from captioner.models import Caption, CaptionRequest, Correction, Style

    images = [uploads.store(path.read_bytes()) for path in sorted(PHOTOS.glob("*.jpg"))]
    styles = list(Style.objects.all())
    versions = {style.pk: style.version_in_service for style in styles}
    now, request = timezone.now(), CaptionRequest.objects.create()

    def rows() -> Iterator[Caption]:
        for number in range(count):
            style = styles[number % len(styles)]
            failed = number % 1000 == 7
            at = now - timedelta(days=730) * (1 - number / count)
            yield Caption(
                request=request,
                image=images[number % len(images)],
                style=style,
                version=None if failed else versions[style.pk],
                status="failed" if failed else "succeeded",
                error_code="internal_error" if failed else "",
                text="" if failed else f"A man with {number} dogs walks along the beach.",
                confidence=None if failed else number % 100 / 100,
                log_probability=None if failed else -1.0,
                started_at=at,
                finished_at=at + timedelta(seconds=2),
                encode_ms=20.0,
                decode_ms=80.0,
                **queued_at(at, at + timedelta(hours=1)),
            )

    for part in _parts(rows()):
        Caption.objects.bulk_create(part)
        Correction.objects.bulk_create(
            Correction(caption=caption, text=f"{caption.text} It rains.", created_at=caption.finished_at)
            for caption in part[::500]
            if caption.text
        )


def _import(count: int) -> bool:
    """Import that many captions of stored images, by the function that the training worker calls."""
    from django.core.files.base import ContentFile

    from captioner.models import Image, Style
    from training import services
    from training.datasets.importer import run_import

    pictures = list(Image.objects.all())
    for part in _parts(_copies(pictures, -(-count // 5))):
        Image.objects.bulk_create(part)
    digests = list(Image.objects.values_list("sha256", flat=True)[: -(-count // 5)])
    lines = (
        json.dumps({"image": digests[number % len(digests)], "caption": f"A dog with {number % 7919} red balls runs."})
        for number in range(count)
    )
    style = Style.objects.get(slug="romantic")
    file = ContentFile("\n".join(lines).encode())
    batch = services.start_import(style=style, file=file, name="large.jsonl", holder="benchmark")
    run_import(batch, lambda: False)
    batch.refresh_from_db()
    print(
        f"             {batch.status}: {batch.accepted:,} new, {batch.rejected.count():,} rejected {batch.error_detail}"
    )
    return batch.accepted == count


def _copies(pictures: list[Any], count: int) -> Iterator[Any]:
    """As many rows of images as asked for, which share the files of a few."""
    from captioner.models import Image

    for number in range(count - len(pictures)):
        picture = pictures[number % len(pictures)]
        yield Image(
            sha256=f"{number:064x}",
            file=picture.file.name,
            thumbnail=picture.thumbnail.name,
            width=picture.width,
            height=picture.height,
            size=picture.size,
        )


def _parts(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(rows, PART)):
        yield part


def _pages() -> Iterator[str]:
    from captioner.admin.base import COUNTED
    from captioner.models import Caption, Style

    styles = {style.slug: style.pk for style in Style.objects.all()}
    captions, examples = "/admin/captioner/caption/", "/admin/training/example/"
    yield "/admin/"
    last = -(-min(Caption.objects.count(), COUNTED) // 50)
    yield from (f"{captions}{query}" for query in ("", f"?p={last}", "?status__exact=failed", "?status__exact=running"))
    yield f"{captions}?style__id__exact={styles['humorous']}"
    yield f"{captions}?q=777+dogs"
    yield f"{captions}?created_at__year=2025&created_at__month=12"
    yield f"{captions}{Caption.objects.order_by('created_at').values_list('pk', flat=True)[0]}/change/"
    yield "/admin/captioner/image/"
    yield "/admin/captioner/correction/"
    yield "/admin/captioner/correction/?taken=no&style=humorous"
    yield "/admin/captioner/correction/?q=rains"
    yield from (f"{examples}{query}" for query in ("", "?source__exact=correction", "?held_out__exact=1", "?q=7918"))
    yield f"{examples}?style__id__exact={styles['humorous']}"
    yield f"{examples}?source__exact=stored&held_out__exact=1&style__id__exact={styles['romantic']}"
    yield f"/admin/captioner/style/{styles['romantic']}/change/"
    yield f"/admin/captioner/style/{styles['romantic']}/dataset/"
    yield f"/admin/captioner/style/{styles['romantic']}/retrain/"
    yield f"/admin/captioner/style/{styles['romantic']}/rewrite/"
    yield "/api/captions/?status=failed&style=romantic"


def _page(path: str) -> bool:
    from django.contrib.auth import get_user_model
    from django.test import Client

    person, _ = get_user_model().objects.get_or_create(username="admin", is_staff=True, is_superuser=True)
    client = Client(raise_request_exception=False)
    client.force_login(person)
    times: list[float] = []
    for _ in range(3):
        started = time.monotonic()
        answer = client.get(path)
        times.append(time.monotonic() - started)
    print(f"{max(times):9.3f} s  {answer.status_code} {path}", flush=True)
    return bool(answer.status_code == 200)
