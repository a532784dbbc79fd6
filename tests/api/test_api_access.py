"""Who may use the API, how often, and what is seen of others."""

from typing import Any

import pytest
from django.test import Client

from captioner.models import CaptionRequest, Style, Viewer
from tests.api.asking import URL, ask, problem, upload

pytestmark = [pytest.mark.django_db, pytest.mark.small_models]


def test_a_token_signs_in(client: Client, token: dict[str, str], styles: dict[str, Style], photo: bytes) -> None:
    made = client.post(URL, {"image": upload(photo)}, headers=token).json()

    assert CaptionRequest.objects.get().owner is not None
    assert client.get(made["url"], headers=token).status_code == 200
    problem(client.get(made["url"]), 404, "not_found")


def test_a_bad_token_is_refused(client: Client) -> None:
    answer = client.get(URL, headers={"Authorization": "Token nonsense"})

    problem(answer, 401, "authentication_failed")
    assert answer["WWW-Authenticate"] == "Token"


def test_anonymous_use_is_a_setting(client: Client, styles: dict[str, Style], photo: bytes, settings: Any) -> None:
    settings.ANONYMOUS = False

    for answer in (client.get(URL), client.post(URL, {"image": upload(photo)}), client.get("/api/styles/")):
        problem(answer, 401, "not_authenticated")
    assert client.get("/api/health/live").status_code == 200


def test_owners_see_only_their_own(
    as_ada: Client, django_user_model: Any, styles: dict[str, Style], photo: bytes
) -> None:
    made = ask(as_ada, photo)
    other, nobody = Client(), Client()
    other.force_login(django_user_model.objects.create_user("bob"))

    for client, seen in ((as_ada, 1), (other, 0), (nobody, 0)):
        for path in ("captions", "requests", "images"):
            assert len(client.get(f"/api/{path}/").json()["results"]) == seen
    for client in (other, nobody):
        caption = made["captions"][0]
        for path in (made["url"], caption["url"], caption["image_url"], f"{caption['image_url']}file/"):
            problem(client.get(path), 404, "not_found")
        problem(client.post(f"{caption['url']}cancel/"), 404, "not_found")
        problem(client.delete(caption["url"]), 404, "not_found")
        body = {"image_id": caption["image"]}
        problem(client.post(URL, body, "application/json"), 422, "unknown_image")


def test_a_program_without_an_account_reaches_its_captions_by_id(
    client: Client, styles: dict[str, Style], photo: bytes
) -> None:
    caption = ask(client, photo)["captions"][0]

    assert client.get(URL).json()["results"] == []
    assert client.post(f"{caption['url']}cancel/").json()["status"] == "canceled"


@pytest.mark.parametrize("known", ["signed in", "visitor"])
def test_a_browser_session_writes_only_with_its_csrf_token(
    viewer: Viewer, styles: dict[str, Style], photo: bytes, known: str
) -> None:
    browser = Client(enforce_csrf_checks=True)
    if known == "signed in":
        browser.force_login(viewer.user)
    else:
        session = browser.session
        session["visitor"] = "v" * 20
        session.save()

    problem(browser.post(URL, {"image": upload(photo)}), 403, "csrf_failed")
    browser.cookies["csrftoken"] = "a" * 32
    answer = browser.post(URL, {"image": upload(photo)}, headers={"X-CSRFToken": "a" * 32})

    assert answer.status_code == 202
    assert len(browser.get(URL).json()["results"]) == 1


def test_too_many_requests_are_told_when_to_come_again(
    client: Client, token: dict[str, str], styles: dict[str, Style], photo: bytes, settings: Any
) -> None:
    rates = {"anonymous": "2/minute", "user": "3/minute"}
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "DEFAULT_THROTTLE_RATES": rates}
    made = ask(client, photo)
    client.post(f"{made['captions'][0]['url']}cancel/")

    for answer in (client.post(URL, {"image": upload(photo)}), client.delete(made["captions"][0]["url"])):
        problem(answer, 429, "throttled")
        assert 0 < int(answer["Retry-After"]) <= 61
    assert client.get(URL).status_code == 200
    forged = client.post(URL, {"image": upload(photo)}, headers={"X-Forwarded-For": "192.0.2.1"})
    problem(forged, 429, "throttled")
    statuses = [client.post(URL, {"image": upload(photo)}, headers=token).status_code for _ in range(4)]
    assert statuses == [202, 202, 202, 429]
