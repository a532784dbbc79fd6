"""The API's answers in JSON without NaN, whatever is stored."""

from typing import Any

from rest_framework.renderers import JSONRenderer

from clipcap.strict_json import finite


class StrictRenderer(JSONRenderer):
    """One number that is none costs itself, not the list that it stands in."""

    def render(self, data: Any, *args: Any, **options: Any) -> bytes:
        try:
            rendered: bytes = super().render(data, *args, **options)
        except ValueError:
            rendered = super().render(finite(data), *args, **options)
        return rendered
