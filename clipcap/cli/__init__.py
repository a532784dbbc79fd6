"""The `clipcap` command: caption, train and evaluate on folders, without a server."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from clipcap.cli import caption, evaluate, join, train

COMMANDS = {
    "caption": (caption, "print a caption for each photo in each style"),
    "train": (train, "train your own style on captioned photos"),
    "evaluate": (evaluate, "compare a style's captions with reference captions"),
    "join": (join, "train along with a training worker of another machine"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 1 if a part failed, or 2 if nothing could be done.
    """
    prog = os.environ.get("CLIPCAP_PROG", "clipcap")  # `./run` is another way in
    parser = argparse.ArgumentParser(prog=prog, description="Captions in your own styles (ClipCap, arXiv 2111.09734).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a photo's name may hold what is not text
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has read enough; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ValueError as error:  # every error of the library that a user can fix is one
        print(f"error: {error}", file=sys.stderr)
        return 2
