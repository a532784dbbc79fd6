"""Photos in the admin."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern
from django.utils.safestring import SafeString

from captioner import services
from captioner.admin.base import BigTable, Empty, OwnPage, counted, page_status, so_many, thumbnail, together
from captioner.errors import Refused
from captioner.models import Caption, Image, Viewer

CAPTIONS_OF_AN_IMAGE = 50
DELETE = "captioner.delete_image"


# Each gives a link for the page of a photo, its words and its address, or None where it is not for this person; other
# apps add theirs.
links: list[Callable[[HttpRequest, Image], tuple[str, str] | None]] = []


class ReasonForm(forms.Form):
    """Why photos are deleted."""

    reason = forms.CharField(
        max_length=services.LONGEST_REASON, help_text="The reason is kept in the audit log with your name."
    )


def what_goes(found: services.Deletion) -> str:
    """What is deleted with a photo, as a sentence."""
    needed = (
        f" A style learns from it; what it learns from is deleted too: {found.needed_by}." if found.needed_by else ""
    )
    return (
        f"Its {found.captions:,} captions, their corrections, its embeddings and its files are deleted too.{needed} "
        "This cannot be undone."
    )


@admin.register(Image)
class ImageAdmin(BigTable, OwnPage):
    """Stored pictures."""

    when_empty = Empty("No photos yet: [upload some] on the site.", "home")
    list_display = ("picture", "__str__", "kilobytes", "credit", "created_at")
    list_display_links = ("__str__",)
    search_fields = ("sha256__startswith", "credit")
    search_help_text = "Searches the credit and the beginning of the SHA-256."
    actions = ("remove_chosen",)

    @admin.display(description="photo")
    def picture(self, image: Image) -> SafeString:
        return thumbnail(image)

    @admin.display(description="size")
    def kilobytes(self, image: Image) -> str:
        return filesizeformat(image.size)

    def get_urls(self) -> list[URLPattern]:
        """With the page that asks why a photo is deleted."""
        remove = self.route("<uuid:pk>/remove/", self.remove, "remove", DELETE, "GET", "POST")
        return [remove, *super().get_urls()]

    def show(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
        """The picture and what was written about it."""
        image = self.viewed(request, pk)
        captions = Caption.objects.none()
        if request.user.has_perm("captioner.view_caption"):
            captions = image.captions.select_related("style", "version__style").prefetch_related("corrections")
        return self.page(
            request,
            "admin/captioner/image.html",
            str(image),
            image=image,
            links=[link for make in links if (link := make(request, image))],
            captions=captions[:CAPTIONS_OF_AN_IMAGE],
        )

    def remove(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Take a photo down, after asking why."""
        image = self.viewed(request, pk)
        form, status = ReasonForm(request.POST or None), 200
        if request.method == "POST" and form.is_valid():
            try:
                services.delete_image(Viewer(request.user), pk, form.cleaned_data["reason"])
            except Refused as error:
                form.add_error("reason", error.detail)
                status = page_status(error)
            else:
                messages.success(request, "The photo was deleted.")
                return redirect("admin:captioner_image_changelist")
        return self.page(
            request,
            "admin/form_page.html",
            f"Delete the photo {image}?",
            status,
            form=form,
            button="Delete it",
            text=what_goes(services.deletion(Viewer(request.user), pk)),
        )

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(DELETE)

    @admin.action(description="Delete", permissions=["remove"])
    def remove_chosen(self, request: HttpRequest, queryset: QuerySet[Image]) -> HttpResponseBase | None:
        """Take photos down, after asking why."""
        form = ReasonForm(request.POST if "sure" in request.POST else None)
        if not form.is_valid():
            own = ("reason", "sure", "csrfmiddlewaretoken")
            kept = [(name, value) for name, values in request.POST.lists() for value in values if name not in own]
            count = so_many(counted(queryset))
            return self.page(
                request,
                "admin/form_page.html",
                f"Delete {count} photos?",
                form=form,
                kept=kept,
                button="Delete them",
                text="Their captions, corrections, examples and files are deleted too. This cannot be undone.",
            )
        viewer, reason = Viewer(request.user), form.cleaned_data["reason"]

        def delete(images: list[Image]) -> list[Refused]:
            return services.delete_photos(viewer, [image.pk for image in images], reason)

        together(request, queryset, delete, "photos were deleted")
        return None
