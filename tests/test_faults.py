"""Faults, with real worker processes, on both stacks: whatever happens, every caption ends, once.

A trigger in the database notes each ending of a caption, so that a result recorded twice cannot hide.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import connection
from django.test import Client, override_settings
from django.utils import timezone

from captioner import services, uploads
from captioner.jobs import wakeup
from captioner.jobs.job import MAX_ATTEMPTS, Status
from captioner.models import Caption, CaptionRequest, Embedding, Image, MapperVersion, Style, Viewer, Worker
from tests.servers import PATIENCE, default_database, small_disk, wait_until
from tests.stack import LEASE, ROOT, STACKS, Stack
from training import services as training_services
from training.models import Example, TrainingRun

pytestmark = pytest.mark.faults
KILLS = 20
ENDINGS = {
    "sqlite": """
        CREATE TABLE endings (caption);
        CREATE TRIGGER note_ending AFTER UPDATE OF status ON captioner_caption
        WHEN new.status NOT IN ('queued', 'running')
        BEGIN INSERT INTO endings VALUES (new.id); END;
    """,
    "postgresql": """
        CREATE TABLE endings (caption uuid);
        CREATE FUNCTION note_ending() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO endings VALUES (new.id); RETURN new; END $$;
        CREATE TRIGGER note_ending AFTER UPDATE OF status ON captioner_caption FOR EACH ROW
        WHEN (new.status NOT IN ('queued', 'running')) EXECUTE FUNCTION note_ending();
    """,
}


@pytest.fixture(scope="module", params=STACKS, ids=lambda make: make.__name__)
def stack(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    django_db_blocker: Any,
    tables: Path,
    small_bundle: Path,
) -> Iterator[Stack]:
    with ExitStack() as resources:
        home = tmp_path_factory.mktemp("stack")
        resources.enter_context(django_db_blocker.unblock())
        stack = request.param(resources, home, tables)
        stack.variables["CLIPCAP_MODELS"] = str(small_bundle)
        stack.open()
        resources.callback(stack.close)
        resources.enter_context(default_database(stack.database_url))
        models = {
            "ENCODER": f"local-dir:{small_bundle / 'encoder'}",
            "LANGUAGE_MODEL": f"local-dir:{small_bundle / 'lm'}",
        }
        own = {"MEDIA_ROOT": home / "media", "LEASE": timedelta(seconds=LEASE), "MODELS": small_bundle}
        resources.enter_context(override_settings(**own, **models))
        app = Celery(broker=stack.broker_url, set_as_current=False)
        app.conf.update(broker_transport_options=stack.broker_options, task_default_queue="captions")
        patch = resources.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(wakeup, "app", app)
        call_command("install_styles", stdout=(home / "styles.log").open("w"))
        with connection.cursor() as cursor:
            if stack.postgresql:
                cursor.execute(ENDINGS["postgresql"])
            else:
                cursor.executescript(ENDINGS["sqlite"])
        yield stack


def photos(count: int) -> list[services.Upload]:
    files = sorted((ROOT / "examples/coco_cc").glob("*.jpg"))[:count]
    return [services.Upload(file.read_bytes(), file.name) for file in files]


def ask(count: int) -> CaptionRequest:
    """Queue captions of `count` photos in all three styles, three times as many."""
    return services.request_captions(
        viewer=Viewer(), images=photos(count), styles=["all"], options={"method": "greedy"}
    )


def check_that_all_end(
    requests: list[CaptionRequest], count: int, what: str, seconds: float = PATIENCE
) -> Counter[str]:
    """Wait until all captions have ended, and check that none is missing, doubled or without a reason.

    Returns:
        How many ended how.
    """
    captions = Caption.objects.filter(request__in=requests)
    wait_until(lambda: not captions.unfinished().exists(), "every caption ends", seconds)
    ended = Counter(captions.values_list("status", flat=True))
    print(f"{what}: {dict(ended)}")
    assert ended.total() == count
    with connection.cursor() as cursor:
        cursor.execute("SELECT caption FROM endings")
        endings = Counter(str(row[0]).replace("-", "") for row in cursor.fetchall())
    assert {endings[caption.pk.hex] for caption in captions} == {1}, "an ending was recorded twice, or never"
    assert not captions.filter(status=Status.SUCCEEDED, text="").exists()
    assert not captions.filter(status=Status.FAILED, error_code="").exists()
    return ended


def test_one_lease_has_one_owner_while_two_workers_and_a_reaper_race_for_it(stack: Stack) -> None:
    requests = [ask(30)]
    barrier = threading.Barrier(3)
    recorded: list[str] = []

    def race(act: Callable[[], object]) -> None:
        barrier.wait()
        try:
            act()
        finally:
            connection.close()

    for _ in range(40):
        (late,) = Caption.objects.claim("late", 1)
        Caption.objects.filter(pk=late.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))

        def work_late(row: Caption = late) -> None:
            if row.succeed(text="by the late one"):
                recorded.append(row.pk.hex)

        def work() -> None:
            for row in Caption.objects.claim("next", 1):
                if row.succeed(text="by the next one"):
                    recorded.append(row.pk.hex)

        threads = [threading.Thread(target=race, args=(act,)) for act in (work_late, work, Caption.objects.reap)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(recorded) == len(set(recorded)) > 0

    def work_the_last() -> bool:
        for row in Caption.objects.claim("last", 8):
            assert row.succeed(text="by the last one")
        return not Caption.objects.unfinished().exists()

    wait_until(work_the_last, "what was lost more than once waits for a while")
    check_that_all_end(requests, 90, "a race for one lease")


def test_twenty_killed_workers_lose_and_double_nothing(stack: Stack) -> None:
    requests = [ask(10)]
    kills = 0
    ends = time.monotonic() + PATIENCE
    while kills < KILLS:
        assert time.monotonic() < ends, f"only {kills} workers could be killed at work"
        stack.hire(4)  # some start while others are killed
        if Caption.objects.filter(status=Status.QUEUED).count() < 30:
            requests.append(ask(10))
        holders = Caption.objects.filter(status=Status.RUNNING).values_list("lease_holder", flat=True)
        for name, rows in Counter(holders).items():
            # What a lost worker held is claimed row by row; here it is whole batches that are lost.
            if name in stack.workers and rows > 1 and kills < KILLS:
                stack.kill(name)
                # It may have recorded its results at this very moment; only those killed in between count.
                kills += Caption.objects.filter(status=Status.RUNNING, lease_holder=name).exists()
        time.sleep(0.02)
    ended = check_that_all_end(requests, 30 * len(requests), f"{KILLS} workers killed")
    assert ended["succeeded"] > ended["failed"]
    failures = Caption.objects.filter(request__in=requests, status=Status.FAILED)
    assert set(failures.values_list("error_code", flat=True)) <= {"worker_lost"}


def test_a_broker_that_comes_back_empty_loses_nothing(stack: Stack) -> None:
    stack.hire(2)
    requests = [ask(10)]
    stack.lose_broker()
    requests += [ask(2) for _ in range(3)]
    wait_until(lambda: Caption.objects.unfinished().count() < 40, "workers find work without any wake-up message")
    stack.bring_broker_back()
    requests.append(ask(2))
    check_that_all_end(requests, 3 * 18, "the broker wiped")
    wakeup.wake_workers()
    wait_until(lambda: stack.wake_ups_unread() == 0, "the workers read wake-up messages again")


def test_a_database_that_goes_away_and_comes_back_loses_nothing(stack: Stack) -> None:
    stack.hire(2)
    requests = []
    for _ in range(2):
        requests.append(ask(10))
        wait_until(lambda: Caption.objects.filter(status=Status.RUNNING).exists(), "a batch is in hand")
        with stack.database_away():
            time.sleep(2)  # the fault itself
    check_that_all_end(requests, 3 * 20, "the database restarted twice")


def test_a_media_folder_that_is_away_for_a_while_costs_no_caption(stack: Stack) -> None:
    stack.hire(2)
    Embedding.objects.all().delete()  # so that every photo has to be read
    requests = [ask(10), ask(30)]
    wait_until(lambda: Caption.objects.filter(request__in=requests, status=Status.SUCCEEDED).exists(), "some are done")
    media = stack.home / "media"
    media.rename(stack.home / "away")
    at_work = Worker.objects.filter(name__in=stack.workers)
    wait_until(lambda: not at_work.filter(trouble="").exists(), "all workers have paused themselves and say so")
    (stack.home / "away").rename(media)
    assert Caption.objects.filter(request__in=requests).exclude(failures=[]).exists(), "rows tell what happened"
    assert check_that_all_end(requests, 3 * 40, "media away")["succeeded"] == 120
    wait_until(lambda: not at_work.exclude(trouble="").exists(), "they work again and say so")


def test_a_worker_short_of_memory_beside_sound_ones_costs_no_caption(stack: Stack) -> None:
    stack.hire(2)
    pid = stack.fork("captions", "short@test")
    wait_until(Worker.objects.filter(name="short@test").exists, "its models are loaded")
    requests = [ask(30)]
    handed_back = Caption.objects.exclude(failures=[]).filter(created_at__gte=requests[0].created_at)

    def it_got_some() -> bool:
        if not Caption.objects.unfinished().exists():
            requests.append(ask(30))  # the sound ones were faster
        return handed_back.exists()

    wait_until(it_got_some, "the one short of memory has had to hand captions back")
    ended = check_that_all_end(requests, 90 * len(requests), "a worker short of memory")
    os.kill(pid, signal.SIGKILL)
    assert ended["succeeded"] == 90 * len(requests)
    print(f"{handed_back.count()} were handed back")
    assert {failure["worker"] for caption in handed_back for failure in caption.failures} == {"short@test"}


def test_a_clock_that_jumps_keeps_no_caption_from_its_end(stack: Stack) -> None:
    stack.hire(2)
    requests = [ask(15), ask(15)]
    day = timedelta(days=1)
    for jump in (day, -day, timedelta(seconds=-LEASE), 365 * day, -365 * day):
        running = Caption.objects.filter(status=Status.RUNNING)
        wait_until(running.exists, "a batch is in hand")
        running.update(lease_expires_at=timezone.now() + jump)
    # And leases that nobody will renew, written before the clock was set back, or long ago.
    requests.append(ask(1))
    for row, jump in zip(Caption.objects.claim("nobody", 2), (day, -day), strict=False):
        Caption.objects.filter(pk=row.pk).update(lease_expires_at=timezone.now() + jump)
    check_that_all_end(requests, 3 * 31, "the clock jumped")


def test_a_wake_up_delivered_five_times_brings_each_caption_once(stack: Stack) -> None:
    stack.hire(2)
    requests = []
    for _ in range(4):
        requests.append(ask(2))
        for _ in range(4):
            wakeup.wake_workers()
    ended = check_that_all_end(requests, 3 * 8, "wake-up messages delivered five times")
    assert ended["succeeded"] == 24
    wait_until(lambda: stack.wake_ups_unread() == 0, "the workers read all wake-up messages")


def test_a_worker_told_to_stop_finishes_or_hands_back_and_exits_cleanly(stack: Stack) -> None:
    for name in list(stack.workers):
        stack.kill(name)
    wait_until(lambda: not Caption.objects.filter(status=Status.RUNNING).exists() or Caption.objects.reap(), "all idle")
    requests = [ask(10), ask(10)]
    worker = subprocess.Popen(
        f"{sys.executable} -P -m celery -A clipcap_site worker -P solo -Q captions --without-mingle --without-gossip "
        "-n told@test".split(),
        cwd=ROOT,
        env=stack.environment,
        stderr=(stack.home / "told.log").open("wb"),
        stdout=subprocess.DEVNULL,
    )
    held = Caption.objects.filter(status=Status.RUNNING, lease_holder="told@test")
    wait_until(lambda: held.exists() or worker.poll() is not None, "it works")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0
    assert not held.exists()
    assert not Worker.objects.filter(name="told@test").exists()
    assert Caption.objects.filter(request__in=requests, status=Status.SUCCEEDED).exists()
    left = Caption.objects.filter(request__in=requests, status=Status.QUEUED)
    assert not left.filter(attempts__gt=0).exists(), "to be handed back is no failed attempt"
    stack.hire(2)
    assert check_that_all_end(requests, 3 * 20, "a worker stopped")["succeeded"] == 60


def test_a_training_worker_killed_in_the_middle_costs_nothing_and_changes_no_bit(stack: Stack) -> None:
    style = Style.objects.get(slug="factual")
    for row in json.loads((ROOT / "examples/coco_cc/captions.json").read_text(encoding="utf-8"))[:20]:
        image = uploads.store((ROOT / "examples/coco_cc" / row["file"]).read_bytes())
        for text in row["captions"][:2]:
            training_services.add_example(style=style, image=image, text=text, source=Example.Source.IMPORTED)
    options = {"epochs": 8, "batch_size": 10, "start": "scratch", "prefix_length": 3, "layers": 1}
    whole = training_services.start_run(style=style, options=options)
    worker = stack.fork("training", "t1@test")
    wait_until(lambda: TrainingRun.objects.get(pk=whole.pk).finished, "a run is trained")

    run = training_services.start_run(style=style, options=options)
    kills = MAX_ATTEMPTS  # as many as end a run that does not get on
    for killed in range(1, kills + 1):
        # What it cost before is forgotten at the first checkpoint of the worker that has it now.
        getting_on = TrainingRun.objects.filter(pk=run.pk, lease_holder=f"t{killed}@test", attempts=1, reached__gt=0)
        wait_until(getting_on.exists, "it gets on")
        os.kill(worker, signal.SIGKILL)
        assert TrainingRun.objects.get(pk=run.pk).status == Status.RUNNING, "it was to be killed at work"
        worker = stack.fork("training", f"t{killed + 1}@test")
    wait_until(lambda: TrainingRun.objects.get(pk=run.pk).finished, "it is trained to its end")
    os.kill(worker, signal.SIGKILL)

    whole.refresh_from_db()
    run.refresh_from_db()
    assert [row.status for row in (whole, run)] == [Status.SUCCEEDED] * 2, [whole.error_detail, run.error_detail]
    assert run.attempts == 1, "it got on between all its crashes"
    assert run.events.filter(message__startswith="taken over from a lost worker").count() == kills
    trained = [version.sha256 for version in (whole.version, run.version) if version]
    assert len(trained) == 2
    assert len(set(trained)) == 1
    curves = [list(r.reports.values_list("epoch", "training_loss", "validation_loss")) for r in (whole, run)]
    assert curves[0] == curves[1]
    assert style.versions.filter(origin=MapperVersion.Origin.TRAINED).count() == 2


def test_a_full_disk_refuses_an_upload_and_stores_nothing_of_it(stack: Stack, tmp_path: Path) -> None:
    newest = sorted((ROOT / "examples/coco_cc").glob("*.jpg"))[-1]  # which no other test here has uploaded
    before = Image.objects.count(), CaptionRequest.objects.count(), Caption.objects.count()

    def upload() -> Any:
        file = SimpleUploadedFile("photo.jpg", newest.read_bytes(), "image/jpeg")
        return Client().post("/api/captions/", {"image": file})

    with small_disk(tmp_path / "disk"), override_settings(MEDIA_ROOT=tmp_path / "disk"):
        answer = upload()
        assert answer.status_code == 507, answer.content
        assert answer["Content-Type"] == "application/problem+json"
        assert answer.json()["code"] == "storage_full"
        assert [file for file in (tmp_path / "disk").rglob("*") if file.is_file()] == []
    assert (Image.objects.count(), CaptionRequest.objects.count(), Caption.objects.count()) == before
    stack.hire(1)
    answer = upload()
    assert answer.status_code == 202, answer.content
    check_that_all_end([CaptionRequest.objects.get(pk=answer.json()["id"])], 1, "after a full disk")
