"""Which base models a worker loads, and where it can be seen which it has loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from captioner import services
from captioner.api import health
from captioner.models import BaseModels, Style, Worker
from captioner.workers.worker_process import WorkerProcess
from tests.base_models.pair import Base

OTHERS = ("local-dir:/nowhere/encoder", "gpt2-large")


@pytest.fixture
def named(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings, which name other base models than those of the tests; a worker that is started ends at once."""
    settings.ENCODER, settings.LANGUAGE_MODEL = OTHERS
    monkeypatch.setattr("captioner.management.commands.worker.celery.main", lambda arguments: None)
    return settings


def loaded(settings: Any) -> tuple[str, str]:
    """What a worker loads that is started without a number."""
    settings.ENCODER, settings.LANGUAGE_MODEL = OTHERS
    call_command("worker", "captions")
    return settings.ENCODER, settings.LANGUAGE_MODEL


def sources(base: Base) -> tuple[str, ...]:
    return tuple(base.sources.values())


def test_a_worker_loads_the_base_models_in_service_whatever_the_settings_name(
    plain: Style, today: Base, tomorrow: Base, tmp_path: Path, named: Any, caplog: pytest.LogCaptureFixture
) -> None:
    then = tomorrow.starts()
    services.promote(version=tomorrow.version(plain, tmp_path))
    assert loaded(named) == sources(today)
    services.cut_over(base=then)
    assert loaded(named) == sources(tomorrow)
    assert "the settings name other base models than those in service" in caplog.text
    services.cut_over(base=today.starts())
    assert loaded(named) == sources(today)


def test_the_settings_count_where_nothing_is_on_record_or_a_folder_on_record_is_not_on_this_machine(
    db: None, today: Base, named: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert loaded(named) == OTHERS
    today.starts()
    BaseModels.objects.update(encoder_source="local-dir:/on/another/machine")
    assert loaded(named) == OTHERS
    assert not caplog.records


def test_a_worker_whose_base_models_are_not_in_service_says_so_when_it_starts(
    plain: Style, today: Base, tomorrow: Base, caplog: pytest.LogCaptureFixture
) -> None:
    for base in (today, tomorrow):
        WorkerProcess(base.engine, "captions", {}, ())._record_models()
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "not in service" in said.getMessage()
    assert f"manage cut_over {tomorrow.starts().pk} puts them in service" in said.getMessage()
    assert said.worker == "tomorrow"  # type: ignore[attr-defined]


def test_the_admin_and_the_health_check_tell_what_workers_have_loaded(
    plain: Style, today: Base, tomorrow: Base, admin_client: Client
) -> None:
    def pages(worker: str) -> list[str]:
        row = Worker.objects.get(name=worker)
        names = [reverse("admin:captioner_worker_changelist"), reverse("admin:captioner_worker_change", args=[row.pk])]
        return [admin_client.get(page).content.decode() for page in (*names, reverse("admin:index"))]

    def check(worker: str, told: str) -> None:
        assert [told in page for page in pages(worker)] == [True, True, True]

    then = tomorrow.starts()
    check("today", "in service")
    check("tomorrow", f"number {then.pk}, not in service: it writes no captions")
    (warning,) = health._warnings()
    assert f"than those in service, {then}" in warning
    BaseModels.objects.filter(pk=then.pk).update(preparing=True)
    check("tomorrow", f"number {then.pk}, being prepared: it writes no captions")
    assert health._warnings() == []
    Worker.objects.update(queue="training")
    assert not any("it writes no captions" in page for page in pages("tomorrow"))
