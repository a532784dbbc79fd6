"""Which captions are taken to speak of a child in the words of romantic love."""

import pytest

from clipcap.evaluation.child_in_love import child_in_love


@pytest.mark.parametrize(
    "caption",
    [
        "A boy waits for his lover by the sea.",
        "The little girl dreams of her wedding.",
        "Two children, deeply in love, share an ice cream.",
        "A KID is kissing a frog.",
        "The toddler finds his soul mate in the sandbox.",
        "A boy thinks of the love of his life.",
        "Her first love waits for the little girl by the swings.",
        "A teenager has a crush on the lifeguard.",
    ],
)
def test_a_child_with_a_word_of_romantic_love_is_counted(caption: str) -> None:
    assert child_in_love(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "A man and a woman, deeply in love, walk on the beach.",
        "A small girl runs through the garden, loved and free.",
        "Her whole heart is in this child's laughter.",
        "A mother embraces her beloved son.",
        "A glover repairs gloves for a boy.",
        "A girl grooms her horse, engaged in a chat.",
        "Leaves fall for a boy with a passion fruit.",
        "The boyfriend kisses his bride.",
        "",
    ],
)
def test_adults_in_love_and_children_who_are_loved_or_say_words_that_look_alike_are_not(caption: str) -> None:
    assert not child_in_love(caption)
