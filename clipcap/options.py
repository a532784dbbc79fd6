"""DecodingOptions: how captions are decoded. TrainingChoices: what people choose of a training.

Without torch, so that the web process can check what it is asked for.
"""

from dataclasses import dataclass
from typing import Literal

from clipcap.choices import check_options, option

MOST_CAPTIONS = 40  # of an automatic batch, as in the paper
METHODS = ("greedy", "beam", "nucleus")
UNSURE_BELOW = 0.5  # of a confidence: a caption that is as likely wrong as right is none to rely on


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded; what is None takes the default of the method.

    method: greedy, beam or nucleus.
    captions: how many per image; the beam's best, or as many samples.
    max_length: in tokens; a caption that has not ended by then is cut.
    beam_size: hypotheses kept (beam only; 5).
    temperature: divides the logits (nucleus only; 1.0).
    top_p: the probability mass that is sampled from (nucleus only; 0.9).
    seed: makes samples repeatable, whatever else is in the batch (nucleus only).
    rerank: whether captions are chosen among the beam's and samples by a look back at the photo (beam only); None is
        yes where the captioner has a reranker that fits its models.
    """

    method: Literal["greedy", "beam", "nucleus"] = "beam"
    captions: int = 1
    max_length: int = 40
    beam_size: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    rerank: bool | None = None

    def __post_init__(self) -> None:
        reject_contradictions(self)


@dataclass(frozen=True)
class TrainingChoices:
    """What people choose of a training; `clipcap.training.for_trainer` makes the trainer's options of it.

    Raises:
        OptionError: one of them has no sense.
    """

    epochs: int | None = option(
        None,
        "Maximum number of passes over the examples.",
        within=(1, 200),
        automatic="until the loss on the held-out photos stops improving",
    )
    learning_rate: float | None = option(
        None,
        "Lower it if the loss jumps.",
        within=(1e-9, 1.0),
        automatic="0.001 for a new mapper, 0.0003 for one that is trained further",
    )
    batch_size: int | None = option(
        None,
        "Captions per step.",
        within=(1, 1024),
        automatic=f"{MOST_CAPTIONS}, or a tenth of the captions where there are few",
    )
    accumulation: int = option(
        1,
        "Parts that a step is computed in, one after the other: more of them take less memory and more time.",
        within=(1, 64),
    )
    recompute: Literal["yes", "no"] | None = option(
        None,
        "Whether a step computes the language model's layers a second time in place of keeping all that they computed "
        "(gradient checkpointing): less memory, a third more time, the same result.",
        choices={"yes": "yes", "no": "no"},
        automatic="only where memory would not suffice otherwise",
    )
    noise: float = option(
        0.25, "Noise added to the photo embeddings, against overfitting on few examples; 0 for none.", within=(0.0, 2.0)
    )
    seed: int = option(0, "The same seed, options and examples give the same mapper.", within=(0, 2**31 - 1))
    mapper: Literal["transformer", "mlp"] = option(
        "transformer", "From scratch only: kind of network.", choices={"transformer": "Transformer", "mlp": "MLP"}
    )
    language_model: Literal["frozen", "adapters", "finetuned"] | None = option(
        None,
        "Whether the language model learns too: in low-rank adapters (LoRA), which make a style little larger, or in a "
        "copy of its own, which makes it larger by the whole language model.",
        choices={"frozen": "frozen", "adapters": "adapters", "finetuned": "fine-tuned"},
        automatic="as before if a style is trained further; else frozen with a Transformer, fine-tuned with an MLP",
    )
    rank: int = option(8, "Adapters only: their rank.", within=(1, 64))
    targets: Literal["both", "attention", "mlp"] = option(
        "both",
        "Adapters only: which parts of the language model's layers get them. Fewer make a style smaller.",
        choices={"both": "attention and MLP", "attention": "attention", "mlp": "MLP"},
    )
    language_model_learning_rate: float | None = option(
        None,
        "Of adapters or a fine-tuned language model.",
        within=(1e-9, 1.0),
        automatic="0.00002 for a fine-tuned language model, 0.0005 for adapters",
    )
    prefix_length: int = option(10, "From scratch only: number of vectors given to the language model.", within=(1, 64))
    layers: int = option(4, "From scratch only: layers of a Transformer.", within=(1, 16))

    def __post_init__(self) -> None:
        check_options(self)

    def learning(self, mapper: str, before: str | None) -> str:
        """`language_model`, with what is automatic decided.

        Args:
            mapper: kind of the mapper.
            before: the same of what is trained further; None for a new mapper.
        """
        return self.language_model or before or ("finetuned" if mapper == "mlp" else "frozen")


def is_unsure(confidence: float | None, below: float = UNSURE_BELOW) -> bool:
    """Whether a caption of this confidence is to be called unsure; one that nobody could judge is not."""
    return confidence is not None and confidence < below


def reject_contradictions(options: DecodingOptions) -> None:
    """The one place that says which options go together.

    Raises:
        ValueError: naming the option, what is wrong with it and what would be right.
    """
    method = options.method
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    for name, owner in {"beam_size": "beam", "temperature": "nucleus", "top_p": "nucleus", "seed": "nucleus"}.items():
        if getattr(options, name) is not None and method != owner:
            raise ValueError(f"{name} only has an effect with method {owner!r}, not with {method!r}")
    if options.rerank is not None and not isinstance(options.rerank, bool):
        raise ValueError(f"rerank must be true, false or left out, not {options.rerank!r}")
    if options.rerank and method != "beam":
        raise ValueError(f"rerank only has an effect with method 'beam', not with {method!r}")
    for name in ("captions", "max_length", "beam_size"):
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    if method == "greedy" and options.captions > 1:
        raise ValueError("captions must be 1 with method 'greedy', which has one answer; use 'beam' or 'nucleus'")
    if method == "beam" and options.captions > (options.beam_size or 5):
        raise ValueError(f"captions ({options.captions}) cannot exceed beam_size ({options.beam_size or 5})")
    if options.temperature is not None and not 0 < options.temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, not {options.temperature}; for no randomness use 'greedy'")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {options.top_p}")
    if options.seed is not None and (type(options.seed) is not int or not 0 <= options.seed < 2**63):
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, not {options.seed}")
