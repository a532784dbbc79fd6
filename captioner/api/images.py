"""/api/images/: photos, found by words and by what they show."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services
from captioner.api.base import PREFER_WAIT, PROBLEM, RETRY_AFTER, ApiViewSet, JpegRenderer, header, patience
from captioner.api.filters import FoundPages, Pages, refuse_unknown
from captioner.api.serializers import CaptionSerializer, FoundImageSerializer, ImageSerializer, SimilarImageSerializer
from captioner.http.pictures import picture
from captioner.http.throttles import SearchesThrottle
from captioner.models import Caption, Image

_QUERY = OpenApiParameter(
    "q",
    {"type": "string", "maxLength": services.LONGEST_SEARCH, "examples": ["a dog on the beach"]},
    description="words in a photo's captions, or what the photo shows. Not with `ordering`.",
)

_JPEG = {(200, "image/jpeg"): OpenApiTypes.BINARY, 304: None}
_CACHED = [
    OpenApiParameter("If-None-Match", str, OpenApiParameter.HEADER, description="the `ETag` of the picture you have"),
    header("ETag", str, "the same for as long as the picture is", 200, 304),
]


class ImageViewSet(ApiViewSet):
    """Stored pictures: JPEG, upright, without the metadata of the upload."""

    queryset = Image.objects.none()
    serializer_class = FoundImageSerializer
    pagination_class = FoundPages
    query_parameters = frozenset({"q", "album"})

    @extend_schema(
        parameters=[
            _QUERY,
            OpenApiParameter("album", OpenApiTypes.UUID, description="only photos in this album of yours"),
            OpenApiParameter(
                "Prefer",
                PREFER_WAIT,
                OpenApiParameter.HEADER,
                description=f"`wait=N`: how long to wait, at most, for a worker to look up what is searched for; "
                f"{services.PATIENCE:g} s without it.",
            ),
            header("Retry-After", int, "seconds to wait before the next request; with `pending` only", 200),
        ],
        responses={200: FoundImageSerializer(many=True), 404: PROBLEM},
    )
    def list(self, request: Request) -> Response:
        """The images of your captions and of the examples, or search results among them.

        Search results are ordered by relevance, combining the words in captions and what the photos show; other lists
        are ordered newest first. `meaning` says whether photos were compared with the text by what they show, which
        needs a worker: while it is `pending`, the results are those found by words.
        """
        text = services.tidy_search(request.query_params.get("q", ""))
        album = self._album(request)
        if not text:
            captions = services.search_captions(self.viewer, album=album) if album else None
            return self.page(services.visible_images(self.viewer, captions))
        seconds = patience(request)
        found = services.search_images(
            self.viewer,
            text,
            seconds=services.PATIENCE if seconds is None else seconds,
            may_ask=lambda: SearchesThrottle().count(request),
            album=album,
        )
        hits = self.paginator.hits(found, request, self)
        images = self.get_serializer(services.found_images(hits), many=True).data
        headers = RETRY_AFTER if found.meaning == "pending" else {}
        return Response(self.paginator.found(found, images, request), headers=headers)

    def _album(self, request: Request) -> UUID | None:
        """The album that a list is narrowed to.

        Raises:
            ValidationError: this is not an id.
            Refused: the viewer has no such album.
        """
        given = request.query_params.get("album", "")
        if not given:
            return None
        try:
            album = UUID(given)
        except ValueError as error:
            raise ValidationError({"album": "it must be an album's id"}) from error
        return services.get_album(self.viewer, album).pk

    @extend_schema(responses={200: SimilarImageSerializer(many=True), 409: PROBLEM, 503: PROBLEM}, filters=False)
    @action(detail=True, serializer_class=SimilarImageSerializer, pagination_class=None)
    def similar(self, request: Request, pk: UUID) -> Response:
        """The images in your lists that are most similar to an image, most similar first."""
        return Response(self.get_serializer(services.similar_images(self.viewer, pk), many=True).data)

    @extend_schema(responses=ImageSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One image."""
        image = services.get_image(self.viewer, pk)
        return Response(ImageSerializer(image, context=self.get_serializer_context()).data)

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "reason",
                {"type": "string", "maxLength": services.LONGEST_REASON},
                description="why; kept in the audit log. Needed for somebody else's photo, and for one that a style "
                "learns from.",
            )
        ],
        responses={204: None, 409: PROBLEM},
    )
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a photo that you sent, with its captions, their corrections and its files.

        Captions that are queued or running are deleted too. A photo that a style learns from can be deleted only by
        users who may delete everybody's photos; its examples are deleted with it.
        """
        refuse_unknown(request, {"reason"})
        services.delete_image(self.viewer, pk, request.query_params.get("reason", ""))
        return Response(status=204)

    @extend_schema(responses=CaptionSerializer(many=True))
    @action(
        detail=True,
        serializer_class=CaptionSerializer,
        queryset=Caption.objects.none(),
        pagination_class=Pages,
        query_parameters=frozenset(),
    )
    def captions(self, request: Request, pk: UUID) -> Response:
        """Your captions of an image and, if it is an example, the public ones."""
        image = services.get_image(self.viewer, pk)
        return self.page(services.visible_captions(self.viewer).filter(image=image))

    @extend_schema(parameters=_CACHED, responses=_JPEG, filters=False)
    @action(detail=True, renderer_classes=[JpegRenderer], pagination_class=None)
    def file(self, request: Request, pk: UUID) -> HttpResponseBase:
        """The picture itself."""
        return picture(request, self.viewer, pk, "file")

    @extend_schema(parameters=_CACHED, responses=_JPEG, filters=False)
    @action(detail=True, renderer_classes=[JpegRenderer], pagination_class=None)
    def thumbnail(self, request: Request, pk: UUID) -> HttpResponseBase:
        """A thumbnail of the picture."""
        return picture(request, self.viewer, pk, "thumbnail")
