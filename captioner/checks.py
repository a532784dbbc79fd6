"""System checks: settings that are unsafe or make no sense, each with its remedy.

`./run manage check` shows them, and other commands of Django begin with them: an error keeps those from running.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

TAG = "captioner"
SHORTEST_KEY = 32
SHORTEST_LEASE = 30  # seconds: longer than worker_process.retry_on_lost_database or a webhook may take


@register(TAG)
def unsafe_settings(**_: Any) -> list[CheckMessage]:
    """Settings that would expose a site in production."""
    if settings.DEBUG:
        return []
    found: list[CheckMessage] = []
    if len(settings.SECRET_KEY) < SHORTEST_KEY:
        found.append(
            Error(
                f"CLIPCAP_SECRET_KEY has fewer than {SHORTEST_KEY} characters, so it could be guessed",
                hint="set it to what `python3 -c 'import secrets; print(secrets.token_urlsafe(50))'` prints",
                id="captioner.E001",
            )
        )
    if not settings.ALLOWED_HOSTS:
        found.append(
            Error(
                "CLIPCAP_ALLOWED_HOSTS is empty, so every request would be refused",
                hint="list the host names of the site, such as captions.example.org",
                id="captioner.E002",
            )
        )
    if "*" in settings.ALLOWED_HOSTS:
        found.append(
            Warning(
                "CLIPCAP_ALLOWED_HOSTS lets any name through, so a forged Host header ends up in links",
                hint="list the host names of the site",
                id="captioner.W001",
            )
        )
    return found


@register(TAG)
def nonsense(**_: Any) -> list[CheckMessage]:
    """Values with which nothing would ever be done."""
    numbers = {
        "THREADS": settings.THREADS,
        "BATCH_SIZE": settings.BATCH_SIZE,
        "WEB_THREADS": settings.WEB_THREADS,
        "DEADLINE_SECONDS": settings.DEADLINE.total_seconds(),
        "LEASE_SECONDS": settings.LEASE.total_seconds(),
        "MAX_UPLOAD_BYTES": settings.MAX_UPLOAD_BYTES,
        "MAX_UPLOAD_PIXELS": settings.MAX_UPLOAD_PIXELS,
        "MAX_REQUEST_BYTES": settings.MAX_REQUEST_BYTES,
        "MAX_REQUEST_PIXELS": settings.MAX_REQUEST_PIXELS,
        "DECODING_PIXELS": settings.DECODING_PIXELS,
        "MAX_IMAGES_PER_REQUEST": settings.MAX_IMAGES_PER_REQUEST,
    }
    if settings.MODEL_CACHE_BYTES:  # 0 is automatic
        numbers["MODEL_CACHE_BYTES"] = settings.MODEL_CACHE_BYTES
    shares = {"UNSURE_BELOW": settings.UNSURE_BELOW, "LABELLED_TWICE": settings.LABELLED_TWICE}
    rates = settings.REST_FRAMEWORK["DEFAULT_THROTTLE_RATES"]
    return [
        *not_above_zero(numbers),
        *(
            Error(
                f"CLIPCAP_THROTTLE_{name.upper()} is {rate!r}",
                hint="set it to a number of requests and a period, such as 60/minute",
                id="captioner.E004",
            )
            for name, rate in rates.items()
            if not re.fullmatch(r"[1-9]\d*/(second|minute|hour|day)", rate)
        ),
        *(
            Error(f"CLIPCAP_{name} is {share:g}", hint="set it to a number from 0 to 1", id="captioner.E005")
            for name, share in shares.items()
            if not 0 <= share <= 1
        ),
    ]


def not_above_zero(numbers: Mapping[str, float]) -> list[CheckMessage]:
    """An error for each of the settings, given without their prefix, that has to be above zero and is not."""
    return [
        Error(f"CLIPCAP_{name} is {value:g}", hint="set it to a number above 0", id="captioner.E003")
        for name, value in numbers.items()
        if value <= 0
    ]


@register(TAG)
def short_lease(**_: Any) -> list[CheckMessage]:
    """A lease that a worker may lose while all is well with it."""
    lease = settings.LEASE.total_seconds()
    if not 0 < lease < SHORTEST_LEASE:
        return []
    return [
        Warning(
            f"CLIPCAP_LEASE_SECONDS is {lease:g}, so work may be given to a second worker while the first waits for "
            "the database or for a webhook",
            hint=f"set it to at least {SHORTEST_LEASE}",
            id="captioner.W004",
        )
    ]


@register(TAG)
def cache_of_one_process(**_: Any) -> list[CheckMessage]:
    """A cache that is not shared where the rest of the site is made for many processes."""
    single = settings.CACHES["shared"]["BACKEND"].endswith(".LocMemCache")
    if settings.DEBUG or not single or settings.CELERY_BROKER_URL.startswith("filesystem:"):
        return []
    return [
        Warning(
            "CLIPCAP_CACHE_URL is not set, so each web process counts requests for the throttles by itself",
            hint="configure a shared cache, such as CLIPCAP_CACHE_URL=redis://localhost:6379/1",
            id="captioner.W002",
        )
    ]


@register(TAG)
def missing_models(**_: Any) -> list[CheckMessage]:
    """Folders of models that are not there. The web process needs none, so it is only a warning."""
    return [
        Warning(
            f"no {what} in {folder}",
            hint=f"restore the project's folder models/base, or set {variable} to the location of the models",
            id="captioner.W003",
        )
        for what, name, variable in (
            ("encoder", settings.ENCODER, "CLIPCAP_ENCODER or CLIPCAP_MODELS"),
            ("language model", settings.LANGUAGE_MODEL, "CLIPCAP_LANGUAGE_MODEL or CLIPCAP_MODELS"),
        )
        if name.startswith("local-dir:") and not (folder := Path(name.removeprefix("local-dir:"))).is_dir()
    ]
