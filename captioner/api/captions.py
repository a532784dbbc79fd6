"""/api/captions/: request, read, cancel, retry and correct captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_view
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services
from captioner.api.base import (
    KEY,
    PREFER,
    PROBLEM,
    RETRY_AFTER,
    RETRY_AFTER_HEADER,
    SEARCH,
    ApiJSONParser,
    ApiViewSet,
    header,
    once,
    patience,
)
from captioner.api.filters import CaptionFilter, refuse_unknown
from captioner.api.permissions import Scope
from captioner.api.renderers import StrictRenderer
from captioner.api.serializers import (
    OPTIONS,
    AnswerSerializer,
    CanceledSerializer,
    CaptionSerializer,
    CorrectionSerializer,
    NewCaptionsFormSerializer,
    NewCaptionsSerializer,
    NewCorrectionSerializer,
)
from captioner.errors import Refused
from captioner.models import Caption, CaptionRequest, Image, Viewer


@extend_schema_view(list=extend_schema(parameters=[SEARCH]))
class CaptionViewSet(ApiViewSet):
    """Captions: request, read, cancel, retry, correct and delete them."""

    queryset = Caption.objects.none()
    serializer_class = CaptionSerializer
    parser_classes = (ApiJSONParser, MultiPartParser)
    query_parameters = frozenset({"search", *CaptionFilter.base_filters})
    filter_backends = (DjangoFilterBackend,)
    filterset_class = CaptionFilter

    @extend_schema(
        parameters=[
            KEY,
            PREFER,
            header("Location", OpenApiTypes.URI_REF, "URL of the request", 200, 202),
            header("Retry-After", int, "seconds to wait before the next request", 202),
            header("Preference-Applied", str, "`wait=N`, if the server waited", 200, 202),
        ],
        request={"multipart/form-data": NewCaptionsFormSerializer, "application/json": NewCaptionsSerializer},
        responses={
            200: OpenApiResponse(AnswerSerializer, "finished within the waiting time"),
            202: OpenApiResponse(AnswerSerializer, "queued"),
            409: PROBLEM,
            503: PROBLEM,
            507: PROBLEM,
        },
    )
    def create(self, request: Request) -> Response:
        """Request captions for each image in each style.

        Ids and URLs are returned immediately. Poll the URL of the request until its status is final, wait with
        `Prefer`, or use a webhook.
        """
        form = request.content_type.startswith("multipart/")
        taken = (NewCaptionsFormSerializer if form else NewCaptionsSerializer)(data=request.data)
        taken.is_valid(raise_exception=True)
        data, viewer = taken.validated_data, self.viewer

        def render(made: CaptionRequest) -> dict[str, Any]:
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
            once=once(request, viewer, data),
            render=render,
        )
        headers = {"Location": made.answer["url"]}
        seconds = patience(request)
        if seconds is not None:
            with services.place_to_wait() as place:
                if place:
                    headers["Preference-Applied"] = f"wait={seconds}"
                    if services.wait(made, seconds):
                        return Response(render(services.get_request(viewer, made.pk)), headers=headers)
        return Response(made.answer, status=202, headers=headers | RETRY_AFTER)

    def list(self, request: Request) -> Response:
        """Your captions and the public examples."""
        search = request.query_params.get("search", "")
        return self.page(self.filter_queryset(services.search_captions(self.viewer, text=search)))

    @extend_schema(parameters=[RETRY_AFTER_HEADER])
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One caption: its status and, once it has succeeded, its text."""
        caption = services.get_caption(self.viewer, pk)
        services.rescue_stale([caption])
        return Response(self.get_serializer(caption).data, headers={} if caption.finished else RETRY_AFTER)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a caption, and its image if nothing else refers to the image."""
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
        parameters=[SEARCH],
        filters=True,
    )
    @action(detail=False, methods=["post"], url_path="cancel")
    def cancel_all(self, request: Request) -> Response:
        """Cancel all your own queued and running captions, or those that match the filters of the list."""
        refuse_unknown(request, self.query_parameters)
        search = request.query_params.get("search", "")
        captions = self.filter_queryset(services.search_captions(self.viewer, text=search, mine=True))
        return Response({"canceled": services.cancel_captions(self.viewer, captions)})

    @extend_schema(
        request=None,
        operation_id="captions_retry",
        responses={202: CaptionSerializer, 409: PROBLEM},
        parameters=[header("Retry-After", int, "seconds to wait before the next request", 202)],
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
    @action(detail=True, methods=["post"], parser_classes=[ApiJSONParser], scope=Scope.LABEL)
    def corrections(self, request: Request, pk: UUID) -> Response:
        """Correct a caption, or confirm it by sending its own text.

        The newest correction counts; the original caption is kept.
        """
        taken = NewCorrectionSerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        correction = services.correct_caption(self.viewer, pk, taken.validated_data["text"])
        return Response(CorrectionSerializer(correction).data, status=201)


def _images(viewer: Viewer, pks: Sequence[UUID]) -> list[Image]:
    found = {pk: _image(viewer, pk) for pk in dict.fromkeys(pks)}  # an id sent a thousand times is looked up once
    return [found[pk] for pk in pks]


def _image(viewer: Viewer, pk: UUID) -> Image:
    try:
        return services.get_image(viewer, pk)
    except Refused as error:
        raise Refused("unknown_image", error.detail, status=422, field="image_id") from error
