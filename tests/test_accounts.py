"""People's accounts: tokens and what they are good for, passwords, and how often one may try."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from knox.models import AuthToken

from accounts import hashers, services
from accounts.models import Token
from captioner.api.base import ApiViewSet
from captioner.api.permissions import Scope
from captioner.errors import Refused
from captioner.models import Viewer
from tests.people import client_of

pytestmark = pytest.mark.django_db

FORM = {"name": "a script", "scopes": ["read", "caption"], "days": "30"}
SCOPES = {  # that it takes to write there
    "caption-list": Scope.CAPTION,
    "caption-detail": Scope.CAPTION,
    "caption-cancel": Scope.CAPTION,
    "caption-cancel-all": Scope.CAPTION,
    "request-deliveries": Scope.CAPTION,
    "request-cancel": Scope.CAPTION,
    "caption-retry": Scope.CAPTION,
    "caption-corrections": Scope.LABEL,
    "image-detail": Scope.CAPTION,
    "album-list": Scope.CAPTION,
    "album-detail": Scope.CAPTION,
    "album-add": Scope.CAPTION,
    "album-remove": Scope.CAPTION,
    "style-list": Scope.TRAIN,
    "style-detail": Scope.TRAIN,
    "style-withdraw": Scope.TRAIN,
    "style-restore": Scope.TRAIN,
    "style-archive": Scope.TRAIN,
    "style-training-run-list": Scope.TRAIN,
    "training-run-cancel": Scope.TRAIN,
    "training-run-resume": Scope.TRAIN,
    "base-models-list": Scope.TRAIN,
    "base-models-resume": Scope.TRAIN,
    "base-models-cancel": Scope.TRAIN,
    "base-models-cut-over": Scope.TRAIN,
}


@pytest.fixture
def ada(viewer: Viewer) -> Client:
    """Ada's browser."""
    return client_of(viewer.user)


def program(token: str) -> Client:
    return Client(headers={"Authorization": f"Token {token}"})


def sign_in(password: str, name: str = "ada", address: str = "192.0.2.1", at: str = "/sign-in/") -> Any:
    return Client(REMOTE_ADDR=address).post(at, {"username": name, "password": password})


# Tokens


def test_a_token_is_shown_once_and_works(ada: Client) -> None:
    page = ada.post("/tokens/", FORM)
    token = page.context["token"]
    assert token in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    shown = ada.get("/tokens/").content.decode()
    assert token not in shown
    assert "a script" in shown
    assert "never used" in shown
    assert program(token).get("/api/requests/").status_code == 200
    shown = ada.get("/tokens/").content.decode()
    assert re.search(r"last used <time [^>]*>just now</time>", shown)
    assert "view captions" in shown
    ada.post("/tokens/", {"delete": page.context["made"].digest})
    assert program(token).get("/api/requests/").status_code == 401


def test_tokens_are_deleted_by_their_owner_only_and_limited_in_number(
    ada: Client, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ada.post("/tokens/", FORM).context["made"]
    stranger = client_of(User.objects.create_user("eve"))
    stranger.post("/tokens/", {"delete": made.digest})
    assert Token.objects.count() == 1
    monkeypatch.setattr(services, "MOST_TOKENS", 1)
    assert "the maximum; delete one first" in ada.post("/tokens/", FORM).content.decode()
    assert Token.objects.count() == 1


def test_a_token_says_what_it_is_for_and_is_good_for_something(ada: Client, viewer: Viewer) -> None:
    mistakes: list[dict[str, Any]] = [{"name": ""}, {"scopes": []}, {"scopes": ["everything"]}, {"days": "100000"}]
    for wrong in mistakes:
        assert ada.post("/tokens/", FORM | wrong).context["token"] == ""
    with pytest.raises(Refused, match="at least one"):
        services.make_token(viewer.user, name="a", scopes=["all"])
    assert not Token.objects.exists()


def test_a_token_expires(ada: Client) -> None:
    page = ada.post("/tokens/", FORM)
    good_until = timezone.now() + timedelta(days=30)
    token = Token.objects.get()
    assert token.expiry
    assert abs(token.expiry - good_until) < timedelta(minutes=5)
    Token.objects.update(expiry=timezone.now() - timedelta(seconds=1))
    assert program(page.context["token"]).get("/api/requests/").status_code == 401
    assert "expired" in ada.get("/tokens/").content.decode()
    assert ada.post("/tokens/", FORM | {"days": ""}).context["made"].expiry is None


def api_addresses(resolver: Any) -> Iterator[URLPattern]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from api_addresses(pattern)
        elif issubclass(getattr(pattern.callback, "cls", object), ApiViewSet):
            yield pattern


def test_a_token_does_only_what_its_scopes_say_at_every_address() -> None:
    root = User.objects.create_superuser("root")
    programs = {scope: program(services.make_token(root, name=scope, scopes=[scope])[1]) for scope in Scope}
    seen = set()
    for pattern in api_addresses(get_resolver()):
        arguments = {"pk": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "slug": "none"}
        if "int" in repr(pattern.pattern.converters).lower():
            arguments["pk"] = "1"
        path = reverse(f"v1:{pattern.name}", kwargs={name: arguments[name] for name in pattern.pattern.converters})
        for method in {name.upper() for name in pattern.callback.actions} - {"HEAD"}:  # type: ignore[attr-defined]
            needed = Scope.READ if method == "GET" else SCOPES[str(pattern.name)]
            seen.add(pattern.name)
            for scope, client in programs.items():
                answer = client.generic(method, path, "{}", "application/json")
                refused = answer.status_code == 403 and answer.json()["code"] == "out_of_scope"
                assert refused == (scope != needed), (method, path, scope)
    assert set(SCOPES) <= seen


def test_the_scope_does_not_replace_the_permission(viewer: Viewer, styles: Any) -> None:
    _, token = services.make_token(viewer.user, name="all")
    answer = program(token).post("/api/styles/factual/training-runs/", {}, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")


def test_the_admin_shows_no_hash_of_a_token_and_can_delete_it(viewer: Viewer) -> None:
    token, _ = services.make_token(viewer.user, name="the script of Ada")
    boss = client_of(User.objects.create_superuser("boss"))
    page = boss.get(reverse("admin:accounts_token_change", args=[token.pk])).content.decode()
    assert "the script of Ada" in page
    assert page.count(token.digest) == page.count(f"/{token.digest}/")  # its address alone
    boss.post(reverse("admin:accounts_token_delete", args=[token.pk]), {"post": "yes"})
    assert not Token.objects.exists()


@pytest.mark.parametrize("header", ["Token ÿ", "Token ", "Token a b", "Token " + "0" * 64, "Token \x7f"])
def test_a_bad_token_is_refused(header: str) -> None:
    answer = Client(headers={"Authorization": header}).get("/api/requests/")
    assert (answer.status_code, answer.json()["code"]) == (401, "authentication_failed")


# Passwords


def changed(client: Client, old: str, new: str) -> Any:
    return client.post("/password/", {"old_password": old, "new_password1": new, "new_password2": new})


def test_a_changed_password_ends_other_sessions_and_all_tokens(ada: Client, viewer: Viewer) -> None:
    _, token = services.make_token(viewer.user, name="a")
    other = client_of(viewer.user)
    assert "Your old password was entered incorrectly" in changed(ada, "wrong", "a new one 27").content.decode()
    assert other.get("/tokens/").status_code == 200
    assert changed(ada, "lovelace", "a new one 27").url == "/"
    assert "Your password was changed" in ada.get("/").content.decode()
    assert ada.get("/tokens/").status_code == 200
    assert other.get("/tokens/").status_code == 302
    assert program(token).get("/api/requests/").status_code == 401
    assert sign_in("a new one 27").status_code == 302


def test_a_password_that_an_administrator_sets_ends_sessions_and_tokens(ada: Client, viewer: Viewer) -> None:
    services.make_token(viewer.user, name="a")
    boss = client_of(User.objects.create_superuser("boss"))
    given = {"password1": "another one 27", "password2": "another one 27", "usable_password": "true"}
    assert boss.post(reverse("admin:auth_user_password_change", args=[viewer.user.pk]), given).status_code == 302
    assert not Token.objects.exists()
    assert ada.get("/tokens/").status_code == 302


def test_a_stronger_hash_of_the_same_password_ends_no_token(
    viewer: Viewer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.make_token(viewer.user, name="a")
    old = viewer.user.password
    monkeypatch.setattr(hashers.BoundedPBKDF2, "iterations", 1)
    settings.PASSWORD_HASHERS = ["accounts.hashers.BoundedPBKDF2", *settings.PASSWORD_HASHERS]
    assert sign_in("lovelace").status_code == 302
    viewer.user.refresh_from_db()
    assert viewer.user.password != old
    assert Token.objects.count() == 1


# How often one may try


def test_wrong_passwords_lock_the_account_at_that_address_and_nobody_else(viewer: Viewer) -> None:
    User.objects.create_user("eve", password="eve's", is_staff=True)
    statuses = [sign_in("wrong").status_code for _ in range(10)]
    assert statuses == [200] * 9 + [429]
    for at in ("/sign-in/", "/admin/login/"):
        locked = sign_in("lovelace", at=at)
        assert locked.status_code == 429
        assert locked["Retry-After"] == "900"
        assert "too many wrong passwords for this account" in locked.content.decode().lower()
    assert sign_in("lovelace", address="192.0.2.2").status_code == 302  # the owner, elsewhere
    assert sign_in("eve's", name="eve", at="/admin/login/").status_code == 302  # somebody else, here


def test_the_right_password_forgets_the_wrong_ones(viewer: Viewer) -> None:
    for _ in range(3):
        assert [sign_in("wrong").status_code for _ in range(8)] == [200] * 8
        assert sign_in("lovelace").status_code == 302


def test_the_lock_goes_by_itself(viewer: Viewer, settings: Any) -> None:
    settings.AXES_COOLOFF_TIME = timedelta(0)
    assert [sign_in("wrong").status_code for _ in range(12)][-1] == 200
    assert sign_in("lovelace").status_code == 302


@pytest.mark.parametrize("behind_proxy", [False, True])
def test_an_address_is_believed_only_from_the_proxy(viewer: Viewer, settings: Any, behind_proxy: bool) -> None:
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "NUM_PROXIES": int(behind_proxy)}
    for number in range(10):
        forged = f"203.0.113.{number}, 198.51.100.7"
        answer = Client(REMOTE_ADDR="192.0.2.9", HTTP_X_FORWARDED_FOR=forged).post(
            "/sign-in/", {"username": "ada", "password": "no"}
        )
    assert answer.status_code == 429
    last = Client(REMOTE_ADDR="192.0.2.9", HTTP_X_FORWARDED_FOR="203.0.113.1, 198.51.100.8").post(
        "/sign-in/", {"username": "ada", "password": "lovelace"}
    )
    assert last.status_code == (302 if behind_proxy else 429)


def limited(settings: Any, **rates: str) -> None:
    settings.ADDRESS_RATES = {**settings.ADDRESS_RATES, **rates}


@pytest.mark.parametrize("at", ["/sign-in/", "/admin/login/"])
def test_an_address_that_tries_many_accounts_has_to_wait(viewer: Viewer, settings: Any, at: str) -> None:
    limited(settings, sign_in="5/minute")
    assert [sign_in("guess", name=f"user{n}", at=at).status_code for n in range(5)] == [200] * 5
    refused = sign_in("guess", name="user6", at=at)
    assert refused.status_code == 429
    assert 1 <= int(refused["Retry-After"]) <= 60
    assert sign_in("lovelace", address="192.0.2.2").status_code == 302


def test_the_old_password_cannot_be_guessed_on_the_page_that_changes_it(ada: Client, settings: Any) -> None:
    limited(settings, sign_in="5/minute")
    statuses = [changed(ada, f"guess {n}", "a new one 27").status_code for n in range(6)]
    assert statuses == [200] * 5 + [429]


def test_bad_tokens_have_to_wait_and_good_ones_at_the_same_address_do_not(viewer: Viewer, settings: Any) -> None:
    limited(settings, bad_token="5/minute")
    _, token = services.make_token(viewer.user, name="a")
    answers = [program(f"{n:064}").get("/api/requests/") for n in range(6)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429]
    assert "Retry-After" in answers[-1]
    assert program(token).get("/api/requests/").status_code == 200


def test_hashing_takes_few_threads_and_says_when_to_come_again(
    viewer: Viewer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PASSWORD_HASHERS = ["accounts.hashers.BoundedPBKDF2"]
    monkeypatch.setattr(hashers.BoundedPBKDF2, "iterations", 1)
    monkeypatch.setattr(hashers, "_line", threading.BoundedSemaphore(1))
    viewer.user.password = make_password("lovelace")
    viewer.user.save()
    with hashers._line:
        for at in ("/sign-in/", "/admin/login/"):
            busy = sign_in("lovelace", at=at)
            assert busy.status_code == 503
            assert int(busy["Retry-After"]) >= 1
            assert "signing in right now" in busy.content.decode()
        assert Client().get("/").status_code == 200  # pages that hash nothing are served
    assert sign_in("lovelace").status_code == 302


def test_passwords_hashed_before_are_good_still(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    old = make_password("lovelace")
    settings.PASSWORD_HASHERS = ["accounts.hashers.BoundedPBKDF2"]
    assert check_password("lovelace", old)
    assert not check_password("Lovelace", old)


@pytest.mark.django_db(transaction=True)
def test_tokens_from_before_scopes_stay_good_for_all() -> None:
    call_command("migrate", "accounts", "zero", verbosity=0)
    _, text = AuthToken.objects.create(User.objects.create_user("old"))
    call_command("migrate", "accounts", verbosity=0)
    assert Token.objects.get().scopes == list(Scope.values)
    assert program(text).get("/api/requests/").status_code == 200
