"""The rows of the table: what ours and the original's algorithm do, on the same models.

Each function builds one group of rows for one subject. A group's check makes sure that both sides answer the same;
only then may its rows be timed.
"""

import copy
import io
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from open_clip.transform import image_transform_v2
from PIL import Image
from torch import Tensor, nn

from benchmarks import original
from benchmarks.subjects import Subject, copies, jpeg
from clipcap.adapters import Adapters
from clipcap.captioner import Caption, Captioner
from clipcap.decoding import Hypothesis, decode
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.device import autocast, multiplies_bfloat16, multiplies_int8, training_attention
from clipcap.fast_tower import SAME, OneByOne
from clipcap.int8 import in_int8
from clipcap.mapper import MapperConfig, build_mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions
from clipcap.training.loss import caption_loss

BEAMS = 5
CAPTIONS = 40  # in a training batch
PER_IMAGE = 5
ROUNDING = 1e-5  # of a mean log-probability in float32


class DisagreementError(Exception):
    """Ours and the original answer differently, so comparing their speed would mean nothing."""


@dataclass(frozen=True)
class Comparison:
    """A row of the table. Each side does a number of items at a call, and times count per item; `note` says how."""

    name: str
    ours: Callable[[], object]
    other: Callable[[], object]
    ours_items: int = 1
    other_items: int = 1
    target: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Rows, and what must hold before they are timed: `check` raises DisagreementError where it does not."""

    check: Callable[[], None]
    comparisons: list[Comparison]


def greedy(subject: Subject) -> Group:
    """Greedy decoding at batch 1 and at the full batch."""
    sizes, lm = subject.sizes, subject.lm
    options = DecodingOptions("greedy", max_length=subject.limit)
    ours = _ours(subject, options)

    def other(images: int) -> list[list[int]]:
        prefixes = subject.prefixes[:images]
        with _device(subject), torch.no_grad():
            return [original.greedy(lm.model, p, subject.stop_id, subject.limit) for p in prefixes]

    def check() -> None:
        expected = other(sizes.peer_greedy)
        _agree(subject, "greedy, batch 1", ours(1)[0], expected)
        _agree(subject, f"greedy, batch {sizes.batch}", [best for best, *_ in ours(sizes.batch)], expected)

    rows = [
        Comparison("greedy, batch 1", lambda: ours(1), lambda: other(1)),
        Comparison(
            f"greedy, batch {sizes.batch}",
            lambda: ours(sizes.batch),
            lambda: other(sizes.peer_greedy),
            sizes.batch,
            sizes.peer_greedy,
            target=16,
            note=f"the original: {sizes.peer_greedy} images, scaled",
        ),
    ]
    return Group(check, rows)


def beam(subject: Subject) -> Group:
    """Beam search at batch 1 and at the full batch."""
    sizes, lm = subject.sizes, subject.lm
    options = DecodingOptions("beam", BEAMS, subject.limit, beam_size=BEAMS)
    ours = _ours(subject, options)

    def other(images: int) -> list[list[list[int]]]:
        prefixes = subject.prefixes[:images]
        with _device(subject), torch.no_grad():
            return [original.beam(lm.model, p, subject.stop_id, subject.limit, BEAMS) for p in prefixes]

    def check() -> None:
        expected = other(sizes.peer_beam)
        for count in (1, sizes.batch):
            answers = decode(EagerBackend(lm), subject.prefixes[:count], options, [subject.stop_id] * count)
            for got, wanted in zip(answers, expected, strict=False):
                tokens = [hypothesis.tokens for hypothesis in got]
                _agree(subject, f"beam {BEAMS}, batch {count}", tokens, ties_in_our_order(got, wanted))

    counted = "1 image" if sizes.peer_beam == 1 else f"{sizes.peer_beam} images"
    rows = [
        Comparison(f"beam {BEAMS}, batch 1", lambda: ours(1), lambda: other(1), target=4),
        Comparison(
            f"beam {BEAMS}, batch {sizes.batch}",
            lambda: ours(sizes.batch),
            lambda: other(sizes.peer_beam),
            sizes.batch,
            sizes.peer_beam,
            note=f"the original: {counted}, scaled",
        ),
    ]
    return Group(check, rows)


def styles(subject: Subject) -> Group:
    """A batch of mixed styles against a batch of one style, ours against ours."""
    sizes = subject.sizes
    captioner = Captioner(subject.encoder, subject.lm)
    options = DecodingOptions("greedy", max_length=subject.limit)

    def caption(count: int, rank: int = 0) -> Callable[[], list[str]]:
        models = [ClipCaptionModel(mapper) for mapper in copies(subject.mapper, count)]
        if rank:  # that add nothing yet, so that captions are as long, and cost what any would
            models = [
                replace(model, adapters=Adapters.new(subject.lm, rank, seed).to(subject.lm.device))
                for seed, model in enumerate(models)
            ]
        rows = [models[row % count] for row in range(sizes.batch)]
        return lambda: [best.text for best, *_ in captioner.caption(subject.embeddings, rows, options)]

    few = min(8, sizes.batch)
    one, mixed, all_different = caption(1), caption(few), caption(sizes.batch)
    adapted = caption(few, rank=8)

    def check() -> None:
        texts = one()
        for count, run in ((few, mixed), (sizes.batch, all_different), (few, adapted)):
            if run() != texts:
                raise DisagreementError(f"{subject.name}, {count} styles mixed: not the captions that one style gets")

    rows = [
        Comparison(f"{few} styles mixed in a batch of {sizes.batch}, against one style", mixed, one, target=0.95),
        Comparison(f"{sizes.batch} styles mixed in a batch of {sizes.batch}, against one style", all_different, one),
        Comparison(
            f"{few} adapted styles (rank 8) mixed in a batch of {sizes.batch}, against one style without adapters",
            adapted,
            one,
            target=0.8,
        ),
    ]
    return Group(check, rows)


def reranking(subject: Subject) -> Group:
    """Captions chosen by a look back at the photo against beam search, ours against ours."""
    captioner = Captioner(subject.encoder, subject.lm, subject.reranker)
    if captioner.reranker is None:
        return Group(lambda: None, [])
    reranked, beam_only = (DecodingOptions("beam", BEAMS, subject.limit, rerank=rerank) for rerank in (True, False))
    file, batch, model = jpeg(*subject.sizes.photo), subject.sizes.batch, ClipCaptionModel(subject.mapper)

    def decoded(count: int, options: DecodingOptions) -> list[list[Caption]]:
        return captioner.caption(subject.embeddings[:count], [model] * count, options)

    def from_file(count: int, options: DecodingOptions) -> object:
        return captioner.caption(subject.fast_encoder.encode([file] * count), [model] * count, options)

    def check() -> None:
        for number, together in enumerate(decoded(batch, reranked)):
            (alone,) = captioner.caption(subject.embeddings[number, None], [model], reranked)
            if [caption.text for caption in alone] != [caption.text for caption in together]:
                raise DisagreementError(f"{subject.name}, reranking: photo {number} alone gets other captions")

    note = f"against beam {BEAMS}"
    rows = [
        Comparison(name, partial(call, options=reranked), partial(call, options=beam_only), target=target, note=note)
        for name, call, target in (
            ("photo to reranked caption, batch 1", partial(from_file, 1), 0.5),
            (f"photos to reranked captions, batch {batch}", partial(from_file, batch), 0.5),
            ("reranked captions of embeddings, batch 1", partial(decoded, 1), None),
            (f"reranked captions of embeddings, batch {batch}", partial(decoded, batch), None),
        )
    ]
    return Group(check, rows)


def precision(subject: Subject) -> Group:
    """Embeddings in the precision that captions are made with, and in 8-bit integers, against float32, ours against
    ours."""
    fast, exact = subject.fast_encoder, subject.encoder
    if fast is exact:
        return Group(lambda: None, [])
    pixels = torch.stack([exact.preprocess(jpeg(side, side)) for side in range(240, 240 + 8 * 20, 20)])
    encoders = {"embeddings as captioned with": fast}
    # Where there is no bfloat16, that is the one above.
    if exact.device.type == "cpu" and multiplies_int8() and multiplies_bfloat16(exact.device):
        encoders["embeddings in 8-bit integers"] = rounded = copy.copy(exact)
        rounded.tower = OneByOne(in_int8(exact.tower))

    def check() -> None:
        for name, encoder in encoders.items():
            cosine = float(torch.cosine_similarity(encoder.encode_pixels(pixels), exact.encode_pixels(pixels)).min())
            if cosine < SAME:
                raise DisagreementError(f"{subject.name}, {name}: they have a cosine of {cosine:.5f}")

    rows = [
        Comparison(
            f"{name}, batch {count}",
            partial(encoder.encode_pixels, pixels[:count]),
            partial(exact.encode_pixels, pixels[:count]),
            note="against float32",
        )
        for name, encoder in encoders.items()
        for count in (1, len(pixels))
    ]
    return Group(check, rows)


def images(subject: Subject) -> Group:
    """A large JPEG: decoding it, and the whole way to a greedy caption.

    The pixels differ slightly, as ours decodes the JPEG at a fraction of its size, and so the captions may.
    """
    lm, encoder, mapper = subject.lm, subject.encoder, subject.mapper
    file = jpeg(*subject.sizes.photo)
    transform = image_transform_v2(encoder.preprocessing, is_train=False)
    options = DecodingOptions("greedy", max_length=subject.limit)

    def read() -> Tensor:
        pixels: Tensor = transform(Image.open(io.BytesIO(file)))
        return pixels

    @torch.inference_mode()
    def ours() -> object:
        prefixes = mapper(encoder.encode([file]).to(lm.device))
        return decode(EagerBackend(lm), list(prefixes), options, [subject.stop_id])

    @torch.no_grad()
    def other() -> object:
        prefix = mapper(encoder.tower(read()[None].to(lm.device)))[0]
        with _device(subject):
            return original.greedy(lm.model, prefix, subject.stop_id, subject.limit)

    def check() -> None:
        difference = (encoder.preprocess(file) - read()).abs().mean().item()
        if difference > 0.1:  # in standard deviations of a pixel
            raise DisagreementError(f"{subject.name}, JPEG: pixels differ by {difference:.2f} deviations in the mean")

    width, height = subject.sizes.photo
    megapixels = f"{width * height / 1e6:.0f}-megapixel JPEG"
    rows = [
        Comparison(f"{megapixels} to pixels for CLIP", lambda: encoder.preprocess(file), read),
        Comparison(f"{megapixels} to caption (greedy, batch 1)", ours, other),
    ]
    return Group(check, rows)


def training(subject: Subject) -> Group:
    """One training step of a Transformer mapper with prefix 10."""
    lm = subject.lm
    captions, length = _captions(lm.vocabulary)
    end_id = lm.vocabulary - 1  # not 0, which ends captions in `models/base`: the original takes it for padding
    images = [captions[first : first + PER_IMAGE] for first in range(0, CAPTIONS, PER_IMAGE)]
    size = subject.embedding_size
    embeddings = torch.randn(len(images), size, generator=torch.Generator().manual_seed(6))
    torch.manual_seed(7)
    config = MapperConfig("transformer", size, lm.size, layers=subject.sizes.mapper_layers)
    mapper = build_mapper(config).to(lm.device)
    parameters = list(mapper.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def ours(precision: str, attention: Callable[..., AbstractContextManager[Any]] = training_attention) -> float:
        optimizer.zero_grad(set_to_none=True)
        with attention(lm.device, precision):
            with autocast(lm.device, precision):
                loss = caption_loss(mapper, lm, embeddings, images, end_id)
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    def fused(*_: object) -> AbstractContextManager[Any]:
        return nullcontext()

    repeated = embeddings.repeat_interleave(PER_IMAGE, 0).to(lm.device)
    ended = [[*caption, end_id] for caption in captions]  # both learn to end a caption

    def other() -> float:
        lm.model.requires_grad_(True)  # as the original has it
        try:
            with _device(subject):
                return original.training_step(lm.model, mapper, optimizer, repeated, ended, length)
        finally:
            lm.model.requires_grad_(False)
            lm.model.zero_grad(set_to_none=True)

    def check() -> None:
        with torch.no_grad():
            loss = caption_loss(mapper, lm, embeddings, images, end_id).item()
        expected = other()
        if abs(loss - expected) > 1e-4 * abs(expected):
            raise DisagreementError(f"{subject.name}, training step: loss {loss}, where the original has {expected}")

    name, note = f"training step, {CAPTIONS} captions", f"the original: {length} tokens each, fp32"
    rows = [Comparison(f"{name}, fp32", lambda: ours("float32"), other, target=3, note=note)]
    if multiplies_bfloat16(lm.device):
        rows.append(Comparison(f"{name}, bf16", lambda: ours("bfloat16"), other, target=3, note=note))
        kernel = "torch's own attention"
        rows.append(Comparison(f"{name}, bf16", lambda: ours("bfloat16"), lambda: ours("bfloat16", fused), note=kernel))
    return Group(check, rows)


GROUPS: dict[str, Callable[[Subject], Group]] = {
    "greedy": greedy,
    "beam": beam,
    "styles": styles,
    "reranking": reranking,
    "precision": precision,
    "images": images,
    "training": training,
}


def _ours(subject: Subject, options: DecodingOptions) -> Callable[[int], list[list[tuple[int, ...]]]]:
    def run(count: int) -> list[list[tuple[int, ...]]]:
        answers = decode(EagerBackend(subject.lm), subject.prefixes[:count], options, [subject.stop_id] * count)
        return [[hypothesis.tokens for hypothesis in row] for row in answers]

    return run


def ties_in_our_order(ours: list[Hypothesis], expected: list[list[int]]) -> list[list[int]]:
    """The original's hypotheses; in our order if they are the same and change places only where their mean
    log-probabilities differ by less than float32 can tell."""
    means = {hypothesis.tokens: hypothesis.log_probability for hypothesis in ours}
    if means.keys() == {tuple(tokens) for tokens in expected} and all(
        abs(hypothesis.log_probability - means[tuple(tokens)]) < ROUNDING
        for hypothesis, tokens in zip(ours, expected, strict=True)
    ):
        return [list(hypothesis.tokens) for hypothesis in ours]
    return expected


def _agree(subject: Subject, what: str, ours: list[tuple[int, ...]], expected: list[list[int]]) -> None:
    """Compares as many captions as the original wrote."""
    for number, (got, wanted) in enumerate(zip(ours, expected, strict=False)):
        if list(got) != wanted:
            raise DisagreementError(
                f"{subject.name}, {what}: caption {number} is {list(got)}, where the original writes {wanted}"
            )


def _device(subject: Subject) -> AbstractContextManager[Any]:
    """Where the original, which names no device, makes its tensors."""
    device = subject.lm.device
    return nullcontext() if device.type == "cpu" else device


def _captions(vocabulary: int) -> tuple[list[list[int]], int]:
    """Captions of made-up tokens, as long as COCO's, and the length that the original pads them to.

    COCO's captions have 8 to 16 tokens of GPT-2, and one in two hundred is far longer. The original pads each batch
    to the mean length of the whole dataset plus ten deviations, or to the longest if that is less; the batch itself
    has captions of ordinary length.
    """
    rng = random.Random(0)
    lengths = [round(rng.triangular(8, 16, 10.5)) for _ in range(5000)]
    ordinary = lengths[:CAPTIONS]
    dataset = torch.tensor([*lengths, *(rng.randint(20, 50) for _ in range(25))], dtype=torch.float)
    length = min(int(dataset.mean() + 10 * dataset.std()), int(dataset.max()))
    return [[rng.randrange(1, vocabulary - 1) for _ in range(n)] for n in ordinary], length
