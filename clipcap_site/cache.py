"""The cache of the site: it holds nothing that a request could not do without."""

import logging
import time
from typing import Any

from django.core.cache import caches
from django.core.cache.backends.base import BaseCache

log = logging.getLogger("captioner.cache")

PAUSE = 5.0  # seconds in which a cache that has failed is not asked again: each attempt may cost a timeout


class FailOpen(BaseCache):
    """The cache `shared`; while that is dead, full or frozen, an empty one that keeps nothing.

    Throttles then let everybody through, and what is marked as done recently is done once more.
    """

    away_until = 0.0  # by the monotonic clock, of the whole process

    def __init__(self, _: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def add(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("add", True, *args, **kwargs)

    def get(self, key: Any, default: Any = None, version: Any = None) -> Any:
        return self._ask("get", default, key, default, version)

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._ask("set", None, *args, **kwargs)

    def touch(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("touch", False, *args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("delete", False, *args, **kwargs)

    def incr(self, key: Any, delta: int = 1, version: Any = None) -> int:
        """As that of other caches: a ValueError, where the key is not there."""
        value = self._ask("incr", None, key, delta, version)
        if value is None:
            raise ValueError(f"Key {key!r} not found")
        return int(value)

    def clear(self) -> None:
        self._ask("clear", None)

    def _ask(self, verb: str, otherwise: Any, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() < FailOpen.away_until:
            return otherwise
        try:
            return getattr(caches["shared"], verb)(*args, **kwargs)
        except (TypeError, ValueError):  # of the caller: a bad key, or one to be counted that is not there
            raise
        except Exception as error:  # each cache raises its own kinds
            FailOpen.away_until = time.monotonic() + PAUSE
            log.warning("the cache does not work; continuing without it", extra={"error": error})
            return otherwise
