"""System checks of the settings of imports and training."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, register

from captioner.checks import TAG, not_above_zero


@register(TAG)
def nonsense(**_: Any) -> list[CheckMessage]:
    """Values with which nothing would ever be imported or trained."""
    return not_above_zero(
        {"TRAINING_PROCESSES": settings.TRAINING_PROCESSES, "MAX_IMPORT_BYTES": settings.MAX_IMPORT_BYTES}
    )
