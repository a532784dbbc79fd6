"""Whoever locks many rows does so in the order of their keys: on PostgreSQL, two who cross would end in a deadlock."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import Model
from django.utils import timezone

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import Caption, CaptionRequest, Draft, DraftRequest, Image, MapperVersion, Style, Viewer
from captioner.models import WebhookDelivery as Delivery
from captioner.uploads import store
from tests.servers import PostgreSQL, default_database, wait_until

pytestmark = pytest.mark.usefixtures("database")
HOUR = timedelta(hours=1)
KEYS = [uuid.UUID(int=number) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def site(django_db_blocker: Any) -> Iterator[None]:
    with PostgreSQL() as server, django_db_blocker.unblock(), default_database(server.create_site("clipcap")):
        yield


@pytest.fixture
def database(site: None) -> Iterator[None]:
    """PostgreSQL, empty again afterwards."""
    yield
    call_command("flush", verbosity=0, interactive=False)


def jobs(owner: Any = None, **values: Any) -> list[Caption]:
    """Three captions, each in a request of its own with a webhook. In the table, that of the highest key is first."""
    image = Image.objects.create(sha256="0" * 64, file="images/a.jpg", thumbnail="a.jpg", width=1, height=1, size=1)
    style, now = Style.objects.create(slug="factual", name="Factual"), timezone.now()
    common = {"deadline_at": now + HOUR, "created_at": now} | values
    for key in reversed(KEYS):
        request = CaptionRequest.objects.create(owner=owner, created_at=common["created_at"])
        Caption.objects.create(pk=key, request=request, image=image, style=style, owner=owner, **common)
        Delivery.objects.create(pk=key, request=request, url="https://example.org/", deadline_at=now + HOUR)
    return list(Caption.objects.order_by("pk"))


def drafts() -> DraftRequest:
    """Three drafts in a comparison."""
    jobs()
    request, style = DraftRequest.objects.create(), Style.objects.get()
    version = MapperVersion.objects.create(style=style, number=1, config={}, file="a.safetensors", sha256="1" * 64)
    for key in reversed(KEYS):
        Draft.objects.create(
            pk=key, request=request, image=Image.objects.get(), version=version, deadline_at=timezone.now() + HOUR
        )
    return request


def crossed(model: type[Model], act: Callable[[], object]) -> Any:
    """What `act` returns while somebody else has locked the first row and then locks the others.

    They have to be free: who waits for the first may not hold them already.
    """
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(act())
        except Exception as error:
            results.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    try:
        with transaction.atomic():
            rows = model._base_manager.select_for_update(nowait=True)
            rows.get(pk=KEYS[0])
            thread.start()
            wait_until(lambda: results or _somebody_waits(), "the other waits for the first row")
            assert not results, results
            assert len(rows.filter(pk__in=KEYS[1:])) == 2
    finally:
        thread.join()
    return results[0]


def _somebody_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def test_canceling_many() -> None:
    root = get_user_model().objects.create_superuser("root")
    jobs()
    assert crossed(Caption, lambda: services.cancel_captions(Viewer(root), Caption.objects.all())) == 3


def test_a_heartbeat_and_a_batch_that_is_handed_back() -> None:
    jobs()
    token = Caption.objects.claim("w", 3)[0].lease_token
    assert token
    assert crossed(Caption, lambda: Caption.objects.renew(token)) == 3
    assert crossed(Caption, lambda: Caption.objects.hand_back(token)) == 3


def test_ending_what_missed_its_deadline() -> None:
    jobs(deadline_at=timezone.now() - HOUR)
    assert crossed(Caption, lambda: Caption.objects.reap()) == 3


def finished(owner: Any = None) -> None:
    now = timezone.now()
    jobs(owner, status="succeeded", finished_at=now, created_at=now - 2 * HOUR)


@pytest.mark.parametrize("model", [Caption, Delivery])
def test_deleting_what_is_old(model: type[Model]) -> None:
    finished()
    assert crossed(model, lambda: services.prune(HOUR))["requests"] == 3


@pytest.mark.parametrize("model", [Caption, Delivery])
def test_deleting_a_user_with_captions(model: type[Model]) -> None:
    ada = get_user_model().objects.create_user("ada")
    finished(ada)
    assert crossed(model, lambda: ada.delete()[0]) >= 3
    assert not Caption.objects.exists()


@pytest.mark.parametrize("model", [Caption, Delivery])
def test_deleting_a_photo_with_captions(model: type[Model]) -> None:
    root, photo = Viewer(get_user_model().objects.create_superuser("root")), jobs()[0].image_id
    assert crossed(model, lambda: services.delete_image(root, photo, "a test")) is None
    assert not Image.objects.exists()


def test_canceling_drafts() -> None:
    request = drafts()
    assert crossed(Draft, lambda: services.cancel_drafts(request)) == 3


def test_sending_webhooks_again() -> None:
    finished()
    assert crossed(Delivery, lambda: services.redeliver_all(Delivery.objects.all())) == 3


def test_a_worker_that_records_a_batch(
    engine: CaptionEngine, media: Any, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_command("install_styles", verbosity=0)
    image, style, now = store(photo, "user 1"), Style.objects.get(slug="factual"), timezone.now()
    for turn, key in enumerate(reversed(KEYS)):  # claimed, and decoded, in this order
        request = CaptionRequest.objects.create()
        Caption.objects.create(
            pk=key, request=request, image=image, style=style, turn=turn, deadline_at=now + HOUR, options={}
        )
    decode, claimed, locked = engine.captioner.caption, threading.Event(), threading.Event()

    def caption(*arguments: Any) -> Any:
        written = decode(*arguments)
        claimed.set()
        assert locked.wait(300)
        return written

    monkeypatch.setattr(engine.captioner, "caption", caption)

    def run() -> None:
        engine.work()
        connection.close()

    work = threading.Thread(target=run)
    work.start()
    assert claimed.wait(300)
    with transaction.atomic():
        rows = Caption.objects.select_for_update(nowait=True)
        rows.get(pk=KEYS[0])
        locked.set()
        wait_until(_somebody_waits, "the worker waits for the first row")
        assert len(rows.filter(pk__in=KEYS[1:])) == 2
    work.join()
    assert Caption.objects.filter(status="succeeded").count() == 3
