"""Images in, captions out: the encoder and the LM loaded once, any mix of mappers in one batch.

Legend: B images, E size of a CLIP embedding, K prefix length, D size of a token embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipcap.checkpoint import CheckpointError, MapperCheckpoint, load_mapper
from clipcap.decoding import decode
from clipcap.encoder import Encoder
from clipcap.language_model import LanguageModel
from clipcap.mapper import Mapper
from clipcap.options import DecodingOptions


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
    """The frozen models of an installation; mappers come with each call."""

    def __init__(self, encoder: Encoder, language_model: LanguageModel) -> None:
        self.encoder = encoder
        self.language_model = language_model

    def load_mapper(self, path: Path) -> Mapper:
        """Read a mapper and make sure that it fits the models loaded.

        Raises:
            CheckpointError: the file is unusable, or made for other models.
        """
        checkpoint = load_mapper(path, lm_size=self.language_model.size)
        try:
            return self.adopt(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"mapper file {path} cannot be used: {error}") from error

    def adopt(self, checkpoint: MapperCheckpoint) -> Mapper:
        """The checkpoint's mapper on the LM's device.

        Raises:
            CheckpointError: it was made for other models, or cannot end its captions with this LM.
        """
        checkpoint.check_fits(
            encoder=self.encoder.identity,
            embedding_size=self.encoder.embedding_size,
            language_model=self.language_model.identity,
            lm_size=self.language_model.size,
        )
        checkpoint.check_same_gpt2(self.language_model.model.state_dict(), self.language_model.identity)
        self.stop_id(checkpoint.mapper)
        return checkpoint.mapper.to(self.language_model.device)

    @torch.inference_mode()
    def caption(
        self, embeddings: Tensor, mappers: Sequence[Mapper], options: DecodingOptions | None = None
    ) -> list[list[Caption]]:
        """Caption B embeddings, each by its own mapper, in one batch over the LM.

        Args:
            embeddings: (B, E) as `Encoder.encode` gives them.
            mappers: B mappers, the same one as often as needed; each runs once over its rows.

        Returns:
            `options.captions` captions a row, best first.

        Raises:
            ValueError: numbers of embeddings and mappers differ, or the options do not fit the LM.
        """
        if len(embeddings) != len(mappers):
            raise ValueError(f"{len(embeddings)} embeddings need as many mappers, not {len(mappers)}")
        lm = self.language_model
        rows_of: dict[Mapper, list[int]] = {}
        for row, mapper in enumerate(mappers):
            rows_of.setdefault(mapper, []).append(row)
        prefixes: list[Tensor] = [embeddings] * len(mappers)  # each is replaced below
        for mapper, rows in rows_of.items():
            for row, prefix in zip(rows, mapper(embeddings[rows].to(lm.device, torch.float32)), strict=True):
                prefixes[row] = prefix
        stops = {mapper: self.stop_id(mapper) for mapper in rows_of}
        answers = decode(lm, prefixes, options or DecodingOptions(), [stops[mapper] for mapper in mappers])
        return [[Caption(lm.decode(h.tokens), h.log_probability) for h in hypotheses] for hypotheses in answers]

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
