"""Signing in through another site by OpenID Connect, against a small provider on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import pytest
import urllib3
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from django.contrib.auth.models import Permission, User
from django.test import Client
from jwt.algorithms import RSAAlgorithm

from accounts.models import Identity
from captioner.models import AuditEntry
from tests.test_settings import SECRET, python

pytestmark = pytest.mark.django_db

CLIENT = {"client_id": "clipcap", "client_secret": "a secret"}
BACK = "http://testserver/sign-in/single/back/"


class Provider(ThreadingHTTPServer):
    """Signs everybody in as whom `claims` describe. What it does wrong is what a test sets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.key = self.signs_with = generate_private_key(65537, 2048)
        self.claims: dict[str, Any] = {"sub": "248289", "email": "ada@example.org", "email_verified": True}
        self.wrong: dict[str, Any] = {}  # claims of the token
        self.algorithm = "RS256"
        self.asked: dict[str, str] = {}  # by whoever came last

    def token(self) -> str:
        now = int(time.time())
        claims = {"iss": self.address, "aud": "clipcap", "sub": self.claims["sub"], "iat": now, "exp": now + 300}
        claims |= {"nonce": self.asked["nonce"]} | self.wrong
        claims = {name: value for name, value in claims.items() if value is not None}
        signs_with: RSAPrivateKey | str = self.signs_with if self.algorithm == "RS256" else "x" * 32
        return jwt.encode(claims, signs_with, self.algorithm, headers={"kid": "1"})


class Answers(BaseHTTPRequestHandler):
    server: Provider

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        provider, url = self.server, urlsplit(self.path)
        if url.path == "/authorize":
            provider.asked = {name: value for name, (value,) in parse_qs(url.query).items()}
            assert provider.asked["redirect_uri"] == BACK
            self.send_response(302)
            state = {"code": "a-code", "state": provider.asked["state"]}
            self.send_header("Location", f"{BACK}?{urlencode(state)}")
            self.end_headers()
        elif url.path == "/keys":
            public = json.loads(RSAAlgorithm.to_jwk(provider.key.public_key()))
            self.answer({"keys": [{**public, "kid": "1", "alg": "RS256", "use": "sig"}]})
        elif url.path == "/userinfo" and self.headers["Authorization"] == "Bearer an-access-token":
            self.answer(provider.claims)
        else:
            self.send_error(403)

    def do_POST(self) -> None:
        sent = {k: v for k, (v,) in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()}
        digest = hashlib.sha256(sent["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        proven = challenge == self.server.asked["code_challenge"] and sent["redirect_uri"] == BACK
        if self.path != "/token" or not proven or not CLIENT.items() <= sent.items() or sent["code"] != "a-code":
            self.send_error(400)
            return
        self.answer({"access_token": "an-access-token", "token_type": "Bearer", "id_token": self.server.token()})

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def provider(settings: Any) -> Iterator[Provider]:
    with Provider() as provider:
        thread = threading.Thread(target=provider.serve_forever, args=(0.05,))
        thread.start()
        settings.AUTHENTICATION_BACKENDS = [
            *settings.AUTHENTICATION_BACKENDS,
            "accounts.single_sign_on.SingleSignOn",
        ]
        settings.OIDC_ISSUER, settings.OIDC_NAME = provider.address, "Example"
        for name in ("AUTHORIZATION", "TOKEN", "USER", "JWKS"):
            path = {"AUTHORIZATION": "authorize", "TOKEN": "token", "USER": "userinfo", "JWKS": "keys"}[name]
            setattr(settings, f"OIDC_OP_{name}_ENDPOINT", f"{provider.address}/{path}")
        settings.OIDC_RP_CLIENT_ID, settings.OIDC_RP_CLIENT_SECRET = CLIENT.values()
        yield provider
        provider.shutdown()
        thread.join()


def sign_in(client: Client, to: str = "") -> Any:
    """From the page for signing in to the provider and back."""
    leave = client.get("/sign-in/single/", {"next": to} if to else {})
    assert leave.status_code == 302, leave.content
    back = urllib3.request("GET", leave["Location"], redirect=False)
    assert back.status == 302
    return client.get(back.headers["Location"])


def is_signed_in(client: Client) -> bool:
    return "_auth_user_id" in client.session


def test_somebody_new_gets_an_account_without_rights_and_is_the_same_next_time(
    client: Client, provider: Provider
) -> None:
    page = client.get("/sign-in/?next=/gallery/").content.decode()
    assert "Sign in with Example" in page
    assert 'href="/sign-in/single/?next=%2Fgallery%2F"' in page
    answer = sign_in(client, "/gallery/")
    assert (answer.status_code, answer["Location"]) == (302, "/gallery/")
    user = User.objects.get()
    assert (user.username, user.email) == ("ada@example.org", "ada@example.org")
    assert (user.is_staff, user.is_superuser, user.has_usable_password()) == (False, False, False)
    assert user.get_all_permissions() == set()
    assert client.get("/admin/").status_code == 302
    entry = AuditEntry.objects.get()
    assert (entry.who, entry.subject, entry.address) == ("ada@example.org", "user ada@example.org", "127.0.0.1")
    provider.claims |= {"email": "countess@example.org", "email_verified": False}  # a new name, and the same person
    again = Client()
    sign_in(again)
    assert again.session["_auth_user_id"] == str(user.pk)
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"iss": "https://evil.example.org"},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"sub": "somebody else"},
    ],
)
def test_a_token_that_is_not_for_this_sign_in_is_refused(
    client: Client, provider: Provider, wrong: dict[str, Any]
) -> None:
    provider.wrong = wrong
    _refused(client, "through the other site failed")


def test_a_wrong_signature_is_refused(client: Client, provider: Provider) -> None:
    provider.signs_with = generate_private_key(65537, 2048)
    _refused(client, "through the other site failed")


@pytest.mark.parametrize("algorithm", ["HS256", "none"])
def test_another_algorithm_is_refused(client: Client, provider: Provider, algorithm: str) -> None:
    provider.algorithm = algorithm
    _refused(client, "through the other site failed")


def _refused(client: Client, cause: str) -> None:
    answer = sign_in(client)
    assert answer.status_code == 403
    assert cause in answer.content.decode()
    assert not is_signed_in(client)
    assert not Identity.objects.exists()


@pytest.mark.parametrize("claims", [{"email_verified": False}, {"email_verified": "true"}, {"email": ""}])
def test_mail_that_is_not_verified_makes_no_account(client: Client, provider: Provider, claims: dict[str, Any]) -> None:
    provider.claims |= claims
    _refused(client, "has not verified your email address")
    assert not User.objects.exists()


@pytest.mark.parametrize("email", ["ada @example.org", "a" * 200 + "@example.org", "ada\0@example.org"])
def test_mail_that_can_be_no_name_makes_no_account(client: Client, provider: Provider, email: str) -> None:
    provider.claims["email"] = email
    _refused(client, "account can have the name")
    assert not User.objects.exists()


def test_an_account_of_the_same_name_is_not_taken_over_until_an_administrator_connects_it(
    client: Client, provider: Provider, admin_client: Client
) -> None:
    local = User.objects.create_superuser("Ada@example.org", "ada@example.org", "lovelace")
    _refused(client, "is an account named ada@example.org that signs in with a password")
    form = {"user": local.pk, "issuer": provider.address, "subject": "248289"}
    assert f'value="{provider.address}"' in admin_client.get("/admin/accounts/identity/add/").content.decode()
    assert admin_client.post("/admin/accounts/identity/add/", form).status_code == 302
    entry = AuditEntry.objects.get(subject=f"user {local}", detail=f"connected to 248289 at {provider.address}")
    assert entry.who == "admin"
    sign_in(client)
    assert client.session["_auth_user_id"] == str(local.pk)
    identity = Identity.objects.get()
    admin_client.post(f"/admin/accounts/identity/{identity.pk}/delete/", {"post": "yes"})
    assert AuditEntry.objects.filter(detail__startswith="disconnected from 248289").count() == 1


def test_a_permission_does_not_let_staff_sign_in_as_others(client: Client, provider: Provider) -> None:
    local = User.objects.create_superuser("Ada@example.org", "ada@example.org", "lovelace")
    clerk = User.objects.create_user("clerk", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(content_type__model="identity"))
    client.force_login(clerk)
    form = {"user": local.pk, "issuer": provider.address, "subject": "248289"}
    assert client.post("/admin/accounts/identity/add/", form).status_code == 403
    assert not Identity.objects.exists()


def test_an_account_of_the_same_mail_address_is_not_taken_over(client: Client, provider: Provider) -> None:
    local = User.objects.create_user("ada", "ada@example.org", "lovelace")
    sign_in(client)
    assert User.objects.get(pk=client.session["_auth_user_id"]) != local


def test_a_closed_account_stays_closed(client: Client, provider: Provider) -> None:
    closed = User.objects.create_user("ada", is_active=False)
    Identity.objects.create(user=closed, issuer=provider.address, subject="248289")
    answer = sign_in(client)
    assert "account ada is closed" in answer.content.decode()
    assert not is_signed_in(client)


def test_staff_owe_their_second_factor_all_the_same(client: Client, provider: Provider, settings: Any) -> None:
    settings.SECOND_FACTOR = True
    boss = User.objects.create_superuser("boss")
    Identity.objects.create(user=boss, issuer=provider.address, subject="248289")
    sign_in(client)
    assert client.get("/admin/")["Location"].startswith("/second-factor/")


def test_sign_ins_are_counted_by_address_and_passwords_by_account_as_before(
    client: Client, provider: Provider, settings: Any
) -> None:
    User.objects.create_user("bob", password="builder")
    for _ in range(10):
        client.post("/sign-in/", {"username": "bob", "password": "wrong"})
    assert client.post("/sign-in/", {"username": "bob", "password": "builder"}).status_code == 429
    assert sign_in(Client()).status_code == 302
    settings.ADDRESS_RATES = settings.ADDRESS_RATES | {"sign_in": "1/minute"}
    assert sign_in(Client()).status_code == 429


def test_nobody_comes_back_who_has_not_left(client: Client, provider: Provider) -> None:
    for query in ("", "?code=a-code&state=b", "?error=access_denied&state=b"):
        answer = client.get(f"/sign-in/single/back/{query}")
        assert (answer.status_code, is_signed_in(client)) == (403, False)
    # Nor does a password's form take a code.
    client.post("/sign-in/?code=a-code&state=b", {"username": "ada", "password": "lovelace"})
    assert not is_signed_in(client)


def test_a_provider_that_is_away_is_reported_without_details(client: Client, provider: Provider, settings: Any) -> None:
    settings.OIDC_OP_TOKEN_ENDPOINT = "http://127.0.0.1:9/token"
    _refused(client, "through the other site failed")


def test_without_a_provider_it_is_not_offered(client: Client) -> None:
    assert "/sign-in/single/" not in client.get("/sign-in/").content.decode()
    assert client.get("/sign-in/single/").status_code == client.get("/sign-in/single/back/").status_code == 404


def test_a_provider_of_which_something_is_missing_is_refused_by_name() -> None:
    ended = python("manage.py", "check", CLIPCAP_OIDC_ISSUER="https://example.org", **SECRET)
    assert "CLIPCAP_OIDC_AUTHORIZATION_URL is not set, and CLIPCAP_OIDC_ISSUER is" in ended.stderr
