"""A new password by mail, for people who have forgotten theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client

from accounts.services import make_token
from tests.people import client_of
from tests.servers import wait_until
from tests.test_settings import SECRET, python, values

pytestmark = pytest.mark.django_db

ASK = "/password/forgotten/"
LINK = re.compile(r"http://testserver(/password/new/\S+)")
TOKEN = re.compile("[A-Za-z0-9]{64}")  # against forgery, another in each page
GOOD = {"new_password1": "a long new one", "new_password2": "a long new one"}


@pytest.fixture
def ada(settings: Any) -> User:
    """Somebody with a mail address, where mails can be sent."""
    settings.PASSWORD_RESET = True
    return User.objects.create_user("ada", "ada@example.org", "lovelace")


def link_of(text: str) -> str:
    found = LINK.search(text)
    assert found, text
    return found[1]


def link(client: Client, email: str = "ada@example.org") -> str:
    """The path in the mail that is sent."""
    client.post(ASK, {"email": email})
    wait_until(lambda: mail.outbox, "the mail is sent")
    return link_of(str(mail.outbox[-1].body))


def sign_in(password: str, name: str = "ada") -> Any:
    return Client().post("/sign-in/", {"username": name, "password": password})


def test_a_link_in_a_mail_sets_a_new_password_once_and_ends_sessions_and_tokens(client: Client, ada: User) -> None:
    elsewhere = client_of(ada)
    program = Client(headers={"Authorization": f"Token {make_token(ada, name='a program')[1]}"})
    assert program.get("/api/requests/").status_code == 200
    assert "Forgot your password?</a>" in client.get("/sign-in/").content.decode()
    path = link(client)
    assert mail.outbox[0].to == ["ada@example.org"]
    assert mail.outbox[0].subject == "Set a new password for testserver"
    form = client.get(path, follow=True)
    assert "Set a new password" in form.content.decode()
    done = client.post(form.redirect_chain[-1][0], GOOD, follow=True)
    assert "Your password was changed. Sign in with the new one." in done.content.decode()
    assert not done.wsgi_request.user.is_authenticated
    assert sign_in("lovelace").status_code == 200
    assert sign_in("a long new one").status_code == 302
    assert elsewhere.get("/tokens/").status_code == 302
    assert program.get("/api/requests/").status_code == 401
    assert "no longer valid" in client.get(path, follow=True).content.decode()


def test_a_weak_password_is_refused_and_the_link_stays_valid(client: Client, ada: User) -> None:
    page = client.get(link(client), follow=True).redirect_chain[-1][0]
    assert "too short" in client.post(page, {"new_password1": "abc", "new_password2": "abc"}).content.decode()
    assert client.post(page, GOOD).status_code == 302


def test_the_answer_does_not_tell_whether_there_is_an_account(
    client: Client, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(email: str) -> tuple[int, str]:
        answer = client.post(ASK, {"email": email}, follow=True)
        return answer.status_code, TOKEN.sub("", answer.content.decode())

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the mail server is away")

    known = ask("ada@example.org")
    wait_until(lambda: mail.outbox, "the mail is sent")
    assert known[0] == 200
    assert ask("eve@example.org") == known
    monkeypatch.setattr("django.core.mail.EmailMultiAlternatives.send", broken)
    assert ask("ada@example.org") == known
    assert len(mail.outbox) == 1


def test_accounts_that_are_closed_or_sign_in_elsewhere_get_no_mail(client: Client, ada: User) -> None:
    User.objects.create_user("closed", "ada@example.org", "lovelace", is_active=False)
    User.objects.create_user("elsewhere", "ada@example.org")
    link(client)
    assert [str(message.body).splitlines()[0] for message in mail.outbox] == ["Hello ada,"]


@pytest.mark.parametrize("email", ["ada@example.org", "nobody@example.org"])
def test_mails_are_limited_by_account_and_address(client: Client, ada: User, email: str) -> None:
    statuses = [client.post(ASK, {"email": email}).status_code for _ in range(6)]
    assert statuses == [302] * 5 + [429]
    assert client.post(ASK, {"email": email.upper()}).status_code == 429
    assert client.post(ASK, {"email": "other@example.org"}).status_code == 302
    assert Client(REMOTE_ADDR="192.0.2.7").post(ASK, {"email": email}).status_code == 302


def test_an_address_is_limited_for_all_accounts_together(client: Client, ada: User, settings: Any) -> None:
    page = client.get(link(client), follow=True).redirect_chain[-1][0]
    settings.ADDRESS_RATES = settings.ADDRESS_RATES | {"sign_in": "4/minute"}
    statuses = [client.post(ASK, {"email": f"{number}@example.org"}).status_code for number in range(4)]
    assert statuses == [302] * 3 + [429]
    assert client.post(page, GOOD).status_code == 429


def test_whoever_was_locked_out_by_wrong_passwords_can_sign_in_after_it(client: Client, ada: User) -> None:
    for _ in range(11):
        sign_in("wrong")
    assert sign_in("lovelace").status_code == 429
    page = client.get(link(client), follow=True).redirect_chain[-1][0]
    client.post(page, GOOD)
    assert sign_in("a long new one").status_code == 302


def test_without_a_mail_server_the_page_is_not_offered(client: Client) -> None:
    shown = client.get("/sign-in/").content.decode()
    assert "Ask an administrator to set a new one" in shown
    assert ASK not in shown
    for path in (ASK, "/password/mail/", "/password/new/MQ/a-token/"):
        assert client.get(path).status_code == client.post(path).status_code == 404


def test_mails_can_be_written_into_a_folder(client: Client, ada: User, settings: Any, tmp_path: Path) -> None:
    found = values(
        *("EMAIL_BACKEND", "EMAIL_FILE_PATH", "DEFAULT_FROM_EMAIL", "PASSWORD_RESET"),
        CLIPCAP_MAIL_URL=f"filemail://{tmp_path}",
        CLIPCAP_MAIL_FROM="captions@example.org",
        CLIPCAP_ALLOWED_HOSTS="captions.example.org",
        **SECRET,
    )
    for name, value in found.items():
        setattr(settings, name, value)
    assert found["PASSWORD_RESET"]
    client.post(ASK, {"email": "ada@example.org"})
    wait_until(lambda: any("/password/new/" in path.read_text() for path in tmp_path.glob("*.log")), "a mail is there")
    (file,) = tmp_path.glob("*.log")
    assert "From: captions@example.org" in file.read_text()
    assert "Set a new password" in client.get(link_of(file.read_text()), follow=True).content.decode()


def test_the_environment_names_the_mail_server() -> None:
    mails = {"CLIPCAP_MAIL_URL": "smtp+tls://me:p%40ss@mail.example.org:587", "CLIPCAP_MAIL_FROM": "a@example.org"}
    names = ("EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_PASSWORD", "EMAIL_USE_TLS", "PASSWORD_RESET")
    found = values(*names, CLIPCAP_ALLOWED_HOSTS="example.org", **mails, **SECRET)
    assert found == dict(zip(names, ("mail.example.org", 587, "p@ss", True, True), strict=True))
    # With any host, a stranger could have a link to a site of theirs sent.
    assert not values("PASSWORD_RESET", CLIPCAP_ALLOWED_HOSTS="*", **mails, **SECRET)["PASSWORD_RESET"]
    assert not values("PASSWORD_RESET", CLIPCAP_ALLOWED_HOSTS="example.org", **SECRET)["PASSWORD_RESET"]


@pytest.mark.parametrize(
    ("url", "sender", "cause"),
    [
        ("mailto:secret@example.org", "a@example.org", "CLIPCAP_MAIL_URL is not the URL of a mail server"),
        ("smtp://secret@mail.example.org:many", "a@example.org", "CLIPCAP_MAIL_URL is not the URL of a mail server"),
        ("smtp://secret@mail.example.org:25", "", "CLIPCAP_MAIL_FROM is not set"),
    ],
)
def test_a_wrong_mail_server_is_refused_without_showing_its_password(url: str, sender: str, cause: str) -> None:
    ended = python("manage.py", "check", CLIPCAP_MAIL_URL=url, CLIPCAP_MAIL_FROM=sender, **SECRET)
    assert cause in ended.stderr
    assert "secret" not in ended.stderr
