"""Images in, captions out: the encoder and the LM loaded once, any mix of styles in one batch.

Legend: B images, E size of a CLIP embedding, K prefix length, D size of a token embedding.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipcap.checkpoint import CheckpointError, MapperCheckpoint, load_mapper
from clipcap.decoding import Hypothesis, decode_together
from clipcap.decoding.backends.base import Backend
from clipcap.decoding.backends.eager import EagerBackend
from clipcap.decoding.rerank import Candidate, Reranker, find_reranker
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel, LanguageModelError
from clipcap.mapper import Mapper
from clipcap.model import ClipCaptionModel
from clipcap.options import DecodingOptions

log = logging.getLogger(__name__)

TRIAL = 5  # tokens that a model writes on trial


@dataclass(frozen=True)
class Caption:
    """A caption and what speaks for it.

    log_probability: the mean of its tokens', 0 at best.
    confidence: the estimated probability, from 0 to 1, that it is right: that it names no thing which people who see
        the photo would not name. None where nothing was fitted that could tell.
    similarity: how near text and photo are by the two halves of the encoder, from -1 to 1; None where nobody compared.
    """

    text: str
    log_probability: float
    confidence: float | None = None
    similarity: float | None = None


class Captioner:
    """The frozen models of an installation; what writes a style comes with each call.

    `reranker` chooses captions and knows their confidence. One that was fitted with other models is left out with a
    warning, because captions are essential and it is not. `between` is called again and again while a batch is decoded:
    what cannot wait for its end is done there. `backend` makes what decodes, of a language model.
    """

    def __init__(
        self,
        encoder: Encoder,
        language_model: LanguageModel,
        reranker: Reranker | None = None,
        backend: Callable[[LanguageModel], Backend] = EagerBackend,
    ) -> None:
        self.encoder = encoder
        self.language_model = language_model
        self.backend = backend(language_model)
        self._backend_for = backend
        misfit = reranker.misfit(encoder, language_model) if reranker else None
        if misfit:
            log.warning("captions are taken from beam search without reranking and have no confidence: %s", misfit)
        self.reranker = None if misfit else reranker
        self.between: Callable[[], object] = lambda: None

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> "Captioner":
        """The models of a folder: encoder/, lm/ and, where there is one that can be used, reranking.json.

        Raises:
            ValueError: encoder or LM cannot be loaded; the message names the cause and the remedy.
        """
        return cls(
            Encoder.load(f"local-dir:{folder / 'encoder'}", device=device),
            LanguageModel.load(f"local-dir:{folder / 'lm'}", device=device),
            find_reranker(folder / "reranking.json"),
        )

    def load_model(self, path: Path, *, normalize: bool | None = None) -> ClipCaptionModel:
        """Read a mapper's file and make sure that it fits the models loaded and writes.

        Args:
            normalize: see `clipcap.checkpoint.load_mapper`.

        Raises:
            CheckpointError: the file is unusable, or made for other models.
        """
        checkpoint = load_mapper(path, lm_size=self.language_model.size, normalize=normalize)
        try:
            return self.adopt(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"mapper file {path} cannot be used: {error}") from error

    def adopt(self, checkpoint: MapperCheckpoint) -> ClipCaptionModel:
        """What a checkpoint holds, on the LM's device, after it has written a few words on trial.

        Raises:
            CheckpointError: as `build` and `try_out`.
        """
        model = self.build(checkpoint)
        self.try_out(model)
        return model

    def build(self, checkpoint: MapperCheckpoint) -> ClipCaptionModel:
        """What a checkpoint holds, on the LM's device. No model is run: another thread may be captioning meanwhile.

        Raises:
            CheckpointError: it was made for other models, or cannot end its captions with this LM.
        """
        lm = self.language_model
        checkpoint.check_fits(
            encoder=self.encoder.identity,
            embedding_size=self.encoder.embedding_size,
            language_model=lm.identity,
            lm_size=lm.size,
        )
        self.stop_id(checkpoint.mapper)
        own = None
        if checkpoint.weights and not lm.has(checkpoint.weights):  # GPT-2 is in the authors' files if it was frozen too
            try:
                own = lm.with_weights(checkpoint.weights)
            except LanguageModelError as error:
                raise CheckpointError(
                    f"the mapper was trained along with a language model, which its file contains, and {error}; "
                    f"load the language model that it started from"
                ) from error
        if checkpoint.adapters and (problem := checkpoint.adapters.misfit(lm)):
            raise CheckpointError(
                f"the mapper has adapters that are not for a language model like {lm.identity}: {problem}; load the "
                f"language model it was made for"
            )
        adapters = checkpoint.adapters.to(lm.device) if checkpoint.adapters else None
        return ClipCaptionModel(checkpoint.mapper.to(lm.device), own, adapters)

    def try_out(self, model: ClipCaptionModel) -> None:
        """Let a model write a few words.

        Raises:
            CheckpointError: it has no room for them, or answers with numbers that are none.
        """
        room = self.language_model.max_length - model.mapper.config.prefix_length
        if room < 1:
            raise CheckpointError(
                f"the mapper's prefixes of {model.mapper.config.prefix_length} leave no room for a caption in the "
                f"{self.language_model.max_length} positions of {self.language_model.identity}; load the language "
                f"model it was made for"
            )
        options = DecodingOptions("greedy", max_length=min(room, TRIAL))
        with torch.inference_mode():
            ((written,),) = self._written(self._grey, [model], [options], between=lambda: None)
        if not math.isfinite(written.log_probability):
            raise CheckpointError(
                f"the mapper's weights are finite, but what {self.language_model.identity} computes from them is not: "
                f"they are far too large, as after a training that diverged; train it again with a lower learning rate"
            )

    @cached_property
    def _grey(self) -> Tensor:
        """(1, E) the embedding of a picture without a subject, to try models on."""
        return self.encoder.encode([Image.new("RGB", (64, 64), "grey")])

    @torch.inference_mode()
    def caption(
        self, embeddings: Tensor, models: Sequence[ClipCaptionModel], options: DecodingOptions | None = None
    ) -> list[list[Caption]]:
        """Caption B embeddings, each by its own model, in one batch over the LM that they share, whatever adapters they
        add to it. Models with an LM of their own are decoded after them, each LM's rows in a batch of their own.

        Args:
            embeddings: (B, E) as `Encoder.encode` gives them.
            models: B models, the same one as often as needed; each mapper runs once over its rows.

        Returns:
            `options.captions` captions a row, best first; fewer where not as many different texts were found, and none
            where the row's model answers with numbers that are none.

        Raises:
            ValueError: numbers of embeddings and models differ, or the options do not fit the LM, or ask for reranking
                where it cannot be had.
        """
        options = options or DecodingOptions()
        if options.rerank and not self.reranker:
            raise ValueError(
                "rerank needs weights that were fitted for the loaded models, and there are none; leave it out, or "
                "fit them with recipes.reranking"
            )
        lm = self.language_model
        if not self.reranks(options):
            return [
                _sound([Caption(lm.decode(h.tokens), h.log_probability) for h in hypotheses])
                for hypotheses in self._written(embeddings, models, [options], self.between)
            ]
        assert self.reranker
        rows = self.candidates(embeddings, models, self.reranker.ways_for(options))
        vectors = self.encoder.encode_text([candidate.text for row in rows for candidate in row])
        captions = []
        for photo, row, texts in zip(embeddings, rows, vectors.split([len(row) for row in rows]), strict=True):
            chosen = self.reranker.judge(photo, row, texts)[: options.captions]
            captions.append(
                _sound(
                    [
                        Caption(row[c.place].text, row[c.place].log_probability, c.confidence, c.similarity)
                        for c in chosen
                    ]
                )
            )
        return captions

    def reranks(self, options: DecodingOptions) -> bool:
        """Whether captions are chosen by the reranker, and so have a confidence."""
        return self.reranker is not None and options.method == "beam" and options.rerank is not False

    @torch.inference_mode()
    def candidates(
        self, embeddings: Tensor, models: Sequence[ClipCaptionModel], ways: Sequence[DecodingOptions]
    ) -> list[list[Candidate]]:
        """What is written about each of (B, E) embeddings in all of `ways`, every text once; see `caption`.

        The last way has to sample: its texts are those that all are compared with.
        """
        written = self._written(embeddings, models, ways, self.between)
        return [
            self._different(hypotheses, ways[-1].captions, self.stop_id(model.mapper))
            for hypotheses, model in zip(written, models, strict=True)
        ]

    def _written(
        self,
        embeddings: Tensor,
        models: Sequence[ClipCaptionModel],
        ways: Sequence[DecodingOptions],
        between: Callable[[], object],
    ) -> list[list[Hypothesis]]:
        """What B models write about B embeddings in all of `ways`: a batch for each language model, in parts where
        keys and values would take too much memory."""
        if len(embeddings) != len(models):
            raise ValueError(f"{len(embeddings)} embeddings need as many models, not {len(models)}")
        rows_of: dict[LanguageModel | None, list[int]] = {}
        for row, model in enumerate(models):
            rows_of.setdefault(model.language_model, []).append(row)
        hypotheses = sum(max(way.captions, way.beam_size or 1) for way in ways)
        found: list[list[Hypothesis]] = [[] for _ in models]
        for own, rows in rows_of.items():
            # Those of one set of adapters stand together, which spares the LM gathering them at every projection.
            order = [models[row].adapters for row in rows]
            rows.sort(key=lambda row: order.index(models[row].adapters))
            backend = self._backend_for(own) if own else self.backend
            prefixes = self._prefixes(embeddings[rows], [models[row].mapper for row in rows])
            stops = [self.stop_id(models[row].mapper) for row in rows]
            adapters = [models[row].adapters for row in rows]
            positions = max(map(len, prefixes)) + max(way.max_length for way in ways)
            size = max(1, backend.together(positions) // hypotheses)
            for first in range(0, len(rows), size):
                part = slice(first, first + size)
                answers = decode_together(backend, prefixes[part], ways, stops[part], between, adapters[part])
                for row, answer in zip(rows[part], answers, strict=True):
                    found[row] = answer
        return found

    def _different(self, hypotheses: Sequence[Hypothesis], samples: int, stop: int) -> list[Candidate]:
        """Every text once; the last `samples` of the hypotheses are those that all are compared with."""
        texts = [self.language_model.decode(hypothesis.tokens) for hypothesis in hypotheses]
        found: dict[str, list[Hypothesis]] = {}
        for text, hypothesis in zip(texts, hypotheses, strict=True):
            found.setdefault(text, []).append(hypothesis)
        return [
            Candidate(
                text,
                log_probability=max(h.log_probability for h in same),
                samples=texts[-samples:].count(text),
                whole=bool(text) and any(h.tokens[-1] == stop for h in same),
            )
            for text, same in found.items()
        ]

    def _prefixes(self, embeddings: Tensor, mappers: Sequence[Mapper]) -> list[Tensor]:
        """(B, E) embeddings -> B prefixes (K, D)."""
        lm = self.language_model
        rows_of: dict[Mapper, list[int]] = {}
        for row, mapper in enumerate(mappers):
            rows_of.setdefault(mapper, []).append(row)
        prefixes: list[Tensor] = [embeddings] * len(mappers)  # each is replaced below
        for mapper, rows in rows_of.items():
            for row, prefix in zip(rows, mapper(embeddings[rows].to(lm.device, torch.float32)), strict=True):
                prefixes[row] = prefix
        return prefixes

    def stop_id(self, mapper: Mapper) -> int:
        """The token that ends this mapper's captions.

        Raises:
            CheckpointError: its stop text is not a single token of this LM.
        """
        text = mapper.config.stop_text
        if not text:
            return self.language_model.end_id
        ids = self.language_model.encode(text)
        if len(ids) != 1:
            raise CheckpointError(
                f"the mapper stops at {text!r}, which is {len(ids)} tokens of {self.language_model.identity}, not one; "
                f"load the language model it was made for"
            )
        return ids[0]


def _sound(captions: list[Caption]) -> list[Caption]:
    """The captions, or none where a number in them is none."""
    numbers = [n for c in captions for n in (c.log_probability, c.confidence, c.similarity) if n is not None]
    return captions if all(map(math.isfinite, numbers)) else []
