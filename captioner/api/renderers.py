"""The API's responses as JSON without NaN, whatever is stored."""

from typing import Any

from rest_framework.renderers import JSONRenderer

from clipcap.strict_json import finite


class StrictRenderer(JSONRenderer):
    """A NaN becomes null and does not break the list it is in."""

    def render(self, data: Any, *args: Any, **options: Any) -> bytes:
        try:
            rendered: bytes = super().render(data, *args, **options)
        except ValueError:
            rendered = super().render(finite(data), *args, **options)
        return rendered
