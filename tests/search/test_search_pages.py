"""Searching by the API and on the pages."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import pytest
from django.test import Client

from captioner import services
from captioner.http.throttles import SearchesThrottle
from captioner.models import (
    Caption,
    Style,
    Viewer,
    Worker,
)
from tests.search.rows import SIZE, URL, VISITOR, crowd, direction, known, photo

pytestmark = pytest.mark.django_db


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
