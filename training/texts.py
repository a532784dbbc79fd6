"""What a caption to learn from may be."""

from captioner.errors import Refused
from clipcap.words import has_word


def caption_text(text: str) -> str:
    """A caption as examples keep it: one line, without what no database keeps.

    Raises:
        Refused: it is empty, too long or without a word, or holds what is not a character.
    """
    text = " ".join(text.replace("\0", "").split())
    if not 1 <= len(text) <= 500:
        raise Refused("invalid_text", "a caption must have 1 to 500 characters", status=422)
    if not has_word(text):
        raise Refused("invalid_text", "the caption contains no words, so nothing can be learned from it", status=422)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):  # halves of characters, from \u in JSON
        raise Refused("invalid_text", "the caption contains invalid characters; write it in UTF-8", status=422)
    return text
