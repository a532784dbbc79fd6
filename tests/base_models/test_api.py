"""The change of base models by the HTTP API: the same as in the admin and by commands."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from captioner.models import AuditEntry, BaseModels, Style
from tests.base_models.pair import Base
from training.models import TrainingRun
from training.worker import TrainingEngine

LIST = "/api/base-models/"


@pytest.fixture
def boss(admin_client: Client) -> Client:
    return admin_client


def post(client: Client, address: str, **body: Any) -> Any:
    return client.post(address, body, content_type="application/json")


def test_the_whole_change_by_the_api(dataset: Style, today: Base, tomorrow: Base, boss: Client) -> None:
    now, names = today.starts(), list(tomorrow.sources.values())
    asked = post(boss, LIST, encoder=names[0], language_model=names[1])
    assert asked.status_code == 202
    address = asked["Location"]
    tomorrow.starts()
    move = post(boss, f"{address}resume/").json()
    assert (move["status"], move["workers"], move["missing"]) == (
        "preparing",
        {"captions": 1, "training": 0},
        ["plain"],
    )
    assert (move["styles"][0]["today"], move["styles"][0]["new"], move["photos"]) == (1, None, 30)
    refused = post(boss, f"{address}cut-over/")
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (
        409,
        "styles_missing",
        "leave_out",
    )

    assert post(boss, f"{address}cancel/").json()["status"] == "retired"
    again = post(boss, f"{address}cancel/")
    assert (again.status_code, again.json()["code"]) == (409, "not_preparing")
    assert post(boss, f"{address}resume/").status_code == 202
    while today.engine.work() or TrainingEngine(tomorrow.engine).work():
        pass
    move = boss.get(address).json()
    run = TrainingRun.objects.get()
    (style,) = move["styles"]
    assert style.pop("detail")
    assert style == {"style": "plain", "today": 1, "new": 2, "verdict": run.verdict, "run": run.pk}
    assert move["embedded"] == 30

    served = post(boss, f"{address}cut-over/", reason="larger encoder").json()
    assert (served["status"], served["cut_overs"][0]["reason"]) == ("in_service", "larger encoder")
    assert {row["id"]: row["status"] for row in boss.get(LIST).json()["results"]} == {
        now.pk: "retired",
        served["id"]: "in_service",
    }
    assert post(boss, f"{LIST}{now.pk}/cut-over/").json()["status"] == "in_service"
    assert AuditEntry.objects.filter(subject="base models").exclude(who="").count() >= 4


def test_a_style_is_left_out_by_its_name(dataset: Style, today: Base, tomorrow: Base, boss: Client) -> None:
    today.starts()
    address = f"{LIST}{tomorrow.starts().pk}/"
    assert post(boss, f"{address}cut-over/", leave_out=["nobody"]).status_code == 404
    assert post(boss, f"{address}cut-over/", leave_uot=["plain"]).status_code in (400, 422)
    served = post(boss, f"{address}cut-over/", leave_out=["plain"]).json()
    assert served["cut_overs"][0]["left_out"] == ["plain"]


def test_what_is_missing_or_not_there_is_told(today: Base, boss: Client) -> None:
    answer = post(boss, LIST, encoder="a", language_model="b")
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_in_service")
    assert post(boss, LIST, encoder="a").status_code in (400, 422)
    assert boss.get(f"{LIST}999/").status_code == 404
    assert boss.get(f"{LIST}{2**70}/").status_code == 404
    assert BaseModels.objects.count() == 0
