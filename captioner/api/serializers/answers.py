"""Serializers of responses."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, get_args

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from captioner.api.serializers.fields import CONFIDENCE, LOG_PROBABILITY, Address, ProbabilityField, ReadOnly
from captioner.jobs.job import Status
from captioner.models import Album, Caption, CaptionRequest, Correction, Image, Poll, Style, WebhookDelivery
from captioner.models.styles import BRINGS
from captioner.services import Match, poll_sentence, standing
from clipcap.evaluation.comparison import Verdict

log = logging.getLogger(__name__)


class TimingsSerializer(serializers.Serializer[Caption]):
    """In milliseconds; null if that has not happened yet."""

    queued_ms = serializers.FloatField(allow_null=True, help_text="until a worker started")
    encode_ms = serializers.FloatField(allow_null=True, help_text="0 if the image's embedding was cached")
    decode_ms = serializers.FloatField(allow_null=True, help_text="of the whole batch it was in")
    total_ms = serializers.FloatField(allow_null=True, help_text="from the request to the result")

    def to_representation(self, caption: Caption) -> dict[str, float | None]:
        return {
            "queued_ms": _ms(caption.created_at, caption.started_at),
            "encode_ms": caption.encode_ms,
            "decode_ms": caption.decode_ms,
            "total_ms": _ms(caption.created_at, caption.finished_at),
        }


class ErrorSerializer(serializers.Serializer[Caption]):
    """Why a caption failed."""

    code = serializers.CharField()
    detail = serializers.CharField()


class FailureSerializer(serializers.Serializer[Any]):
    """A failed attempt, which the row itself may not have caused."""

    at = serializers.DateTimeField()
    code = serializers.CharField()
    detail = serializers.CharField()


class WithheldSerializer(serializers.Serializer[Any]):
    """Why a caption has succeeded but has no text."""

    code = serializers.ChoiceField(choices=("low_confidence", "unknown_confidence"))
    detail = serializers.CharField()


class AlternativeSerializer(serializers.Serializer[Any]):
    text = serializers.CharField()
    confidence = ProbabilityField(help_text=CONFIDENCE)
    log_probability = serializers.FloatField(allow_null=True, default=None, help_text=LOG_PROBABILITY)


class CorrectionSerializer(ReadOnly[Correction]):
    """What a person says a caption should be; with `confirms`, it was right as it was."""

    author = serializers.CharField(
        source="author.get_username", default=None, read_only=True, allow_null=True, help_text="null if anonymous"
    )

    class Meta:
        model = Correction
        fields = ("text", "confirms", "author", "created_at")


class CaptionSerializer(ReadOnly[Caption]):
    url = Address("caption-detail")
    request_url = Address("request-detail", source="request_id")
    image_url = Address("image-detail", source="image_id")
    style = serializers.SlugRelatedField[Style](slug_field="slug", read_only=True)
    version = serializers.SerializerMethodField()
    confidence = ProbabilityField(
        source="shown_confidence", help_text=f"{CONFIDENCE}, and if a person has corrected it"
    )
    log_probability = serializers.FloatField(read_only=True, allow_null=True, help_text=LOG_PROBABILITY)
    unsure = serializers.BooleanField(
        read_only=True, help_text="whether its confidence is below the site's threshold; false where it is null"
    )
    withheld = WithheldSerializer(read_only=True, allow_null=True)
    alternatives = AlternativeSerializer(source="others", many=True, read_only=True)
    timings = TimingsSerializer(source="*", read_only=True)
    error = serializers.SerializerMethodField()
    failures = FailureSerializer(
        source="failed_attempts",
        many=True,
        read_only=True,
        help_text="the most recent failed attempts; it is retried automatically",
    )
    next_try_at = serializers.SerializerMethodField(help_text="null unless it is waiting for a retry")
    correction = serializers.SerializerMethodField()

    class Meta:
        model = Caption
        fields = (
            "id",
            "url",
            "status",
            "text",
            "confidence",
            "log_probability",
            "unsure",
            "withheld",
            "alternatives",
            "correction",
            "error",
            "failures",
            "next_try_at",
            "style",
            "version",
            "image",
            "image_url",
            "request",
            "request_url",
            "index",
            "name",
            "options",
            "min_confidence",
            "timings",
            "created_at",
            "started_at",
            "finished_at",
        )

    @extend_schema_field(
        {"type": ["integer", "null"], "description": "the number of the style's version that wrote it"}
    )
    def get_version(self, caption: Caption) -> int | None:
        return caption.version.number if caption.version else None

    @extend_schema_field(ErrorSerializer(allow_null=True))
    def get_error(self, caption: Caption) -> dict[str, str] | None:
        if caption.status != Status.FAILED:
            return None
        return {"code": caption.error_code, "detail": caption.error_detail}

    def get_next_try_at(self, caption: Caption) -> datetime | None:
        return caption.ready_at if caption.status == Status.QUEUED else None

    @extend_schema_field(CorrectionSerializer(allow_null=True))
    def get_correction(self, caption: Caption) -> Any:
        return CorrectionSerializer(caption.correction).data if caption.correction else None


class CanceledSerializer(serializers.Serializer[Any]):
    canceled = serializers.IntegerField(help_text="number of captions canceled; finished captions stay")


class WebhookSerializer(ReadOnly[WebhookDelivery]):
    url = serializers.CharField(read_only=True)

    class Meta:
        model = WebhookDelivery
        fields = ("url", "secret")


class RequestSerializer(ReadOnly[CaptionRequest]):
    url = Address("request-detail")
    status = serializers.ChoiceField(choices=Status.choices, read_only=True)
    captions = CaptionSerializer(many=True, read_only=True)

    class Meta:
        model = CaptionRequest
        fields: tuple[str, ...] = ("id", "url", "status", "created_at", "captions")


class AnswerSerializer(RequestSerializer):
    """The response to a new request; only this one contains the webhook's URL and secret."""

    webhook = WebhookSerializer(read_only=True, allow_null=True, default=None)

    class Meta(RequestSerializer.Meta):
        fields = (*RequestSerializer.Meta.fields, "webhook")


class TrySerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    status = serializers.IntegerField(allow_null=True, help_text="HTTP status of the response")
    error = serializers.CharField(allow_blank=True)
    ms = serializers.IntegerField(allow_null=True, help_text="null if there was no response")


class DeliverySerializer(ReadOnly[WebhookDelivery]):
    """A webhook delivery."""

    url = serializers.CharField(read_only=True)
    next_try_at = serializers.SerializerMethodField()
    log = TrySerializer(many=True, read_only=True, source="every_try")

    class Meta:
        model = WebhookDelivery
        fields = ("id", "url", "status", "created_at", "finished_at", "next_try_at", "log")

    def get_next_try_at(self, delivery: WebhookDelivery) -> datetime | None:
        return None if delivery.finished else delivery.not_before


class StyleSerializer(ReadOnly[Style]):
    url = Address("style-detail", source="slug", lookup="slug")
    version = serializers.IntegerField(
        source="version_in_service.number",
        read_only=True,
        default=None,
        allow_null=True,
        help_text="in service; null if there is none, which no list of styles contains",
    )
    language_model = serializers.ChoiceField(
        tuple(BRINGS),
        source="version_in_service.mapper.language_model",
        read_only=True,
        default=None,
        allow_null=True,
        help_text="of the version in service: frozen, the one that all share; adapters, that one with adapters; "
        "finetuned, one of its own",
    )

    class Meta:
        model = Style
        fields = ("slug", "url", "name", "description", "is_default", "status", "version", "language_model")


class PollSerializer(ReadOnly[Poll]):
    """Blind votes between two versions of a style."""

    candidate = serializers.IntegerField(source="candidate.number", read_only=True, help_text="a version's number")
    opponent = serializers.IntegerField(source="opponent.number", read_only=True, help_text="of the other version")
    votes = serializers.SerializerMethodField(help_text="so far, those for neither included")
    verdict = serializers.SerializerMethodField()
    share = serializers.SerializerMethodField()
    interval = serializers.SerializerMethodField()
    detail = serializers.SerializerMethodField(help_text="all of this as a sentence")

    class Meta:
        model = Poll
        fields = (
            "id",
            "candidate",
            "opponent",
            "votes",
            "verdict",
            "share",
            "interval",
            "detail",
            "created_at",
            "ended_at",
        )

    def get_votes(self, poll: Poll) -> int:
        return standing(poll).votes

    @extend_schema_field(
        {
            "type": ["string", "null"],
            "enum": [*get_args(Verdict), None],
            "description": "what people think of the candidate; null until the vote has ended",
        }
    )
    def get_verdict(self, poll: Poll) -> str | None:
        return standing(poll).preference.verdict if poll.ended_at else None

    @extend_schema_field(
        {
            "type": ["number", "null"],
            "description": "of the votes for either, the share for the candidate, 0 to 1; null until the vote has "
            "ended, and where there is none",
        }
    )
    def get_share(self, poll: Poll) -> float | None:
        return standing(poll).preference.share if poll.ended_at else None

    @extend_schema_field(
        {
            "type": ["array", "null"],
            "items": {"type": "number"},
            "minItems": 2,
            "maxItems": 2,
            "description": "bounds of the 95 % interval of that share, valid however often it was looked at; null "
            "until the vote has ended",
        }
    )
    def get_interval(self, poll: Poll) -> tuple[float, float] | None:
        return standing(poll).preference.interval if poll.ended_at else None

    def get_detail(self, poll: Poll) -> str:
        return poll_sentence(poll)


class ImageSerializer(ReadOnly[Image]):
    url = Address("image-detail")
    captions_url = Address("image-captions")
    file_url = Address("image-file")
    thumbnail_url = Address("image-thumbnail")
    credit_url = serializers.CharField(read_only=True, help_text="empty if there is none")

    class Meta:
        model = Image
        fields: tuple[str, ...] = (
            "id",
            "url",
            "captions_url",
            "file_url",
            "thumbnail_url",
            "width",
            "height",
            "size",
            "credit",
            "credit_url",
            "created_at",
        )


class AlbumSerializer(ReadOnly[Album]):
    url = Address("album-detail")
    photos = serializers.IntegerField(source="photos.count", read_only=True, help_text="number of photos in it")

    class Meta:
        model = Album
        fields = ("id", "url", "name", "photos", "created_at")


class FoundImageSerializer(ImageSerializer):
    matched = serializers.ListField(
        child=serializers.ChoiceField(choices=get_args(Match)),
        read_only=True,
        allow_null=True,
        default=None,
        help_text="how a search found it: by words in its captions, by what it shows, or both; null without a search",
    )

    class Meta(ImageSerializer.Meta):
        fields = (*ImageSerializer.Meta.fields, "matched")


class SimilarImageSerializer(ImageSerializer):
    similarity = serializers.FloatField(read_only=True, help_text="cosine similarity of what the two show, 1 at most")

    class Meta(ImageSerializer.Meta):
        fields = (*ImageSerializer.Meta.fields, "similarity")


def _ms(start: datetime, end: datetime | None) -> float | None:
    return max(0.0, round((end - start).total_seconds() * 1000, 1)) if end else None
