"""Decoding, by every backend: each row gets what it would get alone, and what the authors' algorithm gives."""

import math
from pkgutil import iter_modules

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import original
from clipcap.adapters import Adapters
from clipcap.decoding import backends, decode, decode_together
from clipcap.decoding.backends import BACKENDS
from clipcap.decoding.backends.base import Backend
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.language_model import LanguageModel
from clipcap.options import DecodingOptions

NEVER = -1  # a stop token that no model says
OPTIONS = [
    DecodingOptions("greedy", max_length=12),
    DecodingOptions("beam", captions=3, max_length=12),
    DecodingOptions("beam", beam_size=2, captions=1, max_length=12),
    DecodingOptions("nucleus", captions=3, max_length=12, seed=7),
    DecodingOptions("nucleus", captions=2, max_length=12, seed=7, temperature=0.5, top_p=0.4),
]


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tiny_lm: LanguageModel) -> Backend:
    """Each backend there is; a new one has to pass all that is below."""
    return BACKENDS[request.param](tiny_lm)


def test_every_backend_is_registered() -> None:
    assert set(BACKENDS) == {module.name for module in iter_modules(backends.__path__)} - {"base"}


def prefixes_of(lm: LanguageModel, lengths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, lm.size, generator=generator) for length in lengths]


def stops_of(lm: LanguageModel, count: int, seed: int) -> list[int]:
    """A stop token for each row that the row is likely to meet: one it says greedily."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, lm.vocabulary, (count,), generator=generator).tolist()


# The same examples every time: of some 150,000 tokens that are drawn, one falls within rounding of the border between
# two, where a batch and a row alone may take different ones.
EXAMPLES = settings(derandomize=True)


@settings(EXAMPLES, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7),
    seed=st.integers(0, 1000),
    options=st.sampled_from(OPTIONS),
)
def test_mixing_rows_of_any_prefix_length_changes_no_caption(
    backend: Backend, tiny_lm: LanguageModel, lengths: list[int], seed: int, options: DecodingOptions
) -> None:
    prefixes = prefixes_of(tiny_lm, lengths, seed)
    greedy = decode(backend, prefixes, DecodingOptions("greedy", max_length=12), [NEVER] * len(lengths))
    stops = [answers[0].tokens[row % 9] for row, answers in enumerate(greedy)]  # rows end at different steps
    together = decode(backend, prefixes, options, stops)
    for prefix, stop, answers in zip(prefixes, stops, together, strict=True):
        (alone,) = decode(backend, [prefix], options, [stop])
        assert [a.tokens for a in answers] == [a.tokens for a in alone]
        assert [a.log_probability for a in answers] == pytest.approx([a.log_probability for a in alone], abs=1e-4)


@settings(EXAMPLES, max_examples=10)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000), options=st.sampled_from(OPTIONS))
def test_the_order_of_a_batch_changes_no_caption(
    backend: Backend, tiny_lm: LanguageModel, order: list[int], seed: int, options: DecodingOptions
) -> None:
    prefixes = prefixes_of(tiny_lm, [3, 8, 5, 5, 1, 10], seed)
    stops = stops_of(tiny_lm, 6, seed)
    straight = decode(backend, prefixes, options, stops)
    shuffled = decode(backend, [prefixes[i] for i in order], options, [stops[i] for i in order])
    assert [[a.tokens for a in shuffled[place]] for place in range(6)] == [
        [a.tokens for a in straight[i]] for i in order
    ]


@settings(EXAMPLES, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    ways=st.lists(st.sampled_from(OPTIONS), max_size=4),
    seed=st.integers(0, 1000),
)
def test_ways_that_share_a_batch_find_what_each_finds_alone(
    backend: Backend, tiny_lm: LanguageModel, lengths: list[int], ways: list[DecodingOptions], seed: int
) -> None:
    prefixes = prefixes_of(tiny_lm, lengths, seed)
    greedy = decode(backend, prefixes, DecodingOptions("greedy", max_length=12), [NEVER] * len(lengths))
    stops = [answers[0].tokens[row % 9] for row, answers in enumerate(greedy)]
    together = decode_together(backend, prefixes, ways, stops)
    alone = [decode(backend, prefixes, way, stops) for way in ways]
    for row, answers in enumerate(together):
        assert [a.tokens for a in answers] == [a.tokens for one in alone for a in one[row]]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), stopping=st.booleans())
def test_greedy_and_beam_tokens_are_those_of_the_authors_algorithm(
    backend: Backend, tiny_lm: LanguageModel, seed: int, stopping: bool
) -> None:
    prefixes = prefixes_of(tiny_lm, [4, 9, 6], seed)
    plain = [original.greedy(tiny_lm.model, prefix, NEVER, 12) for prefix in prefixes]
    stops = [tokens[5] if stopping else NEVER for tokens in plain]
    greedy = decode(backend, prefixes, DecodingOptions("greedy", max_length=12), stops)
    beams = decode(backend, prefixes, DecodingOptions("beam", captions=5, max_length=12), stops)
    for prefix, stop, one, five in zip(prefixes, stops, greedy, beams, strict=True):
        assert list(one[0].tokens) == original.greedy(tiny_lm.model, prefix, stop, 12)
        assert [list(h.tokens) for h in five] == original.beam(tiny_lm.model, prefix, stop, 12)


def test_the_log_probability_is_the_mean_log_probability_of_the_tokens(
    backend: Backend, tiny_lm: LanguageModel
) -> None:
    prefixes = prefixes_of(tiny_lm, [4, 6], seed=1)
    for options in OPTIONS:
        for prefix, answers in zip(prefixes, decode(backend, prefixes, options, [3, 3]), strict=True):
            for answer in answers:
                embedded = torch.cat([prefix[None], tiny_lm.embed(torch.tensor([answer.tokens]))], dim=1)
                scores = tiny_lm.logits(embedded)[0, len(prefix) - 1 : -1].log_softmax(-1)
                mean = scores[range(len(answer.tokens)), list(answer.tokens)].mean().item()
                assert answer.log_probability == pytest.approx(mean, abs=1e-4)


def test_captions_end_with_their_rows_own_stop_token_or_at_the_limit(backend: Backend, tiny_lm: LanguageModel) -> None:
    prefixes = prefixes_of(tiny_lm, [5] * 8, seed=2)
    greedy = decode(backend, prefixes, DecodingOptions("greedy", max_length=12), [NEVER] * 8)
    stops = [answers[0].tokens[row] for row, answers in enumerate(greedy)]
    for options in OPTIONS:
        for stop, answers in zip(stops, decode(backend, prefixes, options, stops), strict=True):
            assert len(answers) == options.captions
            for answer in answers:
                assert stop not in answer.tokens[:-1]
                assert answer.tokens[-1] == stop or len(answer.tokens) == options.max_length


def test_alternatives_come_best_first_and_differ(backend: Backend, tiny_lm: LanguageModel) -> None:
    (answers,) = decode(
        backend,
        prefixes_of(tiny_lm, [5], seed=3),
        DecodingOptions("beam", captions=5, max_length=12),
        [NEVER],
    )
    assert [a.log_probability for a in answers] == sorted((a.log_probability for a in answers), reverse=True)
    assert len({a.tokens for a in answers}) == 5


def test_a_seed_repeats_samples_and_another_seed_does_not(backend: Backend, tiny_lm: LanguageModel) -> None:
    prefixes = prefixes_of(tiny_lm, [5, 5], seed=4)

    def sample(seed: int | None) -> list[tuple[int, ...]]:
        options = DecodingOptions("nucleus", captions=2, max_length=12, seed=seed)
        return [h.tokens for answers in decode(backend, prefixes, options, [NEVER] * 2) for h in answers]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(None) != sample(None)


def test_a_tiny_nucleus_is_greedy_decoding(backend: Backend, tiny_lm: LanguageModel) -> None:
    prefixes = prefixes_of(tiny_lm, [5, 7], seed=5)
    greedy = decode(backend, prefixes, DecodingOptions("greedy", max_length=12), [NEVER] * 2)
    nucleus = decode(backend, prefixes, DecodingOptions("nucleus", max_length=12, top_p=1e-9), [NEVER] * 2)
    assert [a[0].tokens for a in nucleus] == [a[0].tokens for a in greedy]


@pytest.mark.parametrize("extreme", [{"temperature": 1e-40}, {"top_p": 1e-50}])
def test_extreme_options_still_draw_the_likeliest_tokens(
    backend: Backend, tiny_lm: LanguageModel, extreme: dict[str, float]
) -> None:
    prefixes = prefixes_of(tiny_lm, [5, 7], seed=5)
    greedy = decode(backend, prefixes, DecodingOptions("greedy", max_length=12), [NEVER] * 2)
    options = DecodingOptions("nucleus", max_length=12, seed=1, **extreme)  # type: ignore[arg-type]
    assert [a[0].tokens for a in decode(backend, prefixes, options, [NEVER] * 2)] == [a[0].tokens for a in greedy]


def test_more_beams_than_tokens_are_refused_with_the_limit(backend: Backend, tiny_lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match=f"beam_size must be at most {tiny_lm.vocabulary}"):
        decode(backend, prefixes_of(tiny_lm, [5], seed=0), DecodingOptions("beam", beam_size=10**6), [NEVER])


def test_samples_follow_the_models_probabilities(backend: Backend, tiny_lm: LanguageModel) -> None:
    (prefix,) = prefixes_of(tiny_lm, [5], seed=6)
    expected = tiny_lm.logits(prefix[None])[0, -1].softmax(-1)
    options = DecodingOptions("nucleus", captions=4000, max_length=1, top_p=1.0, seed=0)
    (answers,) = decode(backend, [prefix], options, [NEVER])
    drawn = torch.bincount(torch.tensor([a.tokens[0] for a in answers]), minlength=len(expected)) / 4000
    assert (drawn - expected).abs().sum() / 2 < 0.12  # total variation distance


def adapters_of(lm: LanguageModel, seed: int, rank: int, targets: str = "both") -> Adapters:
    """Some that change what the LM says."""
    adapters = Adapters.new(lm, rank, seed, targets)
    generator = torch.Generator().manual_seed(seed)
    for name, weights in adapters.weights.items():
        if name.endswith(".up"):
            weights.data.copy_(0.5 * torch.randn(weights.shape, generator=generator))
    return adapters.requires_grad_(False)


@settings(max_examples=25)
# The first two rows end, and one without adapters stands before one with the second.
@example(which=[0, 1, 0, 2], lengths=[1] * 6, seed=0, ways=[DecodingOptions("greedy", max_length=12)])
@given(
    which=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    lengths=st.lists(st.integers(1, 12), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
    ways=st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=3),
)
def test_rows_with_other_adapters_or_none_get_what_each_gets_alone(
    backend: Backend,
    tiny_lm: LanguageModel,
    which: list[int],
    lengths: list[int],
    seed: int,
    ways: list[DecodingOptions],
) -> None:
    known = [None, adapters_of(tiny_lm, 1, rank=2), adapters_of(tiny_lm, 2, rank=5)]
    known += [adapters_of(tiny_lm, 3, rank=3, targets="attention"), adapters_of(tiny_lm, 4, rank=4, targets="mlp")]
    prefixes, adapters = prefixes_of(tiny_lm, lengths[: len(which)], seed), [known[number] for number in which]
    greedy = decode(
        backend, prefixes, DecodingOptions("greedy", max_length=12), [NEVER] * len(which), adapters=adapters
    )
    stops = [answers[0].tokens[row % 9] for row, answers in enumerate(greedy)]  # rows end at different steps
    together = decode_together(backend, prefixes, ways, stops, adapters=adapters)
    for prefix, stop, own, answers in zip(prefixes, stops, adapters, together, strict=True):
        (alone,) = decode_together(backend, [prefix], ways, [stop], adapters=[] if own is None else [own])
        assert [a.tokens for a in answers] == [a.tokens for a in alone]
        assert [a.log_probability for a in answers] == pytest.approx([a.log_probability for a in alone], abs=1e-4)


@pytest.mark.parametrize("targets", ["both", "attention", "mlp"])
def test_adapters_are_what_their_product_added_to_the_weights_would_be(
    backend: Backend, tiny_lm: LanguageModel, targets: str
) -> None:
    adapters = adapters_of(tiny_lm, 3, rank=4, targets=targets)
    weights = dict(tiny_lm.weights)
    for name in (name.removesuffix(".down") for name in adapters.weights if name.endswith(".down")):
        product = adapters.weights[f"{name}.down"] @ adapters.weights[f"{name}.up"]
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + product
    merged, prefixes = tiny_lm.with_weights(weights), prefixes_of(tiny_lm, [4, 6], seed=1)
    for options in OPTIONS:
        found = decode(backend, prefixes, options, [NEVER] * 2, adapters=[adapters] * 2)
        assert [[a.tokens for a in answers] for answers in found] == [
            [a.tokens for a in answers] for answers in decode(EagerBackend(merged), prefixes, options, [NEVER] * 2)
        ]
    plain = decode(backend, prefixes, OPTIONS[0], [NEVER] * 2)
    adapted = decode(backend, prefixes, OPTIONS[0], [NEVER] * 2, adapters=[adapters] * 2)
    assert [a[0].tokens for a in plain] != [a[0].tokens for a in adapted]


def test_adapters_that_overflow_harm_no_other_row(backend: Backend, tiny_lm: LanguageModel) -> None:
    huge = adapters_of(tiny_lm, 1, rank=2)
    for weights in huge.parameters():
        weights.data *= 1e30
    prefixes = prefixes_of(tiny_lm, [4, 4, 4], seed=1)
    sound = adapters_of(tiny_lm, 2, rank=2)
    mixed = decode(backend, prefixes, OPTIONS[1], [NEVER] * 3, adapters=[huge, sound, None])
    assert not math.isfinite(mixed[0][0].log_probability)
    for row, own in ((1, sound), (2, None)):
        (alone,) = decode(backend, prefixes[row : row + 1], OPTIONS[1], [NEVER], adapters=[own])
        assert [a.tokens for a in mixed[row]] == [a.tokens for a in alone]


def test_a_pass_that_fails_leaves_nothing_of_the_adapters_behind(
    backend: Backend, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = prefixes_of(tiny_lm, [4], seed=1)
    before = decode(backend, prefixes, OPTIONS[0], [NEVER])

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode(backend, prefixes, OPTIONS[0], [NEVER], fail, [adapters_of(tiny_lm, 1, rank=2)])
    assert decode(backend, prefixes, OPTIONS[0], [NEVER]) == before
    monkeypatch.setattr(tiny_lm.model.transformer.h[1].mlp, "forward", fail)  # type: ignore[union-attr, index]
    with pytest.raises(TypeError):
        decode(backend, prefixes, OPTIONS[0], [NEVER], adapters=[adapters_of(tiny_lm, 1, rank=2)])
    monkeypatch.undo()
    assert decode(backend, prefixes, OPTIONS[0], [NEVER]) == before


def test_an_empty_batch_has_no_captions(backend: Backend, tiny_lm: LanguageModel) -> None:
    assert decode(backend, [], DecodingOptions(), []) == []


@pytest.mark.parametrize(
    ("given_options", "named"),
    [
        ({"method": "magic"}, "method"),
        ({"method": "greedy", "beam_size": 3}, "beam_size"),
        ({"method": "beam", "temperature": 0.7}, "temperature"),
        ({"method": "greedy", "top_p": 0.9}, "top_p"),
        ({"method": "beam", "seed": 1}, "seed"),
        ({"method": "greedy", "captions": 2}, "captions"),
        ({"method": "beam", "captions": 6}, "captions"),
        ({"method": "beam", "beam_size": 3, "captions": 4}, "captions"),
        ({"captions": 0}, "captions"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 2.5}, "max_length"),
        ({"method": "nucleus", "temperature": 0.0}, "temperature"),
        ({"method": "nucleus", "temperature": float("nan")}, "temperature"),
        ({"method": "nucleus", "top_p": 1.5}, "top_p"),
        ({"method": "nucleus", "seed": -1}, "seed"),
        ({"method": "nucleus", "seed": 1.5}, "seed"),
        ({"method": "nucleus", "seed": True}, "seed"),
        ({"method": "nucleus", "rerank": True}, "rerank"),
        ({"method": "greedy", "rerank": True}, "rerank"),
        ({"rerank": 1}, "rerank"),
    ],
)
def test_contradicting_options_are_refused_by_name(given_options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DecodingOptions(**given_options)  # type: ignore[arg-type]


def test_a_caption_longer_than_the_model_reads_is_refused_with_the_right_limit(
    backend: Backend, tiny_lm: LanguageModel
) -> None:
    prefix = torch.zeros(10, tiny_lm.size)
    with pytest.raises(ValueError, match=f"max_length must be at most {tiny_lm.max_length - 10}"):
        decode(backend, [prefix], DecodingOptions(max_length=tiny_lm.max_length), [NEVER])
