"""Choosing captions by a look back at the photo, and how sure of them we are, on small models of both halves."""

import copy
import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clipcap.captioner import Caption, Captioner
from clipcap.checkpoint import MapperCheckpoint, save_mapper
from clipcap.cli import main
from clipcap.decoding.rerank import FEATURES, Candidate, Reranker, RerankingError
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.mapper import MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import METHODS, UNSURE_BELOW, DecodingOptions
from tests.test_decoding import adapters_of

SIZE = 16
WAYS = (
    DecodingOptions("beam", captions=3, beam_size=3, max_length=12),
    DecodingOptions("nucleus", captions=6, temperature=1.5, top_p=0.95, seed=1, max_length=12),
)


def reranker(**changes: Any) -> Reranker:
    generator = torch.Generator().manual_seed(0)
    return replace(
        Reranker(
            encoder="tiny@0",
            text="tiny@0",
            language_model="lm@0",
            ways=WAYS,
            choice={"similarity": 4.0, "wording": 1.0, "log_probability": 0.5},
            confidence={"similarity": 3.0, "strangeness": -0.5, "candidates_wording": 1.0},
            intercept=0.25,
            photo_mean=(0.1 * torch.randn(SIZE, generator=generator)).half().double(),
            text_mean=(0.1 * torch.randn(SIZE, generator=generator)).half().double(),
            whitening=torch.randn(4, SIZE, generator=generator).half().double(),
            rarity={"a": 0.5, "dog": 3.0},
            stock={"the whole world waits for": 0.25},
            notes={"fitted on": "nothing"},
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def models(tiny_lm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models such as comes with the project: an encoder of two halves, a language model, two styles and
    weights for choosing."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "lm").symlink_to(tiny_lm_dir)
    encoder = folder / "encoder"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_lm_dir)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=40,
    ).save_pretrained(encoder)
    text = {"context_length": 40, "vocab_size": 300, "width": 16, "heads": 2, "layers": 2, "hf_tokenizer_name": "local"}
    config = {
        "embed_dim": SIZE,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": text | {"pool_type": "eos", "pad_id": 0, "eos_id": 0},
    }
    (encoder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{encoder}", load_weights=False)
    save_file(clip.state_dict(), encoder / "open_clip_model.safetensors")
    loaded = Captioner.load(folder, device="cpu")
    identities = loaded.encoder.identity, loaded.language_model.identity
    for number, style in enumerate(("plain", "odd")):
        torch.manual_seed(number)
        mapper = build_mapper(MapperConfig("mlp", SIZE, 32, prefix_length=3 + number))
        with torch.no_grad():
            mapper.out.weight.mul_(8)  # type: ignore[union-attr, operator]  # so that photos differ in their captions
        save_mapper(MapperCheckpoint(mapper, *identities), folder / "styles" / f"{style}.safetensors")
    fitting(loaded).save(folder / "reranking.json")
    return folder


def fitting(captioner: Captioner, **changes: Any) -> Reranker:
    """One for the models of `captioner`."""
    return reranker(
        encoder=captioner.encoder.identity,
        text=captioner.encoder.text_identity,
        language_model=captioner.language_model.identity,
        **changes,
    )


@pytest.fixture(scope="module")
def captioner(models: Path) -> Captioner:
    return Captioner.load(models, device="cpu")


@pytest.fixture(scope="module")
def mappers(captioner: Captioner, models: Path) -> list[ClipCaptionModel]:
    return [captioner.load_model(path) for path in sorted((models / "styles").iterdir())]


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(5, SIZE, generator=torch.Generator().manual_seed(3))


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


def test_a_batch_that_is_worked_off_in_parts_gets_the_same_captions(
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
def test_any_texts_can_be_judged_and_those_that_are_not_whole_come_last(
    texts: list[str], values: st.DataObject
) -> None:
    candidates = [
        Candidate(
            text,
            values.draw(st.floats(-20, 0)),
            values.draw(st.integers(1, 9)),
            values.draw(st.booleans()),
        )
        for text in texts
    ]
    generator = torch.Generator().manual_seed(values.draw(st.integers(0, 9)))
    vectors = torch.randn(len(texts), SIZE, generator=generator) * values.draw(st.sampled_from([0.0, 1.0]))
    judged = reranker().judge(torch.randn(SIZE, generator=generator), candidates, vectors)
    assert sorted(judgement.place for judgement in judged) == list(range(len(texts)))
    whole = [candidates[judgement.place].whole for judgement in judged]
    assert whole == sorted(whole, reverse=True)
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


def test_a_text_that_was_written_often_agrees_with_itself() -> None:
    texts = [Candidate("a dog runs on grass", -1.0, count=9), Candidate("two cats sleep in boxes", -1.0)]
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


# The file


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    reranker().save(tmp_path / "reranking.json")
    read = Reranker.load(tmp_path / "reranking.json")
    for name, value in vars(reranker()).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(getattr(read, name), value)
        else:
            assert getattr(read, name) == value


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is in a good file."""
    path = tmp_path_factory.mktemp("weights") / "reranking.json"
    reranker().save(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_weights_that_are_missing_are_an_error_that_names_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(RerankingError, match=r"nowhere\.json cannot be read.*copy all models again"):
        Reranker.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "clipcap-reranking-9"}, "has format 'clipcap-reranking-9', this version reads"),
        ({"encoder": 3}, "encoder must be a text, not '3'"),
        ({"ways": []}, "ways must name one at least"),
        ({"ways": [{"method": "nucleus"}]}, "and a seed where it samples"),
        ({"ways": [{"method": "magic"}]}, "method must be one of"),
        ({"ways": [{"method": "beam", "heat": 1}]}, "heat"),
        ({"choice": {"luck": 1.0}}, r"choice has 'luck', which is not one of log_probability"),
        ({"choice": {"strangeness": 1.0}}, "choice has 'strangeness'"),
        ({"confidence": {"words": "many"}}, r"confidence\['words'\] must be a number, not 'many'"),
        ({"intercept": float("nan")}, "intercept must be a number, not nan"),
        ({"intercept": True}, "intercept must be a number"),
        ({"photo_mean": {"shape": [3], "float16": "AAAA"}}, "photo_mean has 3 bytes"),
        ({"photo_mean": {"shape": [1], "float16": "AHw="}}, "photo_mean contains values that are not finite"),
        ({"text_mean": {"shape": [2], "float16": "AAAAAA=="}}, "embeddings of different sizes"),
        ({"whitening": {"shape": [16], "float16": "AAAA"}}, r"whitening has the shape \[16\]"),
        ({"whitening": {"shape": [0, 16], "float16": ""}}, "whitening has the shape"),
    ],
)
def test_a_file_that_is_no_good_is_an_error_that_names_the_cause(
    content: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "reranking.json"
    path.write_text(json.dumps(content | changes))
    with pytest.raises(RerankingError, match=message):
        Reranker.load(path)


def test_models_with_weights_that_are_no_good_caption_without_them(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in models.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "reranking.json").unlink()
    assert Captioner.load(tmp_path, device="cpu").reranker is None
    assert not caplog.records
    (tmp_path / "reranking.json").write_text("{")
    assert Captioner.load(tmp_path, device="cpu").reranker is None
    assert "reranking.json is damaged" in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_file_it_is_read_or_refused(
    content: dict[str, Any], data: st.DataObject, tmp_path: Path
) -> None:
    changed = copy.deepcopy(content)
    place: Any = changed
    while isinstance(place, dict | list) and place:
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.sampled_from(range(len(place)))
        )
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    path = tmp_path / "reranking.json"
    path.write_text(json.dumps(changed))
    try:
        read = Reranker.load(path)
    except RerankingError:
        return
    read.judge(torch.ones(SIZE), [Candidate("a dog", -1.0)], torch.ones(1, SIZE))


@given(raw=st.binary(max_size=40))
def test_bytes_that_are_no_file_of_ours_are_refused(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "reranking.json"
    path.write_bytes(raw)
    with pytest.raises(RerankingError):
        Reranker.load(path)


# The options


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


# The command


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return str(path)


def test_the_command_shows_how_likely_a_caption_is_right_and_which_are_unsure(
    models: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [picture, "--models", str(models), "--device", "cpu", "--max-length", "12"]
    assert main(["caption", *common, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["caption", *common]) == 0
    shown = capsys.readouterr().out
    for line in lines:
        assert 0 < line["confidence"] < 1
        assert line["unsure"] == (line["confidence"] < UNSURE_BELOW)
        assert f"({line['confidence']:.0%}{', unsure' if line['unsure'] else ''})" in shown
        assert line["log_probability"] < 0
        assert line["withheld"] is None
        assert all(0 < other["confidence"] < 1 for other in line["alternatives"])


def test_the_command_withholds_on_request_what_is_less_likely_right(
    models: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [picture, "--models", str(models), "--device", "cpu", "--max-length", "12", "--style", "plain"]
    assert main(["caption", *common, "--json", "--min-confidence", "1"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["caption"] == ""
    assert line["alternatives"] == []
    assert "is below 100%" in line["withheld"]["detail"]
    assert main(["caption", *common, "--min-confidence", "1"]) == 0
    assert "withheld" in capsys.readouterr().out
    assert main(["caption", *common, "--json", "--min-confidence", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-confidence", "1.5"], "--min-confidence must be from 0 to 1"),
        (["--min-confidence", "nan"], "--min-confidence must be from 0 to 1"),
        (["--min-confidence", "0.5", "--no-rerank"], "--min-confidence needs captions that have a confidence"),
        (["--min-confidence", "0.5", "--method", "greedy"], "--min-confidence needs captions that have a confidence"),
    ],
)
def test_the_command_says_what_it_cannot_judge(
    models: Path, picture: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", picture, "--models", str(models), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_without_reranking_shows_captions_without_a_confidence(
    models: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "caption",
                picture,
                "--models",
                str(models),
                "--device",
                "cpu",
                "--max-length",
                "12",
                "--no-rerank",
                "--json",
            ]
        )
        == 0
    )
    for line in capsys.readouterr().out.splitlines():
        assert json.loads(line)["confidence"] is None
        assert json.loads(line)["unsure"] is False
