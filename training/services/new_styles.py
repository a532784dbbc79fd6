"""A style from nothing: its name, where it starts from, and the first sentences to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import transaction

from captioner import services as captioner_services
from captioner.errors import Refused
from captioner.models import Image, Style
from training.services.examples import add_sentences

FEWEST_SENTENCES, MOST_SENTENCES = 3, 20  # that a style begins with; more come as a file


def new_style(
    *,
    name: str,
    slug: str = "",
    description: str = "",
    starts_from: Style | None = None,
    sentences: Sequence[tuple[Image, str]] = (),
    person: Any = None,
) -> Style:
    """Make a style, with sentences about stored photos as its first examples.

    Args:
        slug, starts_from: see `captioner.services.create_style`.
        sentences: none, if a file of examples is imported instead.

    Raises:
        Refused: as `create_style` and `add_sentences`, or there are too few or too many sentences; then nothing was
            made.
    """
    if sentences and not FEWEST_SENTENCES <= len(sentences) <= MOST_SENTENCES:
        raise Refused(
            "invalid_examples",
            f"a style begins with {FEWEST_SENTENCES} to {MOST_SENTENCES} example sentences, not {len(sentences)}; more "
            "can be imported as a file",
            status=422,
            field="examples",
        )
    with transaction.atomic():
        style = captioner_services.create_style(
            name=name, slug=slug, description=description, starts_from=starts_from, person=person
        )
        if sentences:
            add_sentences(style, sentences)
    return style
