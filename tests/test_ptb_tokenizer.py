"""The expected words are what the Java tokenizer of pycocoevalcap 1.2 made of the sentences, run on Java 17.

coco_captions.json holds captions of COCO and candidates for them, which come with the COCO caption evaluation code.
ptb_sentences.json holds sentences made up to be hard: contractions, abbreviations, numbers, quotes, other scripts.
"""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, PTBTokenizer

from clipcap.evaluation.ptb_tokenizer import ptb_tokenize

DATA = Path(__file__).parent / "data"
HARD_SENTENCES: list[tuple[str, str]] = [(s, w) for s, w in json.loads((DATA / "ptb_sentences.json").read_text())]


def coco_captions() -> list[tuple[str, str]]:
    """Captions with their words according to the Java tokenizer."""
    pairs: list[tuple[str, str]] = []
    for image in json.loads((DATA / "coco_captions.json").read_text())["images"].values():
        pairs += zip(image["references"], image["reference_words"], strict=True)
        pairs.append((image["candidate"], image["candidate_words"]))
    return pairs


@pytest.mark.parametrize(("sentence", "words"), HARD_SENTENCES)
def test_a_hard_sentence_has_the_words_that_java_finds(sentence: str, words: str) -> None:
    assert ptb_tokenize(sentence) == words


def test_at_least_995_of_1000_captions_have_the_words_that_java_finds() -> None:
    captions = coco_captions()
    deviating = [(caption, words) for caption, words in captions if ptb_tokenize(caption) != words]
    for caption, words in deviating:
        print(f"{caption!r}: {words!r} in Java, {ptb_tokenize(caption)!r} here")
    assert len(captions) > 700
    assert 1 - len(deviating) / len(captions) >= 0.995


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java to compare with")
def test_java_finds_the_words_that_were_recorded() -> None:
    recorded = HARD_SENTENCES + coco_captions()
    sentences = [{"caption": sentence} for sentence, _ in recorded]
    assert PTBTokenizer().tokenize({"all": sentences})["all"] == [words for _, words in recorded]


@given(st.text() | st.text(alphabet="aBn5'\u2019.,:-/!?()&$#_ \n\r\x0b\u2028", max_size=40))
def test_any_text_gives_lowercase_words_without_punctuation(text: str) -> None:
    words = ptb_tokenize(text)
    assert words == words.lower()
    assert words.splitlines() in ([], [words])
    if words:
        assert not {"", *PUNCTUATIONS} & set(words.split(" "))


@given(st.lists(st.from_regex("[a-z]+", fullmatch=True).filter(lambda word: ptb_tokenize(word) == word)))
def test_plain_words_come_back_as_they_are(words: list[str]) -> None:
    assert ptb_tokenize(" ".join(words)) == " ".join(words)
