"""The HTTP API. What it does is in services.py; what it says is in serializers.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import FileResponse
from django.urls import path
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from drf_spectacular.views import SpectacularAPIView
from rest_framework.decorators import action
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser, MultiPartParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.throttling import BaseThrottle
from rest_framework.viewsets import GenericViewSet

from captioner import health, services
from captioner.access import Scope, SearchesThrottle, check_scope
from captioner.errors import Refused
from captioner.filters import CaptionFilter, FoundPages, Pages, refuse_unknown
from captioner.models import Caption, CaptionRequest, Image, Style, Viewer, WebhookDelivery
from captioner.schema import SwaggerView
from captioner.serializers import (
    OPTIONS,
    AnswerSerializer,
    CanceledSerializer,
    CaptionSerializer,
    CorrectionSerializer,
    DeliverySerializer,
    FoundImageSerializer,
    ImageSerializer,
    NewCaptionsFormSerializer,
    NewCaptionsSerializer,
    NewCorrectionSerializer,
    RedeliverySerializer,
    RequestSerializer,
    SimilarImageSerializer,
    StyleSerializer,
    digest,
)
from captioner.strict_json import StrictRenderer
from captioner.visitors import viewer_of

LONGEST_WAIT = 60
RETRY_AFTER = {"Retry-After": "1"}  # seconds; captions take about that long

PROBLEM = OpenApiResponse()  # filled in by schema.add_problems
_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    OpenApiParameter.HEADER,
    description="Of your choice, new for each request; kept for 24 hours. A repetition with the same key and body gets "
    "the first answer and queues nothing; with another body it is refused.",
)
_PREFER_WAIT = {"type": "string", "examples": ["wait=30"]}
_PREFER = OpenApiParameter(
    "Prefer",
    _PREFER_WAIT,
    OpenApiParameter.HEADER,
    description=f"`wait=N`: answer when all is finished, or after N seconds, {LONGEST_WAIT} at most. Where too many "
    "clients wait already, the answer comes at once and without Preference-Applied.",
)
_QUERY = OpenApiParameter(
    "q",
    {"type": "string", "maxLength": services.LONGEST_SEARCH, "examples": ["a dog on the beach"]},
    description="words that a photo's captions have to hold, or what it has to show. Not with `ordering`.",
)
_SEARCH = OpenApiParameter("search", str, description="words that its text, or a person's correction, has to hold")


def _header(name: str, type_: Any, description: str, *statuses: int) -> OpenApiParameter:
    return OpenApiParameter(name, type_, OpenApiParameter.HEADER, description=description, response=list(statuses))


_RETRY_AFTER = _header("Retry-After", int, "seconds until it is worth asking again; not when finished", 200)


class Json(JSONParser):
    def parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse(*args, **kwargs)
        except RecursionError as error:
            raise ParseError("the JSON is nested too deeply") from error


class Jpeg(BaseRenderer):
    """Says that a view answers pictures, which it hands out itself."""

    media_type = "image/jpeg"
    format = "jpg"


class Api(GenericViewSet[Any]):
    parser_classes: tuple[type, ...] = (Json,)
    pagination_class: type[Pages] | None = Pages
    filter_backends: tuple[type, ...] = ()
    query_parameters: frozenset[str] = frozenset()  # what lists take beside those of `Pages`
    scope = Scope.CAPTION  # that a token takes to write; to read, that is `read`

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        check_scope(request, self.scope)

    @property
    def viewer(self) -> Viewer:
        return viewer_of(self.request)

    def page(self, rows: QuerySet[Any]) -> Response:
        found = self.paginate_queryset(rows)
        return self.get_paginated_response(self.get_serializer(found, many=True).data)


@extend_schema_view(list=extend_schema(parameters=[_SEARCH]))
class CaptionViewSet(Api):
    """Captions: asked for, looked up, canceled, tried again, corrected, deleted."""

    queryset = Caption.objects.none()
    serializer_class = CaptionSerializer
    parser_classes = (Json, MultiPartParser)
    lookup_value_converter = "uuid"
    query_parameters = frozenset({"search", *CaptionFilter.base_filters})
    filter_backends = (DjangoFilterBackend,)
    filterset_class = CaptionFilter

    @extend_schema(
        parameters=[
            _KEY,
            _PREFER,
            _header("Location", OpenApiTypes.URI_REF, "the request's address", 200, 202),
            _header("Retry-After", int, "seconds until it is worth asking", 202),
            _header("Preference-Applied", str, "`wait=N`, where that was done", 200, 202),
        ],
        request={"multipart/form-data": NewCaptionsFormSerializer, "application/json": NewCaptionsSerializer},
        responses={
            200: OpenApiResponse(AnswerSerializer, "finished in the time waited"),
            202: OpenApiResponse(AnswerSerializer, "queued"),
            409: PROBLEM,
            503: PROBLEM,
            507: PROBLEM,
        },
    )
    def create(self, request: Request) -> Response:
        """Ask for captions: of each image in each style.

        Ids and addresses are known at once. Poll the request's address until its status is final, wait with `Prefer`,
        or be told by a webhook.
        """
        form = request.content_type.startswith("multipart/")
        taken = (NewCaptionsFormSerializer if form else NewCaptionsSerializer)(data=request.data)
        taken.is_valid(raise_exception=True)
        data, viewer = taken.validated_data, self.viewer

        def render(made: CaptionRequest) -> dict[str, Any]:
            made = services.get_request(viewer, made.pk)
            plain: dict[str, Any] = json.loads(
                StrictRenderer().render(AnswerSerializer(made, context=self.get_serializer_context()).data)
            )
            return plain

        made = services.request_captions(
            viewer=viewer,
            images=[
                *data.get("image", ()),
                *_images(viewer, data.get("image_id", ())),
                *data.get("image_base64", ()),
            ],
            styles=data.get("style", ()),
            options={name: data[name] for name in OPTIONS if name in data},
            min_confidence=data.get("min_confidence"),
            bulk=data["bulk"],
            deadline=timedelta(seconds=data["deadline_seconds"]) if "deadline_seconds" in data else None,
            webhook_url=data.get("webhook_url", ""),
            webhook_secret=data.get("webhook_secret", ""),
            webhook_previous_secret=data.get("webhook_previous_secret", ""),
            once=_once(request, viewer, data),
            render=render,
        )
        headers = {"Location": made.answer["url"]}
        seconds = _patience(request)
        if seconds is not None:
            with services.place_to_wait() as place:
                if place:
                    headers["Preference-Applied"] = f"wait={seconds}"
                    if services.wait(made, seconds):
                        return Response(render(made), headers=headers)
        return Response(made.answer, status=202, headers=headers | RETRY_AFTER)

    def list(self, request: Request) -> Response:
        """Your captions and the examples that everybody sees."""
        search = request.query_params.get("search", "")
        return self.page(self.filter_queryset(services.search_captions(self.viewer, text=search)))

    @extend_schema(parameters=[_RETRY_AFTER])
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One caption: its status and, when it has succeeded, its text."""
        caption = services.get_caption(self.viewer, pk)
        services.look_after([caption])
        return Response(self.get_serializer(caption).data, headers={} if caption.finished else RETRY_AFTER)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a caption, and its image if nothing else refers to that."""
        services.delete_caption(self.viewer, pk)
        return Response(status=204)

    @extend_schema(request=None, responses={200: CaptionSerializer, 409: PROBLEM}, operation_id="captions_cancel")
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: UUID) -> Response:
        """Cancel a queued or running caption."""
        return Response(self.get_serializer(services.cancel_caption(self.viewer, pk)).data)

    @extend_schema(
        request=None,
        responses={200: CanceledSerializer},
        operation_id="captions_cancel_all",
        parameters=[_SEARCH],
        filters=True,
    )
    @action(detail=False, methods=["post"], url_path="cancel")
    def cancel_all(self, request: Request) -> Response:
        """Cancel all of your own queued and running captions, or those of them that pass the filters of the list."""
        refuse_unknown(request, self.query_parameters)
        search = request.query_params.get("search", "")
        captions = self.filter_queryset(services.search_captions(self.viewer, text=search, mine=True))
        return Response({"canceled": services.cancel_captions(self.viewer, captions)})

    @extend_schema(
        request=None,
        operation_id="captions_retry",
        responses={202: CaptionSerializer, 409: PROBLEM},
        parameters=[_header("Retry-After", int, "seconds until it is worth asking", 202)],
    )
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: UUID) -> Response:
        """Queue a failed or canceled caption again."""
        caption = services.retry_caption(self.viewer, pk)
        return Response(self.get_serializer(caption).data, status=202, headers=RETRY_AFTER)

    @extend_schema(
        request=NewCorrectionSerializer,
        responses={201: CorrectionSerializer, 409: PROBLEM},
        operation_id="captions_correct",
    )
    @action(detail=True, methods=["post"], parser_classes=[Json], scope=Scope.LABEL)
    def corrections(self, request: Request, pk: UUID) -> Response:
        """Write what a caption should be. The newest correction counts; the machine's text is kept beside it."""
        taken = NewCorrectionSerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        correction = services.correct_caption(self.viewer, pk, taken.validated_data["text"])
        return Response(CorrectionSerializer(correction).data, status=201)


class RequestViewSet(Api):
    """What was asked for in one call: one caption or many."""

    queryset = CaptionRequest.objects.none()
    serializer_class = RequestSerializer
    lookup_value_converter = "uuid"

    def list(self, request: Request) -> Response:
        """Your requests."""
        return self.page(services.visible_requests(self.viewer))

    @extend_schema(parameters=[_RETRY_AFTER])
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One request with all its captions."""
        made = services.get_request(self.viewer, pk)
        captions = list(made.captions.all())
        services.look_after(captions)
        finished = all(caption.finished for caption in captions)
        return Response(self.get_serializer(made).data, headers={} if finished else RETRY_AFTER)

    @extend_schema(request=None, responses={200: CanceledSerializer}, operation_id="requests_cancel")
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: UUID) -> Response:
        """Cancel all queued and running captions of a request."""
        captions = Caption.objects.filter(request=services.get_request(self.viewer, pk))
        return Response({"canceled": services.cancel_captions(self.viewer, captions)})

    @extend_schema(responses=DeliverySerializer(many=True), filters=False)
    @action(detail=True, pagination_class=None)
    def deliveries(self, request: Request, pk: UUID) -> Response:
        """What became of the request's webhook: one entry where it has one, with all tries."""
        rows = WebhookDelivery.objects.filter(request=services.get_request(self.viewer, pk))
        return Response(DeliverySerializer(rows, many=True).data)

    @extend_schema(
        request=RedeliverySerializer,
        responses={202: DeliverySerializer, 409: PROBLEM},
        filters=False,
        operation_id="requests_redeliver",
    )
    @deliveries.mapping.post
    def redeliver(self, request: Request, pk: UUID) -> Response:
        """Send the request's webhook again, whether it arrived or not; with other secrets, if they are given."""
        taken = RedeliverySerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        return Response(
            DeliverySerializer(services.redeliver(self.viewer, pk, **taken.validated_data)).data, status=202
        )


class StyleViewSet(Api):
    """The styles in service, the default one first."""

    queryset = Style.objects.none()
    serializer_class = StyleSerializer
    pagination_class = None
    lookup_field = "slug"
    lookup_value_converter = "slug"

    def list(self, request: Request) -> Response:
        """The styles in service."""
        return Response(self.get_serializer(services.styles_in_service(), many=True).data)

    def retrieve(self, request: Request, slug: str) -> Response:
        """One style."""
        return Response(self.get_serializer(services.get_style(slug)).data)


class ImageViewSet(Api):
    """Stored pictures: JPEG, upright, without whatever else the upload held."""

    queryset = Image.objects.none()
    serializer_class = FoundImageSerializer
    lookup_value_converter = "uuid"
    pagination_class = FoundPages
    query_parameters = frozenset({"q"})

    @extend_schema(
        parameters=[
            _QUERY,
            OpenApiParameter(
                "Prefer",
                _PREFER_WAIT,
                OpenApiParameter.HEADER,
                description=f"`wait=N`: how long to wait, at most, for a worker to look up what is searched for; "
                f"{services.PATIENCE:g} s without it.",
            ),
            _header("Retry-After", int, "seconds until it is worth asking again; with `pending` only", 200),
        ],
        responses=FoundImageSerializer(many=True),
    )
    def list(self, request: Request) -> Response:
        """The images of your captions and of the examples, or what a search finds among them.

        Of a search, the photos come first that match best, by the words in their captions and by what they show
        together; the newest otherwise. `meaning` says whether photos were compared with the text by what they show,
        which a worker has to look up: while that is `pending` the photos are those that words have found.
        """
        text = services.tidy_search(request.query_params.get("q", ""))
        if not text:
            return self.page(services.visible_images(self.viewer))
        seconds = _patience(request)
        found = services.search_images(
            self.viewer,
            text,
            seconds=services.PATIENCE if seconds is None else seconds,
            may_ask=lambda: SearchesThrottle().count(request),
        )
        hits = self.paginator.hits(found, request, self)
        images = self.get_serializer(services.found_images(hits), many=True).data
        headers = RETRY_AFTER if found.meaning == "pending" else {}
        return Response(self.paginator.found(found, images, request), headers=headers)

    @extend_schema(responses={200: SimilarImageSerializer(many=True), 409: PROBLEM, 503: PROBLEM}, filters=False)
    @action(detail=True, serializer_class=SimilarImageSerializer, pagination_class=None)
    def similar(self, request: Request, pk: UUID) -> Response:
        """Those of the images in your lists that show what is most like an image, the likest first."""
        return Response(self.get_serializer(services.similar_images(self.viewer, pk), many=True).data)

    @extend_schema(responses=ImageSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One image."""
        image = services.get_image(self.viewer, pk)
        return Response(ImageSerializer(image, context=self.get_serializer_context()).data)

    @extend_schema(responses=CaptionSerializer(many=True))
    @action(
        detail=True,
        serializer_class=CaptionSerializer,
        queryset=Caption.objects.none(),
        pagination_class=Pages,
        query_parameters=frozenset(),
    )
    def captions(self, request: Request, pk: UUID) -> Response:
        """Your captions of an image and, where it is an example, those that everybody sees."""
        image = services.get_image(self.viewer, pk)
        return self.page(services.visible_captions(self.viewer).filter(image=image))

    @extend_schema(responses={(200, "image/jpeg"): OpenApiTypes.BINARY}, filters=False)
    @action(detail=True, renderer_classes=[Jpeg], pagination_class=None)
    def file(self, request: Request, pk: UUID) -> FileResponse:
        """The picture itself."""
        return _picture(services.get_image(self.viewer, pk), "file")

    @extend_schema(responses={(200, "image/jpeg"): OpenApiTypes.BINARY}, filters=False)
    @action(detail=True, renderer_classes=[Jpeg], pagination_class=None)
    def thumbnail(self, request: Request, pk: UUID) -> FileResponse:
        """The picture, small."""
        return _picture(services.get_image(self.viewer, pk), "thumbnail")


def _picture(image: Image, kind: str) -> FileResponse:
    try:
        file = getattr(image, kind).open("rb")
    except FileNotFoundError as error:
        raise Refused("file_missing", "the picture's file is gone; upload it again", status=404) from error
    return FileResponse(
        file,
        content_type="image/jpeg",
        filename=f"{image.pk}.jpg",
        headers={"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"},
    )


def _images(viewer: Viewer, pks: Sequence[UUID]) -> list[Image]:
    found = {pk: _image(viewer, pk) for pk in dict.fromkeys(pks)}  # an id sent a thousand times is looked up once
    return [found[pk] for pk in pks]


def _image(viewer: Viewer, pk: UUID) -> Image:
    try:
        return services.get_image(viewer, pk)
    except Refused as error:
        raise Refused("unknown_image", error.detail, status=422, field="image_id") from error


def idempotency_key(request: Request) -> str | None:
    """The header's value, if it is sent.

    Raises:
        Refused: it is empty, too long or not printable.
    """
    key: str | None = request.headers.get("Idempotency-Key")
    if key is not None and not (1 <= len(key) <= 255 and all("!" <= character <= "~" for character in key)):
        raise Refused(
            "invalid_idempotency_key",
            "Idempotency-Key must have 1 to 255 printable ASCII characters and no spaces",
            field="Idempotency-Key",
        )
    return key


def _once(request: Request, viewer: Viewer, data: dict[str, Any]) -> services.Once | None:
    key = idempotency_key(request)
    if key is None:
        return None
    return services.Once(viewer.sender or f"ip:{BaseThrottle().get_ident(request)}", key, digest(data))


def _patience(request: Request) -> int | None:
    """The seconds of `Prefer: wait=N`; None without it. What cannot be understood is ignored, as RFC 7240 asks."""
    for preference in request.headers.get("Prefer", "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait" and seconds.isascii() and seconds.isdigit():
            return min(int(seconds[:9]), LONGEST_WAIT)
    return None


router = SimpleRouter(use_regex_path=False)
router.register("captions", CaptionViewSet, "caption")
router.register("requests", RequestViewSet, "request")
router.register("styles", StyleViewSet, "style")
router.register("images", ImageViewSet, "image")

urlpatterns = [
    *router.urls,
    path("health/live", health.live, name="live"),
    path("health/ready", health.ready, name="ready"),
    path("metrics", health.metrics, name="metrics"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", SwaggerView.as_view(url_name="v1:schema"), name="docs"),
]
