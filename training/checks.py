"""System checks of the settings of imports and training."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from captioner.checks import SHORTEST_KEY, TAG, not_above_zero


@register(TAG)
def nonsense(**_: Any) -> list[CheckMessage]:
    """Values with which nothing would ever be imported or trained."""
    return not_above_zero(
        {"TRAINING_PROCESSES": settings.TRAINING_PROCESSES, "MAX_IMPORT_BYTES": settings.MAX_IMPORT_BYTES}
    )


@register(TAG)
def unsafe_address(**_: Any) -> list[CheckMessage]:
    """An address at which a worker would take machines of people who guess its key."""
    if not settings.TRAINING_ADDRESS or len(settings.TRAINING_KEY) >= SHORTEST_KEY:
        return []
    return [
        Error(
            f"CLIPCAP_TRAINING_ADDRESS is set, and CLIPCAP_TRAINING_KEY has fewer than {SHORTEST_KEY} characters",
            hint="set it, on all machines that train together, to what "
            "`python3 -c 'import secrets; print(secrets.token_urlsafe(50))'` prints",
            id="training.E001",
        )
    ]
