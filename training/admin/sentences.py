"""Examples written by hand in the admin: those a new style begins with, and more of them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern

from captioner import services as captioner_services
from captioner import uploads
from captioner.admin.base import WithNewPage, sentence
from captioner.admin.parameters import as_uuid
from captioner.errors import Refused
from captioner.models import Image, Style, Viewer
from training import services
from training.forms import NewStyleForm, SentencesForm

OFFERED, MOST_OFFERED = 12, 60  # photos to write about


class SentencePages(WithNewPage):
    """The pages of a style on which people write captions of photos."""

    def get_urls(self) -> list[URLPattern]:
        write = "training.add_example"
        return [
            self.route("<int:pk>/sentences/", self.sentences, "sentences", write, "GET", "POST"),
            *super().get_urls(),
        ]

    def add(self, request: HttpRequest) -> HttpResponse:
        """A style from nothing: its name, where it starts from, and its first examples."""
        photos, problem = _chosen_photos(request)
        form = NewStyleForm(_sent(request), initial=request.POST.dict() or None, photos=photos)
        if form.is_bound and form.is_valid():
            fields = {name: form.cleaned_data[name] for name in ("name", "slug", "description", "starts_from")}
            sentences = form.sentences if request.user.has_perm("training.add_example") else []
            try:
                style = services.new_style(**fields, sentences=sentences, person=request.user)
            except Refused as error:
                name = error.extra.get("field")
                form.add_error(name if name in form.fields else None, sentence(error))
            else:
                self.log_addition(request, style, "created")
                messages.success(request, f"{style} was created.")
                if "file" in request.FILES and request.user.has_perm("training.add_import"):
                    _import(request, style, request.FILES["file"])
                return redirect("admin:captioner_style_change", style.pk)
        return self.page(
            request,
            "admin/training/new_style.html",
            "New style",
            form=form,
            problem=problem,
            fewest=services.FEWEST_SENTENCES,
            most=services.MOST_SENTENCES,
            button="Create the style",
            writes=request.user.has_perm("training.add_example"),
            imports=request.user.has_perm("training.add_import"),
        )

    def sentences(self, request: HttpRequest, pk: int) -> HttpResponseBase:
        """Write what the captions of some photos should be."""
        style = self.viewed(request, pk)
        photos, problem = _chosen_photos(request)
        form = SentencesForm(_sent(request), initial=request.POST.dict() or None, photos=photos)
        if form.is_bound and form.is_valid():
            try:
                count = services.add_sentences(style, form.sentences)
            except Refused as error:
                form.add_error(None, sentence(error))
            else:
                self.log_change(request, style, f"got {count} sentences")
                messages.success(request, f"{count:,} example{'s were' if count != 1 else ' was'} added to {style}.")
                return redirect("admin:captioner_style_change", style.pk)
        return self.page(
            request,
            "admin/training/sentences.html",
            f"Write examples of {style}",
            form=form,
            problem=problem,
            button="Add to the dataset",
            up=style,
            writes=True,
        )


def _sent(request: HttpRequest) -> Any:
    """What was sent to be saved; None where photos were only added to the form."""
    return request.POST if request.method == "POST" and "add" not in request.POST else None


def _chosen_photos(request: HttpRequest) -> tuple[list[Image], str]:
    """The photos that a form offers, and why a file just sent is none of them: those sent, those that it offered
    before, or one's own newest."""
    if not request.user.has_perm("captioner.view_image"):
        return [], ""
    kept = list(Image.objects.filter(pk__in=[as_uuid(text) for text in request.POST.getlist("photo")][:MOST_OFFERED]))
    own = Viewer(request.user).sender
    if request.method != "POST":
        newest = list(Image.objects.filter(sender=own)[:OFFERED])
        return newest or list(Image.objects.all()[:OFFERED]), ""
    sent, problem = [], ""
    for file in request.FILES.getlist("upload")[: services.MOST_SENTENCES]:
        try:
            sent.append(uploads.store(file.read(settings.MAX_UPLOAD_BYTES + 1), own))
        except Refused as error:
            problem = f"{captioner_services.tidy_name(file.name or '')}: {error.detail}"
    return list(dict.fromkeys([*sent, *kept]))[:MOST_OFFERED], problem


def _import(request: HttpRequest, style: Style, file: Any) -> None:
    """Have examples imported, or say why that is refused."""
    try:
        services.start_import(style=style, file=file, name=file.name, person=request.user)
    except Refused as error:
        messages.error(request, sentence(error))
