"""A worker process from its start to its end: the threads around an engine.

The **engine** works off what it claims, woken by messages; the **heartbeat** renews the lease on what the engine holds,
reports that the process is alive and rescues what other workers lost; further threads have chores of their own. None of
them ends before the process does: a database that is away is waited for.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

from django.conf import settings
from django.db import DataError, IntegrityError, close_old_connections, connection
from django.db import Error as DatabaseError
from django.utils import timezone

from captioner.jobs.job import Claim, Job, clock
from captioner.jobs.wakeup import WAKE_UP
from captioner.models import BaseModels, Worker
from captioner.reports import Capacity
from captioner.workers.breaker import Breaker
from clipcap.captioner import Captioner
from clipcap.device import memory_mb

log = logging.getLogger(__name__)

LOOK = 2.0  # seconds after which an idle worker looks for work without a wake-up message
BEAT = settings.LEASE.total_seconds() / 6  # between renewals; a lease outlives several missed ones
GRACE = 20.0  # seconds to finish the work in hand after SIGTERM; Celery and the interpreter take some more to end

# Errors of the data: waiting does not fix them.
FAULTY_DATA = (DataError, IntegrityError)

T = TypeVar("T")


class Engine(Protocol):
    """Does the work of a worker process."""

    name: str
    captioner: Captioner
    holding: Claim | None
    breaker: Breaker

    def work(self) -> int:
        """Claim some rows and finish them; 0 if there was nothing to do."""

    def idle(self) -> int:
        """Do some background work while there is nothing to claim; 0 if there is none."""


class WorkerProcess:
    """The threads of a worker process.

    Args:
        chores: done every few seconds, each in a thread of its name; what returns something true is done again at once.
        jobs: the tables whose lost leases and missed deadlines are reaped.
        processes, apart: see `capacity_of`.
    """

    def __init__(
        self,
        engine: Engine,
        queue: str,
        chores: Mapping[str, Callable[[], object]],
        jobs: Sequence[type[Job]],
        processes: int = 1,
        apart: bool = False,
    ) -> None:
        self.engine, self.queue, self.jobs = engine, queue, jobs
        self.stopping, self.stopped = threading.Event(), threading.Event()
        self.started_at = timezone.now()
        self.capacity = capacity_of(engine.captioner, processes, apart)
        self.threads = [
            threading.Thread(target=self._forever, args=arguments, name=name, daemon=True)
            for name, arguments in {
                "engine": (self._work, lambda: WAKE_UP.wait(LOOK), self.stopping),
                **{name: (chore, lambda: self.stopping.wait(LOOK), self.stopping) for name, chore in chores.items()},
                "heartbeat": (self._beat, lambda: self.stopped.wait(BEAT), self.stopped),
            }.items()
        ]

    def start(self) -> None:
        """Report this process and start its threads."""
        retry_on_lost_database(self._record_models, seconds=300)
        retry_on_lost_database(self._beat, seconds=300)
        for thread in self.threads:
            thread.start()

    def stop(self, **_: object) -> None:
        """Claim no more. Signal handlers call this, in the midst of anything, so another thread does it: the one that
        was interrupted may hold the lock of an event."""
        threading.Thread(target=self._stop).start()

    def _stop(self) -> None:
        self.stopping.set()
        WAKE_UP.set()

    def join(self, **_: object) -> None:
        """Wait for the current work; hand back what is not finished after the grace period."""
        self._stop()
        ends = time.monotonic() + GRACE
        *working, heartbeat = self.threads
        for thread in working:
            thread.join(max(0.0, ends - time.monotonic()))
        holding = self.engine.holding
        if working[0].is_alive() and holding:
            holding.hand_back()
        self.stopped.set()
        heartbeat.join(BEAT)
        Worker.objects.filter(name=self.engine.name).delete()

    def _forever(self, action: Callable[[], object], pause: Callable[[], object], ended: threading.Event) -> None:
        while not ended.is_set():
            more: object = False
            try:
                close_old_connections()
                more = action()
            except Exception:  # the database or the network is away; nothing is lost, and it will be back
                log.exception("a worker thread has to try again")
                connection.close()
                ended.wait(1.0)
            if not more:
                pause()
        connection.close()

    def _work(self) -> int:
        WAKE_UP.clear()  # before looking, so that a message sent while looking is noticed
        return self.engine.work() or self.engine.idle()

    def _record_models(self) -> None:
        models = self.engine.captioner
        base = BaseModels.record(
            encoder=models.encoder.identity,
            language_model=models.language_model.identity,
            encoder_source=settings.ENCODER,
            language_model_source=settings.LANGUAGE_MODEL,
        )
        if not base.is_in_service:
            log.warning(
                "the base models of this worker are not in service: it takes only what is for them. Once every style "
                "has a version for them, manage cut_over %d puts them in service (docs/guide/base-models.md)",
                base.pk,
                extra={
                    "worker": self.engine.name,
                    "loaded": f"{base.pk}: {base}",
                    "in_service": str(BaseModels.in_service()),
                },
            )

    def _beat(self) -> None:
        holding = self.engine.holding
        if holding:
            holding.renew()
        models, breaker, now = self.engine.captioner, self.engine.breaker, clock("default")
        Worker.objects.update_or_create(
            name=self.engine.name,
            defaults={
                "queue": self.queue,
                "device": str(models.language_model.device),
                "models_loaded": f"{models.encoder.identity}, {models.language_model.identity}",
                "encoder": models.encoder.identity,
                "text_encoder": models.encoder.text_identity or "",
                "capacity": self.capacity.to_json(),
                "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "started_at": self.started_at,
                "seen_at": now,
                "trouble": breaker.trouble[:500],
                "tries_again_at": now + timedelta(seconds=breaker.seconds_left) if breaker.trouble else None,
            },
        )
        for job in self.jobs:
            if job._default_manager.all().reap():  # type: ignore[attr-defined]
                WAKE_UP.set()
        Worker.objects.filter(seen_at__lt=now - timedelta(days=1)).delete()


def capacity_of(captioner: Captioner, processes: int = 1, apart: bool = False) -> Capacity:
    """What a worker with these models has.

    Args:
        processes: that compute together; each has a GPU of its own, where there are any.
        apart: whether they are others than the worker even where it is one alone.
    """
    lm = captioner.language_model
    return Capacity(
        memory_mb=memory_mb(lm.device) * (processes if lm.device.type == "cuda" else 1),
        embedding_size=captioner.encoder.embedding_size,
        lm_size=lm.size,
        lm_layers=lm.layers,
        lm_heads=lm.heads,
        vocabulary=lm.vocabulary,
        processes=processes,
        apart=apart,
    )


def retry_on_lost_database(action: Callable[[], T], seconds: float = 20.0) -> T:
    """Do something with the database, and retry while it is unavailable: computed results should not be lost to a
    restart. `seconds` is less than a lease lasts.

    Raises:
        DatabaseError: it still fails after that time, or waiting would not help.
    """
    ends = time.monotonic() + seconds
    while True:
        try:
            return action()
        except FAULTY_DATA:
            raise
        except DatabaseError:
            if time.monotonic() > ends or connection.in_atomic_block:
                raise
            connection.close()
            time.sleep(0.5)
