"""Canceling many captions at once: those of a request, those that a filter finds, all of one's own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from captioner import services
from captioner.models import Caption, CaptionRequest, Image, Style, Viewer
from tests.people import client_of, program_of

pytestmark = pytest.mark.usefixtures("both_databases")

Ask = Callable[..., CaptionRequest]


@pytest.fixture
def ask(db: None) -> Ask:
    """Queue so many captions in one request, without files."""
    image = Image.objects.create(sha256="0" * 64, file="images/a.jpg", thumbnail="a.jpg", width=1, height=1, size=1)
    for slug in ("factual", "romantic"):
        Style.objects.create(slug=slug, name=slug)

    def ask(user: Any, count: int, style: str = "factual") -> CaptionRequest:
        now = timezone.now()
        request = CaptionRequest.objects.create(owner=user)
        Caption.objects.bulk_create(
            Caption(
                request=request,
                image=image,
                style=Style.objects.get(slug=style),
                owner=user,
                deadline_at=now + timedelta(hours=1),
            )
            for _ in range(count)
        )
        return request

    return ask


@pytest.fixture
def ada(viewer: Viewer) -> APIClient:
    return program_of(viewer.user)


@pytest.fixture
def bob(viewer: Viewer) -> Any:
    return get_user_model().objects.create_user("bob")


def count(**filters: Any) -> int:
    return Caption.objects.filter(**filters).count()


def test_a_request_is_canceled_in_one_call_and_what_is_finished_stays(ada: APIClient, viewer: Viewer, ask: Ask) -> None:
    mine, other = ask(viewer.user, 5), ask(viewer.user, 2)
    done, running = Caption.objects.filter(request=mine).claim("w", 2)
    assert done.succeed(text="done")
    assert ada.post(f"/api/requests/{mine.pk}/cancel/").json() == {"canceled": 4}
    assert not running.succeed(text="too late")
    assert count(request=mine, status="canceled") == 4
    assert count(request=other, status="queued") == 2
    assert ada.post(f"/api/requests/{mine.pk}/cancel/").json() == {"canceled": 0}


def test_all_of_ones_own_are_canceled_in_one_call_and_nobody_elses(
    ada: APIClient, viewer: Viewer, bob: Any, ask: Ask
) -> None:
    ask(viewer.user, 3)
    ask(viewer.user, 3)
    ask(bob, 3)
    ask(None, 3)
    assert ada.post("/api/captions/cancel/").json() == {"canceled": 6}
    assert count(status="queued") == 6


def test_those_that_a_filter_finds_are_canceled_and_no_others(ada: APIClient, viewer: Viewer, ask: Ask) -> None:
    ask(viewer.user, 3, "factual")
    ask(viewer.user, 2, "romantic")
    assert ada.post("/api/captions/cancel/?style=romantic&status=queued").json() == {"canceled": 2}
    assert count(style__slug="romantic", status="canceled") == 2
    assert count(style__slug="factual", status="queued") == 3


@pytest.mark.parametrize("query", ["stile=romantic", "status=queued&owner=2", "page_size=5", "status=perhaps"])
def test_a_misspelt_filter_cancels_nothing(ada: APIClient, viewer: Viewer, ask: Ask, query: str) -> None:
    ask(viewer.user, 2)
    assert ada.post(f"/api/captions/cancel/?{query}").status_code == 422
    assert count(status="queued") == 2


def test_what_belongs_to_others_is_not_canceled_by_its_request(ada: APIClient, bob: Any, ask: Ask) -> None:
    assert ada.post(f"/api/requests/{ask(bob, 2).pk}/cancel/").status_code == 404
    assert count(status="queued") == 2


def test_an_anonymous_program_cancels_its_request_by_its_id_and_nothing_without(ask: Ask) -> None:
    request = ask(None, 2)
    client = APIClient()
    assert client.post("/api/captions/cancel/").json() == {"canceled": 0}
    assert client.post(f"/api/requests/{request.pk}/cancel/").json() == {"canceled": 2}


def test_one_action_of_the_admin_cancels_the_whole_list(ask: Ask, bob: Any) -> None:
    root = get_user_model().objects.create_superuser("root")
    ask(bob, 120)
    client = client_of(root)
    chosen = {"action": "cancel_chosen", "_selected_action": [Caption.objects.first().pk], "select_across": "1"}  # type: ignore[union-attr]
    answer = client.post(reverse("admin:captioner_caption_changelist"), chosen, follow=True)
    assert "120 captions were canceled" in answer.content.decode()
    assert count(status="canceled") == 120


def test_the_gallery_cancels_all_of_ones_own_once_that_is_confirmed(
    client: Client, viewer: Viewer, bob: Any, ask: Ask
) -> None:
    client.force_login(viewer.user)
    assert "Cancel all" not in client.get("/gallery/").content.decode()
    ask(viewer.user, 3, "factual")
    ask(viewer.user, 2, "romantic")
    ask(bob, 4, "romantic")
    page = client.get("/gallery/?style=romantic").content.decode()
    assert "2 of your captions are not finished" in page
    assert 'href="/captions/cancel/?style=romantic"' in page
    for asking in (client.get, client.post):
        assert "Cancel 2 captions?" in asking("/captions/cancel/?style=romantic").content.decode()
    assert count(status="canceled") == 0
    done = client.post("/captions/cancel/?style=romantic", {"confirmed": "yes"}, follow=True)
    assert "2 captions were canceled" in done.content.decode()
    assert count(owner=viewer.user, status="queued") == 3
    client.post("/captions/cancel/", {"confirmed": "yes"})
    assert count(owner=viewer.user, status="canceled") == 5
    assert count(owner=bob, status="queued") == 4
    assert "Nothing to cancel" in client.get("/captions/cancel/").content.decode()


def test_canceling_many_takes_as_many_queries_as_canceling_few(viewer: Viewer, ask: Ask) -> None:
    def queries(many: int) -> int:
        ask(viewer.user, many)
        with CaptureQueriesContext(connection) as captured:
            assert services.cancel_captions(viewer, services.search_captions(viewer, mine=True)) == many
        return len(captured)

    queries(1)  # what the viewer may do is looked up once
    assert queries(3) == queries(300) <= 3


@pytest.mark.parametrize("filters", [{}, {"text": "dog"}])
def test_how_many_can_be_canceled_is_counted_from_an_index(filters: dict[str, Any], viewer: Viewer, ask: Ask) -> None:
    """The gallery does so at each visit, also of somebody who has a hundred thousand finished captions."""
    ask(viewer.user, 3)
    captions = services.search_captions(viewer, **filters, mine=True)
    plan = services.cancelable(viewer, captions).explain()
    if connection.vendor == "sqlite":
        assert "caption_of_owner_by_status (owner_id=? AND status=?)" in plan, plan
    else:  # which of the indexes does depends on how many rows there are
        assert "Seq Scan on captioner_caption " not in plan, plan
