"""Decoding: searches that choose tokens, and the backends that run the language model for them."""

from clipcap.decoding.hypothesis import Hypothesis
from clipcap.decoding.search import decode, decode_together

__all__ = ["Hypothesis", "decode", "decode_together"]
