"""Photos in the admin."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import admin
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern
from django.utils.safestring import SafeString

from captioner.admin.base import BigTable, ReadOnly, thumbnail
from captioner.admin.parameters import as_uuid
from captioner.models import Caption, Image

CAPTIONS_OF_AN_IMAGE = 50


@admin.register(Image)
class ImageAdmin(BigTable, ReadOnly):
    """Stored pictures."""

    list_display = ("picture", "__str__", "kilobytes", "credit", "created_at")
    list_display_links = ("__str__",)
    search_fields = ("sha256__startswith", "credit")
    search_help_text = "Searches the credit and the beginning of the SHA-256."

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
                raise Http404("the file is missing from the storage") from error
            response["Cache-Control"] = "private, max-age=86400"
            return response

        return serve
