"""JSON as RFC 8259 has it, which knows no NaN and no infinity: where a stored number is none, it says null."""

import json
import math
from typing import Any

from rest_framework.renderers import JSONRenderer


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps`, of whatever was stored."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


class StrictRenderer(JSONRenderer):
    """The API's answers: one number that is none costs itself, not the list that it stands in."""

    def render(self, data: Any, *args: Any, **options: Any) -> bytes:
        try:
            rendered: bytes = super().render(data, *args, **options)
        except ValueError:
            rendered = super().render(_finite(data), *args, **options)
        return rendered


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
