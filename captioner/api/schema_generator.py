"""How the OpenAPI document is generated. Apart from schema.py, because drf-spectacular imports this while it is itself
imported."""

from threading import Lock
from typing import Any

from drf_spectacular.generators import SchemaGenerator


class OneAtATime(SchemaGenerator):
    """Generates the document for one thread at a time: drf-spectacular fills registries of the process meanwhile, and
    threads that do so together find them half filled."""

    _turn = Lock()

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        with self._turn:
            return super().get_schema(request, public)  # type: ignore[no-untyped-call]
