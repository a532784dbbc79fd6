"""The index of photos: broken, foreign, unwritable or behind, and how little of it a search reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from captioner import services
from captioner.errors import Refused
from captioner.models import (
    EVERYBODY,
    Caption,
    Embedding,
    Style,
    Viewer,
    Worker,
)
from captioner.search import meaning
from captioner.search.vectors import VectorFile
from captioner.services import retention
from tests.search.rows import ENCODER, VISITOR, by, direction, known, photo, search

pytestmark = pytest.mark.django_db


def index() -> VectorFile:
    return meaning._index(ENCODER)


def test_a_broken_index_is_made_again(style: Style, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    image = photo(style, "it", direction(0))
    known("dog", direction(0))
    assert by(search("dog")) == {image.pk: ("meaning",)}
    for damaged in (b"", b"garbage" * 1000, index().path.read_bytes()[:5000]):
        index().path.write_bytes(damaged)
        assert by(search("dog")) == {image.pk: ("meaning",)}
    assert "rebuilt" in caplog.text


def test_an_index_of_another_database_is_made_again(style: Style, worker: Worker) -> None:
    with transaction.atomic():
        photo(style, "it", direction(0))
        known("dog", direction(0))
        assert len(search("dog").hits) == 1
        transaction.set_rollback(True)
    image = photo(style, "it", direction(0))
    known("dog", direction(0))
    assert by(search("dog")) == {image.pk: ("meaning",)}
    assert len(index()) == 1


def test_an_index_that_cannot_be_written_leaves_the_words(style: Style, worker: Worker, settings: Any) -> None:
    settings.INDEX.parent.joinpath("a file").write_text("in the way")
    settings.INDEX = settings.INDEX.parent / "a file"
    image = photo(style, "a dog", direction(0))
    known("dog", direction(0))
    found = search("dog")
    assert (by(found), found.meaning) == ({image.pk: ("words",)}, "unavailable")
    with pytest.raises(Refused, match="photo search is not available now"):
        services.similar_images(VISITOR, image.pk)
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("rebuild_index")


def test_a_row_committed_late_is_found(style: Style, worker: Worker) -> None:
    late, early = photo(style, "it", direction(0)), photo(style, "it", direction(0))
    known("dog", direction(0))
    row = Embedding.objects.get(image=late)
    Embedding.objects.filter(pk=row.pk).delete()
    assert set(by(search("dog"))) == {early.pk}
    row.save(force_insert=True)  # under the number it had
    assert set(by(search("dog"))) == {early.pk, late.pk}


def test_photos_that_are_not_in_the_index_yet_are_reported(
    style: Style, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning, "PART", 2)
    monkeypatch.setattr(meaning, "CATCH_UP", -1)
    for _ in range(5):
        photo(style, "it", direction(0))
    known("dog", direction(0))
    assert (search("dog").hits, search("dog").meaning) == ([], "pending")
    monkeypatch.setattr(meaning, "CATCH_UP", 60)
    assert (len(search("dog").hits), search("dog").meaning) == (5, "searched")


def test_the_index_is_rebuilt_by_a_command(style: Style, worker: Worker, settings: Any) -> None:
    gone, kept = photo(style, "it", direction(0)), photo(style, "it", direction(0))
    known("dog", direction(0))
    search("dog")
    (settings.INDEX / "of-another-encoder.vectors").write_bytes(b"?")
    services.delete_caption(VISITOR, gone.captions.get().pk)
    assert len(index()) == 2
    out = io.StringIO()
    call_command("rebuild_index", stdout=out)
    assert "1 photos are in the index" in out.getvalue()
    assert [path.name for path in settings.INDEX.glob("*.vectors")] == [index().path.name]
    assert by(search("dog")) == {kept.pk: ("meaning",)}
    Embedding.objects.all().delete()
    call_command("rebuild_index", stdout=out)
    assert list(settings.INDEX.glob("*.vectors")) == []


@pytest.mark.parametrize("task", [services.prune, services.rebuild_index])
def test_sqlite_knows_how_many_rows_there_are(task: Callable[[], object], style: Style) -> None:
    photo(style, "a dog", None)
    task()
    with connection.cursor() as cursor:
        cursor.execute("SELECT stat FROM sqlite_stat1 WHERE idx = 'caption_words_of_owner'")
        assert cursor.fetchone() is not None


def test_a_viewers_few_photos_are_found_without_going_through_all(
    style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "VISITOR_HAS", 2)
    most, few = (Viewer(get_user_model().objects.create(username=name)) for name in ("most", "few"))
    for number in range(50):
        photo(style, f"dog {number}", None, most)
    mine = photo(style, "a cat", None, few)
    services.prune()
    images = services.visible_images(few)
    assert [image.pk for image in images] == [mine.pk]
    assert "SCAN captioner_image" not in images.explain()
    assert "visitor=?" in Caption.objects.filter(visitor=EVERYBODY, style=style, owner=most.user).order_by().explain()


@pytest.mark.parametrize("sees_all", [False, True])
def test_words_are_looked_for_in_an_index_of_texts_from_the_newest_caption_on(style: Style, sees_all: bool) -> None:
    viewer = Viewer(get_user_model().objects.create(username="ada", is_superuser=sees_all))
    for number in range(50):
        photo(style, f"dog {number}", None, viewer)
    services.prune()
    with CaptureQueriesContext(connection) as asked, connection.cursor() as cursor:
        services.search_images(viewer, "dog")
        scans = [query["sql"] for query in asked if "LIKE" in query["sql"] and "LIMIT 3000" in query["sql"]]
        assert scans
        for sql in scans:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
            plan = str(cursor.fetchall())
            assert "TEMP B-TREE" not in plan
            assert "INDEX caption_words_of_owner" in plan or "INDEX caption_newest_words" in plan or "visitor=?" in plan


def test_vectors_that_cannot_be_compared_leave_the_words(style: Style, worker: Worker) -> None:
    image = photo(style, "a dog", direction(0))
    known("dog", np.ones(3, "<f4"))
    found = search("dog")
    assert (by(found), found.meaning) == ({image.pk: ("words",)}, "unavailable")
