"""Who may do what: nine kinds of people at every address of the site, and every action of the admin's lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Group, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.models import Identity
from accounts.services import make_token
from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import (
    AuditEntry,
    Caption,
    Correction,
    DraftRequest,
    Image,
    MapperVersion,
    Promotion,
    Style,
    Viewer,
    WebhookDelivery,
    WebhookHost,
    Worker,
)
from training.models import Example, Import, TrainingRun
from training.options import RunOptions

# Of `owner` are the caption, its image and its request; `visitor` has sent the same photo in this browser.
SUPERUSERS = frozenset({"superuser"})
TRAINERS = SUPERUSERS | {"trainer"}
LABELLERS = TRAINERS | {"labeller"}
VIEWERS = LABELLERS | {"viewer"}
STAFF = VIEWERS | {"staff"}
SIGNED_IN = STAFF | {"owner", "another"}
EVERYBODY = SIGNED_IN | {"stranger", "visitor"}
NOBODY: frozenset[str] = frozenset()
OWNER = frozenset({"owner"})

May = dict[str, frozenset[str]]  # who may, by method

ADDRESSES: dict[str, May] = {
    # The API
    "v1:caption-list": {"GET": EVERYBODY, "POST": EVERYBODY},
    "v1:caption-detail": {"GET": OWNER | VIEWERS, "DELETE": OWNER | SUPERUSERS},
    "v1:caption-cancel": {"POST": OWNER | LABELLERS},
    "v1:caption-cancel-all": {"POST": EVERYBODY},  # of one's own
    "v1:request-cancel": {"POST": OWNER | VIEWERS},  # of what one may change: of others, viewers cancel nothing
    "v1:caption-corrections": {"POST": OWNER | LABELLERS},
    "v1:caption-retry": {"POST": OWNER | LABELLERS},
    "v1:request-list": {"GET": EVERYBODY},
    "v1:request-detail": {"GET": OWNER | VIEWERS},
    "v1:request-deliveries": {"GET": OWNER | VIEWERS, "POST": OWNER | LABELLERS},
    "v1:style-list": {"GET": EVERYBODY},
    "v1:style-detail": {"GET": EVERYBODY, "DELETE": SUPERUSERS},
    "v1:style-withdraw": {"POST": SUPERUSERS},
    "v1:style-restore": {"POST": SUPERUSERS},
    "v1:style-archive": {"POST": SUPERUSERS},
    "v1:image-list": {"GET": EVERYBODY},
    "v1:image-detail": {"GET": OWNER | VIEWERS, "DELETE": OWNER | SUPERUSERS},
    "v1:image-captions": {"GET": OWNER | VIEWERS},
    "v1:image-file": {"GET": OWNER | VIEWERS},
    "v1:image-similar": {"GET": OWNER | VIEWERS},
    "v1:image-thumbnail": {"GET": OWNER | VIEWERS},
    "v1:style-training-run-list": {"GET": VIEWERS, "POST": TRAINERS},
    "v1:training-run-detail": {"GET": VIEWERS},
    "v1:training-run-checkpoints": {"GET": VIEWERS},
    "v1:training-run-events": {"GET": VIEWERS},
    "v1:training-run-cancel": {"POST": TRAINERS},
    "v1:training-run-resume": {"POST": TRAINERS},
    "v1:live": {"GET": EVERYBODY},
    "v1:ready": {"GET": EVERYBODY},
    "v1:metrics": {"GET": EVERYBODY},
    "v1:schema": {"GET": EVERYBODY},
    "v1:docs": {"GET": EVERYBODY},
    # The pages
    "home": {"GET": EVERYBODY},
    "upload": {"POST": EVERYBODY},
    "progress": {"POST": EVERYBODY},
    "request": {"GET": OWNER | VIEWERS},
    "gallery": {"GET": EVERYBODY},
    "download-json": {"GET": EVERYBODY},
    "download-csv": {"GET": EVERYBODY},
    "selected-delete": {"POST": EVERYBODY},  # of what they may open; nothing is selected here
    "selected-caption": {"POST": EVERYBODY},
    "selected-json": {"POST": EVERYBODY},
    "selected-csv": {"POST": EVERYBODY},
    "selected-zip": {"POST": EVERYBODY},
    "image": {"GET": OWNER | VIEWERS},
    "image-similar": {"GET": OWNER | VIEWERS},
    "image-file": {"GET": OWNER | VIEWERS},
    "image-thumbnail": {"GET": OWNER | VIEWERS},
    "image-delete": {"GET": OWNER | SUPERUSERS, "POST": OWNER | SUPERUSERS},
    "image-captions": {"POST": OWNER | VIEWERS},
    "caption-correct": {"POST": OWNER | LABELLERS},
    "caption-retry": {"POST": OWNER | LABELLERS},
    "caption-cancel": {"POST": OWNER | LABELLERS},
    "caption-cancel-all": {"GET": EVERYBODY, "POST": EVERYBODY},  # of one's own
    "caption-delete": {"GET": OWNER | SUPERUSERS, "POST": OWNER | SUPERUSERS},
    "label": {"GET": SIGNED_IN},  # one's own captions; labellers, everybody's
    "label-save": {"POST": OWNER | LABELLERS},
    "label-skip": {"POST": OWNER | LABELLERS},
    "label-undo": {"POST": SIGNED_IN},  # one's own last label
    "tokens": {"GET": SIGNED_IN, "POST": SIGNED_IN},
    "password": {"GET": SIGNED_IN, "POST": SIGNED_IN},
    "single-sign-on": {"GET": EVERYBODY},
    "single-sign-on-back": {},  # refuses whoever has not left
    "password-forgotten": {"GET": EVERYBODY, "POST": EVERYBODY},
    "password-mail-sent": {"GET": EVERYBODY},
    "password-new": {"GET": EVERYBODY, "POST": EVERYBODY},
    "second-factor": {"GET": SIGNED_IN, "POST": SIGNED_IN},
    "login": {"GET": EVERYBODY, "POST": EVERYBODY},
    "logout": {"POST": EVERYBODY},
    # The admin
    "admin:index": {"GET": STAFF},
    "admin:dashboard": {"GET": STAFF},
    "admin:login": {"GET": EVERYBODY},
    "admin:logout": {"POST": EVERYBODY},
    "admin:password_change": {"GET": STAFF},
    "admin:password_change_done": {"GET": STAFF},
    "admin:jsi18n": {"GET": STAFF},
    "admin:app_list": {"GET": VIEWERS},
    "admin:pause-queue": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:resume-queue": {"POST": SUPERUSERS},
    "admin:otp_totp_totpdevice_config": {"GET": NOBODY},  # the secret is hidden
    "admin:otp_totp_totpdevice_qrcode": {"GET": NOBODY},
    "admin:auth_user_password_change": {"GET": SUPERUSERS},
    "admin:captioner_image_file": {"GET": VIEWERS},
    "admin:captioner_image_thumbnail": {"GET": VIEWERS},
    "admin:captioner_image_remove": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_caption_correct": {"POST": LABELLERS},
    "admin:captioner_caption_retry": {"POST": LABELLERS},
    "admin:captioner_caption_cancel": {"POST": LABELLERS},
    "admin:captioner_mapperversion_compare": {"GET": VIEWERS},
    "admin:captioner_mapperversion_photos": {"POST": TRAINERS},
    "admin:captioner_mapperversion_import": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_mapperversion_promote": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_mapperversion_download": {"GET": VIEWERS},
    "admin:captioner_mapperversion_remove": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_draftrequest_live": {"GET": VIEWERS},
    "admin:captioner_draftrequest_cancel": {"POST": TRAINERS},
    "admin:captioner_style_default": {"POST": TRAINERS},
    "admin:captioner_style_withdraw": {"POST": SUPERUSERS},
    "admin:captioner_style_restore": {"POST": SUPERUSERS},
    "admin:captioner_style_archive": {"POST": SUPERUSERS},
    "admin:captioner_style_remove": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_style_rewrite": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_style_retrain": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_style_import": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_style_take": {"POST": LABELLERS},
    "admin:captioner_style_dataset": {"GET": VIEWERS},
    "admin:training_import_live": {"GET": VIEWERS},
    "admin:training_import_refused": {"GET": VIEWERS},
    "admin:training_import_cancel": {"POST": TRAINERS},
    "admin:training_import_resume": {"POST": TRAINERS},
    "admin:training_trainingrun_live": {"GET": VIEWERS},
    "admin:training_trainingrun_cancel": {"POST": TRAINERS},
    "admin:training_trainingrun_resume": {"POST": TRAINERS},
    # Redirects, the admin's 404, and what no list of ours offers
    "admin:": {},
    "admin:autocomplete": {},
    "admin:view_on_site": {},
}

# Django's pages of each model: who may see its rows, add, change and delete them.
MODELS: dict[str, tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]] = {
    "auth_group": (SUPERUSERS, SUPERUSERS, SUPERUSERS, SUPERUSERS),
    "auth_user": (SUPERUSERS, SUPERUSERS, SUPERUSERS, SUPERUSERS),
    "accounts_token": (SUPERUSERS, NOBODY, NOBODY, SUPERUSERS),
    "accounts_identity": (SUPERUSERS, SUPERUSERS, SUPERUSERS, SUPERUSERS),
    "otp_totp_totpdevice": (SUPERUSERS, SUPERUSERS, SUPERUSERS, SUPERUSERS),
    "captioner_auditentry": (SUPERUSERS, NOBODY, NOBODY, NOBODY),
    "captioner_image": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_caption": (VIEWERS, NOBODY, LABELLERS, NOBODY),
    "captioner_mapperversion": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_draftrequest": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_promotion": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_worker": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_webhookdelivery": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_webhookhost": (SUPERUSERS, NOBODY, NOBODY, NOBODY),
    "captioner_style": (VIEWERS, TRAINERS, TRAINERS, NOBODY),  # it has its own page for that
    "captioner_correction": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "training_example": (VIEWERS, LABELLERS, NOBODY, LABELLERS),
    "training_import": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "training_trainingrun": (VIEWERS, NOBODY, NOBODY, NOBODY),
}
for _model, (_see, _add, _change, _delete) in MODELS.items():
    ADDRESSES |= {
        f"admin:{_model}_changelist": {"GET": _see},
        f"admin:{_model}_history": {"GET": _see},
        f"admin:{_model}_add": {"GET": _add, "POST": _add},
        f"admin:{_model}_change": {"GET": _see},
        f"admin:{_model}_delete": {"GET": _delete, "POST": _delete},
    }

BODIES = {"v1:caption-corrections": {"text": "a dog"}}  # of what looks at the body first

ACTIONS: dict[tuple[str, str], frozenset[str]] = {
    ("auth_group", "delete_selected"): SUPERUSERS,
    ("auth_user", "delete_selected"): SUPERUSERS,
    ("accounts_token", "delete_selected"): SUPERUSERS,
    ("accounts_identity", "delete_selected"): SUPERUSERS,
    ("otp_totp_totpdevice", "delete_selected"): SUPERUSERS,
    ("captioner_image", "remove_chosen"): SUPERUSERS,
    ("captioner_caption", "retry_chosen"): LABELLERS,
    ("captioner_caption", "cancel_chosen"): LABELLERS,
    ("captioner_mapperversion", "compare_chosen"): VIEWERS,
    ("captioner_webhookdelivery", "send_again"): SUPERUSERS,
    ("captioner_style", "retrain_chosen"): TRAINERS,
    ("captioner_style", "withdraw_chosen"): SUPERUSERS,
    ("captioner_style", "restore_chosen"): SUPERUSERS,
    ("captioner_style", "archive_chosen"): SUPERUSERS,
    ("captioner_correction", "take_chosen"): LABELLERS,
    ("captioner_correction", "leave_out_chosen"): LABELLERS,
    ("training_example", "delete_chosen"): LABELLERS,
    ("training_trainingrun", "cancel_chosen"): TRAINERS,
}


def addresses(resolver: Any, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, URLPattern]]:
    """The name of every address of the site."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from addresses(pattern, (*inside, pattern.namespace) if pattern.namespace else inside)
        else:
            yield ":".join((*inside, pattern.name or "")), pattern


PATTERNS = dict(addresses(get_resolver()))


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
    """What there is at each address, by the beginning of its name; the last that fits counts."""
    owner = User.objects.get(username="owner")
    style, tomorrow = styles["factual"], timezone.now() + timedelta(days=1)
    request = services.request_captions(
        viewer=Viewer(owner), images=[services.Upload(photo)], styles=["factual"], webhook_url="https://example.com/"
    )
    caption = request.captions.get()
    run = TrainingRun.objects.create(
        style=style,
        options=RunOptions().to_json(),
        deadline_at=tomorrow,
    )
    rows = {
        "auth_group": Group.objects.first(),
        "auth_user": User.objects.get(username="another"),
        "accounts_token": make_token(owner, name="tests")[0],
        "accounts_identity": Identity.objects.create(user=owner, issuer="https://example.com", subject="1"),
        "otp_totp_totpdevice": TOTPDevice.objects.create(user=owner, confirmed=False),
        "captioner_auditentry": AuditEntry.objects.first(),
        "captioner_image": caption.image,
        "captioner_caption": caption,
        "captioner_mapperversion": style.active_version,
        "captioner_draftrequest": DraftRequest.objects.create(),
        "captioner_promotion": Promotion.objects.get(style=style),
        "captioner_worker": Worker.objects.create(name="w", queue="captions"),
        "captioner_webhookdelivery": WebhookDelivery.objects.get(),
        "captioner_webhookhost": WebhookHost.objects.create(host="example.com", open_until=tomorrow),
        "captioner_style": style,
        "captioner_correction": Correction.objects.create(caption=caption, text="a dog"),
        "training_example": Example.objects.create(style=style, image=caption.image, text="a cat", held_out=False),
        "training_import": Import.objects.create(style=style, name="photos.zip", deadline_at=tomorrow),
        "training_trainingrun": run,
    }
    found = {f"admin:{model}": row.pk for model, row in rows.items() if row}
    for name in ("v1:caption", "caption", "label"):
        found[name] = caption.pk
    for name in ("v1:image", "image"):
        found[name] = caption.image_id
    for name in ("v1:request", "request"):
        found[name] = request.pk
    found |= {"v1:style": "factual", "v1:training-run": run.pk}
    found |= {"admin:pause-queue": "captions", "admin:resume-queue": "captions", "admin:app_list": "captioner"}
    found["password-new"] = ("MQ", "a-token")
    return found


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
            key = max((key for key in where if name.startswith(key)), key=len, default=None)
            given: Any = where[key] if key and PATTERNS[name].pattern.converters | _groups(PATTERNS[name]) else ()
            arguments = given if isinstance(given, tuple) else (given,)
            clients[role].cookies = deepcopy(signed_in)  # signing out would take it
            with transaction.atomic():
                answer: Any = clients[role].generic(
                    method, reverse(name, args=arguments), json.dumps(BODIES.get(name, {})), "application/json"
                )
                transaction.set_rollback(True)
            to = answer.url.partition("?")[0] if answer.status_code == 302 else ""
            elsewhere = "sign-in" in to or "/login/" in to
            done = answer.status_code not in (401, 403, 404, 405) and not elsewhere
            if done != (role in roles):
                wrong.append((name, method, answer.status_code))
    assert not wrong


def _groups(pattern: URLPattern) -> dict[str, Any]:
    regex = pattern.pattern.regex
    return dict(regex.groupindex)


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
        assert caption.encode_ms  # it was looked at anew
        same = {**shown, "id": "", "created_at": ""}
        assert {name for name, value in same.items() if first[name] != value} >= {"file_url"}
    again, caption = ask("owner")
    assert again == first
    assert caption.encode_ms == 0
    clients["owner"].delete(f"/api/captions/{Caption.objects.filter(image=first['id']).first().pk}/")  # type: ignore[union-attr]
    files = {str(image.file.name) for image in Image.objects.all()}
    assert len(files) == Image.objects.count() == 5  # with the visitor's
    assert all(Image.file.field.storage.exists(name) for name in files)
