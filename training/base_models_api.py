"""/api/base-models/: others are prepared, looked at and cut over to. What it does is in services."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services as captioner_services
from captioner.api.base import PROBLEM, ApiViewSet
from captioner.api.permissions import Scope
from captioner.api.serializers.fields import ReadOnly, Strict
from captioner.api.styles import SERVE, check_permission
from captioner.models import BaseModels, CutOver
from training import services
from training.models import TrainingRun

SEE, START = "captioner.view_basemodels", "training.add_trainingrun"
RETRY_AFTER = {"Retry-After": "5"}  # seconds, while they are being prepared


class PrepareSerializer(Strict):
    encoder = serializers.CharField(
        max_length=services.LONGEST_SOURCE,
        help_text="as CLIPCAP_ENCODER names it, such as ViT-L-14/openai, or local-dir:PATH for a folder that the "
        "workers have",
    )
    language_model = serializers.CharField(
        max_length=services.LONGEST_SOURCE, help_text="as CLIPCAP_LANGUAGE_MODEL names it, such as gpt2-large"
    )


class CutOverOrderSerializer(Strict):
    leave_out = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        help_text="slugs of styles that may go out of service with it, having no version on these base models",
    )
    reason = serializers.CharField(required=False, allow_blank=True, max_length=1000)


class BaseModelsSerializer(ReadOnly[BaseModels]):
    """An encoder and a language model; their identities are empty until a worker has loaded them."""

    status = serializers.ChoiceField(BaseModels.Status.choices, read_only=True)

    class Meta:
        model = BaseModels
        fields: tuple[str, ...] = ("id", "status", *BaseModels.SOURCES, "encoder", "language_model", "created_at")


class StyleMoveSerializer(serializers.Serializer[services.StyleMove]):
    """How far a style is on its way to base models."""

    style = serializers.SlugField(source="style.slug")
    today = serializers.IntegerField(source="today.number", help_text="number of the version in service")
    new = serializers.IntegerField(
        source="new.number",
        default=None,
        allow_null=True,
        help_text="number of the version in service once these base models are; null while there is none",
    )
    verdict = serializers.ChoiceField(
        TrainingRun.Verdict.choices,
        source="new.report.verdict",
        default="",
        allow_blank=True,
        help_text="the gate's, of the new one against today's; empty while there is none",
    )
    run = serializers.IntegerField(
        source="run.pk", default=None, allow_null=True, help_text="the newest training run for these base models"
    )
    detail = serializers.CharField(help_text="how it stands, in words")


class WorkersSerializer(serializers.Serializer[dict[str, int]]):
    captions = serializers.IntegerField()
    training = serializers.IntegerField()


class CutOverSerializer(ReadOnly[CutOver]):
    class Meta:
        model = CutOver
        fields = ("number", "left_out", "reason", "created_at")


class MoveSerializer(BaseModelsSerializer):
    """Base models with how far they are prepared."""

    workers = serializers.SerializerMethodField(help_text="how many workers alive have loaded them, by queue")
    photos = serializers.SerializerMethodField(help_text="in the datasets of the styles in service")
    embedded = serializers.SerializerMethodField(help_text="how many of these their encoder has seen")
    styles = serializers.SerializerMethodField(help_text="those in service")
    missing = serializers.SerializerMethodField(help_text="slugs of those that have no version on these base models")
    cut_overs = CutOverSerializer(many=True, read_only=True, help_text="when they came into service, newest first")

    class Meta(BaseModelsSerializer.Meta):
        fields = (*BaseModelsSerializer.Meta.fields, "workers", "photos", "embedded", "styles", "missing", "cut_overs")

    def to_representation(self, instance: BaseModels) -> Any:
        self.move = services.progress(instance)
        return super().to_representation(instance)

    @extend_schema_field(WorkersSerializer)
    def get_workers(self, base: BaseModels) -> dict[str, int]:
        return self.move.workers

    def get_photos(self, base: BaseModels) -> int:
        return self.move.photos

    def get_embedded(self, base: BaseModels) -> int:
        return self.move.embedded

    @extend_schema_field(StyleMoveSerializer(many=True))
    def get_styles(self, base: BaseModels) -> Any:
        return StyleMoveSerializer(self.move.styles, many=True).data

    def get_missing(self, base: BaseModels) -> list[str]:
        return [style.slug for style in self.move.missing]


class BaseModelsViewSet(ApiViewSet):
    """Base models: those in service, and others that are prepared."""

    queryset = BaseModels.objects.none()
    serializer_class = MoveSerializer
    scope = Scope.TRAIN
    lookup_value_converter = "int"

    @extend_schema(responses=BaseModelsSerializer(many=True))
    def list(self, request: Request) -> Response:
        """Those on record, newest first.

        This takes the permission "Can view base models".
        """
        check_permission(request, SEE)
        found = self.paginate_queryset(BaseModels.objects.all())
        return self.get_paginated_response(BaseModelsSerializer(found, many=True).data)

    @extend_schema(
        request=PrepareSerializer,
        responses={202: MoveSerializer, 409: PROBLEM},
        parameters=[OpenApiParameter("Location", OpenApiTypes.URI_REF, OpenApiParameter.HEADER, response=[202])],
    )
    def create(self, request: Request) -> Response:
        """Prepare base models: once workers have loaded them, every style in service is retrained for them, while
        captions go on with today's. A repeated call goes on with the same.

        This takes the permission "Can add training run".
        """
        check_permission(request, START)
        taken = PrepareSerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        base = services.prepare_base(**taken.validated_data, person=request.user)
        address = reverse("v1:base-models-detail", args=[base.pk])
        return Response(self.get_serializer(base).data, status=202, headers={"Location": address, **RETRY_AFTER})

    def retrieve(self, request: Request, pk: int) -> Response:
        """How far they are prepared: every style, its version in service and the one that would take its place.

        This takes the permission "Can view base models".
        """
        check_permission(request, SEE)
        base = captioner_services.find_base_models(pk)
        return Response(self.get_serializer(base).data, headers=RETRY_AFTER if base.preparing else {})

    @extend_schema(request=None, responses={202: MoveSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: int) -> Response:
        """Prepare those on record, or go on with it: runs that failed or were canceled are resumed.

        This takes the permission "Can add training run".
        """
        check_permission(request, START)
        base = services.resume_preparation(base=captioner_services.find_base_models(pk), person=request.user)
        return Response(self.get_serializer(base).data, status=202, headers=RETRY_AFTER)

    @extend_schema(request=None, responses={200: MoveSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: int) -> Response:
        """Cancel the preparation. What is done is kept.

        This takes the permission "Can add training run".
        """
        check_permission(request, START)
        base = captioner_services.find_base_models(pk)
        services.cancel_preparation(base=base, person=request.user)
        return Response(self.get_serializer(base).data)

    @extend_schema(request=CutOverOrderSerializer, responses={200: MoveSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"], url_path="cut-over")
    def cut_over(self, request: Request, pk: int) -> Response:
        """Put these base models in service; to go back, cut over to the previous base models.

        This takes the permission "Can add promotion".
        """
        check_permission(request, SERVE)
        base, taken = captioner_services.find_base_models(pk), CutOverOrderSerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        given = taken.validated_data
        captioner_services.cut_over(
            base=base,
            leave_out=[captioner_services.find_style(slug) for slug in given.get("leave_out", ())],
            person=request.user,
            reason=given.get("reason", ""),
        )
        return Response(self.get_serializer(base).data)
