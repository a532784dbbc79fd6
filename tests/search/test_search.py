"""Photos found by words and by what they show: what is found, by what, and by whom it may be."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from captioner import services
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import MAX_ATTEMPTS
from captioner.models import EVERYBODY, Caption, Embedding, Image, Style, TextEmbedding, Viewer, Worker
from captioner.services.search import MOST_FOUND
from captioner.workers.breaker import STRIKES, Breaker
from tests.engine_thread import heard_from
from tests.search.rows import PHOTOS, VISITOR, by, crowd, direction, known, photo, search

pytestmark = pytest.mark.django_db


# What is found


def test_photos_are_found_by_words_and_by_what_they_show_and_both_come_first(style: Style, worker: Worker) -> None:
    crowd(style)
    worded = photo(style, "a dog's bowl", direction(5))
    shown = photo(style, "a puppy runs", direction(0, noise=0.05))
    both = photo(style, "the dog barks", direction(0, noise=0.05, seed=1))
    known("dog", direction(0))
    found = search("Dog")
    assert (found.meaning, found.detail) == ("searched", "")
    assert found.hits[0].image == both.pk
    assert by(found) == {both.pk: ("words", "meaning"), shown.pk: ("meaning",), worded.pk: ("words",)}


def test_the_nearest_come_first(style: Style, worker: Worker) -> None:
    crowd(style)
    far, near, nearest = (photo(style, "it", direction(0, noise=noise, seed=3)) for noise in (0.3, 0.2, 0.1))
    known("a dog", direction(0))
    assert [hit.image for hit in search("a dog").hits] == [nearest.pk, near.pk, far.pk]


def test_what_no_photo_shows_finds_next_to_none(style: Style, worker: Worker) -> None:
    crowd(style, 200)
    known("nonsense", direction(1, 2, 3, noise=0.3, seed=9))
    assert len(search("nonsense").hits) <= 5


def test_the_only_photo_is_found(style: Style, worker: Worker) -> None:
    only = photo(style, "it", direction(0))
    known("a dog", direction(0))
    assert by(search("a dog")) == {only.pk: ("meaning",)}


def test_a_photo_that_no_worker_has_looked_at_is_found_by_words(style: Style, worker: Worker) -> None:
    image = photo(style, "a dog", None)
    known("a dog", direction(0))
    assert by(search("a dog")) == {image.pk: ("words",)}


def test_every_word_has_to_be_there_in_the_machines_text_or_in_a_persons(style: Style, worker: Worker) -> None:
    corrected = photo(style, "a man walks", None)
    services.correct_caption(VISITOR, corrected.captions.get().pk, "Grandpa on the beach")
    photo(style, "a man swims", None)
    assert by(search("man BEACH")) == {corrected.pk: ("words",)}


def test_a_photo_beyond_the_newest_with_a_word_is_found_by_it_if_it_shows_it_too(
    style: Style, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd(style)
    shown = photo(style, "the dog barks", direction(0, noise=0.05))
    newest = photo(style, "a dog's bowl", direction(5))
    known("dog", direction(0))
    expected = {newest.pk: ("words",), shown.pk: ("words", "meaning")}
    search("dog")  # the index is fed
    with CaptureQueriesContext(connection) as once:
        assert by(search("dog")) == expected
    monkeypatch.setitem(MOST_FOUND, "words", 1)
    with CaptureQueriesContext(connection) as twice:
        assert by(search("dog")) == expected
    assert len(twice) == len(once) + 1, "words are looked for again only where not all photos with them were found"


def test_filters_hold_for_both_ways(style: Style, worker: Worker) -> None:
    other = Style.objects.create(slug="other", name="Other")
    photo(style, "a dog", direction(0))
    worded, shown = photo(other, "a dog", direction(4)), photo(other, "it", direction(0))
    crowd(style)
    known("dog", direction(0))
    assert by(search("dog", style="other")) == {worded.pk: ("words",), shown.pk: ("meaning",)}
    assert search("dog", status="failed").hits == []


def test_only_embeddings_of_the_workers_encoder_count(style: Style, worker: Worker) -> None:
    image = photo(style, "it", direction(0))
    known("dog", direction(0))
    assert len(search("dog").hits) == 1
    Embedding.objects.filter(image=image).update(encoder="other eyes")
    Worker.objects.update(encoder="other eyes")
    assert len(search("dog").hits) == 1
    Worker.objects.update(encoder="yet others")
    assert search("dog").hits == []


def test_what_is_deleted_is_no_longer_found(style: Style, worker: Worker) -> None:
    image = photo(style, "it", direction(0))
    crowd(style)
    known("dog", direction(0))
    assert by(search("dog")) == {image.pk: ("meaning",)}
    services.delete_caption(VISITOR, image.captions.get().pk)
    assert image.pk not in by(search("dog"))


def test_a_search_that_is_too_long_is_refused(db: None) -> None:
    with pytest.raises(Refused, match="at most 200 characters"):
        search("a" * 201)


# What the search waits for


def test_a_worker_looks_up_what_a_search_means(style: Style, reading_engine: CaptionEngine, media: Any) -> None:
    encoder = reading_engine.captioner.encoder
    images = [photo(style, "it", None) for _ in range(30)]
    vectors = np.random.default_rng(0).normal(size=(30, 16)).astype("<f4")
    Embedding.objects.bulk_create(
        Embedding(image=image, encoder=encoder.identity, vector=vector.tobytes())
        for image, vector in zip(images, vectors, strict=True)
    )
    heard_from(reading_engine)
    found = search("A  red\0 bus")
    assert (found.hits, found.meaning) == ([], "pending")
    assert "still in progress" in found.detail
    assert reading_engine.work() == 1
    found = search("a red bus")
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    meant = torch.nn.functional.normalize(encoder.encode_text(["a a red bus", "the a red bus"])).mean(0)
    nearest = int(np.argmax(units @ meant.numpy()))
    assert (found.meaning, found.hits[0].image) == ("searched", images[nearest].pk)
    assert reading_engine.work() == 0


def test_the_embedded_models_find_what_photos_show(engine: CaptionEngine, styles: dict[str, Style]) -> None:
    shown = {
        "horses by a lake": "000000078499",
        "laptop": "000000084284",
        "pizza": "000000121647",
        "airplanes": "000000125870",
        "somebody plays tennis": "000000174375",
        "a kitchen stove": "000000177977",
    }
    photos = [services.Upload((PHOTOS / f"{name}.jpg").read_bytes(), name) for name in shown.values()]
    services.request_captions(viewer=VISITOR, images=photos)
    engine.embeddings(list(Image.objects.all()))
    heard_from(engine)
    for text in shown:
        search(text)
    assert engine.embed_texts() == len(shown)
    found = {text: Caption.objects.get(image=search(text).hits[0].image).name for text in shown}
    assert found == shown


def test_words_are_searched_without_a_worker(style: Style) -> None:
    image = photo(style, "a dog", direction(0))
    found = search("dog")
    assert (by(found), found.meaning) == ({image.pk: ("words",)}, "unavailable")
    assert "no worker" in found.detail
    assert not TextEmbedding.objects.exists()


def test_words_are_searched_where_the_encoder_has_no_text_half(style: Style, worker: Worker) -> None:
    Worker.objects.update(text_encoder="")
    image = photo(style, "a dog", direction(0))
    found = search("dog")
    assert (by(found), found.meaning) == ({image.pk: ("words",)}, "unavailable")
    assert "no text tower" in found.detail


def test_a_worker_that_fell_silent_is_none(style: Style, worker: Worker) -> None:
    Worker.objects.update(seen_at=timezone.now() - timedelta(minutes=2))
    assert "no worker" in search("dog").detail


def test_a_text_is_asked_for_once(style: Style, worker: Worker) -> None:
    for text in ("a dog", "A Dog", " a  dog "):
        assert search(text).meaning == "pending"
    assert TextEmbedding.objects.get().text == "a dog"


def test_one_that_may_ask_no_more_still_searches_words_and_what_is_known(style: Style, worker: Worker) -> None:
    image = photo(style, "a dog", direction(0))
    found = search("dog", may_ask=lambda: False)
    assert (by(found), found.meaning) == ({image.pk: ("words",)}, "unavailable")
    assert "too many new searches" in found.detail
    known("dog", direction(0))
    assert search("dog", may_ask=lambda: False).meaning == "searched"


def test_a_text_that_failed_is_tried_again_after_a_while(style: Style, worker: Worker) -> None:
    search("dog")
    (row,) = TextEmbedding.objects.claim("w", 1)
    row.fail("x", "y")
    assert (search("dog").meaning, "failed" in search("dog").detail) == ("unavailable", True)
    TextEmbedding.objects.update(finished_at=timezone.now() - timedelta(minutes=1))
    assert search("dog").meaning == "pending"
    assert TextEmbedding.objects.get().status == "queued"


def test_texts_come_before_captions_and_while_the_queue_is_paused(style: Style, reading_engine: CaptionEngine) -> None:
    heard_from(reading_engine)
    services.pause_queue(name="captions")
    search("a dog")
    assert reading_engine.work() == 1
    assert TextEmbedding.objects.get().status == "succeeded"


def test_a_text_that_cannot_be_embedded_waits_alone_to_be_tried_again(
    style: Style, reading_engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard_from(reading_engine)
    encode = reading_engine.captioner.encoder.encode_text

    def poisonous(texts: Sequence[str]) -> Any:
        if any("poison" in text for text in texts):
            raise RuntimeError("no")
        return encode(texts)

    monkeypatch.setattr(reading_engine.captioner.encoder, "encode_text", poisonous)
    for text in ("a dog", "poison", "a cat"):
        search(text)
    assert reading_engine.work() == 3
    assert dict(TextEmbedding.objects.values_list("text", "status")) == {
        "a dog": "succeeded",
        "poison": "queued",
        "a cat": "succeeded",
    }


def test_a_worker_that_cannot_embed_texts_says_so_while_searches_wait_for_it(
    style: Style, reading_engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard_from(reading_engine)
    monkeypatch.setattr(reading_engine, "breaker", Breaker())

    def no_memory(texts: Sequence[str]) -> None:
        raise MemoryError

    monkeypatch.setattr(reading_engine.captioner.encoder, "encode_text", no_memory)
    search("a dog")
    for _ in range(STRIKES):
        assert reading_engine.work() == 1
        TextEmbedding.objects.update(ready_at=None)
    assert reading_engine.breaker.trouble
    TextEmbedding.objects.all().delete()
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 3600)
    assert reading_engine.work() == 0
    assert reading_engine.breaker.trouble == "", "nobody waits any more"


def test_an_encoder_without_a_text_half_claims_none(
    engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch, db: None
) -> None:
    monkeypatch.setattr(engine.captioner.encoder, "text_identity", None)
    TextEmbedding.objects.create(encoder="None", text="a", deadline_at=timezone.now() + timedelta(hours=1))
    assert engine.work() == 0


def test_a_text_whose_workers_are_lost_is_given_up(style: Style, worker: Worker) -> None:
    search("dog")
    for _ in range(MAX_ATTEMPTS):
        assert TextEmbedding.objects.claim("w", 1)
        TextEmbedding.objects.update(lease_expires_at=timezone.now() - timedelta(minutes=1))
        TextEmbedding.objects.all().reap()
        TextEmbedding.objects.update(ready_at=None)
    assert search("dog").meaning == "unavailable"


def test_searches_are_forgotten_after_a_month(style: Style, worker: Worker) -> None:
    known("old", direction(0))
    known("new", direction(0))
    TextEmbedding.objects.filter(text="old").update(created_at=timezone.now() - timedelta(days=31))
    services.prune()
    assert TextEmbedding.objects.get().text == "new"


# Who may see what


PEOPLE = ("ada", "bob", "visitor", "everybody", "nobody")


def _viewer(name: str, users: dict[str, Any]) -> Viewer:
    if name in users:
        return Viewer(users[name])
    return Viewer(visitor={"visitor": "v1", "everybody": EVERYBODY, "nobody": ""}[name])


@given(
    photos=st.lists(
        st.tuples(
            st.sampled_from(PEOPLE),
            st.sampled_from(["a dog", "a cat", "a dog and a cat", ""]),
            st.none() | st.lists(st.integers(-3, 3), min_size=4, max_size=4),
        ),
        max_size=14,
    ),
    text=st.sampled_from(["dog", "cat dog", "it"]),
    wanted=st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    looking=st.sampled_from(["ada", "bob", "visitor", "nobody", "staff"]),
)
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
def test_what_a_viewer_finds_is_what_is_theirs_and_depends_on_nothing_else(
    photos: list[tuple[str, str, list[int] | None]],
    text: str,
    wanted: list[int],
    looking: str,
    style: Style,
    worker: Worker,
    settings: Any,
) -> None:
    with transaction.atomic():
        settings.INDEX = settings.INDEX.parent / str(uuid.uuid4())
        users = {name: get_user_model().objects.create(username=name) for name in ("ada", "bob", "staff")}
        users["staff"].user_permissions.add(Permission.objects.get(codename="view_caption"))
        known(text, np.array(wanted, "<f4"))
        made = [
            photo(style, words, None if vector is None else np.array(vector, "<f4"), _viewer(whose, users))
            for whose, words, vector in photos
        ]
        viewer = _viewer(looking, users)
        allowed = set(services.visible_images(viewer).values_list("pk", flat=True))
        found = search(text, viewer)
        assert by(found).keys() <= allowed
        assert len(by(found)) == len(found.hits)
        similar = {image.pk: services.similar_images(viewer, image.pk) for image in made if looked_at(image, viewer)}
        for pk, others in similar.items():
            assert {other.pk for other in others} <= allowed - {pk}
        # Without what is not theirs, the same is found.
        Caption.objects.exclude(pk__in=Caption.objects.filter(viewer.listed())).delete()
        Image.objects.filter(captions=None).delete()
        settings.INDEX = settings.INDEX.parent / str(uuid.uuid4())
        assert search(text, viewer) == found
        for pk, others in similar.items():
            if pk in allowed:
                again = services.similar_images(viewer, pk)
                assert [other.pk for other in again] == [other.pk for other in others]
        transaction.set_rollback(True)


def looked_at(image: Image, viewer: Viewer) -> bool:
    reachable = Caption.objects.filter(viewer.reachable(), image=image).exists()
    return reachable and image.embeddings.exists()


# Similar photos


def test_similar_photos_are_the_likest_first_without_itself(style: Style) -> None:
    first = photo(style, "it", direction(0))
    near, nearer = photo(style, "it", direction(0, 1)), photo(style, "it", direction(0, 0, noise=0.1))
    photo(style, "it", direction(0), Viewer(visitor="somebody else"))
    found = services.similar_images(VISITOR, first.pk)
    assert [image.pk for image in found] == [nearer.pk, near.pk]
    assert found[1].similarity == pytest.approx(0.5**0.5, abs=1e-4)  # type: ignore[attr-defined]


def test_similar_photos_need_no_worker_but_one_that_has_looked(style: Style, viewer: Viewer) -> None:
    with pytest.raises(Refused, match="no worker has processed"):
        services.similar_images(VISITOR, photo(style, "it", None).pk)
    with pytest.raises(Refused, match="was not found"):
        services.similar_images(VISITOR, photo(style, "it", direction(0), viewer).pk)
