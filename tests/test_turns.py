"""Whose turn it is: however many captions one person has queued, another's come next. On both databases."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.db.models import QuerySet
from django.test import Client, RequestFactory
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from captioner import services
from captioner.errors import Refused
from captioner.http.viewer import viewer_of
from captioner.jobs.job import Status, queued_at
from captioner.models import Caption, CaptionRequest, Image, Style, Viewer
from captioner.services import turns
from tests.servers import PostgreSQL, default_database

LATER = timedelta(hours=1)
MANY = 3000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any, tables: Path
) -> Iterator[str]:
    """A database of its own with an image, a style and a request."""
    with django_db_blocker.unblock():
        if request.param == "sqlite":
            with default_database(f"sqlite:///{shutil.copy(tables, tmp_path_factory.mktemp('turns'))}"):
                yield from _filled(request.param)
        else:
            with PostgreSQL() as server, default_database(server.create_site("clipcap")):
                yield from _filled(request.param)


def _filled(name: str) -> Iterator[str]:
    Image.objects.create(sha256="0" * 64, file="images/a.jpg", thumbnail="a.jpg", width=1, height=1, size=1)
    Style.objects.create(slug="factual", name="Factual", is_default=True)
    CaptionRequest.objects.create()
    yield name


@pytest.fixture
def queue(database: str) -> str:
    """An empty queue."""
    Caption.objects.all().delete()
    return database


def ask(flow: str, count: int = 1, *, bulk: bool = False) -> list[Caption]:
    """So many queued captions of a flow."""
    image, style, request = Image.objects.get(), Style.objects.get(), CaptionRequest.objects.get()
    now = timezone.now()
    times = queued_at(now, now + LATER)
    with transaction.atomic():
        return Caption.objects.bulk_create(
            Caption(request=request, image=image, style=style, flow=flow, bulk=bulk, turn=turn, **times)
            for turn in turns.take(flow, count, bulk=bulk)
        )


def claim(limit: int = 1) -> list[str]:
    """Whose captions a worker claims next, in this order."""
    return [row.flow for row in Caption.objects.claim("w", limit)]


def work(limit: int) -> list[str]:
    """The same, and they are finished."""
    rows = Caption.objects.claim("w", limit)
    for row in rows:
        assert row.succeed(text="a caption")
    return [row.flow for row in rows]


def test_one_caption_does_not_wait_for_the_many_of_somebody_else(queue: str) -> None:
    ask("ada", 67)
    assert claim(4) == ["ada"] * 4
    ask("bob")
    assert "bob" in claim(2)


def test_the_captions_of_two_alternate_whoever_came_first(queue: str) -> None:
    ask("ada", 10)
    claim()
    ask("bob", 5)
    assert sorted(claim(8)) == ["ada"] * 4 + ["bob"] * 4
    assert "bob" in claim(2)
    assert set(claim(8)) == {"ada"}


def test_who_was_served_alone_for_long_is_not_behind_for_it(queue: str) -> None:
    ask("ada", 50)
    assert work(40) == ["ada"] * 40
    ask("bob", 10)
    ask("ada", 10)
    assert sorted(work(8)) == ["ada"] * 4 + ["bob"] * 4


def test_asking_often_for_a_few_gains_nothing_over_asking_once_for_many(queue: str) -> None:
    ask("ada", 8)
    for _ in range(8):
        ask("bob")
    assert sorted(claim(8)) == ["ada"] * 4 + ["bob"] * 4


def test_bulk_stands_behind_all_else_of_its_owner_lets_others_pass_and_does_not_starve(queue: str) -> None:
    ask("ada", 3)
    bulk = ask("ada", 50, bulk=True)
    assert work(3) == ["ada"] * 3
    assert not Caption.objects.filter(pk__in=[row.pk for row in bulk]).exclude(status=Status.QUEUED).exists()
    (mine,) = ask("ada")
    ask("bob", 100)
    first = Caption.objects.claim("w", 1 + turns.BULK_COST)
    assert mine in first
    assert sum(row.bulk for row in first) <= 1
    served = first + Caption.objects.claim("w", 2 * turns.BULK_COST)
    assert sum(row.bulk for row in served) >= 2, "bulk has its turns too"


def test_what_is_tried_again_takes_a_new_turn(queue: str) -> None:
    (failed, *_) = ask("ada", 5)
    (row,) = Caption.objects.claim("w", 1)
    assert row == failed
    assert row.fail("because", "of something")
    services.retry_caption(Viewer(), failed.pk)
    assert [Caption.objects.claim("w", 1)[0].pk for _ in range(5)][-1] == failed.pk


def test_what_a_lost_worker_held_keeps_its_turn(queue: str) -> None:
    ask("ada", 3)
    (row,) = Caption.objects.claim("w", 1)
    assert row.lease_token
    Caption.objects.hand_back(row.lease_token)
    assert Caption.objects.claim("w", 1) == [row]


def test_the_claim_and_the_turns_are_read_from_indexes(queue: str) -> None:
    """With thousands of rows queued, none of these queries sorts or goes through them."""
    ask("ada", MANY)
    ask("bob", 3)
    Caption.objects.claim("w", 32)
    if queue == "postgresql":  # which does so by itself, from time to time
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    plans: dict[QuerySet[Any, Any], str] = {
        Caption.objects.ready(timezone.now())[:32]: "caption_turns",
        # Of workers of several base models, where a style was left out (captioner.inference.belonging).
        Caption.objects.exclude(style__in=[0]).ready(timezone.now())[:32]: "caption_turns",
        Caption.objects.filter(style__in=[Style.objects.get().pk]).ready(timezone.now())[:32]: "caption_turns",
        Caption.objects.filter(status=Status.RUNNING).order_by("-turn")[:1]: "caption_turns",
        turns._queued("bob"): "caption_flows",
    }
    for rows, index in plans.items():
        plan = rows.explain()
        assert index in plan, plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan
        assert "Seq Scan on captioner_caption" not in plan


def test_nobody_has_more_than_so_many_queued(queue: str, settings: Any) -> None:
    settings.MAX_QUEUED = 5
    ask("ada", 3)
    with pytest.raises(Refused, match="3 of your captions are queued, and the limit is 5") as refused:
        ask("ada", 3)
    assert (refused.value.status, refused.value.code) == (429, "too_many_queued")
    ask("bob", 5)
    ask("ada", 2)
    work(3)
    ask("ada", 1)


def test_two_calls_at_once_do_not_share_turns(queue: str, django_db_blocker: Any) -> None:
    """Each waits until the other's captions are there: turns are a flow's one by one."""
    barrier = threading.Barrier(4)

    def call() -> None:
        with django_db_blocker.unblock():
            try:
                barrier.wait()
                ask("ada", 5)
            finally:
                connection.close()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = sorted(Caption.objects.values_list("turn", flat=True))
    assert len(given) == len(set(given)) == 20


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.integers(0, 40),
    served=st.integers(0, 40),
    after=st.integers(1, 10),
    others=st.integers(0, 3),
)
def test_whoever_has_nothing_queued_waits_for_two_captions_of_each_other_at_most(
    queue: str, before: int, served: int, after: int, others: int
) -> None:
    Caption.objects.all().delete()
    flows = [f"flow {number}" for number in range(others)]
    for flow in flows:
        ask(flow, before) if before else None
    if served:
        claim(served)
    ask("late", after)
    following = claim(1000)
    assert following.count("late") == after
    assert following.index("late") <= 2 * others
    for nth in range(after):  # and then for one of each between any two of theirs
        place = [place for place, flow in enumerate(following) if flow == "late"][nth]
        assert place <= nth + others * (nth + 2)


def test_a_browser_that_forgets_who_it_was_gains_no_turns(viewer: Viewer) -> None:
    def flow(address: str, **session: str) -> str:
        request = RequestFactory(REMOTE_ADDR=address).get("/")
        request.user, request.session = AnonymousUser(), session  # type: ignore[assignment]
        return viewer_of(request).flow

    assert flow("192.0.2.1", visitor="one") == flow("192.0.2.1", visitor="two") == flow("192.0.2.1")
    assert flow("192.0.2.1") != flow("192.0.2.2")
    assert flow("2001:db8:0:1::1") == flow("2001:db8:0:1:ffff::2") != flow("2001:db8:0:2::1"), "one network"
    assert "192" not in flow("192.0.2.1"), "what is kept does not tell the address"
    assert viewer.flow == f"user:{viewer.user.pk}"


def test_the_api_answers_when_there_may_be_room(styles: dict[str, Style], photo: bytes, settings: Any) -> None:
    settings.MAX_QUEUED = 2

    def post() -> Any:
        return Client().post("/api/captions/", {"image": SimpleUploadedFile("a.jpg", photo, "image/jpeg")})

    assert [post().status_code for _ in range(2)] == [202, 202]
    answer = post()
    assert answer.status_code == 429
    assert answer["Retry-After"] == str(turns.ROOM_AFTER)
    assert answer.json()["code"] == "too_many_queued"
    assert Caption.objects.count() == 2
