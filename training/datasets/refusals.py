"""Error messages for files that cannot be used."""

from captioner.errors import Refused

MAX_FILES = 400_000


def shown(name: str) -> str:
    """A name that anyone may have made up, harmless and short."""
    return repr(name) if len(name) <= 80 else f"{name[:40]!r}…{name[-40:]!r}"


def too_many_files() -> Refused:
    """There are more than `MAX_FILES`."""
    return Refused("too_many_files", f"there are more than {MAX_FILES:,} files; split them", status=413)


def not_utf8(name: str, line: int) -> Refused:
    """Another encoding could only be guessed."""
    return Refused(
        "not_utf8", f"line {line} of {shown(name)} is not UTF-8; save the file with that encoding", status=422
    )


def bad_json(name: str, count: int, cause: str) -> Refused:
    """Args:
    count: how many entries were read before it broke off.
    """
    after = f"after {count:,} entries" if count else "at its start"
    return Refused("bad_json", f"{shown(name)} is not valid JSON in UTF-8, {after}: {cause}", status=422)
