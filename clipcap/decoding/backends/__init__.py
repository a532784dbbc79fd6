"""What runs the language model while a search decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from clipcap.decoding.backends.base import Backend
from clipcap.decoding.backends.eager import EagerBackend

if TYPE_CHECKING:
    from clipcap.language_model import LanguageModel

# Each there is, by its module's name; `tests/test_decoding.py` runs them all through the same cases.
BACKENDS: dict[str, Callable[[LanguageModel], Backend]] = {"eager": EagerBackend}
