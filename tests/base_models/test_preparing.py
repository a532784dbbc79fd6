"""Other base models are prepared while those of today stay in service, and then cut over to."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from captioner import services
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import (
    BaseModels,
    CutOver,
    MapperVersion,
    Style,
    Worker,
)
from tests.base_models.pair import Base, ask, written
from training import services as training_services
from training.models import TrainingRun
from training.worker import TrainingEngine


def trains(base: Base) -> int:
    """What a training worker with these models does next."""
    return TrainingEngine(base.engine).work()


def test_a_style_is_retrained_for_other_models_and_judged_against_today_while_today_serves(
    dataset: Style, today: Base, tomorrow: Base, photo: bytes
) -> None:
    old = dataset.version_in_service
    base = training_services.prepare_base(
        encoder=tomorrow.sources["encoder_source"], language_model=tomorrow.sources["language_model_source"]
    )
    (style,) = training_services.progress(base).styles
    assert (base.status, style.detail) == ("preparing", "waits for a worker that loads these models")
    assert tomorrow.starts() == base, "it is the row that was asked for"
    assert training_services.advance_preparations() == 1
    assert training_services.advance_preparations() == 0, "one run each"
    run = TrainingRun.objects.get()
    TrainingRun.objects.update(options={**run.options, "epochs": 1})
    assert trains(today) == 0, "it is for workers of the other models"
    held_out = dataset.examples.filter(held_out=True).count()
    assert sum(iter(today.engine.work, 0)) == held_out, "today's version writes about the held-out photos"
    assert trains(tomorrow) == 1
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert run.verdict in ("better", "unclear", "worse")
    assert run.report.active_version == str(old)
    assert run.report.images == held_out
    assert (dataset.version_in_service, dataset.version_on(base)) == (old, run.version)
    base.refresh_from_db()
    move = training_services.progress(base)
    assert (move.missing, move.photos, move.embedded) == ([], 30, 30)
    assert move.styles[0].detail == services.verdict_of(run.version)  # type: ignore[arg-type]
    services.cut_over(base=base)
    assert dataset.version_in_service == run.version
    assert not BaseModels.objects.filter(preparing=True).exists()
    caption = ask(photo, dataset)
    assert tomorrow.engine.work() == 1
    assert written(caption) == run.version


def test_a_style_keeps_the_kind_of_model_that_it_has_today(dataset: Style, tomorrow: Base) -> None:
    today = dataset.version_in_service
    assert today is not None
    today.config |= {"language_model": "adapters", "rank": 3, "targets": "mlp"}
    today.save()
    training_services.resume_preparation(base=tomorrow.starts())
    options = TrainingRun.objects.get().chosen
    assert (options.start, options.mapper, options.prefix_length) == ("scratch", "mlp", 3)
    assert (options.language_model, options.rank, options.targets) == ("adapters", 3, "mlp")


def test_a_style_of_ones_own_is_carried_over_to_the_base_models_of_a_new_release(
    dataset: Style, today: Base, tomorrow: Base, photo: bytes, settings: Any, tmp_path: Path, capsys: Any
) -> None:
    own = dataset.version_in_service
    (tmp_path / "release/styles").mkdir(parents=True)
    tomorrow.mapper(tmp_path / "release/styles/factual.safetensors")
    settings.MODELS = tmp_path / "release"
    settings.ENCODER, settings.LANGUAGE_MODEL = tomorrow.sources.values()
    call_command("install_styles")
    base = BaseModels.objects.get(encoder=tomorrow.identities["encoder"])
    assert (
        f"this release has other base models (number {base.pk}) than those in service, without a version of plain; "
        "docs/guide/base-models.md says how to change to them without a gap"
    ) in capsys.readouterr().out
    assert (BaseModels.in_service(), dataset.version_in_service) == (today.starts(), own)

    call_command("prepare_base", base=base.pk)
    assert tomorrow.starts() == base
    assert TrainingRun.objects.get().style == dataset, "the shipped style has its version already"
    before = ask(photo, dataset)
    while today.engine.work() or trains(tomorrow):
        pass
    assert written(before) == own
    call_command("cut_over", base.pk)

    carried, shipped = dataset.version_in_service, Style.objects.get(slug="factual")
    assert carried is not None
    assert (carried.number, carried.origin, carried.base_models) == (2, MapperVersion.Origin.TRAINED, base)
    after = [ask(photo, dataset), ask(photo, shipped)]
    assert tomorrow.engine.work() == 2
    assert [written(caption) for caption in after] == [carried, shipped.version_in_service]


def test_a_comparison_without_a_worker_of_todays_models_says_what_is_missing(dataset: Style, tomorrow: Base) -> None:
    base = tomorrow.starts()
    training_services.resume_preparation(base=base)
    run = TrainingRun.objects.get()
    TrainingRun.objects.update(options={**run.options, "epochs": 1})
    Worker.objects.filter(name="today").delete()
    assert trains(tomorrow) == 1
    run.refresh_from_db()
    assert (run.status, run.verdict) == (Status.SUCCEEDED, "unclear")
    assert run.events.filter(message__contains="keep a caption worker with those models running").exists()
    assert dataset.version_on(base) == run.version


def test_a_preparation_is_canceled_and_goes_on_from_there(dataset: Style, today: Base, tomorrow: Base) -> None:
    base = tomorrow.starts()
    with pytest.raises(Refused, match="not being prepared"):
        training_services.cancel_preparation(base=base)
    training_services.resume_preparation(base=base)
    run = TrainingRun.objects.get()
    with pytest.raises(Refused, match="unfinished"):
        training_services.start_run(style=dataset)
    training_services.cancel_preparation(base=base)
    run.refresh_from_db()
    assert (run.status, base.status) == (Status.CANCELED, "retired")
    assert training_services.advance_preparations() == 0
    training_services.prepare_base(encoder=base.encoder_source, language_model=base.language_model_source)
    run.refresh_from_db()
    assert run.status == Status.QUEUED
    assert TrainingRun.objects.count() == 1
    with pytest.raises(Refused, match="in service already"):
        training_services.resume_preparation(base=today.starts())


def test_a_style_that_cannot_be_trained_is_shown_with_the_reason(plain: Style, tomorrow: Base) -> None:
    base = tomorrow.starts()
    training_services.resume_preparation(base=base)
    base.refresh_from_db()
    move = training_services.progress(base)
    assert "at least" in move.styles[0].detail
    assert move.missing == [plain]
    training_services.advance_preparations()
    assert base.refused_runs.get().detail == move.styles[0].detail, "said once, however often it is tried"
    Style.objects.update(status=Style.Status.WITHDRAWN)
    training_services.advance_preparations()
    assert not base.refused_runs.exists(), "it needs no run any more"


@pytest.mark.parametrize(("encoder", "message"), [(" ", "name the encoder"), ("x" * 501, "1 to 500 characters")])
def test_base_models_need_names(today: Base, encoder: str, message: str) -> None:
    with pytest.raises(Refused, match="no worker has recorded"):
        training_services.prepare_base(encoder="a", language_model="b")
    today.starts()
    with pytest.raises(Refused, match=message):
        training_services.prepare_base(encoder=encoder, language_model="b")


def test_the_whole_change_by_commands(
    dataset: Style, today: Base, tomorrow: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    now, names = today.starts(), [*tomorrow.sources.values()]
    call_command("prepare_base", encoder=names[0], language_model=names[1])
    base = BaseModels.objects.exclude(pk=now.pk).get()
    printed = capsys.readouterr().out
    assert f"./run worker captions --base {base.pk}" in printed
    assert "plain: plain v1 -> none yet: waits for a worker" in printed
    tomorrow.starts()
    call_command("prepare_base", base=base.pk)
    assert "queued" in capsys.readouterr().out
    with pytest.raises(CommandError, match="Plain would go out of service"):
        call_command("cut_over", base.pk)
    call_command("prepare_base", base=base.pk, cancel=True)
    call_command("cut_over", base.pk, leave_out=["plain"], reason="a try")
    assert BaseModels.in_service() == base
    call_command("cut_over", now.pk)
    assert BaseModels.in_service() == now
    with pytest.raises(CommandError, match=f"no base models of number 999; these are on record: {now.pk}"):
        call_command("cut_over", 999)
    with pytest.raises(CommandError, match="say which"):
        call_command("prepare_base", cancel=True)


def test_a_worker_loads_the_base_models_it_is_told_to(
    today: Base, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = today.starts()
    monkeypatch.setattr("captioner.management.commands.worker.celery.main", lambda arguments: None)
    call_command("worker", "captions", base=base.pk)
    assert (base.encoder_source, base.language_model_source) == (settings.ENCODER, settings.LANGUAGE_MODEL)
    with pytest.raises(CommandError, match="no base models of number 999"):
        call_command("worker", "captions", base=999)


def test_a_version_is_imported_for_base_models_that_do_not_serve(
    plain: Style, tomorrow: Base, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admin_client: Client
) -> None:
    def here(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        settings.ENCODER, settings.LANGUAGE_MODEL = env["CLIPCAP_ENCODER"], env["CLIPCAP_LANGUAGE_MODEL"]
        out = io.StringIO()
        call_command(*command[2:], stdout=out)
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", here)
    file, old = tomorrow.mapper(tmp_path / "new.safetensors"), plain.version_in_service
    address = reverse("admin:captioner_mapperversion_import")
    assert 'name="base_models"' not in admin_client.get(address).content.decode()
    base = tomorrow.starts()
    with pytest.raises(CommandError, match="mapper"):
        call_command("import_version", "plain", file)
    call_command("import_version", "plain", file, base=base.pk)
    with file.open("rb") as upload:
        admin_client.post(address, {"style": plain.pk, "file": upload, "base_models": base.pk})
    first, second = plain.versions.filter(origin="imported")
    assert (first.base_models, second.base_models) == (base, base)
    services.promote(version=second)
    assert (plain.version_in_service, plain.version_on(base)) == (old, second)


def test_the_admin_prepares_shows_cancels_and_cuts_over(
    dataset: Style, today: Base, tomorrow: Base, admin_client: Client
) -> None:
    def page(name: str, **form: Any) -> str:
        address = reverse(f"admin:captioner_basemodels_{name}", args=[] if name in ("add", "changelist") else [base.pk])
        answer = admin_client.post(address, form, follow=True) if form else admin_client.get(address)
        return answer.content.decode()

    base = today.starts()
    assert "1 for captions" in page("change")
    page("add", encoder=tomorrow.sources["encoder_source"], language_model=tomorrow.sources["language_model_source"])
    base = tomorrow.starts()
    assert "preparing" in page("changelist")
    page("prepare", sure=1)
    run = TrainingRun.objects.get()
    shown = page("change")
    assert "none yet" in shown
    assert f"{run}: queued" in shown
    assert "none for training" in shown
    page("cancel", sure=1)
    run.refresh_from_db()
    assert run.status == Status.CANCELED
    assert "These have no version on the new base models" in page("cutover")
    assert "Plain would go out of service" in page("cutover", reason="")
    assert "in service" in page("cutover", leave_out=dataset.pk, reason="a try")
    assert BaseModels.in_service() == base
    shown = page("change")
    assert "a try Left out: plain." in shown
    assert "Cut over…" not in shown


@pytest.mark.parametrize("alive", [False, True])
def test_the_base_models_of_a_new_release_come_into_service_at_once_only_where_that_leaves_no_gap(
    alive: bool,
    today: Base,
    tomorrow: Base,
    settings: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings.MODELS = tmp_path / "models"
    (settings.MODELS / "styles").mkdir(parents=True)
    for base in (today, tomorrow):
        base.mapper(settings.MODELS / "styles" / "plain.safetensors")
        settings.ENCODER, settings.LANGUAGE_MODEL = base.sources.values()
        call_command("install_styles")
        if base is today:
            today.starts()
            if not alive:
                Worker.objects.all().delete()
    style, then = Style.objects.get(), tomorrow.starts()
    assert then.encoder_source == tomorrow.sources["encoder_source"]
    assert [version.number for version in MapperVersion.objects.in_service(then)] == [2]
    assert then.is_in_service != alive
    assert style.version_in_service == style.versions.get(number=1 if alive else 2)
    printed = capsys.readouterr().out
    assert (f"has other base models (number {then.pk})" in printed) == alive
    if not alive:
        services.cut_over(base=today.starts())
        call_command("install_styles")
        assert not then.is_in_service, "people have decided otherwise"


@pytest.mark.parametrize("alive", [False, True])
def test_the_base_models_of_a_release_before_which_none_were_on_record_are_others_than_those_in_service(
    alive: bool, today: Base, tomorrow: Base, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.MODELS = tmp_path / "models"
    (settings.MODELS / "styles").mkdir(parents=True)
    today.mapper(settings.MODELS / "styles" / "plain.safetensors")
    settings.ENCODER, settings.LANGUAGE_MODEL = today.sources.values()
    call_command("install_styles")
    today.starts()
    CutOver.objects.all().delete()  # release 0.2 had no table of them
    MapperVersion.objects.update(base_models=None)
    BaseModels.objects.all().delete()
    if not alive:
        Worker.objects.all().delete()
    for slug in ("plain", "new"):
        tomorrow.mapper(settings.MODELS / "styles" / f"{slug}.safetensors")
    settings.ENCODER, settings.LANGUAGE_MODEL = tomorrow.sources.values()
    for _ in range(2):  # once more changes nothing
        call_command("install_styles")
        style, (before, then) = Style.objects.get(slug="plain"), BaseModels.objects.order_by("pk")
        assert MapperVersion.objects.get(style__slug="new").base_models == then
        assert [version.base_models for version in style.versions.order_by("number")] == [before, then]
        assert BaseModels.in_service() == (before if alive else then)
        assert style.version_in_service == style.versions.get(number=1 if alive else 2)
    assert (f"has other base models (number {then.pk})" in capsys.readouterr().out) == alive
    if alive:
        assert tomorrow.starts() == then
        services.cut_over(base=then)
        assert Style.objects.get(slug="plain").version_in_service == style.versions.get(number=2)
