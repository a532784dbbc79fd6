"""Fields that hold only numbers."""

from __future__ import annotations

import math
from typing import Any

from django.db import models


class FiniteField(models.FloatField):  # type: ignore[type-arg]
    """A float that reads as None where what is stored is not a finite number."""

    def deconstruct(self) -> Any:
        """As in the database: a float like any other."""
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.FloatField", args, kwargs

    def from_db_value(self, value: float | None, *_: Any) -> float | None:
        """The number, or None where it is none."""
        return value if value is not None and math.isfinite(value) else None


class ProbabilityField(FiniteField):
    """A float that reads as None where what is stored is not a probability."""

    def from_db_value(self, value: float | None, *_: Any) -> float | None:
        """The probability, or None where the number is none."""
        return probability(value)


def probability(value: Any) -> float | None:
    """A stored value as a probability, 0 to 1; None where it is none."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
