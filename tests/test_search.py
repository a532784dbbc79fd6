"""Photos found by words and by what they show: what is found, by what, and by whom it may be."""

from __future__ import annotations

import io
import itertools
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from captioner import services
from captioner.api.permissions import SearchesThrottle
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import MAX_ATTEMPTS, Status
from captioner.models import (
    EVERYBODY,
    Caption,
    CaptionRequest,
    Embedding,
    Image,
    Style,
    TextEmbedding,
    Viewer,
    Worker,
)
from captioner.search import meaning
from captioner.search.vectors import VectorFile
from captioner.services import retention

pytestmark = pytest.mark.django_db
ENCODER, READER = "eyes@1", "words@1"  # identities of an encoder's halves
URL = "/api/images/"
SIZE = 8
VISITOR = Viewer(visitor="a visitor")
COUNTER = itertools.count()
PHOTOS = Path(__file__).parent.parent / "examples" / "coco_cc"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine, the index is fed to the end."""
    monkeypatch.setattr(meaning, "CATCH_UP", 60)


@pytest.fixture
def style(db: None) -> Style:
    return Style.objects.create(slug="plain", name="Plain")


@pytest.fixture
def worker(db: None) -> Worker:
    """A caption worker that was heard from just now and never does anything."""
    tomorrow = timezone.now() + timedelta(days=1)
    return Worker.objects.create(
        name="w", queue="captions", models_loaded="x", encoder=ENCODER, text_encoder=READER, seen_at=tomorrow
    )


def direction(*places: int, noise: float = 0.0, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A vector that points to the given axes, and a little elsewhere."""
    vector = noise * np.random.default_rng(seed).normal(size=SIZE)
    vector[list(places)] += 1
    return vector.astype("<f4")


def photo(style: Style, text: str, vector: Any, viewer: Viewer = VISITOR, **changes: Any) -> Image:
    """A photo that a worker has looked at and captioned for somebody."""
    image = Image.objects.create(sha256=f"{next(COUNTER):064x}", width=4, height=3, size=9, file="a", thumbnail="b")
    whose = {"owner": viewer.user, "visitor": viewer.visitor}
    now = timezone.now()
    Caption.objects.create(
        request=CaptionRequest.objects.create(**whose),
        image=image,
        style=style,
        text=text,
        deadline_at=now,
        **{"status": Status.SUCCEEDED, "finished_at": now, **whose, **changes},
    )
    if vector is not None:
        Embedding.objects.create(image=image, encoder=ENCODER, vector=vector.tobytes())
    return image


def known(text: str, vector: Any) -> None:
    """What a worker has found that a text means."""
    now = timezone.now()
    TextEmbedding.objects.create(
        encoder=READER, text=text, vector=vector.tobytes(), status=Status.SUCCEEDED, finished_at=now, deadline_at=now
    )


def crowd(style: Style, count: int = 40, viewer: Viewer = VISITOR) -> list[Image]:
    """Photos that have nothing to do with what is searched for: about axes 4 to 7."""
    return [photo(style, "a wall", direction(4 + n % 4, noise=0.1, seed=n), viewer) for n in range(count)]


def search(text: str, viewer: Viewer = VISITOR, **options: Any) -> services.Search:
    return services.search_images(viewer, text, seconds=0, **options)


def by(found: services.Search) -> dict[uuid.UUID, tuple[str, ...]]:
    return {hit.image: hit.matched for hit in found.hits}


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
    at_work(reading_engine)
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
    at_work(engine)
    for text in shown:
        search(text)
    assert engine.embed_texts() == len(shown)
    found = {text: Caption.objects.get(image=search(text).hits[0].image).name for text in shown}
    assert found == shown


def at_work(engine: CaptionEngine) -> None:
    """Let an engine's worker be one that was heard from."""
    encoder = engine.captioner.encoder
    Worker.objects.create(
        name=engine.name,
        queue="captions",
        models_loaded="x",
        encoder=encoder.identity,
        text_encoder=encoder.text_identity or "",
        seen_at=timezone.now() + timedelta(days=1),
    )


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
    at_work(reading_engine)
    services.pause_queue(name="captions")
    search("a dog")
    assert reading_engine.work() == 1
    assert TextEmbedding.objects.get().status == "succeeded"


def test_a_text_that_cannot_be_embedded_waits_alone_to_be_tried_again(
    style: Style, reading_engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(reading_engine)
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


# The index


def index() -> VectorFile:
    return meaning._index(ENCODER)


def test_a_broken_index_is_made_anew(style: Style, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    image = photo(style, "it", direction(0))
    known("dog", direction(0))
    assert by(search("dog")) == {image.pk: ("meaning",)}
    for damaged in (b"", b"garbage" * 1000, index().path.read_bytes()[:5000]):
        index().path.write_bytes(damaged)
        assert by(search("dog")) == {image.pk: ("meaning",)}
    assert "rebuilt" in caplog.text


def test_an_index_of_another_database_is_made_anew(style: Style, worker: Worker) -> None:
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


def test_photos_that_are_not_in_the_index_yet_are_told_of(
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
def test_sqlite_is_told_how_many_rows_there_are(task: Callable[[], object], style: Style) -> None:
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


def test_vectors_that_cannot_be_compared_leave_the_words(style: Style, worker: Worker) -> None:
    image = photo(style, "a dog", direction(0))
    known("dog", np.ones(3, "<f4"))
    found = search("dog")
    assert (by(found), found.meaning) == ({image.pk: ("words",)}, "unavailable")


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


# The API


@pytest.fixture
def client(client: Client, viewer: Viewer) -> Client:
    client.force_login(viewer.user)
    return client


def test_the_api_says_what_matched(client: Client, viewer: Viewer, style: Style, worker: Worker) -> None:
    both = photo(style, "a dog", direction(0), viewer)
    crowd(style, viewer=viewer)
    known("dog", direction(0))
    answer = client.get(URL, {"q": "dog"})
    assert answer.status_code == 200
    body = answer.json()
    assert body["meaning"] == {"status": "searched", "detail": ""}
    assert [(image["id"], image["matched"]) for image in body["results"]] == [(str(both.pk), ["words", "meaning"])]
    assert body["next"] is body["previous"] is None
    assert "Retry-After" not in answer


def test_a_list_without_a_search_says_nothing_of_matches(client: Client, viewer: Viewer, style: Style) -> None:
    photo(style, "a dog", None, viewer)
    for query in ("", "?q=%20%E3%80%80"):
        body = client.get(URL + query).json()
        assert (body["meaning"], body["results"][0]["matched"]) == (None, None)


def test_a_search_that_is_still_looked_up_says_when_to_ask_again(client: Client, worker: Worker) -> None:
    answer = client.get(URL, {"q": "dog"}, headers={"Prefer": "wait=0"})
    assert (answer.json()["meaning"]["status"], answer["Retry-After"]) == ("pending", "1")


def test_pages_of_a_search_hold_each_photo_once(client: Client, viewer: Viewer, style: Style, worker: Worker) -> None:
    images = [photo(style, "a dog", direction(n % SIZE, noise=0.2, seed=n), viewer) for n in range(11)]
    known("dog", direction(0))
    pages, url = [], f"{URL}?q=dog&page_size=4"
    while url:
        body = client.get(url).json()
        pages.append([image["id"] for image in body["results"]])
        url = body["next"]
    assert sorted(itertools.chain(*pages)) == sorted(str(image.pk) for image in images)
    assert [len(page) for page in pages] == [4, 4, 3]
    for page in reversed(pages[:-1]):
        body = client.get(body["previous"]).json()
        assert [image["id"] for image in body["results"]] == page
    assert body["previous"] is None


def test_a_photo_added_meanwhile_repeats_none_on_the_next_page(client: Client, viewer: Viewer, style: Style) -> None:
    for _ in range(4):
        photo(style, "a dog", None, viewer)
    first = client.get(URL, {"q": "dog", "page_size": "2"}).json()
    photo(style, "a dog", None, viewer)
    second = client.get(first["next"]).json()
    ids = [image["id"] for image in first["results"] + second["results"]]
    assert len(set(ids)) == len(ids) == 4
    Caption.objects.filter(image=first["results"][1]["id"]).delete()
    assert len(client.get(first["next"]).json()["results"]) == 2


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"q": "a" * 201}, "q"),
        ({"q": "a", "ordering": "created_at"}, "ordering"),
        ({"q": "a", "cursor": "nonsense"}, "cursor"),
        ({"q": "a", "cursor": f"-1~{uuid.uuid4()}"}, "cursor"),
        ({"q": "a", "page_size": "0"}, "page_size"),
        ({"q": "a", "colour": "red"}, "colour"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(client: Client, query: dict[str, str], field: str) -> None:
    answer = client.get(URL, query)
    assert answer.status_code == 422
    assert field in (answer.json().get("field"), *(error["field"] for error in answer.json().get("errors", ())))


def test_too_many_new_searches_are_answered_with_words(
    client: Client, viewer: Viewer, style: Style, worker: Worker, settings: Any
) -> None:
    rates = {"anonymous": "1/hour", "user": "2/hour"}
    settings.REST_FRAMEWORK = settings.REST_FRAMEWORK | {"DEFAULT_THROTTLE_RATES": rates}
    photo(style, "a dog", None, viewer)
    known("dog", direction(0))
    said = [
        client.get(URL, {"q": text}, headers={"Prefer": "wait=0"}).json()["meaning"]["status"]
        for text in ("a", "b", "a", "c", "dog")
    ]
    assert said == ["pending", "pending", "pending", "unavailable", "searched"]
    assert client.get("/gallery/", {"q": "d"}).content.decode().count("too many new searches") == 1
    assert SearchesThrottle.what != "writes"


def test_the_api_lists_similar_photos(client: Client, viewer: Viewer, style: Style) -> None:
    one, other = photo(style, "it", direction(0), viewer), photo(style, "it", direction(0, 1), viewer)
    (found,) = client.get(f"{URL}{one.pk}/similar/").json()
    assert (found["id"], round(found["similarity"], 2)) == (str(other.pk), 0.71)
    assert client.get(f"{URL}{uuid.uuid4()}/similar/").status_code == 404
    unseen = client.get(f"{URL}{photo(style, 'it', None, viewer).pk}/similar/")
    assert (unseen.status_code, unseen.json()["code"]) == (409, "not_looked_at")


# The pages


def page(client: Client, url: str, **more: Any) -> str:
    answer = client.get(url, **more)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_gallery_says_what_matched(client: Client, viewer: Viewer, style: Style, worker: Worker) -> None:
    crowd(style, viewer=viewer)
    photo(style, "the dog barks", direction(4), viewer)
    photo(style, "a puppy runs", direction(0), viewer)
    known("dog", direction(0))
    shown = page(client, "/gallery/?q=dog")
    assert shown.count("words in its caption</span>") == shown.count("meaning</span>") == 1
    assert "a puppy runs" in shown
    assert "a wall" not in shown
    assert 'hx-trigger="load' not in shown


def test_the_gallery_looks_again_while_a_search_is_looked_up(client: Client, worker: Worker) -> None:
    services.search_images(VISITOR, "dog", seconds=0)
    shown = page(client, "/gallery/?q=dog")
    assert "Searching photos" in shown
    assert 'hx-get="?q=dog" hx-trigger="load' in shown
    assert '<noscript><meta http-equiv="refresh"' in shown
    assert "No matches" not in shown


def test_the_gallery_says_when_only_words_were_searched(client: Client, style: Style) -> None:
    shown = page(client, "/gallery/?q=dog")
    assert "Only the text of captions was searched: no worker is available" in shown
    assert "No matches" in shown


def test_the_gallery_shows_a_search_page_by_page(client: Client, viewer: Viewer, style: Style) -> None:
    for _ in range(30):
        photo(style, "a dog", None, viewer)
    first = page(client, "/gallery/?q=dog")
    assert first.count('class="tile"') == 24
    following = first.split('id="more"')[1].split('href="')[1].split('"')[0].replace("&amp;", "&")
    assert page(client, f"/gallery/{following}").count('class="tile"') == 6
    assert page(client, "/gallery/?q=dog&after=nonsense").count('class="tile"') == 24


def test_a_photos_page_shows_similar_ones(client: Client, viewer: Viewer, style: Style) -> None:
    one, other = photo(style, "it", direction(0), viewer), photo(style, "that", direction(0, 1), viewer)
    url = f"/images/{one.pk}/similar/"
    assert url in page(client, f"/images/{one.pk}/")
    assert 'alt="that"' in page(client, url, headers={"HX-Request": "true"})
    whole = page(client, url)
    assert f"/images/{other.pk}/" in whole
    assert "<h1>Similar photos</h1>" in whole
    alone = photo(style, "it", None, viewer)
    assert "appear once a worker has processed" in page(
        client, f"/images/{alone.pk}/similar/", headers={"HX-Request": "true"}
    )
    assert "No similar photos" in page(client, f"/images/{alone.pk}/similar/")
