"""The admin's pages of images, captions, versions and promotions, workers and webhooks.

Styles and what they learn from are in training/admin.py, the dashboard in clipcap_site/admin.py. What a page does is a
function of `captioner.services`; who may see and do it is Django's permissions, checked here on every request.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import PurePath
from typing import Any

import numpy as np
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, reverse
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from captioner import audit, dashboard, services
from captioner.admin_parts import BigTable, ReadOnly, duration, each, since, thumbnail
from captioner.errors import Refused
from captioner.jobs import UNFINISHED, Status
from captioner.models import (
    AuditEntry,
    Caption,
    DeliveryAttempt,
    Draft,
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
from captioner.plots import heat_map, score_bars
from captioner.templatetags.captions import percent
from clipcap.prefixes import distances, mean_distance

CAPTIONS_OF_AN_IMAGE = 50
PHOTOS_OFFERED = 24
LOOKED_THROUGH = 1_000  # captions of each version that is compared
METRICS = ("CIDEr", "Bleu_4", "ROUGE_L", "METEOR", "SPICE")


@admin.register(Image)
class ImageAdmin(BigTable, ReadOnly):
    """Stored pictures."""

    list_display = ("picture", "__str__", "kilobytes", "credit", "created_at")
    list_display_links = ("__str__",)
    search_fields = ("sha256__startswith", "credit")
    search_help_text = "By credit, or the beginning of the SHA-256."

    @admin.display(description="")
    def picture(self, image: Image) -> SafeString:
        return thumbnail(image)

    @admin.display(description="size")
    def kilobytes(self, image: Image) -> str:
        return filesizeformat(image.size)

    def get_urls(self) -> list[URLPattern]:
        """With the picture's own bytes, which the pages give only to those who may see a caption of it."""
        kinds = [
            self.route(f"<uuid:pk>/{kind}/", self._serve(kind), kind, "captioner.view_image")
            for kind in ("file", "thumbnail")
        ]
        return [*kinds, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The picture and what was written about it."""
        image = self.viewed(request, as_uuid(object_id))
        captions = Caption.objects.none()
        if request.user.has_perm("captioner.view_caption"):
            captions = image.captions.select_related("style", "version__style").prefetch_related("corrections")
        return self.page(
            request,
            "admin/captioner/image.html",
            str(image),
            image=image,
            captions=captions[:CAPTIONS_OF_AN_IMAGE],
        )

    def _serve(self, kind: str) -> Any:
        def serve(request: HttpRequest, pk: uuid.UUID) -> FileResponse:
            file = getattr(self.viewed(request, pk), kind)
            try:
                response = FileResponse(file.storage.open(file.name, "rb"), content_type="image/jpeg")
            except OSError as error:
                raise Http404("the file is not in the storage") from error
            response["Cache-Control"] = "private, max-age=86400"
            return response

        return serve


class UnsureFilter(admin.SimpleListFilter):
    """Narrows captions to those that the models are not sure about, or to the others."""

    title = "confidence"
    parameter_name = "unsure"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("true", "Not sure"), ("false", "Others")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Caption]) -> QuerySet[Caption]:
        conditions = {"true": Caption.doubtful(), "false": ~Caption.doubtful()}
        condition = conditions.get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)


@admin.register(Caption)
class CaptionAdmin(BigTable, ReadOnly):
    """Captions, with what a person can do about them."""

    list_display = ("picture", "words", "style", "status", "sure", "by", "created_at")
    list_display_links = ("words",)
    list_filter = ("status", "style", UnsureFilter)
    list_select_related = ("image", "style", "version__style")
    search_fields = ("text", "name")
    search_help_text = "Words of the caption or the file's name."
    actions = ("retry_chosen", "cancel_chosen")

    @admin.display(description="")
    def picture(self, caption: Caption) -> SafeString:
        return thumbnail(caption.image)

    @admin.display(description="caption")
    def words(self, caption: Caption) -> str:
        if caption.withheld:
            return f"withheld: {caption.withheld['detail']}"
        return caption.text or caption.error_detail or caption.name or "–"  # noqa: RUF001

    @admin.display(description="confidence")
    def sure(self, caption: Caption) -> str:
        confidence = caption.shown_confidence
        return "" if confidence is None else f"{percent(confidence)}{', not sure' if caption.unsure else ''}"

    @admin.display(description="by")
    def by(self, caption: Caption) -> str:
        return str(caption.version or "")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Caption]:
        """With corrections, which have no confidence."""
        captions: QuerySet[Caption] = super().get_queryset(request)
        return captions.prefetch_related("corrections")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody writes a caption by hand; the permission to change is that to correct, cancel and try again."""
        return super(ReadOnly, self).has_change_permission(request, obj)

    @admin.action(description="Try again", permissions=["change"])
    def retry_chosen(self, request: HttpRequest, queryset: QuerySet[Caption]) -> None:
        viewer = Viewer(request.user)
        each(request, queryset, lambda caption: services.retry_caption(viewer, caption.pk), "captions are queued again")

    @admin.action(description="Cancel", permissions=["change"])
    def cancel_chosen(self, request: HttpRequest, queryset: QuerySet[Caption]) -> None:
        count = services.cancel_captions(Viewer(request.user), queryset)
        messages.success(request, f"{count:,} captions are canceled; what was finished stays.")

    def get_urls(self) -> list[URLPattern]:
        """With a caption's buttons."""
        change = "captioner.change_caption"
        return [
            self.route("<uuid:pk>/correct/", self.correct, "correct", change, "POST"),
            self.route("<uuid:pk>/retry/", self.retry, "retry", change, "POST"),
            self.route("<uuid:pk>/cancel/", self.cancel, "cancel", change, "POST"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The caption beside its picture, with everything known about it."""
        parts = ("image", "style", "version__style", "owner")
        queryset = Caption.objects.select_related(*parts).prefetch_related("corrections__author")
        caption = self.viewed(request, as_uuid(object_id), queryset)
        return self.page(
            request,
            "admin/captioner/caption.html",
            str(caption),
            caption=caption,
            can_change=self.has_change_permission(request),
            can_retry=caption.status in (Status.FAILED, Status.CANCELED),
        )

    def correct(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Keep what a person writes in place of a caption."""
        correction = services.correct_caption(Viewer(request.user), pk, request.POST.get("text", ""))
        return self.done(request, correction.caption, "the correction is kept")

    def retry(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Queue a failed or canceled caption again."""
        return self.done(request, services.retry_caption(Viewer(request.user), pk), "the caption is queued again")

    def cancel(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Cancel an unfinished caption."""
        return self.done(request, services.cancel_caption(Viewer(request.user), pk), "the caption is canceled")


class ImportVersionForm(forms.Form):
    """A mapper's file and the style it is for."""

    style = forms.ModelChoiceField(Style.objects.all())
    file = forms.FileField(
        help_text="A mapper of this software (.safetensors) or a checkpoint of the authors' ClipCap code (.pt). It is "
        "checked before it is filed, which takes some seconds, and serves nobody until it is promoted."
    )
    normalize = forms.TypedChoiceField(
        label="Trained on embeddings",
        choices=(
            ("", "as the file says, or guess"),
            ("yes", "divided by their norm"),
            ("no", "as the encoder gives them"),
        ),
        coerce=lambda choice: choice == "yes",
        empty_value=None,
        required=False,
        help_text="A file of the authors' code does not tell whether it was trained with --normalize_prefix. The guess "
        "is yes for a Transformer and no for an MLP, as for the weights that the authors published. Where it is wrong, "
        "nothing fails, but every caption is.",
    )


class PromoteForm(forms.Form):
    """Why a version is put in service."""

    reason = forms.CharField(widget=forms.Textarea(attrs={"rows": 2}), required=False, max_length=1000)


@admin.register(MapperVersion)
class MapperVersionAdmin(ReadOnly):
    """Trained mappers: compare, promote, roll back, download, import, delete."""

    list_display = ("__str__", "in_service", "origin", "cider", "verdict", "megabytes", "created_by", "created_at")
    list_filter = ("style", "origin")
    list_select_related = ("style", "created_by")
    list_per_page = 50
    actions = ("compare_chosen",)
    change_list_template = "admin/captioner/version_list.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[MapperVersion]:
        """With `serving`, the version that is in service in each one's style."""
        newest = Promotion.objects.filter(style=OuterRef("style")).order_by("-pk").values("version")[:1]
        versions: QuerySet[MapperVersion] = super().get_queryset(request)
        return versions.annotate(serving=Subquery(newest))

    @admin.display(description="in service", boolean=True)
    def in_service(self, version: Any) -> bool:
        return bool(version.serving == version.pk)

    @admin.display(description="CIDEr")
    def cider(self, version: MapperVersion) -> str:
        score = dashboard.score(version)
        return "" if score is None else f"{score:.3f}"

    @admin.display(description="verdict")
    def verdict(self, version: MapperVersion) -> str:
        return str(version.metrics.get("verdict", ""))

    @admin.display(description="size")
    def megabytes(self, version: MapperVersion) -> str:
        return filesizeformat(version.size) if version.size else ""

    @admin.action(description="Compare", permissions=["view"])
    def compare_chosen(self, request: HttpRequest, queryset: QuerySet[MapperVersion]) -> HttpResponseBase:
        chosen = [("version", pk) for pk in queryset.values_list("pk", flat=True)[:6]]
        return redirect(f"{reverse('admin:captioner_mapperversion_compare')}?{urlencode(chosen)}")

    def get_urls(self) -> list[URLPattern]:
        """With a version's pages and files."""
        view, posts = "captioner.view_mapperversion", ("GET", "POST")
        return [
            self.route("compare/", self.compare, "compare", view),
            self.route("compare/photos/", self.compare_on_photos, "photos", "captioner.add_draftrequest", "POST"),
            self.route("import/", self.import_version, "import", "captioner.add_mapperversion", *posts),
            self.route("<int:pk>/promote/", self.promote, "promote", "captioner.add_promotion", *posts),
            self.route("<int:pk>/download/", self.download, "download", view),
            self.route("<int:pk>/remove/", self.remove, "remove", "captioner.delete_mapperversion", *posts),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What a version is, where it came from, how good it is, and when it served."""
        version = self.viewed(request, as_int(object_id))
        candidate = version.metrics.get("candidate", {})
        return self.page(
            request,
            "admin/captioner/version.html",
            str(version),
            version=version,
            serving=version.serving == version.pk,
            active=MapperVersion.objects.filter(pk=version.serving).first(),
            bars=score_bars(_scores([version]), "Scores on the held-out images") if candidate else "",
            candidate=candidate,
            run=getattr(version, "run", None),
            promotions=version.promotions.select_related("person"),
        )

    def compare(self, request: HttpRequest) -> HttpResponseBase:
        """Scores of versions side by side, and what they wrote about the same photos."""
        versions = self._chosen(request.GET)
        photos = Image.objects.all()[:PHOTOS_OFFERED] if request.user.has_perm("captioner.view_image") else []
        return self.page(
            request,
            "admin/captioner/compare.html",
            "Compare " + ", ".join(map(str, versions)),
            versions=versions,
            bars=score_bars(_scores(versions), "Scores on the held-out images"),
            offered=photos,
            most=services.MOST_COMPARED["photos"],
            photos=_written_by(versions) if request.user.has_perm("captioner.view_caption") else [],
        )

    def compare_on_photos(self, request: HttpRequest) -> HttpResponseBase:
        """Have versions write about stored and uploaded photos."""
        stored = Image.objects.filter(pk__in=[as_uuid(text) for text in request.POST.getlist("photo")])
        if not request.user.has_perm("captioner.view_image"):
            stored = stored.none()
        files = request.FILES.getlist("upload")[: services.MOST_COMPARED["photos"] + 1]  # more are refused unread
        uploaded = [services.Upload(file.read(settings.MAX_UPLOAD_BYTES + 1), file.name or "") for file in files]
        drafts = services.compare_versions(
            versions=self._chosen(request.POST), images=[*stored, *uploaded], person=request.user
        )
        return redirect("admin:captioner_draftrequest_change", drafts.pk)

    def _chosen(self, given: QueryDict) -> list[MapperVersion]:
        wanted = [as_int(text) for text in given.getlist("version")][: services.MOST_COMPARED["versions"]]
        return list(MapperVersion.objects.filter(pk__in=wanted).select_related("style").order_by("style", "number"))

    def import_version(self, request: HttpRequest) -> HttpResponseBase:
        """File an uploaded mapper."""
        form = ImportVersionForm(request.POST or None, request.FILES or None, initial=request.GET.dict())
        if request.method == "POST" and form.is_valid():
            given = form.cleaned_data
            file = given["file"]
            try:
                version = services.import_version(
                    style=given["style"],
                    file=file,
                    name=file.name,
                    person=request.user,
                    normalize=given["normalize"],
                )
            except Refused as error:
                form.add_error("file", error.detail)
            else:
                trained_on = version.config.get("trained_on")
                how = f", a mapper that was trained on {trained_on}" if trained_on else ""
                self.done(request, version, f"filed as {version}{how}; it serves when it is promoted")
                return redirect("admin:captioner_mapperversion_change", version.pk)
        return self.page(request, "admin/form_page.html", "Import a version", form=form, button="Check and file")

    def promote(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Put a version in service; an older one: roll back."""
        version = self.viewed(request, pk)
        form = PromoteForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            try:
                services.promote(version=version, person=request.user, reason=form.cleaned_data["reason"])
            except Refused as error:
                form.add_error("reason", error.detail)
            else:
                self.done(request, version, f"{version} is in service; workers use it from their next batch on")
                return redirect("admin:captioner_style_change", version.style_id)
        active = MapperVersion.objects.filter(pk=version.serving).select_related("style").first()
        return self.page(
            request,
            "admin/captioner/promote.html",
            f"{'Roll back to' if active and active.number > version.number else 'Promote'} {version}",
            form=form,
            version=version,
            active=active,
            bars=score_bars(_scores([version, active] if active else [version]), "Scores on the held-out images"),
            button="Put in service",
        )

    def download(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """The file."""
        version = self.viewed(request, pk)
        try:
            content = version.file.storage.open(version.file.name, "rb")
        except OSError as error:
            raise Refused("file_missing", f"the file of {version} is not in the storage", status=404) from error
        audit.record(audit.Action.EXPORTED, f"the mapper of {version}")
        name = f"{version.style.slug}-v{version.number}{PurePath(version.file.name).suffix}"
        return FileResponse(content, as_attachment=True, filename=name, content_type="application/octet-stream")

    def remove(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Delete a version that never served, after asking."""
        version = self.viewed(request, pk)
        if request.method == "POST":
            style, name = version.style, str(version)
            services.delete_version(version)
            return self.done(request, style, f"{name} is deleted")
        return self.page(
            request,
            "admin/form_page.html",
            f"Delete {version}?",
            form=forms.Form(),
            button="Delete it and its file",
            text="A version is deleted for good. One in service or in the history of promotions, and one that wrote "
            "captions, stays.",
        )


@admin.register(DraftRequest)
class DraftRequestAdmin(BigTable, ReadOnly):
    """What versions were asked to write: comparisons on photos, and styles' captions written anew. Live."""

    list_display = ("__str__", "style", "person", "created_at")
    list_select_related = ("style", "person")

    def get_urls(self) -> list[URLPattern]:
        """With the live part of a page and its button."""
        change = "captioner.change_draftrequest"
        return [
            self.route("<uuid:pk>/live/", self.live, "live", "captioner.view_draftrequest"),
            self.route("<uuid:pk>/cancel/", self.cancel, "cancel", change, "POST"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Photos and what each version writes about them, or how far a style's captions are."""
        drafts = self.viewed(request, as_uuid(object_id))
        title = f"The captions of {drafts.style}, written anew" if drafts.style else "Versions compared on photos"
        return self.page(request, "admin/captioner/drafts.html", title, up=drafts.style, **_standing(drafts))

    def live(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """How it stands now, to be swapped in."""
        return self.page(request, "admin/captioner/drafts_live.html", "", **_standing(self.viewed(request, pk)))

    def cancel(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Cancel what is not written yet."""
        drafts = self.viewed(request, pk)
        return self.done(request, drafts, f"{services.cancel_drafts(drafts):,} that were not written yet are canceled")


@admin.register(Promotion)
class PromotionAdmin(ReadOnly):
    """The history of what was in service. It is never rewritten."""

    list_display = ("version", "style", "person", "reason", "created_at")
    list_filter = ("style",)
    list_select_related = ("version__style", "style", "person")


@admin.register(Worker)
class WorkerAdmin(ReadOnly):
    """Worker processes."""

    list_display = ("name", "queue", "device", "models_loaded", "memory", "running_for", "heard_from")

    @admin.display(description="memory")
    def memory(self, worker: Worker) -> str:
        return f"{worker.memory_mb:,} MB"

    @admin.display(description="running for")
    def running_for(self, worker: Worker) -> str:
        return duration((worker.seen_at - worker.started_at).total_seconds())

    @admin.display(description="last heard from")
    def heard_from(self, worker: Worker) -> str:
        return since(worker.seen_at)


class AttemptInline(admin.TabularInline):  # type: ignore[type-arg]  # generic for type checkers only
    """Each try to deliver a message."""

    model = DeliveryAttempt
    fields = readonly_fields = ("at", "status", "error", "ms")
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What happened is not written by hand."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may see the message may."""
        return True


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(BigTable, ReadOnly):
    """Messages to clients, with what became of each try."""

    list_display = ("url", "status", "failed_tries", "error_detail", "created_at")
    list_filter = ("status",)
    exclude = ("secret", "previous_secret")
    readonly_fields = ("request", "url")
    inlines = (AttemptInline,)
    actions = ("send_again",)

    def has_send_permission(self, request: HttpRequest) -> bool:
        """Nobody writes a message by hand; the permission to change is that to send it again."""
        return bool(request.user.has_perm("captioner.change_webhookdelivery"))

    @admin.action(description="Send again", permissions=["send"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]) -> None:
        messages.success(request, f"{services.redeliver_all(queryset):,} webhooks are sent again.")


@admin.register(WebhookHost)
class WebhookHostAdmin(ReadOnly):
    """Hosts that gave no answer lately, and until when they are left alone."""

    list_display = ("host", "failures", "open_until", "error")


@admin.register(AuditEntry)
class AuditEntryAdmin(BigTable, ReadOnly):
    """What staff and trainers did."""

    list_display = ("created_at", "who", "action", "subject", "shortened", "address")
    list_filter = ("action",)
    search_fields = ("who", "subject", "detail")
    search_help_text = "A user name, or words of what was done to what."

    @admin.display(description="detail")
    def shortened(self, entry: AuditEntry) -> str:
        return Truncator(entry.detail).chars(100)


def as_uuid(text: str) -> uuid.UUID:
    """The id in an address.

    Raises:
        Http404: it is none.
    """
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise Http404("there is nothing here") from error


def as_int(text: str) -> int:
    """The number in an address.

    Raises:
        Http404: it is none.
    """
    if not text.isdecimal() or len(text) > 18:
        raise Http404("there is nothing here")
    return int(text)


def _scores(versions: list[MapperVersion]) -> dict[str, dict[str, float]]:
    found = {metric: {str(v): dashboard.score(v, metric) for v in versions} for metric in METRICS}
    known = {m: {v: s for v, s in scores.items() if s is not None} for m, scores in found.items()}
    return {metric: scores for metric, scores in known.items() if scores}


def _written_by(versions: list[MapperVersion], photos: int = 24) -> list[dict[str, Any]]:
    """What each version wrote last about the same photos: those of its newest captions, first the photos that most of
    the versions wrote about."""
    texts: dict[Any, dict[int, str]] = {}
    newest: dict[Any, datetime] = {}
    for version in versions:
        # What has a version has succeeded. To ask for that too would lead the database to another index.
        captions = Caption.objects.filter(version=version).order_by("-created_at", "-pk")
        for image, text, at in captions.values_list("image", "text", "created_at")[:LOOKED_THROUGH]:
            texts.setdefault(image, {}).setdefault(version.pk, text)
            newest[image] = max(at, newest.get(image, at))
    images = sorted(texts, key=lambda image: (len(texts[image]), newest[image]), reverse=True)[:photos]
    stored = Image.objects.in_bulk(images)
    return [
        {"image": stored[pk], "texts": [texts[pk].get(v.pk, "") for v in versions]} for pk in images if pk in stored
    ]


def _standing(request: DraftRequest) -> dict[str, Any]:
    counts = dict(request.drafts.values_list("status").annotate(count=Count("pk")))
    total, left = sum(counts.values()), sum(counts.get(status, 0) for status in UNFINISHED) + request.listing
    failed = request.drafts.filter(status=Status.FAILED).first()
    shown = {"request_": request, "total": total, "left": left, "written": counts.get(Status.SUCCEEDED, 0)}
    shown |= {"failed": counts.get(Status.FAILED, 0), "reason": failed.error_detail if failed else ""}
    if request.style:
        return shown
    drafts = list(request.drafts.select_related("image", "version__style").order_by("created_at", "pk"))
    images = sorted({draft.image for draft in drafts}, key=lambda image: (image.created_at, image.pk))
    versions = sorted({draft.version for draft in drafts}, key=lambda version: (version.style.slug, version.number))
    by_place = {(draft.image, draft.version): draft for draft in drafts}
    return shown | {
        "versions": versions,
        "photos": [{"image": i, "drafts": [by_place.get((i, v)) for v in versions]} for i in images],
        "spreads": [] if left else [spread for v in versions if (spread := _spread(v, images, by_place))],
    }


def _spread(
    version: MapperVersion, images: list[Image], drafts: dict[tuple[Image, MapperVersion], Draft]
) -> dict[str, Any] | None:
    """How far a version's prefixes of different photos differ; nothing where there are not two."""
    written = [(str(n), draft.prefix) for n, i in enumerate(images, 1) if (draft := drafts.get((i, version)))]
    found = {number: np.frombuffer(bytes(prefix), "<f2") for number, prefix in written if prefix}
    if len(found) < 2:
        return None
    prefixes = np.stack(list(found.values())).reshape(len(found), int(version.config["prefix_length"]), -1)
    title = f"Distances between the prefixes by {version}"
    return {
        "version": version,
        "mean": mean_distance(prefixes),
        "map": heat_map(distances(prefixes).tolist(), list(found), title),
    }
