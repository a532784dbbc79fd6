"""Options that people choose, each declared once: checks, command lines, forms and the API take from here what it says.

Without torch, as `clipcap.options`.
"""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of a dataclass, which is named and has its default there.

    help: a sentence for whoever chooses.
    within: the least and the most of a number, which is whole where these are.
    choices: what each of the texts that it may be is called; `several` of them, if that is set.
    automatic: what None, the default then, stands for; None is not a choice where this is empty.
    """

    help: str
    within: tuple[int, int] | tuple[float, float] = (0, 0)
    choices: Mapping[str, str] = field(default_factory=dict)
    several: bool = False
    automatic: str = ""
    name: str = ""
    default: Any = None

    @property
    def whole(self) -> bool:
        """Whether a number is to be whole."""
        return isinstance(self.within[0], int)

    @property
    def full_help(self) -> str:
        """The help, with what happens if nothing is chosen."""
        return f"{self.help} Automatic if left out: {self.automatic}." if self.automatic else self.help

    def check(self, value: Any) -> None:
        """Refuse a value without sense.

        Raises:
            OptionError: the message says what would be right.
        """
        if value is None and self.automatic:
            return
        if self.several:
            if not value or any(one not in self.choices for one in value):
                raise OptionError(self.name, f"must be some of {', '.join(self.choices)}, not {list(value or ())!r}")
        elif self.choices:
            if value not in self.choices:
                raise OptionError(self.name, f"must be {' or '.join(map(repr, self.choices))}, not {value!r}")
        else:
            least, most = self.within
            if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
                in_range = False
            else:
                in_range = least <= value <= most
            if not in_range:
                kind = "a whole number" if self.whole else "a number"
                raise OptionError(self.name, f"must be {kind} from {least:,} to {most:,}, not {value!r}")


class OptionError(ValueError):
    """An option that has no sense; the message begins with its name."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name


def option(default: Any, help: str, **declared: Any) -> Any:
    """A field of a dataclass that is an `Option`."""
    return field(default=default, metadata={"option": Option(help, **declared)})


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options that a dataclass declares, by name."""
    found = {}
    for declared in fields(kind):
        if stated := declared.metadata.get("option"):
            found[declared.name] = Option(**{**vars(stated), "name": declared.name, "default": declared.default})
    return found


def check_options(chosen: Any) -> None:
    """Check each option of an instance.

    Raises:
        OptionError: one has no sense.
    """
    for name, declared in options_of(type(chosen)).items():
        declared.check(getattr(chosen, name))


def add_arguments(
    parser: argparse.ArgumentParser, kind: type[Any], only: Collection[str] = (), **defaults: Any
) -> None:
    """Let a command take the options, or some of them, each as `--its-name`.

    Args:
        defaults: where they differ from the declared ones.
    """
    for name, declared in options_of(kind).items():
        if only and name not in only:
            continue
        default = defaults.get(name, declared.default)
        shown = " ".join(default) if declared.several else default
        said = declared.full_help if default is None else f"{declared.help.removesuffix('.')} ({shown})."
        flag = f"--{name.replace('_', '-')}"
        if declared.choices:
            many: dict[str, Any] = {"nargs": "+"} if declared.several else {}
            parser.add_argument(flag, choices=tuple(declared.choices), default=default, help=said, **many)
        else:
            kind, metavar = (int, "N") if declared.whole else (float, "X")
            parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=said)


def chosen(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a command was given, the options that `kind` declares."""
    return {name: options[name] for name in options_of(kind) if name in options}
