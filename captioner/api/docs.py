"""The API's documentation as a page: what the OpenAPI document says, in the site's own clothes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.html import conditional_escape, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_safe

from captioner.api.schema import WHY
from captioner.api.schema_generator import OneAtATime

_LIST_OF_CHOICES = re.compile(r"\n*\* `.*", re.DOTALL)  # drf-spectacular adds it; the type says the choices already
_SAMPLES = {"integer": 1, "number": 1.0, "boolean": True, "string": "", "array": [], "object": {}}

Schema = dict[str, Any]
Type = list[tuple[str, str]]  # words, and of each the object that it names or ""


@dataclass(frozen=True)
class Field:
    """A value that a call takes or that an object has.

    place: query, header, path or body; empty in an object.
    """

    name: str
    type: Type
    about: SafeString
    required: bool
    place: str = ""
    is_file: bool = False
    sample: str = ""


@dataclass(frozen=True)
class Answer:
    """What a call answers with if it succeeds.

    status: of HTTP, such as 202.
    type: empty where the answer has no body.
    """

    status: str
    about: str
    type: Type


@dataclass(frozen=True)
class Call:
    """A method of an address."""

    id: str
    method: str
    path: str
    line: SafeString
    about: SafeString
    fields: list[Field]
    answers: list[Answer]
    errors: list[str]
    body: str  # an example as JSON; empty where the call takes no JSON

    @property
    def body_fields(self) -> list[Field]:
        """What its body has."""
        return [field for field in self.fields if field.place == "body"]


@dataclass(frozen=True)
class Documentation:
    """All calls by their group, the objects that they take and answer with, and what each error means."""

    groups: dict[str, list[Call]]
    objects: dict[str, list[Field]]
    errors: dict[str, str]


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """The page."""
    return render(request, "captioner/docs.html", {"docs": documentation()})


@cache
def documentation() -> Documentation:
    """What the page says; it is the same until the process ends."""
    document = OneAtATime(api_version="v1").get_schema(public=True)  # type: ignore[no-untyped-call]
    schemas = document["components"]["schemas"]
    groups: dict[str, list[Call]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = operation["tags"][0].replace("-", " ").capitalize()
            groups.setdefault(name, []).append(_call(schemas, path, method, operation))
    objects = {name: list(_properties(schemas, schema)) for name, schema in schemas.items() if "properties" in schema}
    return Documentation(groups, objects, WHY)


def _call(schemas: Schema, path: str, method: str, operation: Schema) -> Call:
    first, _, rest = operation.get("description", "").partition("\n\n")
    fields = [
        _field(schemas, given["name"], given["schema"] | given, given.get("required", False), given["in"])
        for given in operation.get("parameters", ())
    ]
    contents = operation.get("requestBody", {}).get("content", {})
    form = "multipart/form-data" in contents
    body = next((_target(schemas, content["schema"]) for content in contents.values()), {})
    answers = [
        Answer(
            status, answer["description"], [part for content in _contents(answer) for part in _type(schemas, content)]
        )
        for status, answer in operation["responses"].items()
        if status < "400"
    ]
    return Call(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        line=_prose(first),
        about=_prose(rest),
        fields=sorted(fields, key=lambda field: field.place != "path") + list(_properties(schemas, body, "body")),
        answers=answers,
        errors=sorted(status for status in operation["responses"] if status >= "400"),
        body="" if form or not body else json.dumps(_sample(schemas, body), indent=2),
    )


def _contents(answer: Schema) -> list[Schema]:
    """The schemas of what an answer may contain; of a picture, its media type."""
    return [
        {"type": kind} if content["schema"].get("format") == "binary" else content["schema"]
        for kind, content in answer.get("content", {}).items()
    ]


def _properties(schemas: Schema, schema: Schema, place: str = "") -> Iterator[Field]:
    required = schema.get("required", ())
    for name, found in schema.get("properties", {}).items():
        yield _field(schemas, name, found, name in required, place)


def _field(schemas: Schema, name: str, schema: Schema, required: bool, place: str) -> Field:
    about = _LIST_OF_CHOICES.sub("", schema.get("description", ""))
    binary = "binary" in json.dumps(schema)
    sample = str(schema["default"]) if "default" in schema and required else ""
    return Field(name, _type(schemas, schema), _prose(about), required, place, binary, sample)


def _target(schemas: Schema, schema: Schema) -> Schema:
    """The schema that a reference means."""
    ref = schema.get("$ref")
    return schemas[ref.rpartition("/")[2]] if ref else schema


def _type(schemas: Schema, schema: Schema) -> Type:
    """A type in words: `text`, `list of Caption`, `whole number, 1 to 10`."""
    if ref := schema.get("$ref"):
        name = ref.rpartition("/")[2]
        return [(name, name)] if "properties" in schemas[name] else _type(schemas, schemas[name])
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema:
            ways = [way for found in schema[key] if (way := _type(schemas, found)) not in ([], [("empty", "")])]
            return [part for place, way in enumerate(ways) for part in ([(" or ", "")] if place else []) + way]
    if "enum" in schema:
        words = [str(value) for value in schema["enum"] if value not in ("", None)]
        return [(f"one of {', '.join(words)}" if words else "empty", "")]
    kinds = schema.get("type", "any value")
    kind, *others = [kinds] if isinstance(kinds, str) else kinds
    found = (
        [("list of ", ""), *_type(schemas, schema.get("items", {}))]
        if kind == "array"
        else [(_named(kind, schema), "")]
    )
    return found + [(f" or {other}", "") for other in others]


def _named(kind: str, schema: Schema) -> str:
    name = {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(kind, kind)
    special = {"date-time": "date and time", "uuid": "id", "uri": "URL", "uri-reference": "URL", "binary": "file"}
    name = special.get(schema.get("format", ""), name)
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None and high < 1e9:
        return f"{name}, {low:g} to {high:g}"
    longest = schema.get("maxLength")
    return f"{name}, at most {longest} characters" if longest and kind == "string" and name == "text" else name


def _sample(schemas: Schema, schema: Schema) -> Any:
    """An example of what is required, to be filled in."""
    schema = _target(schemas, schema)
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema:
            return _sample(schemas, schema[key][0])
    if "properties" in schema:
        found = schema["properties"]
        wanted = [name for name in found if name in schema.get("required", ())]
        return {name: _sample(schemas, found[name]) for name in wanted}
    if examples := schema.get("examples"):
        return examples[0]
    if "enum" in schema:
        return schema["enum"][0]
    kinds = schema.get("type", "string")
    return _SAMPLES.get(kinds if isinstance(kinds, str) else kinds[0])


def _prose(text: str) -> SafeString:
    """Paragraphs in which what stands between backticks is code."""
    paragraphs = (re.sub(r"`([^`]+)`", r"<code>\1</code>", conditional_escape(part)) for part in text.split("\n\n"))
    return format_html_join("", "<p>{}</p>", ((mark_safe(part),) for part in paragraphs if part))
