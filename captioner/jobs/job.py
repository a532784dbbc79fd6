"""Jobs, the base of every queued row: claim, renew, hand back, succeed, fail, cancel, retry.

The database owns the state. A worker **claims** ready rows for the length of a **lease**, which it renews while it
works; every claim has a **token** of its own, and only who holds the token of a row can record a result in it. So
whatever happens to workers, messages and clocks, a row has one owner at a time, and a late answer changes nothing.
A lease that has run out is **reaped**: the row goes back into the queue or, after `MAX_ATTEMPTS` lost workers, ends as
failed. A row that has already cost a worker is claimed alone, so that it cannot take others down with it.

A worker that **fails** with a row cannot know whether the row or its surroundings are to blame: a storage that is away,
memory that is short. So the row is handed back, to be tried again after a growing pause until its deadline, and ends as
failed only where it is proven to be its own fault.

    queued -> running -> succeeded | failed | canceled
       ^_________| handed back, or lease lost
"""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from django.conf import settings
from django.db import connections, models, transaction
from django.db.models import F, Q, Value
from django.utils import timezone

from captioner.reports import FailedAttempt

MAX_ATTEMPTS = 4
LONGEST_PAUSE = timedelta(minutes=5)  # before a row is tried again
FAILURES_KEPT = 20  # of a row, the newest


class Status(models.TextChoices):
    """How far a queued row is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


UNFINISHED = (Status.QUEUED, Status.RUNNING)
FINISHED = (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)


def clock(using: str) -> datetime:
    """The time of the database, which all workers share; with SQLite that is this machine's."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now


def back_off(tries: int) -> timedelta:
    """How long to wait after so many tries have failed, about twice as long after each; not the same for all, so that
    what failed together does not come back together."""
    return min(LONGEST_PAUSE, timedelta(seconds=2.0 ** min(tries, 30))) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Failure:
    """What went wrong with a claimed row: a stable code, and a sentence that anybody may read.

    Args:
        own: it is proven to be the row's own fault, such as bytes that are there and are not a picture.
        others_succeeded: the same worker brought others as far at the same time.
    """

    code: str
    detail: str
    own: bool = False
    others_succeeded: bool = False


J = TypeVar("J", bound="Job")


class JobQuerySet(models.QuerySet[J]):
    """Operations on many rows."""

    order: tuple[str, ...] = ("rank_at", "pk")  # in which rows are claimed: that of an `OrderedJob`

    def lock(self) -> list[Any]:
        """Lock these rows until the transaction ends, in the order of their keys: whoever locks many of them does it in
        this order, or two who have locked each other's next row would wait for each other. SQLite has one writer at a
        time.

        Returns:
            Their keys; without the rows that no longer belong to these when their lock was free.
        """
        rows = self
        if connections[self.db].features.has_select_for_update:
            rows = rows.select_for_update(of=("self",), no_key=True)  # rows that refer to them may be added meanwhile
        return list(rows.order_by("pk").values_list("pk", flat=True))

    def update(self, **changes: Any) -> int:
        """As Django's, in the order of `lock`: a database that is given one statement locks in its own."""
        if not connections[self.db].features.has_select_for_update:
            return super().update(**changes)
        with transaction.atomic(using=self.db, savepoint=False):
            rows = self.model._base_manager.using(self.db).filter(pk__in=self.lock())
            return rows.update(**changes)

    def unfinished(self) -> Self:
        """Rows that are queued or running."""
        return self.filter(status__in=UNFINISHED)

    def ready(self, now: datetime) -> Self:
        """Rows that a worker may claim, most urgent first.

        A pause that ends later than any can was written before the clock was set back, and is over.
        """
        awake = Q(ready_at=None) | Q(ready_at__lte=now) | Q(ready_at__gt=now + 2 * LONGEST_PAUSE)
        return self.filter(awake, status=Status.QUEUED, deadline_at__gt=now).order_by(*self.order)

    def lost(self, now: datetime) -> Self:
        """Running rows whose worker has not renewed its lease.

        Leases are written and judged by one clock, the database's. One that ends later than it ever could was written
        before that clock was set back, and would last for as long as the clock has jumped. Twice the length, because
        SQLite can keep who has read the clock waiting for its turn to write.
        """
        return self.filter(status=Status.RUNNING).filter(
            Q(lease_expires_at__lt=now) | Q(lease_expires_at__gt=now + 2 * settings.LEASE)
        )

    def claim(self, holder: str, limit: int) -> list[J]:
        """Take up to `limit` ready rows, atomically; each row goes to one claimer however many there are.

        Args:
            holder: the name of the worker, for people to read.
        """
        token = uuid.uuid4()
        with transaction.atomic(using=self.db):
            now = clock(self.db)
            rows = self.ready(now).only("pk", "attempts")
            if connections[self.db].features.has_select_for_update_skip_locked:
                rows = rows.select_for_update(skip_locked=True, of=("self",))
            chosen = list(rows[:limit])
            if chosen:
                chosen = chosen[:1] if chosen[0].attempts else [row for row in chosen if not row.attempts]
            taken = self.model._base_manager.using(self.db).filter(
                pk__in=[row.pk for row in chosen], status=Status.QUEUED
            )
            taken.update(
                status=Status.RUNNING,
                attempts=F("attempts") + 1,
                lease_holder=holder,
                lease_token=token,
                lease_expires_at=now + settings.LEASE,
                started_at=now,
            )
        # By the token alone: what the rows were chosen by may have changed with the claim, as their attempts have.
        claimed = self.model._base_manager.using(self.db).filter(lease_token=token)
        return list(claimed.order_by(*self.order)) if chosen else []

    def held(self, token: uuid.UUID) -> Self:
        """The rows of a claim that have not been canceled, deleted, finished or rescued since."""
        return self.filter(lease_token=token, status=Status.RUNNING)

    def renew(self, token: uuid.UUID) -> int:
        """Extend the lease on what is left of a claim.

        Returns:
            The number of rows still held; those that are not need no more work.
        """
        return self.held(token).update(lease_expires_at=clock(self.db) + settings.LEASE)

    def hand_back(self, token: uuid.UUID, pause: timedelta | None = None) -> int:
        """Return what is left of a claim to the queue; it does not count as an attempt.

        Args:
            pause: before it may be claimed again.
        """
        ready_at = clock(self.db) + pause if pause else None
        return self.held(token).update(attempts=F("attempts") - 1, **{**QUEUED_AGAIN, "ready_at": ready_at})

    def reap(self) -> int:
        """End rows with lost leases or missed deadlines. Safe to call by anyone, at any time.

        Returns:
            The number of rows that changed.
        """
        now = clock(self.db)
        ended = 0
        for row in self.lost(now).only("attempts", "failures", "lease_holder", "lease_token"):
            lost = self.lost(now).filter(pk=row.pk, lease_token=row.lease_token)
            failures = row.failures_with(now, row.lease_holder, _LOST)
            if row.attempts >= MAX_ATTEMPTS:
                detail = f"{MAX_ATTEMPTS} workers were lost while working on this; try again."
                ended += lost.update(**_failed(now, _LOST.code, detail), failures=failures)
            else:  # at once after the first: it may have been asked to end in a hurry
                ready_at = now + back_off(row.attempts - 1) if row.attempts > 1 else None
                ended += lost.update(**{**QUEUED_AGAIN, "ready_at": ready_at}, failures=failures)
        late = self.filter(status=Status.QUEUED, deadline_at__lte=now)
        ended += late.exclude(failures=[]).update(
            **_failed(
                now, "deadline_exceeded", "every attempt before its deadline failed; see the causes and try again."
            )
        )
        return ended + late.update(
            **_failed(now, "deadline_exceeded", "no worker was free before its deadline; try again.")
        )

    def cancel(self) -> int:
        """End queued and running rows as canceled; a worker's later answer is not recorded."""
        return self.unfinished().update(
            status=Status.CANCELED, finished_at=clock(self.db), lease_token=None, lease_expires_at=None
        )


@dataclass(frozen=True)
class Claim:
    """What a worker holds: rows of `queue` under one token, for `longest` at most; then it is taken to hang."""

    queue: JobQuerySet[Any]
    token: uuid.UUID
    longest: timedelta
    outer: Claim | None = None  # what is held too, and waits for this
    since: float = field(default_factory=time.monotonic)

    def renew(self) -> None:
        """Extend the lease, unless the work takes longer than it sanely can."""
        if time.monotonic() - self.since < self.longest.total_seconds():
            self.queue.all().renew(self.token)
        if self.outer:
            self.outer.renew()

    def hand_back(self) -> int:
        """Return what is not finished to the queue."""
        return self.queue.all().hand_back(self.token) + (self.outer.hand_back() if self.outer else 0)


class Job(models.Model):
    """A queued row."""

    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    deadline_at = models.DateTimeField(editable=False, help_text="fails if it is still queued at this time")
    started_at = models.DateTimeField(null=True, editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)
    attempts = models.PositiveSmallIntegerField(default=0, editable=False)
    lease_holder = models.CharField(max_length=100, blank=True, editable=False)
    lease_token = models.UUIDField(null=True, editable=False)
    lease_expires_at = models.DateTimeField(null=True, editable=False)
    error_code = models.CharField(max_length=40, blank=True, editable=False)
    error_detail = models.TextField(blank=True, editable=False)
    ready_at = models.DateTimeField(
        null=True, editable=False, help_text="time of the next attempt; empty for immediately"
    )
    failures = models.JSONField(
        default=list,
        db_default=Value([], models.JSONField()),
        editable=False,
        help_text='failed attempts: [{"at", "worker", "code", "detail", "others_succeeded"}]',
    )

    class Meta:
        abstract = True
        constraints = [
            models.CheckConstraint(
                condition=Q(status="running", lease_token__isnull=False, lease_expires_at__isnull=False)
                | (~Q(status="running") & Q(lease_token__isnull=True, lease_expires_at__isnull=True)),
                name="%(app_label)s_%(class)s_leased_while_running",
            ),
            models.CheckConstraint(
                condition=Q(status__in=("queued", "running"), finished_at__isnull=True)
                | Q(status__in=("succeeded", "failed", "canceled"), finished_at__isnull=False),
                name="%(app_label)s_%(class)s_finished_has_time",
            ),
            models.CheckConstraint(
                condition=Q(status="failed") | Q(error_code=""), name="%(app_label)s_%(class)s_error_if_failed"
            ),
        ]
        indexes = [
            models.Index(fields=["lease_expires_at"], condition=Q(status="running"), name="%(class)s_leases"),
            models.Index(fields=["lease_token"], condition=Q(status="running"), name="%(class)s_tokens"),
            models.Index(fields=["deadline_at"], condition=Q(status="queued"), name="%(class)s_deadlines"),
        ]

    @property
    def finished(self) -> bool:
        """Whether it has succeeded, failed or been canceled."""
        return self.status in FINISHED

    def _record(self, **changes: Any) -> bool:
        """Write a result, if this row is still held under the token it was claimed with."""
        manager = type(self)._base_manager
        held = manager.filter(pk=self.pk, status=Status.RUNNING, lease_token=self.lease_token)
        return self.lease_token is not None and held.update(**changes) == 1

    def succeed(self, at: datetime | None = None, **results: Any) -> bool:
        """Record the results of a claimed row.

        Args:
            at: the time, for who records many and has asked the clock once.

        Returns:
            Whether they were recorded: not if the row was canceled, deleted or given to another worker meanwhile.
        """
        now = at or clock(self._state.db or "default")
        return self._record(
            status=Status.SUCCEEDED, finished_at=now, lease_token=None, lease_expires_at=None, **results
        )

    def fail(self, code: str, detail: str, **results: Any) -> bool:
        """Record why a claimed row failed; returns as `succeed` does."""
        return self._record(**_failed(clock(self._state.db or "default"), code, detail), **results)

    def hand_back(self, failure: Failure) -> bool:
        """Put a claimed row back into the queue, to be tried again after a pause; or, where it is to blame, record that
        it failed.

        To blame it is where that is proven by one worker, or where as many tries as `MAX_ATTEMPTS`, of more than one
        worker, failed while the same workers brought others as far.

        Returns:
            As `succeed` does.
        """
        now = clock(self._state.db or "default")
        self.failures = failures = self.failures_with(now, self.lease_holder, failure)
        beside = [attempt.worker for attempt in self.failed_attempts if attempt.others_succeeded]
        if failure.own or (failure.others_succeeded and len(beside) >= MAX_ATTEMPTS and len(set(beside)) > 1):
            return self._record(**_failed(now, failure.code, failure.detail), failures=failures)
        # To have been tried and given back costs no worker, and is none of the attempts that are counted.
        again = {**QUEUED_AGAIN, "attempts": F("attempts") - 1, "ready_at": now + back_off(len(failures))}
        return self._record(**again, failures=failures)

    @property
    def failed_attempts(self) -> list[FailedAttempt]:
        """The newest attempts that failed, oldest first."""
        return [FailedAttempt.read(attempt) for attempt in self.failures]

    def failures_with(self, at: datetime, worker: str, failure: Failure) -> list[dict[str, Any]]:
        """What to store as the row's failures after a further one."""
        attempt = FailedAttempt(at.isoformat(), worker, failure.code, failure.detail, failure.others_succeeded)
        return [one.to_json() for one in (*self.failed_attempts, attempt)][-FAILURES_KEPT:]


class OrderedJob(Job):
    """A queued row that may be claimed at once, in its order."""

    rank_at = models.DateTimeField(
        default=timezone.now, editable=False, help_text="earlier times go first; bulk work ranks later"
    )

    class Meta(Job.Meta):
        abstract = True
        indexes = [
            models.Index(fields=["rank_at", "id"], condition=Q(status="queued"), name="%(class)s_ready"),
            *Job.Meta.indexes,
        ]

    def retry(self, deadline_at: datetime, **changes: Any) -> bool:
        """Queue a failed or canceled row again, as if new but for `changes`.

        Returns:
            Whether it was failed or canceled.
        """
        manager = type(self)._base_manager
        ended = manager.filter(pk=self.pk, status__in=(Status.FAILED, Status.CANCELED))
        return (
            ended.update(
                attempts=0,
                rank_at=clock(self._state.db or "default"),
                deadline_at=deadline_at,
                finished_at=None,
                error_code="",
                error_detail="",
                failures=[],
                **QUEUED_AGAIN,
                **changes,
            )
            == 1
        )


def queued_at(now: datetime, until: datetime, *, rank: datetime | None = None) -> dict[str, datetime]:
    """The columns of a new `OrderedJob` that say when.

    Args:
        until: it fails if it is still queued then.
        rank: earlier ones go first; now, if left out.
    """
    return {"created_at": now, "rank_at": rank or now, "deadline_at": until}


QUEUED_AGAIN: dict[str, Any] = {
    "status": Status.QUEUED,
    "lease_token": None,
    "lease_expires_at": None,
    "lease_holder": "",
    "started_at": None,
    "ready_at": None,
}

_LOST = Failure("worker_lost", "the worker was lost while working on this")


def _failed(now: datetime, code: str, detail: str) -> dict[str, Any]:
    return {
        "status": Status.FAILED,
        "finished_at": now,
        "lease_token": None,
        "lease_expires_at": None,
        "error_code": code,
        "error_detail": detail,
    }
