"""Mapper versions in the admin: imported, compared, promoted, downloaded, deleted."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import FileResponse, HttpRequest, HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, reverse
from django.utils.http import urlencode

from captioner import audit, services
from captioner.admin import dashboard
from captioner.admin.base import STYLES, Empty, OwnPage, page_status
from captioner.admin.parameters import as_int, as_uuid
from captioner.admin.scores import scores_drawn, written_by
from captioner.errors import Refused
from captioner.models import BaseModels, Image, MapperVersion, Poll, Style

PHOTOS_OFFERED = 24


class ImportVersionForm(forms.Form):
    """A mapper's file and the style it is for."""

    style = forms.ModelChoiceField(Style.objects.exclude(status=Style.Status.ARCHIVED))
    file = forms.FileField(
        help_text="A mapper file of this software (.safetensors) or a checkpoint of the ClipCap authors' code (.pt). "
        "A "
        "language model in it comes along. It is checked first, which takes a few seconds, and is not used until it is "
        "promoted."
    )
    normalize = forms.TypedChoiceField(
        label="Trained on embeddings",
        choices=(
            ("", "detect automatically"),
            ("yes", "normalized to unit length"),
            ("no", "as the encoder gives them"),
        ),
        coerce=lambda choice: choice == "yes",
        empty_value=None,
        required=False,
        help_text="A checkpoint does not record whether it was trained with --normalize_prefix. The guess "
        "is yes for a Transformer and no for an MLP, as for the weights that the authors published. If the style has "
        "held-out photos, both are tried on them, and the better one is taken. If it is wrong, nothing fails, but "
        "every caption is wrong.",
    )

    heads = forms.IntegerField(
        label="Attention heads",
        required=False,
        min_value=1,
        max_value=256,
        help_text="Of the Transformer, which a checkpoint does not record; the authors' code has 8, which is the "
        "default.",
    )
    encoder = forms.CharField(
        label="Trained with encoder",
        required=False,
        max_length=200,
        help_text="As the list of workers names it. If left out, it fits every encoder with embeddings of its size.",
    )
    base_models = forms.ModelChoiceField(
        BaseModels.objects.exclude(encoder=""),
        required=False,
        empty_label="those in service",
        help_text="Those it was trained for.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Where only one pair is on record, there is nothing to choose."""
        super().__init__(*args, **kwargs)
        if BaseModels.objects.exclude(encoder="").count() < 2:
            del self.fields["base_models"]


class PromoteForm(forms.Form):
    """Form: the reason for putting a version in service."""

    reason = forms.CharField(widget=forms.Textarea(attrs={"rows": 2}), required=False, max_length=1000)


@admin.register(MapperVersion)
class MapperVersionAdmin(OwnPage):
    """Trained mappers: compare, promote, roll back, download, import, delete."""

    when_empty = Empty("No versions yet: [choose a style] to train, or import a mapper.", STYLES)
    list_display = ("__str__", "in_service", "origin", "cider", "verdict", "megabytes", "created_by", "created_at")
    list_filter = ("style", "origin")
    list_select_related = ("style", "created_by")
    list_per_page = 50
    actions = ("compare_chosen",)
    change_list_template = "admin/captioner/version_list.html"
    # To what else there is to see of a version, "" where there is nothing; other apps add theirs.
    links: ClassVar[list[Callable[[HttpRequest, MapperVersion], str]]] = []

    def get_queryset(self, request: HttpRequest) -> QuerySet[MapperVersion]:
        """With `in_service`, whether it is in service."""
        versions: QuerySet[MapperVersion] = super().get_queryset(request)
        return versions.annotate(in_service=Exists(MapperVersion.objects.in_service().filter(pk=OuterRef("pk"))))

    @admin.display(description="in service", boolean=True)
    def in_service(self, version: Any) -> bool:
        return bool(version.in_service)

    @admin.display(description="CIDEr")
    def cider(self, version: MapperVersion) -> str:
        score = dashboard.score(version)
        return "" if score is None else f"{score:.3f}"

    @admin.display(description="verdict")
    def verdict(self, version: MapperVersion) -> str:
        return version.report.verdict or ""

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
            self.route("<int:pk>/poll/<int:opponent>/", self.start_poll, "poll", "captioner.add_draftrequest", "POST"),
            self.route("polls/<uuid:pk>/end/", self.end_poll, "end_poll", "captioner.change_draftrequest", "POST"),
            self.route("<int:pk>/download/", self.download, "download", view),
            self.route("<int:pk>/remove/", self.remove, "remove", "captioner.delete_mapperversion", *posts),
            *super().get_urls(),
        ]

    def show(self, request: HttpRequest, pk: int) -> HttpResponse:
        """What a version is, where it came from, its scores, and when it was in service."""
        version = self.viewed(request, pk)
        report = version.report
        return self.page(
            request,
            "admin/captioner/version.html",
            str(version),
            version=version,
            in_service=version.in_service,
            version_in_service=version.style.version_in_service,
            bars=scores_drawn([version]) if report.candidate else "",
            report=report,
            sentence=services.verdict_of(version),
            polls=_polls(version),
            links=[link for find in self.links if (link := find(request, version))],
            promotions=version.promotions.select_related("person"),
        )

    def compare(self, request: HttpRequest) -> HttpResponseBase:
        """Scores of versions side by side, and their captions of the same photos."""
        versions = self._chosen(request.GET)
        photos = Image.objects.all()[:PHOTOS_OFFERED] if request.user.has_perm("captioner.view_image") else []
        return self.page(
            request,
            "admin/captioner/compare.html",
            "Compare " + ", ".join(map(str, versions)),
            versions=versions,
            bars=scores_drawn(versions),
            offered=photos,
            most=services.MOST_COMPARED["photos"],
            photos=written_by(versions) if request.user.has_perm("captioner.view_caption") else [],
        )

    def compare_on_photos(self, request: HttpRequest) -> HttpResponseBase:
        """Compare versions on stored and uploaded photos."""
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
        status = 200
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
                    heads=given["heads"],
                    encoder=given["encoder"].strip(),
                    base=given.get("base_models"),
                )
            except Refused as error:
                form.add_error("file", error.detail)
                status = page_status(error)
            else:
                trained_on = version.mapper.trained_on
                how = f", trained on {trained_on}" if trained_on else ""
                self.done(
                    request, version, f"filed as {version}: {version.brings}{how}; promote it to put it in service"
                )
                return redirect("admin:captioner_mapperversion_change", version.pk)
        return self.page(
            request, "admin/form_page.html", "Import a version", status, form=form, button="Check and file"
        )

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
                self.done(request, version, f"{version} is in service; workers use it from their next batch")
                return redirect("admin:captioner_style_change", version.style_id)
        now = version.style.version_in_service
        return self.page(
            request,
            "admin/captioner/promote.html",
            f"{'Roll back to' if now and now.number > version.number else 'Promote'} {version}",
            form=form,
            version=version,
            version_in_service=now,
            sentence=services.verdict_of(version),
            polls=_polls(version),
            bars=scores_drawn([version, now] if now else [version]),
            button="Put in service",
        )

    def start_poll(self, request: HttpRequest, pk: int, opponent: int) -> HttpResponseBase:
        """Have people vote between a version and another of its style."""
        version = self.viewed(request, pk)
        poll = services.start_poll(candidate=version, opponent=self.viewed(request, opponent), person=request.user)
        return self.done(request, version, f"started: people who label find the blind vote of {poll} on their page")

    def end_poll(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """End a blind vote before its result is clear."""
        poll = get_object_or_404(Poll.objects.select_related("candidate__style", "opponent"), pk=pk)
        services.end_poll(poll, request.user)
        return self.done(request, poll.candidate, f"ended: {services.poll_sentence(poll)}")

    def download(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """The file."""
        version = self.viewed(request, pk)
        try:
            content = version.file.storage.open(version.file.name, "rb")
        except OSError as error:
            raise Refused("file_missing", f"the file of {version} is missing from the storage", status=404) from error
        audit.record(audit.Action.EXPORTED, f"the mapper of {version}")
        name = f"{version.style.slug}-v{version.number}{PurePath(version.file.name).suffix}"
        return FileResponse(content, as_attachment=True, filename=name, content_type="application/octet-stream")

    def remove(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Delete a version that was never in service, after confirmation."""
        version = self.viewed(request, pk)
        if request.method == "POST":
            style, name = version.style, str(version)
            services.delete_version(version)
            return self.done(request, style, f"{name} was deleted")
        return self.page(
            request,
            "admin/form_page.html",
            f"Delete {version}?",
            form=forms.Form(),
            button="Delete it and its file",
            text="This cannot be undone. A version that is or was in service, or that wrote captions, cannot be "
            "deleted.",
        )


def _polls(version: MapperVersion) -> list[tuple[Poll, str, str]]:
    """The blind votes about a version with their verdicts, empty while they are under way, and sentences."""
    return [
        (poll, services.standing(poll).preference.verdict if poll.ended_at else "", services.poll_sentence(poll))
        for poll in services.polls_of(version)
    ]
