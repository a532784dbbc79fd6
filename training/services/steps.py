"""What is to be done next with a style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from captioner.jobs.job import Status
from captioner.models import MapperVersion, Style
from captioner.services.gate import verdict_of, whole
from training.models import Import, TrainingRun
from training.options import SOURCES
from training.services.examples import count_photos, newest_example, open_corrections


@dataclass(frozen=True)
class Step:
    """The one thing to do next.

    why: a sentence that says how things are.
    label: what to do, as on a button.
    kind: which page it is done or seen on: that of a run, an import or a version, `about`, or one of the style's own.
    """

    why: str
    label: str
    kind: Literal["restore", "run", "import", "version", "examples", "take", "train", "label"]
    about: TrainingRun | Import | MapperVersion | None = None


def next_step(style: Style) -> Step:
    """The one thing to do next with a style, on its way from the first example into service and to better versions."""
    if style.status == Style.Status.ARCHIVED:
        return Step("It is archived: it takes no imports, training runs and promotions", "Bring it back", "restore")
    last, batch = style.runs.order_by("-pk").first(), style.imports.order_by("-pk").first()
    if last and not last.finished:
        return Step("It is being trained", "Watch the training", "run", last)
    if batch and not batch.finished:
        return Step("Examples are being imported", "Watch the import", "import", batch)
    in_service, fresh = style.version_in_service, _new_examples(style)
    if corrections := open_corrections(style).count():
        said = "1 correction is" if corrections == 1 else f"{whole(corrections)} corrections are"
        return Step(f"{said} not in the dataset yet", "Add all to the dataset", "take")
    candidate = _candidate(style, in_service)
    if candidate and not (in_service and fresh):
        name = f"v{candidate.number}"
        made_by = TrainingRun.objects.filter(version=candidate).first()
        said = verdict_of(candidate) or f"{name} is ready"
        return Step(said, f"Look at {name}", "run" if made_by else "version", made_by or candidate)
    if last and last.status in (Status.FAILED, Status.CANCELED) and fresh:
        how = "failed" if last.status == Status.FAILED else "was canceled"
        return Step(f"The last training {how}", "See why and go on", "run", last)
    if not count_photos(style.examples.all()).enough:
        why = "There are too few examples to learn from" if fresh else "There are no examples to learn from yet"
        return Step(why, "Add examples", "examples")
    if fresh:
        said = "1 example is" if fresh == 1 else f"{whole(fresh)} examples are"
        return Step(f"{said} ready to learn from", "Train", "train")
    return Step("It has learned all there is; labels and corrections make it better", "Label captions", "label")


def _new_examples(style: Style) -> int:
    """How many have come since the last run that learned from all there were."""
    learned = newest_example(style.runs.filter(status=Status.SUCCEEDED), set(SOURCES))
    return style.examples.filter(pk__gt=learned).count()


def _candidate(style: Style, in_service: MapperVersion | None) -> MapperVersion | None:
    """A version newer than the one in service that might replace it."""
    newest = style.versions.order_by("-number").first()
    if newest is None or (in_service and newest.number <= in_service.number) or newest.report.verdict == "worse":
        return None
    return newest
