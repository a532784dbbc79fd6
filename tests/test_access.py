"""Who may do what: nine kinds of people at every address of the site, and every action of the admin's lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.contrib.admin import site
from django.contrib.auth.models import Group, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone

from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import (
    AuditEntry,
    BaseModels,
    Caption,
    Correction,
    Image,
    MapperVersion,
    Style,
)
from tests.addresses import (
    ACTIONS,
    ADDRESSES,
    BODIES,
    EVERYBODY,
    PATTERNS,
    SIGNED_IN,
    STAFF,
    something_everywhere,
    url_of,
)
from training.models import Import, TrainingRun

# What staff may do with what is not theirs without an entry in the audit log, and why.
NOT_RECORDED = {
    **dict.fromkeys(
        [
            *(("v1:caption-cancel", "POST"), ("v1:request-cancel", "POST"), ("v1:caption-retry", "POST")),
            *(("admin:captioner_caption_cancel", "POST"), ("admin:captioner_caption_retry", "POST")),
            *(("captioner_caption", "cancel_chosen"), ("captioner_caption", "retry_chosen")),
        ],
        "it can be undone, and the caption shows it",
    ),
    **dict.fromkeys(
        [
            *(("v1:caption-corrections", "POST"), ("admin:captioner_caption_correct", "POST")),
            *(("captioner_correction", "take_chosen"), ("captioner_correction", "leave_out_chosen")),
        ],
        "a correction is a row with its person and time",
    ),
    **dict.fromkeys(
        [("v1:request-deliveries", "POST"), ("captioner_webhookdelivery", "send_again")],
        "every attempt of a delivery is a row",
    ),
    ("v1:album-list", "POST"): "it is one's own",
}
FORMS: dict[str, dict[str, Any]] = {  # what the admin's pages are sent, so that they do what they are for
    "admin:captioner_caption_correct": {"text": "a lion"},
    "admin:captioner_image_remove": {"reason": "they asked for it"},
    "admin:captioner_mapperversion_promote": {"reason": "it reads better"},
    "admin:pause-queue": {"reason": "a new disk"},
    "admin:captioner_style_sentences": {"text_1": "a lion"},
    "admin:captioner_style_change": {"name": "Tender", "description": "", "position": "9"},
    "remove_chosen": {"reason": "they asked for it", "sure": "1"},
    "delete_chosen": {"sure": "1"},
    "delete_selected": {"post": "yes"},
}


@pytest.fixture
def clients(styles: dict[str, Style], photo: bytes) -> dict[str, Client]:
    """A browser of each kind of person."""
    found = {"stranger": Client(), "visitor": Client()}
    found["visitor"].post(reverse("upload"), {"photos": _file(photo), "styles": "factual"})
    for name in sorted(SIGNED_IN):
        user = User.objects.create_user(name, is_staff=name in STAFF, is_superuser=name == "superuser")
        user.groups.set(Group.objects.filter(name=f"{name.capitalize()}s"))
        found[name] = Client()
        found[name].force_login(user)
    return found


def _file(photo: bytes) -> SimpleUploadedFile:
    return SimpleUploadedFile("photo.jpg", photo, "image/jpeg")


@pytest.fixture
def where(clients: dict[str, Client], styles: dict[str, Style], photo: bytes) -> dict[str, Any]:
    """What there is at each address."""
    owner, another = (User.objects.get(username=name) for name in ("owner", "another"))
    return something_everywhere(owner, another, styles["factual"], photo)


def test_every_address_is_classified() -> None:
    assert set(PATTERNS) == set(ADDRESSES)


def test_the_api_answers_the_methods_that_are_classified_and_no_others() -> None:
    for name, pattern in PATTERNS.items():
        if methods := getattr(pattern.callback, "actions", None):
            assert {method.upper() for method in methods} - {"HEAD"} == set(ADDRESSES[name]), name


@pytest.mark.parametrize("role", sorted(EVERYBODY))
def test_each_may_do_what_is_theirs_to_do_and_nothing_else(
    role: str, clients: dict[str, Client], where: dict[str, Any], settings: Any
) -> None:
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "DEFAULT_THROTTLE_RATES": dict.fromkeys(("anonymous", "user"), "9999/s"),
    }
    settings.PASSWORD_RESET = True
    settings.OIDC_ISSUER = settings.OIDC_OP_AUTHORIZATION_ENDPOINT = "https://example.com"
    settings.OIDC_RP_CLIENT_ID = "clipcap"
    signed_in, wrong = deepcopy(clients[role].cookies), []
    for name, may in ADDRESSES.items():
        for method, roles in may.items():
            clients[role].cookies = deepcopy(signed_in)  # signing out would take it
            with transaction.atomic():
                answer: Any = clients[role].generic(
                    method, url_of(name, where), json.dumps(BODIES.get(name, {})), "application/json"
                )
                transaction.set_rollback(True)
            to = answer.url.partition("?")[0] if answer.status_code == 302 else ""
            elsewhere = "sign-in" in to or "/login/" in to
            done = answer.status_code not in (401, 403, 404, 405) and not elsewhere
            if done != (role in roles):
                wrong.append((name, method, answer.status_code))
    assert not wrong


@pytest.mark.django_db
def test_other_methods_are_refused_everywhere(client: Client) -> None:
    for path in ("/", "/admin/", "/admin/login/", "/api/captions/", "/api/health/live", "/nowhere/", "/static/x"):
        for method in ("TRACE", "TRACK", "CONNECT", "PROPFIND"):
            answer = client.generic(method, path)
            assert answer.status_code == 405, (method, path)
            assert "GET" in answer["Allow"]


def test_every_action_of_a_list_is_classified_and_offered_to_those_who_may(clients: dict[str, Client]) -> None:
    offered: dict[tuple[str, str], set[str]] = {}
    for role in STAFF:
        request = RequestFactory().get("/")
        request.user = User.objects.get(username=role)
        for model, admin in site._registry.items():
            for action in admin.get_actions(request):
                offered.setdefault((model._meta.db_table, action), set()).add(role)
    assert offered == ACTIONS


@pytest.mark.parametrize("role", sorted(EVERYBODY))
def test_an_action_of_a_list_is_done_for_those_who_may_and_nobody_else(
    role: str, clients: dict[str, Client], where: dict[str, Any]
) -> None:
    wrong = []
    for (model, action), roles in ACTIONS.items():
        sent = {"action": action, "_selected_action": [str(where[f"admin:{model}"])]}
        with transaction.atomic():
            answer: Any = clients[role].post(reverse(f"admin:{model}_changelist"), sent, follow=True)
            transaction.set_rollback(True)
        page = answer.content.decode()
        refused = answer.status_code in (403, 404) or "/login/" in page or "No action selected." in page
        only_shown = not answer.redirect_chain and "cl" in (answer.context or ())  # a list that offers no actions
        if (refused or only_shown) == (role in roles):
            wrong.append((model, action, answer.status_code))
    assert not wrong


def everything() -> dict[str, list[str]]:
    """What is stored, but for sessions and the logs."""
    logs = ("django_session", "django_admin_log", "captioner_auditentry", "axes_accesslog", "axes_accessattempt")
    tables = [model for model in apps.get_models() if model._meta.db_table not in logs]
    return {model._meta.db_table: sorted(map(repr, model._base_manager.values_list())) for model in tables}


def test_whatever_staff_changes_is_in_the_audit_log_but_for_what_is_listed(
    clients: dict[str, Client], where: dict[str, Any], styles: dict[str, Style]
) -> None:
    where |= {"admin:captioner_style": styles["romantic"].pk, "v1:style": "romantic"}
    where["admin:captioner_mapperversion"] = where["admin:captioner_mapperversion_poll"][0]
    client, changed, recorded = clients["superuser"], set(), set()
    signed_in = deepcopy(client.cookies)

    def look_at_all() -> None:
        entries, before = AuditEntry.objects.count(), everything()

        def look(deed: tuple[str, str], act: Callable[[], object]) -> None:
            client.cookies = deepcopy(signed_in)
            with transaction.atomic():
                act()
                if everything() != before:
                    changed.add(deed)
                if AuditEntry.objects.count() > entries:
                    recorded.add(deed)
                transaction.set_rollback(True)

        for name, may in ADDRESSES.items():
            for method in set(may) - {"GET"}:
                if "superuser" in may[method] and name.startswith(("admin:", "v1:")):
                    form = {"post": "yes"} if name.endswith("_delete") else FORMS.get(name, {})
                    body, kind = urlencode(form), "application/x-www-form-urlencoded"
                    if name.startswith("v1:"):
                        body, kind = json.dumps(BODIES.get(name, {})), "application/json"
                    look((name, method), partial(client.generic, method, url_of(name, where), body, kind))
        for model, action in ACTIONS:
            sent = {"action": action, "_selected_action": [str(where[f"admin:{model}"])], **FORMS.get(action, {})}
            look((model, action), partial(client.post, reverse(f"admin:{model}_changelist"), sent))

    look_at_all()
    # What can be done again, or no longer.
    for jobs in (Caption.objects, TrainingRun.objects, Import.objects):
        jobs.update(status="failed", error_code="lost", error_detail="lost", finished_at=timezone.now())
    Correction.objects.all().delete()
    services.withdraw_style(styles["romantic"])
    BaseModels.objects.filter(pk=where["v1:base-models"]).update(preparing=True)
    look_at_all()
    assert changed - recorded == set(NOT_RECORDED)


def test_who_may_change_others_captions_may_not_delete_them(clients: dict[str, Client], where: dict[str, Any]) -> None:
    address, page = f"/api/captions/{where['caption']}/", reverse("request", args=[where["request"]])
    for role in ("labeller", "trainer"):
        assert clients[role].delete(address).status_code == 404
        shown = clients[role].get(page).content.decode()
        assert reverse("caption-cancel", args=[where["caption"]]) in shown
        assert reverse("caption-delete", args=[where["caption"]]) not in shown
    assert Caption.objects.filter(pk=where["caption"]).exists()
    assert Image.objects.filter(pk=where["image"]).exists()
    assert MapperVersion.objects.exists()
    assert clients["superuser"].delete(address).status_code == 204


def test_the_same_bytes_from_two_people_tell_neither_of_the_other(
    clients: dict[str, Client], styles: dict[str, Style], engine: CaptionEngine, photo: bytes
) -> None:
    def ask(who: str) -> tuple[dict[str, Any], Caption]:
        sent = {"image": _file(photo), "style": "factual"}
        (asked,) = clients[who].post("/api/captions/", sent).json()["captions"]
        engine.work()
        caption = Caption.objects.get(pk=asked["id"])
        shown = clients[who].get(f"/api/images/{caption.image_id}/").json()
        return shown, caption

    first, _ = ask("owner")
    for who in ("another", "stranger", "stranger"):
        asked_at = timezone.now()
        shown, caption = ask(who)
        assert shown["id"] != first["id"]
        assert datetime.fromisoformat(shown["created_at"]) >= asked_at
        assert caption.encode_ms  # it was looked at again
        same = {**shown, "id": "", "created_at": ""}
        assert {name for name, value in same.items() if first[name] != value} >= {"file_url"}
    again, caption = ask("owner")
    assert again == first
    assert caption.encode_ms == 0
    clients["owner"].delete(f"/api/captions/{Caption.objects.filter(image=first['id']).first().pk}/")  # type: ignore[union-attr]
    files = {str(image.file.name) for image in Image.objects.all()}
    assert len(files) == Image.objects.count() == 5  # with the visitor's
    assert all(Image.file.field.storage.exists(name) for name in files)
