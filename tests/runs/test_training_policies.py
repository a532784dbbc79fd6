"""What a style's policy does by itself: promotes what passes the gate, and starts runs when corrections come."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from captioner import services as captioner_services
from captioner import uploads
from captioner.inference.engine import CaptionEngine
from captioner.jobs.job import Status
from captioner.models import Correction, MapperVersion, Style, Viewer
from clipcap.evaluation import comparison
from clipcap.evaluation.comparison import paired_bootstrap, verdict
from tests.runs.ended import QUICK, end, trained
from tests.runs.photos import caption, corrected
from training import services
from training import worker as training_worker
from training.models import Example, Policy, TrainingRun
from training.worker import TrainingEngine


@pytest.fixture
def easy_gate(factual: Style, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything clears it, on however few photos."""
    monkeypatch.setattr(comparison, "LEAST_JUDGED", 1)
    Policy.objects.create(style=factual, if_better=Policy.Action.PROMOTE, margin=-9.0)


@pytest.mark.usefixtures("easy_gate")
def test_a_policy_promotes_what_passes_the_gate(factual: Style, engine: CaptionEngine) -> None:
    run = trained(factual, engine, {"epochs": 1})
    assert run.verdict == TrainingRun.Verdict.BETTER
    assert factual.version_in_service == run.version


@pytest.mark.usefixtures("easy_gate")
def test_a_policy_that_asks_for_a_blind_vote_waits_for_it(factual: Style, engine: CaptionEngine) -> None:
    Policy.objects.update(if_better=Policy.Action.VOTE)
    version = factual.version_in_service
    run = services.start_run(style=factual, options={"epochs": 1})
    TrainingEngine(engine).work()
    assert factual.version_in_service == version
    assert run.events.filter(message__contains=f"waits for a blind vote against {version}").exists()


@pytest.mark.embedded_models
@pytest.mark.usefixtures("easy_gate")
def test_what_was_compared_with_another_version_than_is_in_service_by_now_is_not_promoted_by_itself(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = factual.version_in_service
    assert version is not None
    newer = captioner_services.register_version(
        style=factual, path=Path(version.file.path), origin=MapperVersion.Origin.IMPORTED
    )
    compare = training_worker._Training._compare

    def while_a_person_promotes(*arguments: Any) -> Any:
        found = compare(*arguments)
        captioner_services.promote(version=newer, reason="by hand")
        return found

    monkeypatch.setattr(training_worker._Training, "_compare", while_a_person_promotes)
    run = trained(factual, engine, {"epochs": 1})
    assert (run.status, run.verdict) == (Status.SUCCEEDED, TrainingRun.Verdict.BETTER)
    assert factual.version_in_service == newer
    assert run.events.filter(level="warning", message__contains="the version in service has changed").exists()


@pytest.mark.usefixtures("easy_gate")
def test_what_could_not_be_compared_is_not_promoted_by_itself(factual: Style, engine: CaptionEngine) -> None:
    run = services.start_run(style=factual, options={**QUICK, "start": "scratch", "prefix_length": 3, "layers": 1})
    version = factual.version_in_service
    assert version is not None
    version.file.storage.delete(str(version.file.name))
    engine.mappers.clear()
    TrainingEngine(engine).work()
    run.refresh_from_db()
    assert (run.status, run.verdict) == (Status.SUCCEEDED, TrainingRun.Verdict.UNCLEAR)
    assert factual.version_in_service == version


def test_a_few_held_out_photos_are_too_few_to_judge_by(factual: Style, engine: CaptionEngine) -> None:
    Policy.objects.create(style=factual, if_better=Policy.Action.PROMOTE, margin=-9.0)
    run = trained(factual, engine, {"epochs": 1})
    assert run.verdict == TrainingRun.Verdict.UNCLEAR
    assert run.events.filter(message__contains="too few to judge a version by").exists()


def test_a_metric_that_was_not_computed_judges_nothing(
    factual: Style, engine: CaptionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "LEAST_JUDGED", 1)
    Policy.objects.create(style=factual, if_better=Policy.Action.PROMOTE, metric="METEOR", margin=-9.0)
    run = trained(factual, engine, {"epochs": 1})
    assert run.verdict == TrainingRun.Verdict.UNCLEAR
    assert run.events.filter(message__contains="METEOR was not computed").exists()


def test_corrections_become_examples_once_and_start_a_run(
    styles: dict[str, Style], factual: Style, engine: CaptionEngine, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    Policy.objects.create(style=factual, after_corrections=2)
    for data, captions in captioned_photos[30:32]:
        row = caption(factual, data, engine)
        captioner_services.correct_caption(Viewer(), row.pk, "not this one")
        captioner_services.correct_caption(Viewer(), row.pk, captions[0])
    assert services.open_corrections(factual).count() == 2  # of each caption the newest
    assert services.start_due_runs() == 1
    run = TrainingRun.objects.get()
    assert run.reason == "2 new corrections"
    assert factual.examples.filter(source=Example.Source.CORRECTION).count() == 2
    assert services.open_corrections(factual).count() == 0
    assert services.start_due_runs() == 0
    end(run)
    assert services.start_due_runs() == 0, "nothing is new since that run"


def test_corrections_that_say_what_is_known_start_no_run_twice(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    Policy.objects.create(style=factual, after_corrections=1)
    known = factual.examples.filter(source=Example.Source.IMPORTED).first()
    assert known
    photo = next(data for data, captions in captioned_photos if known.text in captions)
    corrected(factual, [(photo, [known.text])])
    assert services.start_due_runs() == 1
    end(TrainingRun.objects.get())
    assert services.start_due_runs() == 0


@pytest.fixture
def taken(factual: Style, captioned_photos: list[tuple[bytes, list[str]]]) -> None:
    """Two corrections that are examples, of a style whose policy waits for two."""
    Policy.objects.create(style=factual, after_corrections=2)
    corrected(factual, captioned_photos[30:32])
    services.take_corrections(services.open_corrections(factual))


@pytest.mark.usefixtures("taken")
def test_corrections_taken_by_hand_count_for_the_policy() -> None:
    assert services.start_due_runs() == 1


@pytest.mark.usefixtures("taken")
def test_corrections_that_a_run_on_other_sources_passed_by_still_count_for_the_policy(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    image = uploads.store(captioned_photos[40][0])
    services.add_example(style=factual, image=image, text="something newer", source=Example.Source.IMPORTED)
    end(services.start_run(style=factual, options={"sources": ["imported"]}))
    assert services.start_due_runs() == 1


def test_a_correction_that_was_left_out_stays_out_unless_it_is_chosen(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    bad, good = corrected(factual, captioned_photos[30:32])
    services.leave_out([bad])
    assert services.take_corrections(services.open_corrections(factual)) == 1
    assert not Example.objects.filter(correction=bad).exists()
    Example.objects.get(correction=good).delete()
    assert not services.open_corrections(factual).exists(), "what was deleted does not come back by itself"
    assert services.take_corrections(Correction.objects.filter(pk=bad.pk)) == 1


def test_a_correction_without_a_word_is_no_example(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    corrected(factual, captioned_photos[30:31], "…!")
    assert services.take_corrections(services.open_corrections(factual)) == 0
    assert not services.open_corrections(factual).exists()


def test_a_run_that_is_due_and_refused_takes_nothing_and_tells_why(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]]
) -> None:
    policy = Policy.objects.create(style=factual, after_corrections=1)
    corrected(factual, captioned_photos[30:31])
    version = factual.version_in_service
    assert version is not None
    version.file.storage.delete(str(version.file.name))
    assert services.start_due_runs() == 0
    policy.refresh_from_db()
    assert "is gone" in policy.refusal
    assert services.open_corrections(factual).count() == 1
    Policy.objects.update(refused_at=timezone.now() - timedelta(hours=2))
    Path(version.file.path).write_bytes(b"back")
    assert services.start_due_runs() == 1
    policy.refresh_from_db()
    assert (policy.refusal, policy.refused_at) == ("", None)


def test_a_policy_that_asks_for_nothing_any_more_has_nothing_to_tell(factual: Style) -> None:
    hour = timezone.now() - timedelta(hours=2)
    policy = Policy.objects.create(style=factual, refusal="the file of factual v1 is gone", refused_at=hour)
    assert services.start_due_runs() == 0
    policy.refresh_from_db()
    assert (policy.refusal, policy.refused_at) == ("", None)


def test_every_night_there_is_one_run_if_anything_is_new(
    factual: Style, captioned_photos: list[tuple[bytes, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Policy.objects.create(style=factual, every_night=True)
    here = timezone.localtime()

    def at(hour: int, days: int = 0) -> None:
        now = (here + timedelta(days=days)).replace(hour=hour, minute=30)
        monkeypatch.setattr(timezone, "now", lambda: now)
        monkeypatch.setattr(services.policies, "clock", lambda _: now)

    at(12)
    assert services.start_due_runs() == 0
    at(23)
    by_hand = services.start_run(style=factual)
    end(by_hand)
    at(3, days=1)
    assert services.start_due_runs() == 1, "a run of the evening before does not count"
    run = TrainingRun.objects.exclude(pk=by_hand.pk).get()
    assert run.reason == "new examples"
    end(run)
    at(4, days=1)
    assert services.start_due_runs() == 0, "once a night, even if it failed"
    at(3, days=2)
    assert services.start_due_runs() == 1
    TrainingRun.objects.update(status=Status.SUCCEEDED, finished_at=timezone.now())
    at(3, days=3)
    assert services.start_due_runs() == 0, "nothing is new"


@given(st.lists(st.floats(0, 10), min_size=2, max_size=30), st.floats(0.01, 5))
def test_the_interval_holds_a_constant_difference(scores: list[float], shift: float) -> None:
    baseline = {str(i): score for i, score in enumerate(scores)}
    difference = paired_bootstrap({i: s + shift for i, s in baseline.items()}, baseline)
    assert difference.low == pytest.approx(shift)
    assert difference.high == pytest.approx(shift)
    assert verdict(difference, 0.0, 20) == "better"
    assert verdict(difference, 0.0, 19) == "unclear"
    assert verdict(difference, shift + 1, 20) == "unclear"


def test_a_difference_that_may_be_chance_is_no_clear_difference() -> None:
    baseline = {str(i): float(i % 7) for i in range(40)}
    candidate = {str(i): float((i + 3) % 7) for i in range(40)}
    assert verdict(paired_bootstrap(candidate, baseline), 0.0, 40) == "unclear"
