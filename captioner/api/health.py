"""Health checks (live, ready) and metrics."""

from __future__ import annotations

import logging
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import current_app as app
from django.conf import settings
from django.core.cache import caches
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection
from django.db.models import Count, Min
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema, inline_serializer
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from rest_framework import serializers
from rest_framework.decorators import (
    api_view,
    authentication_classes,
    permission_classes,
    renderer_classes,
)
from rest_framework.permissions import AllowAny
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from captioner.api.problems import problem
from captioner.jobs.job import FINISHED, UNFINISHED, Status, clock
from captioner.models import SILENCE, BaseModels, Caption, WebhookDelivery, Worker

log = logging.getLogger(__name__)

READY_WITHIN = 1.5  # seconds in which all checks have to be done

_LIVE = inline_serializer("Live", {"status": serializers.CharField()})
_READY = inline_serializer(
    "Ready",
    {
        "status": serializers.CharField(),
        "checks": serializers.DictField(child=serializers.CharField()),
        "warnings": serializers.ListField(child=serializers.CharField()),
    },
)


class PlainText(BaseRenderer):
    media_type = "text/plain"
    format = "txt"

    def render(self, data: Any, *_: Any, **__: Any) -> Any:
        return data


@extend_schema(responses=_LIVE, auth=[], tags=["health"], operation_id="live")
@api_view(["GET"])
@authentication_classes([])
@permission_classes([AllowAny])
def live(request: Request) -> Response:
    """The web process responds."""
    return Response({"status": "alive"})


@extend_schema(responses={200: _READY, 503: OpenApiResponse()}, auth=[], tags=["health"], operation_id="ready")
@api_view(["GET"])
@authentication_classes([])
@permission_classes([AllowAny])
def ready(request: Request) -> HttpResponse | Response:
    """Captions can be requested and will be written: checks database, broker, cache, storage and a loaded worker.

    It responds within two seconds, whatever hangs.
    """
    checks = _outcomes()
    bad = [name for name, outcome in checks.items() if outcome != "ok"]
    if bad:
        return problem(503, "not_ready", "; ".join(f"{name}: {checks[name]}" for name in bad), checks=checks)
    return Response({"status": "ready", "checks": checks, "warnings": _warnings()})


@extend_schema(responses={(200, "text/plain"): OpenApiTypes.STR}, auth=[], tags=["health"], operation_id="metrics")
@api_view(["GET"])
@authentication_classes([])
@permission_classes([AllowAny])
@renderer_classes([PlainText])
def metrics(request: Request) -> HttpResponse:
    """Metrics for Prometheus. They come from the database, so every web process returns the same."""
    registry, now = CollectorRegistry(), clock("default")
    hour_ago = now - timedelta(hours=1)
    for name, model in (("captions", Caption), ("webhook_deliveries", WebhookDelivery)):
        rows = model._default_manager
        waiting = dict(rows.filter(status__in=UNFINISHED).order_by().values_list("status").annotate(Count("pk")))
        gauge = Gauge(f"clipcap_{name}", f"unfinished {name}, by status", ["status"], registry=registry)
        for status in UNFINISHED:
            gauge.labels(status).set(waiting.get(status, 0))
        # Bounded by the index on status and creation: the finished of all time may be millions.
        recent = rows.filter(status__in=FINISHED, created_at__gte=hour_ago, finished_at__isnull=False)
        ended = dict(recent.order_by().values_list("status").annotate(Count("pk")))
        gauge = Gauge(
            f"clipcap_{name}_of_last_hour", f"finished {name} requested in the last hour", ["status"], registry=registry
        )
        for status in FINISHED:
            gauge.labels(status).set(ended.get(status, 0))
    oldest = Caption.objects.filter(status=Status.QUEUED).aggregate(at=Min("created_at"))["at"]
    Gauge("clipcap_oldest_queued_seconds", "waiting time of the oldest queued caption", registry=registry).set(
        max(0.0, (now - oldest).total_seconds()) if oldest else 0
    )
    workers = Gauge("clipcap_workers", "workers seen recently, by queue", ["queue"], registry=registry)
    paused = Gauge("clipcap_workers_paused", "workers that are paused after failures", ["queue"], registry=registry)
    memory = Gauge(
        "clipcap_worker_memory_megabytes", "the highest memory use of a worker", ["worker"], registry=registry
    )
    workers.labels("captions").set(0)
    paused.labels("captions").set(0)
    for worker in Worker.objects.alive():
        workers.labels(worker.queue).inc()
        paused.labels(worker.queue).inc(bool(worker.trouble))
        memory.labels(worker.name).set(worker.memory_mb)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


_running: dict[str, Future[str]] = {}
_starting = threading.Lock()


def _outcomes() -> dict[str, str]:
    """Of each check `ok` or what is wrong. One that hangs is not begun again before it has ended."""
    with _starting:
        for name, check in CHECKS.items():
            if name not in _running or _running[name].done():
                _running[name] = Future()
                threading.Thread(target=_run, args=(name, check, _running[name]), name=name, daemon=True).start()
        checks = dict(_running)
    wait_for(checks.values(), READY_WITHIN)
    return {name: check.result() if check.done() else "no answer" for name, check in checks.items()}


def _run(name: str, check: Callable[[], str], outcome: Future[str]) -> None:
    """Reasons stay in the log: they may hold addresses and names."""
    try:
        outcome.set_result(check())
    except Exception as error:  # databases, brokers and storages raise all kinds
        log.warning("not ready", extra={"check": name, "error": error})
        outcome.set_result("unreachable or not working; see the server's log")
    finally:
        connection.close()


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return "ok"


def _broker() -> str:
    if settings.CELERY_BROKER_URL.startswith("filesystem:"):
        folder = Path(settings.CELERY_BROKER_TRANSPORT_OPTIONS["data_folder_out"])
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return "ok"
    with app.connection_for_write(settings.CELERY_BROKER_URL, connect_timeout=1) as broker:
        broker.ensure_connection(max_retries=1, interval_start=0, timeout=1)
    return "ok"


def _cache() -> str:
    """The shared one itself: what the site uses does without it where it fails."""
    caches["shared"].set("ready", True, timeout=60)
    return "ok" if caches["shared"].get("ready") else "stored values are lost"


def _storage() -> str:
    name = default_storage.save(f"health/{uuid.uuid4()}", ContentFile(b"ok"))
    default_storage.delete(name)
    return "ok"


def _warnings() -> list[str]:
    """What does not stand in the way of captions, and should be looked into."""
    alive, in_service = list(Worker.objects.alive("captions")), BaseModels.in_service()
    paused = [f"a caption worker keeps failing and is paused: {it.trouble}" for it in alive if it.trouble]
    return paused + [
        f"a caption worker writes no captions: it has loaded other base models than those in service, {it.base}"
        for it in alive
        if in_service and it.base and it.base != in_service and not it.base.preparing
    ]


def _worker() -> str:
    troubles = [worker.trouble for worker in Worker.objects.writing()]
    if not troubles:
        if Worker.objects.alive("captions").exists():
            return (
                "no caption worker has loaded the base models in service; start one, or start one again, or put those "
                "of an update in service: manage cut_over N (docs/production.md, Updates)"
            )
        return f"no caption worker reported in the last {SILENCE.seconds} seconds; start one"
    if all(troubles):
        return f"all caption workers keep failing and are paused for a while: {troubles[0]}"
    return "ok"


CHECKS: dict[str, Callable[[], str]] = {
    "database": _database,
    "broker": _broker,
    "cache": _cache,
    "storage": _storage,
    "worker": _worker,
}
