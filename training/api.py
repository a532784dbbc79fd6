"""The HTTP API of styles and their training runs. What it does is in services."""

from __future__ import annotations

from typing import Any

from django.http import Http404
from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter

from captioner import services as captioner_services
from captioner.api.base import PROBLEM, ApiViewSet, idempotency_key
from captioner.api.permissions import Scope
from captioner.api.serializers import StyleSerializer
from captioner.api.serializers.fields import ReadOnly, Strict
from captioner.api.styles import StyleViewSet as StylesInService
from captioner.api.styles import check_permission
from captioner.models import Style
from clipcap.choices import Option
from training import services
from training.base_models_api import BaseModelsViewSet
from training.models import EpochReport, RunEvent, TrainingRun
from training.options import OPTIONS, RunOptions

RETRY_AFTER = {"Retry-After": "2"}


class MayTrain(BasePermission):
    """Seeing runs, starting them and stopping them are permissions apart, the admin's."""

    def has_permission(self, request: Request, view: Any) -> bool:
        action = "change" if view.action in ("cancel", "resume") else "add"
        return bool(
            request.user.has_perm(f"training.{'view' if request.method in SAFE_METHODS else action}_trainingrun")
        )


class RunOptionsSerializer(serializers.Serializer[RunOptions]):
    """Training options; those left out take their defaults, and null is automatic where it is allowed."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        """Those that `RunOptions` declares."""
        return {name: _field(declared) for name, declared in OPTIONS.items()}

    def to_internal_value(self, data: Any) -> Any:
        unknown = [name for name in data if name not in self.fields] if isinstance(data, dict) else []
        if unknown:
            raise serializers.ValidationError({unknown[0]: f"unknown option; the options are {', '.join(self.fields)}"})
        return super().to_internal_value(data)


def _field(declared: Option) -> serializers.Field[Any, Any, Any, Any]:
    shown: dict[str, Any] = {"required": False, "help_text": declared.full_help}
    if declared.several:
        child = serializers.ChoiceField(tuple(declared.choices))
        return serializers.ListField(child=child, min_length=1, **shown)
    if declared.choices:
        return serializers.ChoiceField(tuple(declared.choices), allow_null=bool(declared.automatic), **shown)
    number = serializers.IntegerField if declared.whole else serializers.FloatField
    least, most = declared.within
    return number(min_value=least, max_value=most, allow_null=bool(declared.automatic), **shown)


class SentenceSerializer(Strict):
    image = serializers.UUIDField(help_text="the id of a stored photo")
    text = serializers.CharField(max_length=500, help_text="its caption, as the style should write it")


class NewStyleSerializer(Strict):
    name = serializers.CharField(max_length=80)
    slug = serializers.SlugField(
        required=False, max_length=50, help_text="its name in addresses and requests; made of `name` if left out"
    )
    description = serializers.CharField(required=False, allow_blank=True)
    starts_from = serializers.CharField(
        required=False,
        allow_null=True,
        help_text="slug of the style whose version in service its training starts from; the default style if left out, "
        "null to train from scratch",
    )
    examples = SentenceSerializer(
        many=True,
        required=False,
        help_text=f"{services.FEWEST_SENTENCES} to {services.MOST_SENTENCES} captions of photos to learn from",
    )


class ProspectSerializer(serializers.Serializer[services.Prospect]):
    training = serializers.IntegerField(help_text="photos that are trained on")
    held_out = serializers.IntegerField(help_text="photos that versions are judged by")
    judged = serializers.BooleanField(help_text="whether the gate will be able to tell better from worse")
    detail = serializers.CharField(help_text="the same in words, with what is missing")


class RunSerializer(ReadOnly[TrainingRun]):
    style = serializers.SlugRelatedField[Style](slug_field="slug", read_only=True)
    options = RunOptionsSerializer(source="chosen", read_only=True)
    version = serializers.IntegerField(source="version.number", default=None, allow_null=True, read_only=True)
    error = serializers.SerializerMethodField()
    verdict = serializers.ChoiceField(
        TrainingRun.Verdict.choices, allow_blank=True, help_text="empty until it is judged"
    )

    verdict_detail = serializers.SerializerMethodField(
        help_text="the verdict as a sentence, with its numbers and, where there is none, what is missing; empty until "
        "it is judged"
    )

    class Meta:
        model = TrainingRun
        fields = (
            "id",
            "style",
            "status",
            "options",
            "examples",
            "progress",
            "metrics",
            "verdict",
            "verdict_detail",
            "version",
            "reason",
            "error",
            "failures",
            "created_at",
            "started_at",
            "finished_at",
        )

    def get_verdict_detail(self, run: TrainingRun) -> str:
        name = f"v{run.version.number}" if run.version else "its version"
        return captioner_services.verdict_sentence(name, run.report)

    def get_error(self, run: TrainingRun) -> dict[str, str] | None:
        return {"code": run.error_code, "detail": run.error_detail} if run.error_code else None


class EventSerializer(ReadOnly[RunEvent]):
    class Meta:
        model = RunEvent
        fields = ("id", "level", "message", "created_at")


class EpochReportSerializer(ReadOnly[EpochReport]):
    class Meta:
        model = EpochReport
        fields = ("epoch", "step", "training_loss", "validation_loss", "samples", "created_at")


class StyleViewSet(StylesInService):
    """The styles in service, default style first."""

    @extend_schema(request=NewStyleSerializer, responses={201: StyleSerializer, 404: PROBLEM, 409: PROBLEM})
    def create(self, request: Request) -> Response:
        """Make a style, with some examples if you like. It can be requested once a version of it is in service: start
        a training run, then have its version promoted.

        This takes the permission "Can add style" and, for examples, "Can add example".
        """
        check_permission(request, "captioner.add_style")
        taken = NewStyleSerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        given = dict(taken.validated_data)
        examples = given.pop("examples", [])
        if examples:
            check_permission(request, "training.add_example")
        if "starts_from" not in given:
            given["starts_from"] = captioner_services.styles_in_service().first()
        elif given["starts_from"] is not None:
            given["starts_from"] = captioner_services.find_style(given["starts_from"])
        photos = [(captioner_services.get_image(self.viewer, row["image"]), row["text"]) for row in examples]
        style = services.new_style(**given, sentences=photos, person=request.user)
        return Response(self.get_serializer(style).data, status=201)

    @extend_schema(responses={200: ProspectSerializer})
    @action(detail=True, url_path="training-prospect")
    def training_prospect(self, request: Request, slug: str) -> Response:
        """What a training run with default options would learn from, and what the gate will be able to tell.

        This takes the permission "Can view training run".
        """
        check_permission(request, "training.view_trainingrun")
        found = services.prospect(captioner_services.find_style(slug))
        return Response(ProspectSerializer(found).data)


class StyleRunViewSet(ApiViewSet):
    """The training runs of a style."""

    queryset = TrainingRun.objects.none()
    serializer_class = RunSerializer
    permission_classes = (MayTrain,)
    scope = Scope.TRAIN

    def list(self, request: Request, slug: str) -> Response:
        """The style's runs, newest first."""
        return self.page(_runs().filter(style=_style(slug)))

    @extend_schema(
        request=RunOptionsSerializer,
        responses={202: RunSerializer, 409: PROBLEM, 507: PROBLEM},
        parameters=[
            OpenApiParameter(
                "Idempotency-Key",
                {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
                OpenApiParameter.HEADER,
                description="A retry with the same key and options gets the first run.",
            ),
            OpenApiParameter("Location", OpenApiTypes.URI_REF, OpenApiParameter.HEADER, response=[202]),
        ],
    )
    def create(self, request: Request, slug: str) -> Response:
        """Start retraining the style. A style can have only one unfinished run at a time."""
        taken = RunOptionsSerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        run = services.start_run(
            style=_style(slug),
            options=taken.validated_data,
            person=request.user,
            idempotency_key=idempotency_key(request),
        )
        address = reverse("v1:training-run-detail", args=[run.pk])
        return Response(self.get_serializer(run).data, status=202, headers={"Location": address, **RETRY_AFTER})


class RunViewSet(ApiViewSet):
    """Training runs: read, cancel and resume them."""

    queryset = TrainingRun.objects.none()
    serializer_class = RunSerializer
    permission_classes = (MayTrain,)
    scope = Scope.TRAIN
    lookup_value_converter = "int"

    def retrieve(self, request: Request, pk: int) -> Response:
        """One run: its progress and, once it has succeeded, its metrics, verdict and version."""
        run = _run(pk)
        return Response(self.get_serializer(run).data, headers={} if run.finished else RETRY_AFTER)

    @extend_schema(request=None, responses={200: RunSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: int) -> Response:
        """Cancel a queued or running run; its checkpoints are kept."""
        return Response(self.get_serializer(services.cancel_run(_run(pk))).data)

    @extend_schema(request=None, responses={202: RunSerializer, 409: PROBLEM})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: int) -> Response:
        """Resume a failed or canceled run from its last checkpoint."""
        return Response(self.get_serializer(services.resume_run(_run(pk))).data, status=202, headers=RETRY_AFTER)

    @extend_schema(responses=EventSerializer(many=True), filters=False)
    @action(detail=True, pagination_class=None)
    def events(self, request: Request, pk: int) -> Response:
        """The events of the run, in order."""
        return Response(EventSerializer(_run(pk).events.all(), many=True).data)

    @extend_schema(responses=EpochReportSerializer(many=True), filters=False)
    @action(detail=True, pagination_class=None)
    def checkpoints(self, request: Request, pk: int) -> Response:
        """The state of the run after each epoch, with captions of the same held-out photos."""
        return Response(EpochReportSerializer(_run(pk).reports.all(), many=True).data)


def _runs() -> Any:
    return TrainingRun.objects.select_related("style", "version")


def _run(pk: int) -> TrainingRun:
    run: TrainingRun | None = _runs().filter(pk=pk).first() if pk < 2**63 else None
    if run is None:
        raise Http404
    return run


def _style(slug: str) -> Style:
    style = Style.objects.filter(slug=slug).first()
    if style is None:
        raise Http404
    return style


router = SimpleRouter(use_regex_path=False)
router.register("styles", StyleViewSet, "style")
router.register("styles/<slug:slug>/training-runs", StyleRunViewSet, "style-training-run")
router.register("training-runs", RunViewSet, "training-run")
router.register("base-models", BaseModelsViewSet, "base-models")

urlpatterns = router.urls
