"""Lists of the admin: big tables cost no more than small ones."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest
from django.apps import apps
from django.contrib.admin import site
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.admin import base as admin_base
from captioner.admin import dashboard
from captioner.admin import scores as version_scores
from captioner.jobs.job import Status
from captioner.models import (
    CaptionRequest,
    Correction,
    DraftRequest,
    Image,
    MapperVersion,
    Style,
    WebhookDelivery,
    Worker,
)
from tests.admin.rows import make_captions, make_run, make_version, text_of
from tests.captions import finished
from training import services as training_services
from training.models import Import

pytestmark = pytest.mark.django_db


def plans(address: str, client: Client, table: str) -> list[tuple[str, str]]:
    """The page's queries of the table, each with how the database goes about it."""
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address).status_code == 200, address
    found = []
    for query in queries.captured_queries:
        if query["sql"].startswith("SELECT") and f'FROM "{table}"' in query["sql"]:
            with connection.cursor() as cursor:
                cursor.execute("EXPLAIN QUERY PLAN " + query["sql"])
                found.append((query["sql"], "\n".join(row[3] for row in cursor.fetchall())))
    return found


@pytest.mark.parametrize(
    ("table", "filters"),
    [
        ("captioner_image", []),
        ("captioner_caption", ["status__exact=failed", "style__id__exact=1"]),
        ("captioner_correction", []),
        ("captioner_draftrequest", []),
        ("captioner_webhookdelivery", ["status__exact=failed"]),
        ("training_example", ["style__id__exact=1"]),
    ],
)
def test_a_big_list_begins_with_the_newest_rows_and_no_query_of_it_reads_or_sorts_the_others(
    table: str,
    filters: list[str],
    style: Style,
    images: list[Image],
    boss: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_base, "SEARCHED", 1)
    populate(style, images, 2)
    now = timezone.now()
    for request in CaptionRequest.objects.all():
        WebhookDelivery.objects.create(request=request, url="https://example.com/", secret="", deadline_at=now)
    DraftRequest.objects.create(style=style)
    address = reverse(f"admin:{table}_changelist")
    for query, plan in plans(address, boss, table):
        assert "TEMP B-TREE" not in plan, (query, plan)
        assert f"SCAN {table}" not in plan or "LIMIT" in query or "_newest" in plan, (query, plan)
    searched = ["q=dog"] if site._registry[apps.get_model(table.replace("_", "."))].search_fields else []
    for narrowed in (f"created_at__year={now.year}&created_at__month={now.month}", *searched, *filters):
        for query, plan in plans(f"{address}?{narrowed}", boss, table):
            assert "TEMP B-TREE" not in plan, (query, plan)
            ends = "ORDER BY 1 " in query  # the time of the first, the last or the last searched
            assert ends or f"SEARCH {table}" in plan, (query, plan)


def test_corrections_of_a_style_are_found_without_reading_its_captions(
    style: Style, images: list[Image], boss: Client
) -> None:
    populate(style, images, 2)
    address = f"{reverse('admin:captioner_correction_changelist')}?taken=no&style="
    assert "2 corrections" in text_of(boss.get(address + style.slug))
    assert "0 corrections" in text_of(boss.get(address + "factual"))
    for query, plan in plans(address + style.slug, boss, "captioner_correction"):
        assert "caption_by_style" not in plan, (query, plan)
        assert "TEMP B-TREE" not in plan, (query, plan)


def test_captions_are_compared_without_reading_all_of_them(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_scores, "LOOKED_THROUGH", 7)
    make_captions(style, images[:1], 20)
    current, idle = style.version_in_service, make_version(style)
    assert current
    address = f"{reverse('admin:captioner_mapperversion_compare')}?version={current.pk}&version={idle.pk}"
    read = plans(address, boss, "captioner_caption")
    assert len(read) == 2
    for query, plan in read:
        assert "LIMIT 7" in query
        assert "caption_by_version" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_a_long_queue_is_counted_to_a_bound(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_base, "COUNTED", 3)
    make_captions(style, images, 3, status=Status.QUEUED, finished_at=None)
    assert "<b>3</b> queued" in text_of(boss.get(reverse("admin:dashboard")))
    make_captions(style, images, 3, status=Status.QUEUED, finished_at=None)
    with CaptureQueriesContext(connection) as queries:
        assert "<b>3 or more</b> queued" in text_of(boss.get(reverse("admin:dashboard")))
    counts = [q["sql"] for q in queries.captured_queries if "COUNT(" in q["sql"] and "captioner_caption" in q["sql"]]
    assert all("LIMIT 4" in sql for sql in counts)


def test_long_lists_are_counted_and_searched_to_a_bound(
    style: Style, images: list[Image], boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_base, "COUNTED", 60)
    monkeypatch.setattr(admin_base, "SEARCHED", 10)
    make_captions(style, images, 70)
    address = reverse("admin:captioner_caption_changelist")
    with CaptureQueriesContext(connection) as queries:
        page = text_of(boss.get(address))
    assert "More than 60 rows" in page
    counts = [query["sql"] for query in queries.captured_queries if "COUNT(" in query["sql"]]
    assert counts
    assert all("LIMIT 61" in sql for sql in counts)
    assert "11 captions" in text_of(boss.get(address + "?q=dog"))  # the bound's own time may have several rows


def test_dates_are_drilled_down_from_the_first_and_last_row_alone(
    style: Style, images: list[Image], boss: Client
) -> None:
    zone = timezone.get_default_timezone()
    for month, text in ((3, "a march hare"), (5, "may flowers")):
        make_captions(style, images, 1, created_at=datetime(2026, month, 9, tzinfo=zone), text=text)
    make_captions(style, images, 1, created_at=datetime(2025, 12, 31, tzinfo=zone), text="fireworks")
    address = reverse("admin:captioner_caption_changelist")
    with CaptureQueriesContext(connection) as queries:
        page = text_of(boss.get(address))
    assert not [query for query in queries.captured_queries if "DISTINCT" in query["sql"]]
    assert 'href="?created_at__year=2025">2025</a>' in page
    page = text_of(boss.get(address + "?created_at__year=2026&status__exact=succeeded"))
    assert "fireworks" not in page
    assert "status__exact=succeeded&amp;created_at__year=2026&amp;created_at__month=5" in page
    assert "June" not in page
    page = text_of(boss.get(address + "?created_at__year=2026&created_at__month=5"))
    assert "may flowers" in page
    assert "a march hare" not in page
    assert boss.get(address + "?created_at__year=2026&created_at__month=77").status_code in (200, 302)


def populate(style: Style, images: list[Image], count: int) -> None:
    """So much of everything that lists show."""
    captions = make_captions(style, images, count)
    make_captions(style, images, count, status=Status.FAILED, error_code="x", error_detail="lost")
    Correction.objects.bulk_create(Correction(caption=caption, text=f"plan {caption.pk}") for caption in captions)
    old = style.versions.first()
    assert old
    versions = [
        MapperVersion(style=style, number=old.number + 1 + i, file=old.file.name, sha256=old.sha256, origin="trained")
        for i in range(count)
    ]
    for version in MapperVersion.objects.bulk_create(versions):
        services.promote(version=version, reason="next")
        make_run(style, status=Status.FAILED, finished_at=timezone.now(), error_code="x", version=version)
        batch = Import.objects.create(
            style=style, name="zip", status="succeeded", finished_at=timezone.now(), deadline_at=timezone.now()
        )
        training_services.add_example(
            style=style, image=images[0], text=f"dog {uuid.uuid4()}", source="imported", batch=batch
        )
    Worker.objects.bulk_create(Worker(name=str(uuid.uuid4()), queue="captions") for _ in range(count))
    Style.objects.bulk_create(Style(slug=str(uuid.uuid4()), name="another") for _ in range(count))


def test_the_dashboard_counts_the_captions_of_a_day_by_the_hour_and_reads_no_older_ones(
    style: Style, images: list[Image], boss: Client
) -> None:
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for minutes in (-1, -59, -60, -61, -24 * 60):
        finished(images[0], style, created_at=hour + timedelta(minutes=minutes))
    failed = {"status": Status.FAILED, "error_code": "internal_error"}
    finished(images[0], style, created_at=hour - timedelta(minutes=30), **failed)
    finished(images[0], style, created_at=hour, status=Status.CANCELED)
    services.prune()
    cache.clear()
    (plan,) = [plan for sql, plan in plans(reverse("admin:index"), boss, "captioner_caption") if "FILTER" in sql]
    assert "created_at>?" in plan
    counted = [(one.succeeded, one.failed, one.other) for one in dashboard.captions_per_hour()]
    assert counted == [*[(0, 0, 0)] * 21, (1, 0, 0), (3, 1, 0), (0, 0, 1)]


def test_no_list_makes_more_queries_for_more_rows(style: Style, images: list[Image], boss: Client) -> None:
    lists = ["image", "caption", "correction", "mapperversion", "promotion", "style", "worker"]
    addresses = [reverse(f"admin:captioner_{name}_changelist") for name in lists]
    addresses += [reverse(f"admin:training_{name}_changelist") for name in ("trainingrun", "import", "example")]
    addresses += [reverse("admin:dashboard"), reverse("admin:captioner_style_change", args=[style.pk])]
    addresses += [reverse("admin:captioner_image_change", args=[images[0].pk])]

    def queries(address: str) -> int:
        with CaptureQueriesContext(connection) as context:
            assert boss.get(address).status_code == 200, address
        return len(context)

    cache.set("training-rescued", True)  # which pages do every three seconds, and so now and then in between
    populate(style, images, 2)
    for address in addresses:
        boss.get(address)  # what is looked up once and kept
    cache.touch("captions-per-hour", 300)  # is kept for ten seconds, and a busy machine takes longer for what follows
    few = {address: queries(address) for address in addresses}
    populate(style, images, 9)
    assert {address: queries(address) for address in addresses} == few
