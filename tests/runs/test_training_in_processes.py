"""A training worker whose runs are trained by several processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Style
from clipcap.device import check_processes
from clipcap.training import Machines
from tests.runs.ended import succeeds, work_and_cancel
from tests.servers import wait_until
from tests.trainer.test_trainer_on_machines import HERE, KEY, Joined
from training import services
from training.models import TrainingRun
from training.worker import TrainingEngine, worker_process


@pytest.mark.parametrize(("device", "what"), [("cuda", "2 GPUs"), ("cpu", "2 cores"), ("mps", "1 GPUs")])
def test_more_processes_than_there_are_gpus_or_cores_are_refused(
    device: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    there = int(what[0])
    check_processes(there, torch.device(device), "--processes")
    with pytest.raises(ValueError, match=f"--processes is {there + 1}, and there are {what}"):
        check_processes(there + 1, torch.device(device), "--processes")


def test_a_worker_with_too_many_processes_does_not_start(settings: Any) -> None:
    settings.DEVICE, settings.TRAINING_PROCESSES = "cpu", 10_000
    with pytest.raises(ValueError, match="CLIPCAP_TRAINING_PROCESSES is 10000"):
        worker_process("trainer")


@pytest.mark.embedded_models
def test_a_run_in_two_processes_reports_its_progress_is_canceled_and_is_resumed_by_a_worker_with_one(
    factual: Style, engine: CaptionEngine, settings: Any
) -> None:
    options = {"start": "scratch", "prefix_length": 3, "layers": 1, "epochs": 3, "batch_size": 20}
    run = services.start_run(style=factual, options=options)

    settings.TRAINING_PROCESSES = 2
    work_and_cancel(run, engine, TrainingRun.objects.filter(pk=run.pk, progress__epoch=1).exists)
    assert run.error_detail == ""
    first = run.reports.get()
    assert first.samples, "the epoch's mapper has captioned held-out photos"
    assert len(run.curve) > 1

    settings.TRAINING_PROCESSES = 1
    services.resume_run(run)
    succeeds(run, engine)
    assert run.version is not None
    epochs = list(run.reports.order_by("epoch"))
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert epochs[0].validation_loss == first.validation_loss, "it went on after the first, and did not start over"


def test_a_run_is_shared_with_the_machines_that_have_joined_and_says_so(
    factual: Style, engine: CaptionEngine, tmp_path: Path
) -> None:
    machines = Machines("127.0.0.1:0", KEY)
    joined = Joined(machines.port, tmp_path / "log")
    wait_until(machines.waiting, "it has joined")
    options = {"start": "scratch", "prefix_length": 3, "layers": 1, "epochs": 1, "batch_size": 20}
    run = services.start_run(style=factual, options=options)
    TrainingEngine(engine, machines=machines).work()
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert f"training together with {HERE}" in [event.message for event in run.events.all()]
    assert "training on 2 machines" in joined.said()
    joined.end()
    machines.close()


def test_a_worker_whose_address_cannot_be_listened_at_does_not_start(settings: Any) -> None:
    settings.TRAINING_ADDRESS, settings.TRAINING_KEY = "192.0.2.1:29400", KEY
    with pytest.raises(ValueError, match=r"cannot listen at 192\.0\.2\.1:29400"):
        worker_process("trainer")
