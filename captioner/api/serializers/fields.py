"""Serializer fields."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, TypeVar

from django.db.models import Model
from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from captioner.models import probability
from captioner.services import Upload
from captioner.uploads import check_size

M = TypeVar("M", bound=Model)


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


CONFIDENCE = "estimated probability, 0 to 1, that the caption is right; null if the models cannot estimate it"
LOG_PROBABILITY = "mean log-probability per token by the language model; 0 is the maximum"


@extend_schema_field({"type": ["number", "null"], "minimum": 0, "maximum": 1})
class ProbabilityField(serializers.ReadOnlyField):
    def to_representation(self, value: Any) -> float | None:
        return probability(value)


class Strict(serializers.Serializer[Any]):
    """Refuses fields that it does not know: a misspelt one would otherwise go unnoticed."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [name for name in data if name not in self.fields]
            if unknown:
                raise serializers.ValidationError(
                    {str(unknown[0]): [f"unknown field; the fields are {', '.join(self.fields)}"]}, code="unknown"
                )
        return super().to_internal_value(data)


# A row as it is shown: nothing can be written. The schema would repeat a docstring with every object that has none.
class ReadOnly(serializers.ModelSerializer[M]):
    def get_extra_kwargs(self) -> dict[str, Any]:
        return {name: {"read_only": True} for name in self.Meta.fields}


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

    default_error_messages = {"invalid": "it must be a picture in base64, or a data: URL"}  # noqa: RUF012


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
