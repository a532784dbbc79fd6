"""RunOptions: how a style is retrained. Without torch, so that the web process can check what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from clipcap.choices import OptionError, option, options_of
from clipcap.options import TrainingChoices

OF_A_NEW_MAPPER = ("mapper", "prefix_length", "layers")  # the version in service has its own


@dataclass(frozen=True)
class RunOptions(TrainingChoices):
    """What an administrator chooses for a run (`TrainingRun.options`).

    Raises:
        OptionError: an option has no sense.
    """

    start: Literal["active", "scratch"] = option(
        "active",
        "The version in service is trained further on the examples; for a style without one, that of the style which "
        "it starts from. From scratch takes longer and many more examples.",
        choices={"active": "the version in service", "scratch": "scratch"},
    )
    sources: tuple[str, ...] = option(
        ("imported", "stored", "correction"),
        "Which of the style's examples to learn from.",
        choices={"imported": "imported files", "stored": "stored photos", "correction": "people's corrections"},
        several=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "active":
            for name in OF_A_NEW_MAPPER:
                if getattr(self, name) != OPTIONS[name].default:
                    raise OptionError(name, "is fixed by the version in service; to choose it, set start to 'scratch'")

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> RunOptions:
        """What a run's column contains."""
        values = {name: stored[name] for name in OPTIONS if name in stored}
        values |= {name: stored[name] or None for name in AUTOMATIC if name in stored}
        if "sources" in stored:
            values["sources"] = tuple(stored["sources"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The object for the column. What is automatic is 0 there: so the release before reads it, whose workers take
        what this one's have queued after a way back."""
        automatic = {name: getattr(self, name) or 0 for name in AUTOMATIC}
        values = {**asdict(self), **automatic, "sources": list(self.sources)}
        if not self.batch_size:  # of which the release before knows no automatic one; it takes its own default
            del values["batch_size"]
        return values


OPTIONS = options_of(RunOptions)
AUTOMATIC = tuple(name for name, declared in OPTIONS.items() if declared.automatic)
SOURCES = tuple(OPTIONS["sources"].choices)
