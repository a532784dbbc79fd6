"""RunOptions: how a style is retrained. Without torch, so that the web process can check what it is asked for."""

from dataclasses import dataclass, field
from typing import Literal

SOURCES = ("imported", "stored", "correction")
AUTO_EPOCHS = 30  # as many as `auto` may take; early stopping ends sooner


@dataclass(frozen=True)
class RunOptions:
    """What an administrator chooses for a run.

    start: `active` goes on from the version in service, `scratch` from a new mapper.
    mapper, prefix_length, layers: of a new mapper; with `active` they are the version's own and cannot be chosen.
    epochs: 0 is `auto`: until the validation loss stops falling.
    learning_rate: 0 is `auto`: 1e-3 from scratch, 3e-4 from the active version.
    batch_size: captions a step.
    noise: added to embeddings, in units of each dimension's deviation; so a small dataset is not learned by heart.
    sources: which examples to learn from.
    """

    start: Literal["active", "scratch"] = "active"
    mapper: Literal["transformer", "mlp"] = "transformer"
    prefix_length: int = 10
    layers: int = 4
    epochs: int = 0
    learning_rate: float = 0.0
    batch_size: int = 40
    noise: float = 0.25
    seed: int = 0
    sources: tuple[str, ...] = field(default=SOURCES)

    def __post_init__(self) -> None:
        """Refuse what has no sense.

        Raises:
            ValueError: naming the option, what is wrong with it and what would be right.
        """
        if self.start not in ("active", "scratch"):
            raise ValueError(f"start must be 'active' or 'scratch', not {self.start!r}")
        if self.mapper not in ("transformer", "mlp"):
            raise ValueError(f"mapper must be 'transformer' or 'mlp', not {self.mapper!r}")
        if self.start == "active":
            for name in ("mapper", "prefix_length", "layers"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"{name} is fixed by the version in service; to choose it, set start to 'scratch'")
        whole = {
            "prefix_length": (1, 64),
            "layers": (1, 16),
            "epochs": (0, 200),
            "batch_size": (1, 1024),
            "seed": (0, 2**31 - 1),
        }
        for name, (least, most) in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        for name, highest in (("learning_rate", 1.0), ("noise", 2.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
                raise ValueError(f"{name} must be a number from 0 to {highest}, not {value!r}")
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"sources must be some of {', '.join(SOURCES)}, not {list(self.sources)!r}")
