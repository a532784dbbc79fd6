"""What the API and webhooks say about images, styles, captions and requests, and what they accept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, get_args

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from captioner.jobs import Status
from captioner.models import Caption, CaptionRequest, Correction, Image, Style, WebhookDelivery, probability
from captioner.services import LONGEST_CAPTION, MOST_ALTERNATIVES, Match, Upload
from captioner.uploads import check_size
from clipcap.options import METHODS

OPTIONS = ("method", "captions", "max_length", "beam_size", "temperature", "top_p", "seed", "rerank")
LONGEST_DEADLINE = 24 * 3600


# What is said


@extend_schema_field({"type": "string", "format": "uri-reference"})
class Address(serializers.ReadOnlyField):
    """The address of a page of the API about the object; without the host where no request tells it, as in webhooks."""

    def __init__(self, name: str, source: str = "pk", lookup: str = "pk") -> None:
        super().__init__(source=source)
        self.name, self.lookup = name, lookup

    def to_representation(self, value: Any) -> str:
        path = reverse(f"v1:{self.name}", kwargs={self.lookup: value})
        request = self.context.get("request")
        return request.build_absolute_uri(path) if request else path


class TimingsSerializer(serializers.Serializer[Caption]):
    """In milliseconds; null where that has not happened."""

    queued_ms = serializers.FloatField(allow_null=True, help_text="until a worker began")
    encode_ms = serializers.FloatField(allow_null=True, help_text="0 where the image's embedding was there already")
    decode_ms = serializers.FloatField(allow_null=True, help_text="of the whole batch that it was in")
    total_ms = serializers.FloatField(allow_null=True, help_text="from the request to the end")

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
    """A try that came to nothing, for which the row itself may not be to blame."""

    at = serializers.DateTimeField()
    code = serializers.CharField()
    detail = serializers.CharField()


class WithheldSerializer(serializers.Serializer[Any]):
    """Why a caption has succeeded and yet has no text."""

    code = serializers.ChoiceField(choices=("low_confidence", "unknown_confidence"))
    detail = serializers.CharField()


_CONFIDENCE = "estimated probability, 0 to 1, that the caption is right; null where the models cannot tell"
_LOG_PROBABILITY = "mean log-probability of a token, as the language model has it; 0 at best"


@extend_schema_field({"type": ["number", "null"], "minimum": 0, "maximum": 1})
class ProbabilityField(serializers.ReadOnlyField):
    def to_representation(self, value: Any) -> float | None:
        return probability(value)


class AlternativeSerializer(serializers.Serializer[Any]):
    text = serializers.CharField()
    confidence = ProbabilityField(help_text=_CONFIDENCE)
    log_probability = serializers.FloatField(allow_null=True, default=None, help_text=_LOG_PROBABILITY)


class CorrectionSerializer(serializers.ModelSerializer[Correction]):
    """What a person wrote in place of a caption."""

    author = serializers.CharField(
        source="author.get_username", default=None, read_only=True, allow_null=True, help_text="null if anonymous"
    )

    class Meta:
        model = Correction
        fields = ("text", "author", "created_at")
        read_only_fields = fields


class CaptionSerializer(serializers.ModelSerializer[Caption]):
    url = Address("caption-detail")
    request_url = Address("request-detail", source="request_id")
    image_url = Address("image-detail", source="image_id")
    style = serializers.SlugRelatedField[Style](slug_field="slug", read_only=True)
    version = serializers.SerializerMethodField()
    confidence = ProbabilityField(
        source="shown_confidence", help_text=f"{_CONFIDENCE}, and where a person has corrected it"
    )
    log_probability = serializers.FloatField(read_only=True, allow_null=True, help_text=_LOG_PROBABILITY)
    unsure = serializers.BooleanField(
        read_only=True, help_text="whether its confidence is below what the site calls sure; false where it is null"
    )
    withheld = WithheldSerializer(read_only=True, allow_null=True)
    alternatives = AlternativeSerializer(many=True, read_only=True)
    timings = TimingsSerializer(source="*", read_only=True)
    error = serializers.SerializerMethodField()
    failures = FailureSerializer(
        many=True, read_only=True, help_text="the newest tries that came to nothing; it is tried again by itself"
    )
    next_try_at = serializers.SerializerMethodField(help_text="null unless it waits to be tried again")
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
        read_only_fields = fields

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
    canceled = serializers.IntegerField(help_text="how many captions were; what was finished stays")


class WebhookSerializer(serializers.ModelSerializer[WebhookDelivery]):
    url = serializers.CharField(read_only=True)

    class Meta:
        model = WebhookDelivery
        fields = ("url", "secret")
        read_only_fields = fields


class RequestSerializer(serializers.ModelSerializer[CaptionRequest]):
    url = Address("request-detail")
    status = serializers.ChoiceField(choices=Status.choices, read_only=True)
    captions = CaptionSerializer(many=True, read_only=True)

    class Meta:
        model = CaptionRequest
        fields: tuple[str, ...] = ("id", "url", "status", "created_at", "captions")
        read_only_fields: tuple[str, ...] = fields


class AnswerSerializer(RequestSerializer):
    """The answer to a new request: also where its webhook goes and what signs it, which is said only here."""

    webhook = WebhookSerializer(read_only=True, allow_null=True, default=None)

    class Meta(RequestSerializer.Meta):
        fields = (*RequestSerializer.Meta.fields, "webhook")
        read_only_fields = fields


class TrySerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    status = serializers.IntegerField(allow_null=True, help_text="of the answer")
    error = serializers.CharField(allow_blank=True)
    ms = serializers.IntegerField(allow_null=True, help_text="null without a result")


class DeliverySerializer(serializers.ModelSerializer[WebhookDelivery]):
    """What became of a webhook."""

    url = serializers.CharField(read_only=True)
    next_try_at = serializers.SerializerMethodField()
    log = TrySerializer(many=True, read_only=True, source="every_try")

    class Meta:
        model = WebhookDelivery
        fields = ("id", "url", "status", "created_at", "finished_at", "next_try_at", "log")
        read_only_fields = fields

    def get_next_try_at(self, delivery: WebhookDelivery) -> datetime | None:
        return None if delivery.finished else delivery.rank_at


class StyleSerializer(serializers.ModelSerializer[Style]):
    url = Address("style-detail", source="slug", lookup="slug")
    version = serializers.IntegerField(source="active_version.number", read_only=True, help_text="in service")

    class Meta:
        model = Style
        fields = ("slug", "url", "name", "description", "is_default", "version")
        read_only_fields = fields


class ImageSerializer(serializers.ModelSerializer[Image]):
    url = Address("image-detail")
    captions_url = Address("image-captions")
    file_url = Address("image-file")
    thumbnail_url = Address("image-thumbnail")
    credit_url = serializers.CharField(read_only=True, help_text="empty where there is none")

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
        read_only_fields: tuple[str, ...] = fields


class FoundImageSerializer(ImageSerializer):
    matched = serializers.ListField(
        child=serializers.ChoiceField(choices=get_args(Match)),
        read_only=True,
        allow_null=True,
        default=None,
        help_text="what a search found it by: words in its captions, what it shows, or both; null without a search",
    )

    class Meta(ImageSerializer.Meta):
        fields = (*ImageSerializer.Meta.fields, "matched")
        read_only_fields = fields


class SimilarImageSerializer(ImageSerializer):
    similarity = serializers.FloatField(read_only=True, help_text="of what the two show: a cosine, 1 at most")

    class Meta(ImageSerializer.Meta):
        fields = (*ImageSerializer.Meta.fields, "similarity")
        read_only_fields = fields


# What is accepted


class Strict(serializers.Serializer[Any]):
    """Refuses fields that it does not know: a misspelt one would otherwise go unnoticed."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [name for name in data if name not in self.fields]
            if unknown:
                raise serializers.ValidationError(
                    {str(unknown[0]): [f"there is no such field; there are {', '.join(self.fields)}"]}, code="unknown"
                )
        return super().to_internal_value(data)


class OneOrMore(serializers.ListField):
    """A list, or its only element by itself."""

    def to_internal_value(self, data: Any) -> list[Any]:
        values: list[Any] = super().to_internal_value(data if isinstance(data, list) else [data])
        return values


class Base64Field(serializers.CharField):
    """The bytes of a file, in base64, also as a data: URL."""

    def to_internal_value(self, data: Any) -> Upload:
        text = super().to_internal_value(data)
        if text.startswith("data:"):
            head, _, text = text.partition(",")
            if not head.endswith(";base64"):
                self.fail("invalid")
        try:
            return Upload(base64.b64decode("".join(text.split()), validate=True))
        except (binascii.Error, ValueError):
            self.fail("invalid")
        raise AssertionError  # `fail` has raised

    default_error_messages = {"invalid": "it must be the bytes of a picture in base64, or a data: URL of them"}  # noqa: RUF012


class NamedFileSerializer(Strict):
    data = Base64Field()
    name = serializers.CharField(max_length=255)


class Base64FileField(Base64Field):
    """The bytes alone, or an object of them and the file's name."""

    def to_internal_value(self, data: Any) -> Upload:
        if not isinstance(data, Mapping):
            return super().to_internal_value(data)
        named = NamedFileSerializer(data=data)
        named.is_valid(raise_exception=True)
        return Upload(named.validated_data["data"].data, named.validated_data["name"])


class UploadField(serializers.FileField):
    """A file of a form. That it is empty is said with what else can be wrong with a picture."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_empty_file=True, **options)

    def to_internal_value(self, data: Any) -> Upload:
        file = super().to_internal_value(data)
        check_size(file.size)
        return Upload(file.read(), file.name)


def _one_or_more(**element: Any) -> dict[str, Any]:
    return {"oneOf": [element, {"type": "array", "items": element, "minItems": 1}]}


_STYLE = {"type": "string", "pattern": "^[-a-zA-Z0-9_]+$", "maxLength": 50, "examples": ["factual"]}


@extend_schema_field(_one_or_more(**_STYLE))
class StylesField(OneOrMore):
    child = serializers.SlugField(max_length=50)


@extend_schema_field(_one_or_more(type="string", format="uuid"))
class ImageIdsField(OneOrMore):
    child = serializers.UUIDField()


_BASE64 = {"type": "string", "contentEncoding": "base64"}
_NAMED = {
    "type": "object",
    "properties": {"data": _BASE64, "name": {"type": "string", "minLength": 1, "maxLength": 255}},
    "required": ["data", "name"],
    "additionalProperties": False,
}


@extend_schema_field(_one_or_more(oneOf=[_BASE64, _NAMED]))
class Base64FilesField(OneOrMore):
    child = Base64FileField()


class NewCaptionsSerializer(Strict):
    """Images and what is to be made of them. Every image is captioned in every style."""

    image_id = ImageIdsField(required=False, allow_empty=False, help_text="stored images, by id")
    image_base64 = Base64FilesField(
        required=False,
        allow_empty=False,
        help_text='files in base64; data: URLs are accepted too, and {"data", "name"} of a file that has a name',
    )
    style = StylesField(
        required=False, allow_empty=False, help_text="slugs; `all` is every style, none the default style"
    )
    method = serializers.ChoiceField(choices=METHODS, required=False)
    captions = serializers.IntegerField(
        min_value=1, max_value=MOST_ALTERNATIVES, required=False, help_text="per image and style: the best and others"
    )
    max_length = serializers.IntegerField(min_value=1, max_value=LONGEST_CAPTION, required=False, help_text="in tokens")
    beam_size = serializers.IntegerField(min_value=1, max_value=MOST_ALTERNATIVES, required=False)
    temperature = serializers.FloatField(min_value=0.01, max_value=100, required=False)
    top_p = serializers.FloatField(min_value=0.01, max_value=1, required=False)
    seed = serializers.IntegerField(min_value=0, max_value=2**63 - 1, required=False)
    rerank = serializers.BooleanField(
        required=False,
        allow_null=True,
        help_text="choose captions by how well they fit the photo (beam only); null: yes, where the models can tell",
    )
    min_confidence = serializers.FloatField(
        min_value=0,
        max_value=1,
        required=False,
        help_text="a caption less likely to be right succeeds without text, and `withheld` says why",
    )
    bulk = serializers.BooleanField(
        required=False, default=False, help_text="lets your other captions and those of others pass"
    )
    deadline_seconds = serializers.IntegerField(
        min_value=1, max_value=LONGEST_DEADLINE, required=False, help_text="what is still queued by then fails"
    )
    webhook_url = serializers.CharField(max_length=2000, required=False, help_text="told when all is finished")
    webhook_secret = serializers.CharField(
        max_length=100, required=False, help_text="`whsec_` and 24 to 64 bytes in base64; made up if left out"
    )

    webhook_previous_secret = serializers.CharField(
        max_length=100, required=False, help_text="signs it too, while your server changes to another `webhook_secret`"
    )

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        needs = {"webhook_secret": "webhook_url", "webhook_previous_secret": "webhook_secret"}
        for field, other in needs.items():
            if field in data and other not in data:
                raise serializers.ValidationError({field: f"it means nothing without {other}"})
        return data


class NewCaptionsFormSerializer(NewCaptionsSerializer):
    """The same as a form, which can bring files. A field is repeated where it has several values."""

    image = serializers.ListField(
        child=UploadField(),
        required=False,
        allow_empty=False,
        help_text="picture files; their names come back with the captions",
    )


class RedeliverySerializer(Strict):
    secret = serializers.CharField(max_length=100, required=False, help_text="signs it from now on")
    previous_secret = serializers.CharField(max_length=100, required=False, help_text="signs it too, beside `secret`")


class NewCorrectionSerializer(Strict):
    text = serializers.CharField(max_length=500, help_text="what the caption should be")


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of all that was asked for: of the values as they were understood, and of the files' bytes."""

    def plain(value: Any) -> str:
        return hashlib.sha256(value.data).hexdigest() if isinstance(value, Upload) else str(value)

    return hashlib.sha256(json.dumps(data, sort_keys=True, default=plain).encode()).hexdigest()


def _ms(start: datetime, end: datetime | None) -> float | None:
    return max(0.0, round((end - start).total_seconds() * 1000, 1)) if end else None
