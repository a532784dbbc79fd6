"""Every address of the site: who may do what there, and something that each of them can show."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.contrib.auth.models import Group, User
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.models import Identity
from accounts.services import make_token
from captioner import services
from captioner.models import (
    AuditEntry,
    BaseModels,
    Correction,
    Draft,
    DraftRequest,
    Image,
    Poll,
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

METHODS = ("GET", "POST", "PATCH", "DELETE")
May = dict[str, frozenset[str]]  # who may, by method

WHO = {
    "superusers": SUPERUSERS,
    "trainers": TRAINERS,
    "labellers": LABELLERS,
    "viewers": VIEWERS,
    "staff": STAFF,
    "signed-in": SIGNED_IN,
    "everybody": EVERYBODY,
    "nobody": NOBODY,
    "owner": OWNER,
    "visitor": frozenset({"visitor"}),
    "only-viewers": frozenset({"viewer"}),
}


def _table(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / "data" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _all_of(names: str) -> frozenset[str]:
    return frozenset().union(*(WHO[name] for name in names.split()))


# A method that is left empty is none of the address's; where it says nobody, it is, and nobody may.
ADDRESSES: dict[str, May] = {
    row["address"]: {method: _all_of(row[method]) for method in METHODS if row[method]} for row in _table("access.csv")
}
for _row in _table("access_to_models.csv"):  # Django's pages of each model
    _model, _see, _add = _row["model"], _all_of(_row["view"]), _all_of(_row["add"])
    _change, _delete = _all_of(_row["change"]), _all_of(_row["delete"])
    ADDRESSES |= {
        f"admin:{_model}_changelist": {"GET": _see},
        f"admin:{_model}_history": {"GET": _see},
        f"admin:{_model}_add": {"GET": _add, "POST": _add},
        f"admin:{_model}_change": {"GET": _see, "POST": _change},
        f"admin:{_model}_delete": {"GET": _delete, "POST": _delete},
    }

BODIES = {  # of what looks at the body first
    "v1:caption-corrections": {"text": "a dog"},
    "v1:album-list": {"name": "Sea"},
}

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


def something_everywhere(owner: User, another: User, style: Style, photo: bytes) -> dict[str, Any]:
    """What there is at each address, by the beginning of its name; the last that fits counts (see `url_of`)."""
    tomorrow = timezone.now() + timedelta(days=1)
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
        "auth_user": another,
        "accounts_token": make_token(owner, name="tests")[0],
        "accounts_identity": Identity.objects.create(user=owner, issuer="https://example.com", subject="1"),
        "otp_totp_totpdevice": TOTPDevice.objects.create(user=owner, confirmed=False),
        "captioner_auditentry": AuditEntry.objects.first(),
        "captioner_basemodels": BaseModels.objects.create(encoder_source="a", language_model_source="b"),
        "captioner_image": caption.image,
        "captioner_caption": caption,
        "captioner_mapperversion": style.version_in_service,
        "captioner_draftrequest": DraftRequest.objects.create(),
        "captioner_promotion": Promotion.objects.get(style=style),
        "captioner_worker": Worker.objects.create(name="w", queue="captions"),
        "captioner_webhookdelivery": WebhookDelivery.objects.get(),
        "captioner_webhookhost": WebhookHost.objects.create(host="example.com", open_until=tomorrow),
        "captioner_style": style,
        "captioner_correction": Correction.objects.create(caption=caption, text="a dog"),
        "training_example": Example.objects.create(
            style=style, image=caption.image, text="a cat", source="stored", held_out=False
        ),
        "training_import": Import.objects.create(style=style, name="photos.zip", deadline_at=tomorrow),
        "training_trainingrun": run,
    }
    found = {f"admin:{model}": row.pk for model, row in rows.items() if row}
    for name in ("v1:caption", "caption", "label"):
        found[name] = caption.pk
    for name in ("v1:image", "image"):
        found[name] = caption.image_id
    album = services.create_album(Viewer(owner), "Holiday", [caption.image_id])
    for name in ("v1:album", "album"):
        found[name] = album.pk
    poll = something_to_vote_on(style, caption.image)
    found["admin:captioner_mapperversion_poll"] = (poll.candidate_id, poll.opponent_id)
    found |= {"vote-poll": poll.pk, "admin:captioner_mapperversion_end_poll": poll.pk}
    for name in ("vote-cast", "vote-undo", "vote-photo"):
        found[name] = (poll.pk, caption.image_id)
    for name in ("v1:request", "request"):
        found[name] = request.pk
    found["admin:captioner_correction_labelling"] = style.pk
    found |= {"v1:style": "factual", "v1:training-run": run.pk}
    found["v1:base-models"] = found["admin:captioner_basemodels"]
    found |= {"admin:pause-queue": "captions", "admin:resume-queue": "captions", "admin:app_list": "captioner"}
    found["password-new"] = ("MQ", "a-token")
    return found


def something_to_vote_on(style: Style, image: Image) -> Poll:
    """A blind vote between a version that is made for it and the one in service, about one photo."""
    candidate = style.versions.create(
        number=99, sha256="1" * 64, origin="imported", config={"kind": "mlp", "prefix_length": 1}
    )
    opponent, now = style.version_in_service, timezone.now()
    assert opponent
    for version, text in ((candidate, "a lion"), (opponent, "a tiger")):
        Draft.objects.create(
            request=DraftRequest.objects.create(),
            image=image,
            version=version,
            text=text,
            status="succeeded",
            finished_at=now,
            deadline_at=now,
        )
    return services.start_poll(candidate=candidate, opponent=opponent)


def url_of(name: str, things: dict[str, Any]) -> str:
    """The address of that name, of what `something_everywhere` has made for it."""
    key = max((key for key in things if name.startswith(key)), key=len, default=None)
    pattern = PATTERNS[name].pattern
    given: Any = things[key] if key and (pattern.converters or pattern.regex.groupindex) else ()
    return reverse(name, args=given if isinstance(given, tuple) else (given,))
