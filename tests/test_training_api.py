"""The HTTP API of training runs: who may, what is answered, and that it is the admin's in other clothes."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from captioner.models import Image, Style
from tests.people import client_of
from training import services
from training.models import EpochReport, RunEvent, TrainingRun

JSON = "application/json"


@pytest.fixture
def style(styles: dict[str, Style], db: None) -> Style:
    """The factual style, with enough examples of images whose bytes nobody reads."""
    style = styles["factual"]
    for number in range(60):
        image = Image.objects.create(
            sha256=f"{number:064x}", file=f"{number}.jpg", thumbnail="t.jpg", width=40, height=30, size=100
        )
        services.add_example(style=style, image=image, text=f"dog {number}", source="imported")
    return style


def member(*groups: str) -> Client:
    user = User.objects.create_user("-".join(groups) or "nobody")
    user.groups.set(Group.objects.filter(name__in=groups))
    return client_of(user)


@pytest.fixture
def trainer(style: Style) -> Client:
    return member("Trainers")


def start(client: Client, body: Any = None, **headers: str) -> Any:
    return client.post("/api/styles/factual/training-runs/", body or {}, content_type=JSON, headers=headers)


def test_a_run_is_started_with_options_and_its_address_told(trainer: Client) -> None:
    answer = start(trainer, {"epochs": 2, "seed": 7})
    assert answer.status_code == 202
    run = trainer.get(answer["Location"]).json()
    assert (run["status"], run["options"]["epochs"], run["options"]["seed"]) == ("queued", 2, 7)
    assert answer["Retry-After"]
    assert run["examples"] == 60
    assert [row["id"] for row in trainer.get("/api/styles/factual/training-runs/").json()["results"]] == [run["id"]]


def test_the_same_key_gives_the_same_run_and_refuses_other_options(trainer: Client) -> None:
    first = start(trainer, {"epochs": 2}, **{"Idempotency-Key": "a"})
    again = start(trainer, {"epochs": 2}, **{"Idempotency-Key": "a"})
    assert again.json()["id"] == first.json()["id"]
    other = start(trainer, {"epochs": 3}, **{"Idempotency-Key": "a"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_second_run_of_the_style_is_refused(trainer: Client) -> None:
    start(trainer)
    answer = start(trainer)
    assert (answer.status_code, answer.json()["code"]) == (409, "run_in_progress")


@pytest.mark.parametrize("body", [{"epochs": -1}, {"optimizer": "sgd"}, {"sources": ["rumours"]}])
def test_options_without_sense_are_named(trainer: Client, body: dict[str, Any]) -> None:
    answer = start(trainer, body)
    assert answer.status_code in (400, 422)
    assert answer["Content-Type"].startswith("application/problem+json")
    assert next(iter(body)) in str(answer.json())
    assert not TrainingRun.objects.exists()


def test_events_and_checkpoints_are_listed(trainer: Client) -> None:
    address = start(trainer)["Location"]
    run = TrainingRun.objects.get()
    EpochReport.objects.create(run=run, epoch=1, step=9, training_loss=3.5, validation_loss=3.75)
    RunEvent.objects.create(run=run, message="the photos are ready")
    assert "the photos are ready" in str(trainer.get(f"{address}events/").json())
    assert "3.75" in str(trainer.get(f"{address}checkpoints/").json())


def test_a_run_is_canceled_and_resumed(trainer: Client) -> None:
    address = start(trainer)["Location"]
    assert trainer.post(f"{address}cancel/").json()["status"] == "canceled"
    again = trainer.post(f"{address}cancel/")
    assert (again.status_code, again.json()["code"]) == (409, "already_finished")
    assert trainer.post(f"{address}resume/").json()["status"] == "queued"
    assert trainer.post(f"{address}resume/").status_code == 409
    TrainingRun.objects.update(status="failed", finished_at=timezone.now(), error_code="disk_full", error_detail="full")
    assert trainer.get(address).json()["error"] == {"code": "disk_full", "detail": "full"}


def test_only_trainers_start_cancel_and_resume(trainer: Client) -> None:
    address = start(trainer)["Location"]
    viewer = member("Viewers")
    assert viewer.get(address).status_code == 200
    for client, refused in ((viewer, {403}), (Client(), {401, 403}), (member(), {403})):
        assert start(client).status_code in refused
        assert client.post(f"{address}cancel/").status_code in refused
        assert client.post(f"{address}resume/").status_code in refused
    assert Client().get(address).status_code in (401, 403)


def test_what_may_be_started_may_not_be_stopped_without_that_permission(trainer: Client) -> None:
    address = start(trainer)["Location"]
    user = User.objects.get(username="Trainers")
    group = user.groups.get()
    group.permissions.remove(group.permissions.get(codename="change_trainingrun"))
    assert trainer.post(f"{address}cancel/").status_code == 403


def test_a_run_or_style_that_is_not_there_is_a_problem_document(trainer: Client) -> None:
    for address in ("/api/styles/nobody/training-runs/", "/api/training-runs/999/"):
        answer = trainer.get(address)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), address
