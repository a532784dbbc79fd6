"""Deletes expired data, and keeps files and rows consistent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, QuerySet

from captioner import storage
from captioner.jobs.job import UNFINISHED, clock
from captioner.models import (
    Album,
    Caption,
    CaptionQuerySet,
    CaptionRequest,
    Draft,
    DraftRequest,
    Image,
    TextEmbedding,
    WebhookDelivery,
)
from captioner.search import meaning
from captioner.services.idempotency import IDEMPOTENCY

TEXTS_KEPT = timedelta(days=30)
VISITOR_HAS = 100  # captions


def prune(older_than: timedelta | None = None) -> dict[str, int]:
    """Delete finished requests older than this (the setting, if None), images that nothing refers to, expired keys, and
    what people searched for more than a month ago; and the files that could not be deleted with their rows.

    Returns:
        How many `requests` and `images` were deleted.
    """
    keep = (settings.KEEP_RESULTS or None) if older_than is None else older_than
    now = clock("default")
    CaptionRequest.objects.filter(idempotency_key__isnull=False, created_at__lt=now - IDEMPOTENCY).update(
        idempotency_key=None, answer={}
    )
    TextEmbedding.objects.filter(created_at__lt=now - TEXTS_KEPT).delete()
    requests = 0
    if keep is not None:
        corrected = Caption.objects.filter(request=OuterRef("pk"), corrections__isnull=False)
        unfinished = Caption.objects.filter(request=OuterRef("pk"), status__in=UNFINISHED)
        old = CaptionRequest.objects.filter(~Exists(corrected), ~Exists(unfinished), created_at__lt=now - keep)
        while ids := list(old.values_list("pk", flat=True)[:500]):
            requests += len(ids)
            with transaction.atomic():
                lock_captions(Caption.objects.filter(request__in=ids))
                CaptionRequest.objects.filter(pk__in=ids).delete()
        unwritten = Draft.objects.unfinished().filter(request=OuterRef("pk"))
        DraftRequest.objects.filter(~Exists(unwritten), listing=False, created_at__lt=now - keep).delete()
        Album.objects.filter(owner=None, photos=None, created_at__lt=now - keep).delete()  # of visitors long gone
    images = 0
    unused = Image.objects.filter(Image.unreferenced(), created_at__lt=now - timedelta(hours=1))
    while ids := list(unused.values_list("pk", flat=True)[:500]):
        with transaction.atomic():
            images += delete_images(Image.objects.filter(pk__in=ids))
    storage.finish_deletions()
    count_rows()
    return {"requests": requests, "images": images}


def check_storage(older_than: timedelta, *, sweep: bool = False) -> storage.Findings:
    """Find rows without their file, and files without a row that are older than this; `sweep` deletes the latter.

    Raises:
        Refused: it might be an upload's file that is swept, or all files would be.
        OSError: the storage cannot be read. Other storages than folders raise errors of their own.
    """
    return storage.check(older_than, sweep=sweep)


def rebuild_index() -> int:
    """Rebuild the index of photos on this machine, without deleted photos.

    Returns:
        How many photos it has.

    Raises:
        OSError: it cannot be written.
    """
    count_rows()
    return meaning.rebuild()


def lock_captions(captions: CaptionQuerySet) -> None:
    """Lock captions that are about to be deleted, after their drafts, as workers do, and then the webhook deliveries
    that may go with their requests. Call it within a transaction."""
    Draft.objects.filter(caption__in=captions).lock()
    captions.lock()
    WebhookDelivery.objects.filter(request__in=captions.order_by().values("request")).lock()


def lock_captions_of(instance: User, **_: Any) -> None:
    """The same before a user is deleted, wherever that is done."""
    lock_captions(Caption.objects.filter(owner=instance))


def count_rows() -> None:
    """Have SQLite look at how many rows there are of what; until then it guesses which index finds the fewest.

    PostgreSQL does so by itself. SQLite only knows how frequent a value is in the mean, and most captions have no
    visitor. Nobody asks for those; a visitor's own, and the examples, are few (https://sqlite.org/lang_analyze.html on
    changing what was counted).
    """
    if connection.vendor != "sqlite":
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA analysis_limit = 400")  # half a second for 300,000 captions
        cursor.execute("ANALYZE")
        cursor.execute("SELECT idx, stat FROM sqlite_stat1 WHERE idx LIKE 'caption%%of_visitor'")
        for index, counted in cursor.fetchall():
            rows, of_visitor, *rest = counted.split()
            stat = " ".join([rows, str(min(int(of_visitor), VISITOR_HAS)), *rest])
            cursor.execute("UPDATE sqlite_stat1 SET stat = %s WHERE idx = %s", [stat, index])
        cursor.execute("ANALYZE sqlite_schema")


def count_rows_again(plan: Sequence[object] = (), **_: Any) -> None:
    """The same after a `migrate` that applied the migrations of `plan`: where SQLite had to make a table again, as for
    most changes, what it knew of it is lost."""
    if plan:
        count_rows()


def delete_images(images: QuerySet[Image]) -> int:
    """Delete those that nothing refers to; on commit, their files and their rows in this machine's index. Call it
    within a transaction."""
    # Locked first and asked about then: whoever had them locked may have queued captions of them meanwhile.
    locked = Image.lock(images.values_list("pk", flat=True))
    unused = list(Image.objects.filter(Image.unreferenced(), pk__in=locked))
    gone = [image.pk for image in unused]
    Image.objects.filter(pk__in=gone).delete()
    if gone:
        transaction.on_commit(partial(meaning.forget, gone), robust=True)
    storage.discard(str(file.name) for image in unused for file in (image.file, image.thumbnail))
    return len(unused)
