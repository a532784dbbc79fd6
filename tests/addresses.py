"""Every address of the site: who may do what there, and something that each of them can show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
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
    "v1:style-list": {"GET": EVERYBODY, "POST": TRAINERS},
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
    "v1:album-list": {"GET": EVERYBODY, "POST": SIGNED_IN | {"visitor"}},  # of who can be known again
    "v1:album-detail": {"GET": OWNER, "PATCH": OWNER, "DELETE": OWNER},
    "v1:album-add": {"POST": OWNER},
    "v1:album-remove": {"POST": OWNER},
    "v1:style-votes": {"GET": VIEWERS},
    "v1:style-training-run-list": {"GET": VIEWERS, "POST": TRAINERS},
    "v1:style-training-prospect": {"GET": VIEWERS},
    "v1:training-run-detail": {"GET": VIEWERS},
    "v1:training-run-checkpoints": {"GET": VIEWERS},
    "v1:training-run-events": {"GET": VIEWERS},
    "v1:training-run-cancel": {"POST": TRAINERS},
    "v1:training-run-resume": {"POST": TRAINERS},
    "v1:base-models-list": {"GET": VIEWERS, "POST": TRAINERS},
    "v1:base-models-detail": {"GET": VIEWERS},
    "v1:base-models-resume": {"POST": TRAINERS},
    "v1:base-models-cancel": {"POST": TRAINERS},
    "v1:base-models-cut-over": {"POST": SUPERUSERS},
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
    "selected-album": {"POST": EVERYBODY},
    "selected-album-remove": {"POST": EVERYBODY},
    "album-rename": {"POST": OWNER},
    "album-delete": {"GET": OWNER, "POST": OWNER},
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
    "vote": {"GET": LABELLERS},
    "vote-poll": {"GET": LABELLERS},
    "vote-cast": {"POST": LABELLERS},
    "vote-undo": {"POST": LABELLERS},
    "vote-photo": {"GET": LABELLERS},
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
    "admin:captioner_image_remove": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_caption_correct": {"POST": LABELLERS},
    "admin:captioner_caption_retry": {"POST": LABELLERS},
    "admin:captioner_caption_cancel": {"POST": LABELLERS},
    "admin:captioner_mapperversion_compare": {"GET": VIEWERS},
    "admin:captioner_mapperversion_photos": {"POST": TRAINERS},
    "admin:captioner_mapperversion_import": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_mapperversion_promote": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_mapperversion_poll": {"POST": TRAINERS},
    "admin:captioner_mapperversion_end_poll": {"POST": TRAINERS},
    "admin:captioner_mapperversion_download": {"GET": VIEWERS},
    "admin:captioner_mapperversion_remove": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_basemodels_live": {"GET": VIEWERS},
    "admin:captioner_basemodels_prepare": {"POST": TRAINERS},
    "admin:captioner_basemodels_cancel": {"POST": TRAINERS},
    "admin:captioner_basemodels_cutover": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_draftrequest_live": {"GET": VIEWERS},
    "admin:captioner_draftrequest_cancel": {"POST": TRAINERS},
    "admin:captioner_style_default": {"POST": TRAINERS},
    "admin:captioner_style_withdraw": {"POST": SUPERUSERS},
    "admin:captioner_style_restore": {"POST": SUPERUSERS},
    "admin:captioner_style_archive": {"POST": SUPERUSERS},
    "admin:captioner_style_remove": {"GET": SUPERUSERS, "POST": SUPERUSERS},
    "admin:captioner_style_rewrite": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_style_train": {"POST": TRAINERS},
    "admin:captioner_style_sentences": {"GET": LABELLERS, "POST": LABELLERS},
    "admin:captioner_style_retrain": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_style_import": {"GET": TRAINERS, "POST": TRAINERS},
    "admin:captioner_style_take": {"POST": LABELLERS},
    "admin:captioner_style_dataset": {"GET": VIEWERS},
    "admin:captioner_correction_labelling": {"GET": VIEWERS},
    "admin:training_import_live": {"GET": VIEWERS},
    "admin:training_import_rejected": {"GET": VIEWERS},
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
    "captioner_caption": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_mapperversion": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_basemodels": (VIEWERS, TRAINERS, NOBODY, NOBODY),
    "captioner_draftrequest": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_promotion": (VIEWERS, NOBODY, NOBODY, NOBODY),
    "captioner_worker": (VIEWERS - {"labeller"}, NOBODY, NOBODY, NOBODY),
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
