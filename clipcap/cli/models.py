"""What all commands have in common: where the models are and what they run on."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

BASE = Path(__file__).parents[2] / "models" / "base"  # beside the library in a clone; not in an installed package


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options that name models and device."""
    named = os.environ.get("CLIPCAP_MODELS")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        default=Path(named) if named else BASE,
        help="folder with encoder/, lm/, styles/ and optionally reranking.json (CLIPCAP_MODELS, or models/base of "
        "the clone)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (auto)")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        # More threads than free cores wait for each other: a busy machine of two cores ran a hundred times slower.
        default=max(1, (os.cpu_count() or 1) // 2),
        help="number of CPU threads (half the cores)",
    )


def set_threads(options: argparse.Namespace) -> None:
    """Let torch use so many threads.

    Raises:
        ValueError: it is none.
    """
    import torch

    if options.threads < 1:
        raise ValueError(f"--threads must be at least 1, not {options.threads}")
    torch.set_num_threads(options.threads)


def style_files(models: Path, wanted: Sequence[str] | None) -> dict[str, Path]:
    """The mapper file of each style asked for, or of all.

    Raises:
        ValueError: there are none, or not that one.
    """
    found = {path.stem: path for path in sorted((models / "styles").glob("*.safetensors"))}
    if not found:
        raise ValueError(
            f"no styles in {models / 'styles'}; give a folder with encoder/, lm/ and styles/ with --models"
        )
    unknown = [slug for slug in wanted or [] if slug not in found]
    if unknown:
        raise ValueError(f"unknown style {unknown[0]!r}; the styles are {', '.join(found)}")
    return {slug: found[slug] for slug in wanted or found}
