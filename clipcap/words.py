"""Whether a text has a word, in whatever script."""

import unicodedata

_LETTERS = ("Lu", "Ll", "Lt", "Lo")
_BLANK = "\u115f\u1160\u3164\uffa0"  # Hangul fillers, which Unicode counts as letters


def has_word(text: str) -> bool:
    """Whether there is a letter in `text`: digits, signs, marks and emoji alone are not words."""
    return any(unicodedata.category(letter) in _LETTERS and letter not in _BLANK for letter in text)
