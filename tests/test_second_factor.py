"""Staff's second factor: the code of an authenticator app."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.services import make_token
from tests.people import client_of

pytestmark = pytest.mark.django_db

PAGE = "/second-factor/"


@pytest.fixture
def boss() -> User:
    return User.objects.create_superuser("boss", password="boss's")


def signed_in(boss: User) -> Client:
    client = Client()
    assert client.post("/sign-in/", {"username": "boss", "password": "boss's"}).status_code == 302
    return client


def code(device: TOTPDevice) -> str:
    """What the app shows; a new one even where the last one was used just now."""
    TOTPDevice.objects.update(last_t=-1, throttling_failure_count=0, throttling_failure_timestamp=None)
    return f"{totp(device.bin_key):06}"


def set_up(client: Client) -> TOTPDevice:
    page = client.get(PAGE)
    assert "<svg" in page.content.decode()
    device: TOTPDevice = TOTPDevice.objects.get()
    assert client.post(PAGE, {"code": code(device)}).status_code == 302
    device.refresh_from_db()
    assert device.confirmed
    return device


def test_whoever_has_one_is_asked_for_its_code_before_anything_else(boss: User) -> None:
    first = signed_in(boss)
    assert first.get("/admin/").status_code == 200
    device = set_up(first)
    assert first.get("/admin/").status_code == 200  # this session has given it
    second = signed_in(boss)
    for path in ("/admin/", "/", "/tokens/", "/password/"):
        answer: Any = second.get(path)
        assert answer.status_code == 302, path
        assert answer.url.startswith(PAGE)
    assert second.get("/api/captions/").json()["code"] == "second_factor_required"
    assert second.post("/sign-out/").status_code == 302
    third = signed_in(boss)
    assert "code is not valid now" in third.post(PAGE, {"code": "000000"}).content.decode()
    assert third.get("/admin/").status_code == 302
    answer = third.post(f"{PAGE}?next=/admin/", {"code": code(device)})
    assert (answer.status_code, answer.url) == (302, "/admin/")
    assert third.get("/admin/").status_code == 200


def test_a_code_is_good_once_and_guessing_has_to_wait(boss: User) -> None:
    device = set_up(signed_in(boss))
    other = signed_in(boss)
    right = code(device)
    assert other.post(PAGE, {"code": right}).status_code == 302
    again = signed_in(boss)
    assert again.post(PAGE, {"code": right}).status_code == 200
    TOTPDevice.objects.update(last_t=-1, throttling_failure_count=10)  # after ten wrong ones, a quarter of an hour
    assert again.post(PAGE, {"code": f"{totp(device.bin_key):06}"}).status_code == 200  # right, but too soon


def test_the_code_leads_to_no_other_site(boss: User) -> None:
    device = set_up(signed_in(boss))
    answer: Any = signed_in(boss).post(f"{PAGE}?next=https://evil.example/", {"code": code(device)})
    assert answer.url == "/"


def test_the_secret_is_not_shown_once_it_is_in_use_nor_in_the_admin(boss: User) -> None:
    client = signed_in(boss)
    device = set_up(client)
    for path in (PAGE, f"/admin/otp_totp/totpdevice/{device.pk}/change/"):
        page = client.get(path).content.decode()
        assert device.key not in page
        assert "<svg" not in page.partition("<main")[2].partition("</main>")[0] or path != PAGE


def test_it_can_be_removed_by_who_has_given_the_code_alone(boss: User) -> None:
    first = signed_in(boss)
    set_up(first)
    signed_in(boss).post(PAGE, {"remove": "yes"})
    assert TOTPDevice.objects.filter(confirmed=True).exists()
    first.post(PAGE, {"remove": "yes"})
    assert not TOTPDevice.objects.exists()
    assert signed_in(boss).get("/admin/").status_code == 200


def test_a_site_can_make_staff_have_one(boss: User, settings: Any) -> None:
    settings.SECOND_FACTOR = True
    client = signed_in(boss)
    assert client.get("/admin/").status_code == 302
    set_up(client)
    assert client.get("/admin/").status_code == 200
    user = client_of(User.objects.create_user("ada"))
    assert user.get("/tokens/").status_code == 200  # not of the staff


def test_programs_with_a_token_are_asked_for_no_code(boss: User) -> None:
    set_up(signed_in(boss))
    _, token = make_token(boss, name="a")
    assert Client(headers={"Authorization": f"Token {token}"}).get("/api/captions/").status_code == 200
