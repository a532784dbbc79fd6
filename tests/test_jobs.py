"""The queue's promises: whatever workers, messages and clocks do, a row has one owner at a time and ends once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from unittest import mock

import pytest
from celery import current_app
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.module_loading import import_string
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from captioner.jobs import job
from captioner.jobs.job import FINISHED, LONGEST_PAUSE, MAX_ATTEMPTS, Failure, Status, queued_at
from captioner.models import Caption, CaptionRequest, Image, Style

pytestmark = pytest.mark.usefixtures("both_databases")
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    """What Django and the queue take for the time, whichever database would tell it."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@contextmanager
def time_from(clock: Clock) -> Iterator[None]:
    with mock.patch.object(timezone, "now", clock), mock.patch.object(job, "clock", side_effect=lambda using: clock()):
        yield


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with time_from(clock):
        yield clock


@pytest.fixture
def table(db: None) -> None:
    """What captions refer to."""
    make_table()


def make_table() -> None:
    Image.objects.create(sha256="0" * 64, file="images/a.jpg", thumbnail="a.jpg", width=1, height=1, size=1)
    Style.objects.create(slug="factual", name="Factual", is_default=True)
    CaptionRequest.objects.create()


def queue(rank: float = 0, deadline: timedelta = HOUR) -> Caption:
    """A queued row, whose turn comes `rank` seconds from now."""
    now = timezone.now()
    return Caption.objects.create(
        request=CaptionRequest.objects.get(),
        image=Image.objects.get(),
        style=Style.objects.get(),
        **queued_at(now, now + deadline, rank=now + timedelta(seconds=rank)),
    )


def token(row: Caption) -> uuid.UUID:
    assert row.lease_token
    return row.lease_token


def lose(clock: Clock) -> None:
    """Everything claimed is lost, and found to be."""
    clock.passes(settings.LEASE.total_seconds() + 1)
    Caption.objects.reap()


def test_rows_are_claimed_in_the_order_of_their_ranks(table: None) -> None:
    third, first, second = queue(60), queue(0), queue(1)
    assert Caption.objects.claim("w", 2) == [first, second]
    assert Caption.objects.claim("w", 2) == [third]
    assert Caption.objects.claim("w", 2) == []


def test_a_claim_says_who_holds_it_and_until_when(table: None, clock: Clock) -> None:
    queue()
    (row,) = Caption.objects.claim("w", 1)
    assert (row.status, row.lease_holder, row.attempts, row.started_at) == (Status.RUNNING, "w", 1, NOON)
    assert row.lease_expires_at == NOON + settings.LEASE


def test_a_late_answer_changes_nothing(table: None, clock: Clock) -> None:
    queue()
    (late,) = Caption.objects.claim("late", 1)
    lose(clock)
    assert not late.succeed(text="late, before anybody else")
    (other,) = Caption.objects.claim("other", 1)
    assert not late.succeed(text="late")
    assert not late.fail("late", "late")
    assert Caption.objects.renew(token(late)) == 0
    assert Caption.objects.hand_back(token(late)) == 0
    assert other.succeed(text="in time")
    assert not late.succeed(text="later still")
    assert not other.succeed(text="twice")
    assert Caption.objects.get().text == "in time"


def test_what_is_handed_back_counts_as_no_attempt(table: None) -> None:
    queue()
    for _ in range(MAX_ATTEMPTS + 1):
        (row,) = Caption.objects.claim("w", 1)
        assert Caption.objects.hand_back(token(row)) == 1
    row.refresh_from_db()
    assert (row.status, row.attempts, row.started_at, row.lease_holder) == (Status.QUEUED, 0, None, "")


def test_a_row_that_cost_a_worker_is_claimed_alone_and_given_up_in_the_end(table: None, clock: Clock) -> None:
    poison = queue()
    assert Caption.objects.claim("w", 8) == [poison]
    good = queue(rank=1)
    for _ in range(MAX_ATTEMPTS - 1):
        lose(clock)
        clock.passes(LONGEST_PAUSE.total_seconds())
        assert Caption.objects.claim("w", 8) == [poison]
    assert Caption.objects.claim("w", 8) == [good]
    assert Caption.objects.get(pk=good.pk).succeed()  # as its row is in the database now
    lose(clock)
    poison.refresh_from_db()
    assert (poison.status, poison.error_code) == (Status.FAILED, "worker_lost")
    assert str(MAX_ATTEMPTS) in poison.error_detail


def test_a_good_row_is_not_claimed_together_with_one_that_cost_a_worker(table: None, clock: Clock) -> None:
    queue(rank=1)
    (suspect,) = Caption.objects.claim("w", 1)
    lose(clock)
    Caption.objects.filter(pk=suspect.pk).update(rank_at=clock.now + timedelta(seconds=1))
    first, third = queue(), queue(rank=2)
    assert Caption.objects.claim("w", 8) == [first, third]
    assert Caption.objects.claim("w", 8) == [suspect]


SHORT_OF_MEMORY = Failure("out_of_memory", "too little memory")


def fail_once(worker: str, failure: Failure) -> Caption:
    (row,) = Caption.objects.claim(worker, 1)
    assert row.hand_back(failure)
    row.refresh_from_db()
    return row


def test_what_failed_is_tried_again_after_pauses_that_grow_and_lists_each_try(table: None, clock: Clock) -> None:
    queue(deadline=24 * HOUR)
    pauses = []
    for tries in range(1, 30):
        row = fail_once(f"w{tries}", SHORT_OF_MEMORY)
        assert (row.status, row.attempts, row.lease_holder) == (Status.QUEUED, 0, "")
        assert row.ready_at
        pauses.append((row.ready_at - clock.now).total_seconds())
        assert Caption.objects.claim("early", 1) == []
        clock.now = row.ready_at
    assert 1 <= pauses[0] <= 2
    assert 4 <= pauses[2] <= 8
    assert LONGEST_PAUSE.total_seconds() / 2 <= pauses[-1] <= LONGEST_PAUSE.total_seconds()
    assert len(set(pauses)) == len(pauses), "no two are the same, so that rows do not come back together"
    assert [failure["worker"] for failure in row.failures] == [f"w{tries}" for tries in range(10, 30)]
    assert row.failures[-1]["detail"] == "too little memory"


def test_a_row_is_to_blame_only_if_it_failed_with_several_workers_while_others_succeeded_there(
    table: None, clock: Clock
) -> None:
    queue(deadline=24 * HOUR)
    beside = replace(SHORT_OF_MEMORY, others_succeeded=True)
    for worker, failure in (*[("sick", beside)] * MAX_ATTEMPTS, *[("sound", SHORT_OF_MEMORY)] * MAX_ATTEMPTS):
        row = fail_once(worker, failure)
        assert row.status == Status.QUEUED
        clock.now = row.ready_at or clock.now
    row = fail_once("sound", beside)
    assert (row.status, row.error_code, row.error_detail) == (Status.FAILED, "out_of_memory", "too little memory")


def test_what_is_proven_to_be_the_rows_own_fault_ends_it_at_once(table: None) -> None:
    queue()
    row = fail_once("w", Failure("image_damaged", "it is damaged", own=True))
    assert (row.status, row.error_code) == (Status.FAILED, "image_damaged")


def test_a_row_that_failed_until_its_deadline_ends_then_and_says_where_the_causes_are(
    table: None, clock: Clock
) -> None:
    queue()
    fail_once("w", SHORT_OF_MEMORY)
    clock.passes(HOUR.total_seconds() + 1)
    assert Caption.objects.reap() == 1
    row = Caption.objects.get()
    assert row.error_code == "deadline_exceeded"
    assert "see the causes" in row.error_detail


def test_a_lost_worker_is_among_the_failures_and_the_second_one_brings_a_pause(table: None, clock: Clock) -> None:
    queue()
    for ready in (True, False):
        (row,) = Caption.objects.claim("lost", 1)
        lose(clock)
        row.refresh_from_db()
        assert (row.ready_at is None) == ready
    assert [failure["code"] for failure in row.failures] == ["worker_lost"] * 2
    assert row.failures[0]["worker"] == "lost"


def test_a_pause_that_was_written_before_the_clock_was_set_back_is_over(table: None, clock: Clock) -> None:
    queue(deadline=24 * HOUR)
    fail_once("w", SHORT_OF_MEMORY)
    clock.passes(-3600)
    assert len(Caption.objects.claim("w", 1)) == 1


def test_a_lease_holds_as_long_as_it_is_renewed(table: None, clock: Clock) -> None:
    queue()
    (row,) = Caption.objects.claim("w", 1)
    for _ in range(5):
        clock.passes(settings.LEASE.total_seconds() - 1)
        assert Caption.objects.renew(token(row)) == 1
        assert Caption.objects.reap() == 0
    assert row.succeed(text="at last")


@pytest.mark.parametrize("jump", [timedelta(days=365), timedelta(days=-365)])
def test_a_clock_that_jumps_does_not_keep_a_lost_row(table: None, clock: Clock, jump: timedelta) -> None:
    row = queue(deadline=timedelta(days=1000))
    Caption.objects.claim("lost", 1)
    clock.now += jump
    assert Caption.objects.reap() == 1
    assert Caption.objects.claim("w", 1) == [row]


def test_a_row_whose_deadline_passes_in_the_queue_fails_and_one_in_work_may_end(table: None, clock: Clock) -> None:
    queue(deadline=timedelta(seconds=5))
    (working,) = Caption.objects.claim("w", 1)
    waiting = queue(deadline=timedelta(seconds=5))
    clock.passes(6)
    assert Caption.objects.claim("w", 1) == []
    assert Caption.objects.reap() == 1
    waiting.refresh_from_db()
    assert (waiting.status, waiting.error_code) == (Status.FAILED, "deadline_exceeded")
    assert waiting.error_detail
    assert working.succeed(text="just so")


def test_canceling_ends_queued_and_running_rows_and_no_others(table: None) -> None:
    for _ in range(3):
        queue()
    ended, running = Caption.objects.claim("w", 2)
    ended.succeed(text="done")
    assert Caption.objects.all().cancel() == 2
    assert not running.succeed(text="too late")
    assert Caption.objects.renew(token(running)) == 0
    assert sorted(Caption.objects.values_list("status", flat=True)) == ["canceled", "canceled", "succeeded"]


def test_only_failed_and_canceled_rows_can_be_tried_again_and_are_as_new(table: None, clock: Clock) -> None:
    queue()
    (row,) = Caption.objects.claim("w", 1)
    assert not row.retry(NOON + HOUR)
    assert row.fail("because", "of something")
    clock.passes(60)
    assert row.retry(clock.now + HOUR)
    row.refresh_from_db()
    assert (row.status, row.attempts, row.error_code, row.finished_at) == (Status.QUEUED, 0, "", None)
    assert row.rank_at == clock.now
    (row,) = Caption.objects.claim("w", 1)
    assert row.succeed(text="done")
    assert not row.retry(clock.now + HOUR)


@pytest.mark.parametrize(
    "lie",
    [
        {"status": "running"},
        {"status": "succeeded"},
        {"status": "queued", "lease_token": uuid.uuid4()},
        {"error_code": "without_failure"},
        {"finished_at": NOON},
    ],
)
def test_the_database_itself_refuses_rows_that_contradict_themselves(table: None, lie: dict[str, Any]) -> None:
    row = queue()
    with pytest.raises(IntegrityError), transaction.atomic():
        Caption.objects.filter(pk=row.pk).update(**lie)


class Queue(RuleBasedStateMachine):
    """Workers that work, die and answer late, people who cancel, and a clock that jumps, in any order."""

    limit = st.integers(1, 4)
    which = st.integers(0, 1000)

    def __init__(self) -> None:
        super().__init__()
        for model in (Caption, CaptionRequest, Image, Style):
            model.objects.all().delete()
        make_table()
        self.clock = Clock()
        self.time = ExitStack()
        self.time.enter_context(time_from(self.clock))
        self.claims: list[list[Caption]] = []  # as the workers remember them, lost or not
        self.texts = (f"answer {number}" for number in count())
        self.ended: dict[uuid.UUID, tuple[str, str]] = {}

    def pick(self, which: int) -> list[Caption]:
        return self.claims[which % len(self.claims)]

    @rule(rank=st.sampled_from([0, 0, 60]), seconds=st.sampled_from([20, 3600]))
    def ask(self, rank: int, seconds: int) -> None:
        queue(rank, timedelta(seconds=seconds))

    @rule(limit=limit)
    def claim(self, limit: int) -> None:
        rows = Caption.objects.claim("w", limit)
        assert len(rows) <= limit
        assert len(rows) <= 1 or all(row.attempts == 1 for row in rows)
        assert len({row.lease_token for row in rows}) <= 1
        if rows:
            self.claims.append(rows)

    @precondition(lambda self: self.claims)
    @rule(which=which, good=st.booleans())
    def answer(self, which: int, good: bool) -> None:
        text = next(self.texts)
        for row in self.pick(which):
            held = Caption.objects.filter(pk=row.pk, status="running", lease_token=row.lease_token).exists()
            assert held == (row.succeed(text=text) if good else row.fail("bad", text))

    @precondition(lambda self: self.claims)
    @rule(which=which)
    def renew(self, which: int) -> None:
        Caption.objects.renew(token(self.pick(which)[0]))

    @precondition(lambda self: self.claims)
    @rule(which=which)
    def hand_back(self, which: int) -> None:
        Caption.objects.hand_back(token(self.pick(which)[0]))

    @rule()
    def reap(self) -> None:
        Caption.objects.reap()

    @precondition(lambda self: self.claims)
    @rule(which=which)
    def cancel(self, which: int) -> None:
        Caption.objects.filter(pk=self.pick(which)[0].pk).cancel()

    @precondition(lambda self: self.claims)
    @rule(which=which)
    def try_again(self, which: int) -> None:
        row = self.pick(which)[0]
        if row.retry(self.clock.now + HOUR):
            del self.ended[row.pk]

    @rule(seconds=st.sampled_from([1, 10, 31, 4000, -10, -100, -4000]))
    def clock_moves(self, seconds: int) -> None:
        self.clock.passes(seconds)

    @invariant()
    def what_has_ended_never_changes(self) -> None:
        rows = Caption.objects.filter(status__in=FINISHED)
        now = {row.pk: (str(row.status), row.text or row.error_detail) for row in rows}
        assert now | self.ended == now
        self.ended = now

    @invariant()
    def nothing_is_tried_for_ever(self) -> None:
        assert not Caption.objects.filter(attempts__gt=MAX_ATTEMPTS).exists()

    def teardown(self) -> None:
        try:
            for _ in range(1000):
                lose(self.clock)
                for row in Caption.objects.claim("the last worker", 4):
                    assert row.succeed(text="the end")
                if not Caption.objects.unfinished().exists():
                    break
            assert not Caption.objects.unfinished().exists(), "every row ends"
            self.what_has_ended_never_changes()
        finally:
            self.time.close()


def test_in_any_history_every_row_ends_once(db: None) -> None:
    run_state_machine_as_test(Queue, settings=hypothesis_settings(max_examples=20, stateful_step_count=25))


def test_each_registered_queue_has_a_task_that_wakes_it_and_a_process_that_serves_it() -> None:
    import captioner.tasks  # noqa: F401
    from captioner.jobs.registry import QUEUES

    assert {"captions", "training"} <= set(QUEUES)
    for queue in QUEUES.values():
        assert queue.wake_task in current_app.tasks
        assert callable(import_string(queue.process))
