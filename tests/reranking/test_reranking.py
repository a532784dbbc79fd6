"""Choosing captions by a look back at the photo, and how sure of them we are, on small models of both halves."""

import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipcap.captioner import Caption, Captioner
from clipcap.decoding.rerank import FEATURES, OF_CAPTION, Candidate
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.model import ClipCaptionModel
from clipcap.options import METHODS, DecodingOptions
from tests.reranking.weights import SIZE, fitting, reranker
from tests.test_decoding import adapters_of


def texts_of(answers: list[list[Caption]]) -> list[list[str]]:
    return [[caption.text for caption in captions] for captions in answers]


OPTIONS = DecodingOptions("beam", captions=3, max_length=12)


def test_styles_mixed_in_one_batch_get_the_captions_and_confidences_of_each_photo_alone(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor
) -> None:
    lm = captioner.language_model
    adapted = ClipCaptionModel(mappers[0].mapper, adapters=adapters_of(lm, 1, rank=2))
    own = ClipCaptionModel(mappers[0].mapper, lm.with_weights({n: 1.1 * weights for n, weights in lm.weights.items()}))
    rows = [(photo, model) for photo in range(len(photos)) for model in (own, *mappers, adapted)]
    mixed = captioner.caption(photos[[photo for photo, _ in rows]], [mapper for _, mapper in rows], OPTIONS)
    for (photo, mapper), together in zip(rows, mixed, strict=True):
        (alone,) = captioner.caption(photos[[photo]], [mapper], OPTIONS)
        assert texts_of([together]) == texts_of([alone])
        for one, other in zip(together, alone, strict=True):
            assert asdict(one) == pytest.approx(asdict(other), abs=1e-4)


def test_a_batch_that_is_processed_in_parts_gets_the_same_captions(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = captioner.caption(photos, mappers[:1] * 5, OPTIONS)
    monkeypatch.setattr("clipcap.decoding.backends.eager.CPU_BYTES", captioner.language_model.cache_bytes * 1000)
    assert texts_of(captioner.caption(photos, mappers[:1] * 5, OPTIONS)) == texts_of(whole)


def test_the_same_photo_and_style_always_get_the_same_captions(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor
) -> None:
    assert captioner.caption(photos, mappers[:1] * 5, OPTIONS) == captioner.caption(photos, mappers[:1] * 5, OPTIONS)


def test_what_is_chosen_is_nearer_to_the_photo_than_what_the_beam_finds_probable(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor
) -> None:
    by_photo = Captioner(
        captioner.encoder, captioner.language_model, fitting(captioner, choice={"similarity": 1.0}, confidence={})
    )
    by_model = Captioner(
        captioner.encoder, captioner.language_model, fitting(captioner, choice={"log_probability": 1.0}, confidence={})
    )
    chosen = by_photo.caption(photos, mappers[:1] * 5, OPTIONS)
    probable = by_model.caption(photos, mappers[:1] * 5, OPTIONS)
    for near, likely in zip(chosen, probable, strict=True):
        assert [c.similarity for c in near] == sorted((c.similarity for c in near), reverse=True)  # type: ignore[type-var]
        assert [c.log_probability for c in likely] == sorted((c.log_probability for c in likely), reverse=True)
        assert near[0].similarity >= likely[0].similarity  # type: ignore[operator]
    assert texts_of(chosen) != texts_of(probable)


def test_alternatives_are_different_texts_and_all_have_a_confidence(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor
) -> None:
    for captions in captioner.caption(photos, mappers[:1] * 5, replace(OPTIONS, captions=5)):
        assert len({caption.text for caption in captions}) == len(captions) == 5
        assert all(caption.confidence is not None and 0 < caption.confidence < 1 for caption in captions)


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions("greedy", max_length=12),
        DecodingOptions("nucleus", max_length=12, seed=1),
        DecodingOptions("beam", max_length=12, captions=3, rerank=False),
    ],
)
def test_without_reranking_captions_come_as_decoded_and_have_no_confidence(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor, options: DecodingOptions
) -> None:
    plain = Captioner(captioner.encoder, captioner.language_model)
    answers = captioner.caption(photos, mappers[:1] * 5, options)
    assert answers == plain.caption(photos, mappers[:1] * 5, replace(options, rerank=None))
    assert all(c.confidence is None and c.similarity is None for captions in answers for c in captions)


@pytest.mark.parametrize("part", ["encoder", "text", "language_model"])
def test_weights_of_other_models_are_left_out_with_one_warning_and_captions_go_on(
    captioner: Captioner,
    mappers: list[ClipCaptionModel],
    photos: Tensor,
    part: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        fitted = replace(fitting(captioner), **{part: "another@123"})  # type: ignore[arg-type]
        other = Captioner(captioner.encoder, captioner.language_model, fitted)
        answers = [other.caption(photos, mappers[:1] * 5) for _ in range(2)]
    assert len(caplog.records) == 1
    assert "another@123" in caplog.text
    assert answers[0] == Captioner(captioner.encoder, captioner.language_model).caption(photos, mappers[:1] * 5)


def test_an_encoder_without_a_text_half_only_loses_the_reranking(
    tiny_encoder_dir: Path, tiny_lm: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder.load(f"local-dir:{tiny_encoder_dir}", device="cpu")
    fitted = reranker(encoder=encoder.identity, language_model=tiny_lm.identity)
    assert Captioner(encoder, tiny_lm, fitted).reranker is None
    assert "none is loaded" in caplog.text


def test_reranking_that_is_asked_for_and_cannot_be_had_is_an_error(captioner: Captioner, photos: Tensor) -> None:
    plain = Captioner(captioner.encoder, captioner.language_model)
    with pytest.raises(ValueError, match=r"rerank needs weights.*leave it out"):
        plain.caption(photos[:0], [], DecodingOptions(rerank=True))


def test_no_photos_get_no_captions(captioner: Captioner, photos: Tensor) -> None:
    assert captioner.caption(photos[:0], []) == []


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=6, unique=True),
    values=st.data(),
)
def test_any_texts_can_be_judged_and_those_with_a_flaw_come_last(texts: list[str], values: st.DataObject) -> None:
    candidates = [
        Candidate(
            text,
            values.draw(st.floats(-20, 0)),
            values.draw(st.integers(0, 9)),
            values.draw(st.booleans()),
        )
        for text in texts
    ]
    generator = torch.Generator().manual_seed(values.draw(st.integers(0, 9)))
    vectors = torch.randn(len(texts), SIZE, generator=generator) * values.draw(st.sampled_from([0.0, 1.0]))
    judged = reranker().judge(torch.randn(SIZE, generator=generator), candidates, vectors)
    assert sorted(judgement.place for judgement in judged) == list(range(len(texts)))
    flaws = [candidates[judgement.place].flaw for judgement in judged]
    assert flaws == sorted(flaws)
    assert all(math.isfinite(j.similarity) and 0 <= j.confidence <= 1 for j in judged)


def test_candidates_that_say_what_others_say_agree_more_and_rare_words_count_more() -> None:
    texts = ["a dog on a hill", "a dog on a roof", "a cat in a box", "a dog on a hill today"]
    table = reranker().features(torch.ones(SIZE), [Candidate(text, -1.0) for text in texts], torch.eye(4, SIZE))
    wording = dict(zip(texts, table[:, FEATURES.index("wording")].tolist(), strict=True))
    assert wording["a cat in a box"] == min(wording.values())
    assert wording["a dog on a hill"] == max(wording.values())

    def shared(rarity: dict[str, float]) -> float:
        pair = [Candidate("a dog", -1.0), Candidate("the dog", -1.0)]
        return float(reranker(rarity=rarity).features(torch.ones(SIZE), pair, torch.eye(2, SIZE))[0, 2])

    assert shared({"a": 0.5, "the": 0.5, "dog": 4.0}) > shared({"a": 4.0, "the": 4.0, "dog": 0.5})


def test_a_caption_with_words_that_these_models_often_say_gives_way_to_one_of_its_own() -> None:
    texts = ["Here the whole world waits for a dog.", "A dog runs over the green grass."]
    own = reranker(choice={"stock": -4.0})
    table = own.features(torch.ones(SIZE), [Candidate(text, -1.0) for text in texts], torch.ones(2, SIZE))
    assert table[:, FEATURES.index("stock")].tolist() == [0.25, 0.0]
    judged = own.judge(torch.ones(SIZE), [Candidate(text, -1.0) for text in texts], torch.ones(2, SIZE))
    assert [judgement.place for judgement in judged] == [1, 0]


def test_a_caption_that_says_its_words_again_gives_way_to_one_that_does_not() -> None:
    texts = ["A lamp, a desk and a lamp.", "A lamp, a desk and a chair.", "Lamp lamp lamp lamp.", ""]
    own = reranker(choice={"repetition": -1.0}, rarity={"a": 0.5, "and": 0.5, "lamp": 4.0})
    candidates = [Candidate(text, -1.0) for text in texts]
    repetition = own.features(torch.ones(SIZE), candidates, torch.ones(4, SIZE))[:, FEATURES.index("repetition")]
    # Lamp and desk weigh 4 each time, "a" and "and" 0.5. Said again are "a" twice and "lamp" once.
    assert repetition.tolist() == pytest.approx([(1 + 4) / (3 * 4 + 4 * 0.5), 1 / (3 * 4 + 4 * 0.5), 3 / 4, 0])
    judged = own.judge(torch.ones(SIZE), candidates[:2], torch.ones(2, SIZE))
    assert [judgement.place for judgement in judged] == [1, 0]


def test_a_caption_that_says_a_word_twice_in_a_row_gives_way_to_any_that_is_whole() -> None:
    texts = ["The Door door to a train.", "A man walks by a door, door after door.", "A man opens a"]
    candidates = [Candidate(text, -1.0 - 9 * place, whole=place < 2) for place, text in enumerate(texts)]
    judged = reranker(choice={"log_probability": 1.0}).judge(torch.ones(SIZE), candidates, torch.ones(3, SIZE))
    assert [judgement.place for judgement in judged] == [1, 0, 2]


def test_candidates_are_compared_with_samples_and_not_with_the_beam_which_says_nearly_the_same_many_times() -> None:
    beam = [Candidate(f"a dog on a {place}", -1.0, samples=0) for place in ("hill", "roof", "bed", "bench", "boat")]
    sampled = [Candidate("a cat in a box", -2.0, samples=2), Candidate("a cat in a tree", -2.0)]
    plain = reranker(text_mean=torch.zeros(SIZE, dtype=torch.float64))
    table = plain.features(torch.ones(SIZE), [*beam, *sampled], torch.eye(7, SIZE))
    wording, meaning = (table[:, FEATURES.index(name)] for name in ("wording", "meaning"))
    assert wording[5:].min() > wording[:5].max()
    assert wording[:5].min() > 0  # "a" is in all of them
    # No two texts mean the same here but the one that was sampled twice, which is another sample's likeness to it.
    assert meaning.tolist() == pytest.approx([0] * 5 + [1 / 2, 0])
    samples = table[:, FEATURES.index("samples_log_probability")]
    assert samples.tolist() == [-2.0] * 7
    without = plain.features(torch.ones(SIZE), [beam[0], *sampled], torch.eye(7, SIZE)[[0, 5, 6]])
    assert without[0, : len(OF_CAPTION)].tolist() == pytest.approx(table[0, : len(OF_CAPTION)].tolist())
    said = replace(sampled[1], text=beam[0].text)  # the beam's first is a sample too: it does not agree with itself
    (first, *_) = plain.features(torch.ones(SIZE), [said, *beam[1:], sampled[0]], torch.eye(6, SIZE)).tolist()
    assert first[FEATURES.index("meaning")] == pytest.approx(0)


def test_only_the_last_way_gives_samples_to_compare_with(
    captioner: Captioner, mappers: list[ClipCaptionModel], photos: Tensor
) -> None:
    beam, samples = fitting(captioner).ways_for(OPTIONS)
    cooler = replace(samples, temperature=0.7, seed=5)
    everything = captioner.candidates(photos, mappers[:1] * 5, [beam, cooler, samples])
    alone = captioner.candidates(photos, mappers[:1] * 5, [samples])
    for found, own in zip(everything, alone, strict=True):
        assert len(found) > len(own)
        assert sum(candidate.samples for candidate in found) == samples.captions
        assert {c.text: c.samples for c in found if c.samples} == {c.text: c.samples for c in own}


def test_a_text_that_was_written_often_agrees_with_itself() -> None:
    texts = [Candidate("a dog runs on grass", -1.0, samples=9), Candidate("two cats sleep in boxes", -1.0)]
    table = reranker().features(torch.ones(SIZE), texts, torch.eye(2, SIZE))
    often, once = table[:, FEATURES.index("wording")].tolist()
    assert often > 0.8
    assert once == 0


def test_a_photo_unlike_those_learned_from_is_stranger() -> None:
    usual = torch.nn.functional.normalize(torch.randn(SIZE, generator=torch.Generator().manual_seed(1)), dim=0)
    fitted = reranker(photo_mean=usual.double())
    one = [Candidate("a dog", -1.0)]
    strangeness = [
        float(fitted.features(photo, one, torch.ones(1, SIZE))[0, FEATURES.index("strangeness")])
        for photo in (usual + 0.01, usual + 0.5, -usual)
    ]
    assert strangeness == sorted(strangeness)


@given(
    method=st.sampled_from(METHODS),
    rerank=st.sampled_from([None, False, True]),
    beam_size=st.none() | st.integers(1, 9),
    captions=st.integers(1, 9),
)
def test_reranking_goes_with_beam_search_of_any_size_and_with_nothing_else(
    method: Any, rerank: bool | None, beam_size: int | None, captions: int
) -> None:
    allowed = (method == "beam" or (rerank is not True and beam_size is None)) and captions <= {
        "greedy": 1,
        "beam": beam_size or 5,
        "nucleus": 9,
    }[method]
    if not allowed:
        with pytest.raises(ValueError, match=r"rerank|beam_size|captions"):
            DecodingOptions(method, captions, beam_size=beam_size, rerank=rerank)
        return
    options = DecodingOptions(method, captions, beam_size=beam_size, rerank=rerank)
    ways = reranker().ways_for(options)
    assert [way.captions for way in ways if way.method == "beam"] == [beam_size or 3]
    assert {way.max_length for way in ways} == {options.max_length}
