"""What the commands of the recipes that train have in common."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch


def new_parser(doc: str | None, *, models: str, work: str) -> ArgumentParser:
    """A parser of `--data`, `--models`, `--work` and `--threads`.

    Args:
        doc: the recipe's, whose first line says what it does.
        models, work: what these folders hold and receive.
    """
    parser = ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="see recipes/photos.py")
    parser.add_argument("--models", type=Path, required=True, help=models)
    parser.add_argument("--work", type=Path, required=True, help=work)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def parsed(parser: ArgumentParser) -> Namespace:
    """The arguments; the folder for work is there now, and torch uses as many threads as they say."""
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments
