"""How long a training caption may be: what the language model has room for after a style's prefix."""

from collections.abc import Callable, Sequence

from captioner.models import Style
from training.options import RunOptions


def too_long(style: Style, encode: Callable[[str], Sequence[int]], max_length: int) -> Callable[[str], str]:
    """What says of a caption why it is too long for the style's next training, "" if it is not.

    A script that the tokenizer does not know costs a token or more a letter, so letters do not tell.

    Args:
        encode: the language model's, from a text to its tokens.
        max_length: how many tokens the language model reads at most.
    """
    version = style.starting_version
    prefix = version.mapper.prefix_length if version else RunOptions().prefix_length
    room = max_length - prefix

    def problem(text: str) -> str:
        count = len(encode(text))
        if count <= room:
            return ""
        return (
            f"the caption has {count} tokens, and the language model has room for {room} after a prefix of {prefix}; "
            f"shorten it"
        )

    return problem
