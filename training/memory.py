"""How much memory a run needs, estimated before it is queued. Without torch, so that the web process can ask.

A training step keeps what the LM and the mapper computed of every caption until the gradient has come back to the
prefix; where the LM learns too, in adapters or as a whole, also what went into each of its projections. How often each
part is kept was measured on a CPU in float32, with prefixes of 10 to 64 vectors, both kinds of mapper and batches of
128 and 256: the estimate was within 15 % of the peak. With an LM of 29 million parameters that learned too and smaller
batches it was from 5 % below the peak to 25 % above.

In bfloat16 on a CPU the scores of attention are kept too, and many captions of one image are a long row; it is less
all the same. Beside `models/base` a step with 128 captions was found to keep 289 MiB in float32 and 251 MiB in bfloat16
where each has an image of its own, 188 and 184 MiB with five an image, 164 and 252 MiB with forty.
"""

from captioner.models import MapperVersion
from captioner.reports import Capacity, MapperReport
from clipcap.options import MOST_CAPTIONS
from training.options import RunOptions

CAPTION = 20  # tokens; an image with several captions takes less than its captions one by one, as counted here
CLIP_LENGTH = 10
FLOAT = 4  # bytes
LM_KEEPS, ATTENTION_KEEPS, LOGITS_KEEP, MAPPER_KEEPS = 22, 6, 8, 16
PROJECTIONS_KEEP = {"attention": 2, "mlp": 5, "both": 7}  # into attention and out of it; into the MLP and its middle
ADAPTERS_TAKE = {"attention": 6, "mlp": 10, "both": 16}  # a narrow matrix on either side of each projection
PARAMETERS_KEPT = 5  # weights, gradient, AdamW's two moments, and the best weights so far
STATE_KEEPS = 4  # while it is stored: the same without the gradient, once more


def of_run(
    options: RunOptions, base: MapperVersion | None, capacity: Capacity, images: int, *, recompute: bool
) -> float:
    """What a run needs beside the loaded models, in MiB.

    Args:
        base: the version that is trained further.
        recompute: as in `megabytes`, whatever the options say of it.
    """
    shape, learning = shape_of(options, base)
    batch = (options.batch_size or MOST_CAPTIONS) / options.accumulation
    rank, targets = shape.rank or options.rank, shape.targets or options.targets
    return megabytes(shape, batch, capacity, images, learning, rank, targets, recompute=recompute)


def shape_of(options: RunOptions, base: MapperVersion | None) -> tuple[MapperReport, str]:
    """The shape of the mapper that a run trains, and what becomes of the LM."""
    if base:
        return base.mapper, options.learning(base.mapper.kind, base.mapper.language_model)
    new = MapperReport(options.mapper, options.prefix_length, layers=options.layers)
    return new, options.learning(new.kind, None)


def megabytes(
    shape: MapperReport,
    batch_size: float,
    capacity: Capacity,
    images: int,
    learning: str = "frozen",
    rank: int = 0,
    targets: str = "both",
    recompute: bool = False,
) -> float:
    """What a run needs beside the loaded models, in MiB.

    Args:
        shape: of the mapper.
        batch_size: captions that are computed at a time.
        capacity: a worker's; what all of its processes need is counted together, as its memory is.
        images: in the dataset; their embeddings are held twice for a moment.
        learning: what becomes of the LM, as `TrainingChoices.learning` says.
        rank, targets: of adapters.
        recompute: whether only what goes into each layer of the LM is kept, and one layer at a time computed again.
    """
    prefix = shape.prefix_length
    size = capacity.lm_size
    whole_lm = (capacity.vocabulary + 12 * size * capacity.lm_layers) * size
    row = prefix + CAPTION
    lm = LM_KEEPS * row * size + ATTENTION_KEEPS * capacity.lm_heads * row**2
    logits = LOGITS_KEEP * (CAPTION + 1) * capacity.vocabulary
    if shape.kind == "mlp":
        hidden = shape.hidden_size or prefix * size // 2
        parameters, mapper = (capacity.embedding_size + prefix * size) * hidden, 0
    else:
        clip, layers_of_mapper = shape.clip_length or CLIP_LENGTH, shape.layers or 0
        parameters = (capacity.embedding_size * clip + 8 * size * layers_of_mapper) * size
        mapper = MAPPER_KEEPS * (clip + prefix) * size * layers_of_mapper
    if learning != "frozen":
        lm += PROJECTIONS_KEEP[targets if learning == "adapters" else "both"] * row * size
    if learning == "adapters":
        parameters += ADAPTERS_TAKE[targets] * size * rank * capacity.lm_layers
    elif learning == "finetuned":
        parameters += whole_lm
    layers = row * size * capacity.lm_layers + lm if recompute else lm * capacity.lm_layers
    step: float = batch_size * (layers + logits + mapper) + PARAMETERS_KEPT * parameters
    floats = max(step, (PARAMETERS_KEPT + STATE_KEEPS) * parameters)
    if capacity.processes > 1 or capacity.apart:  # they divide a batch, but not parameters or LM, which this one has
        floats += (capacity.processes - 1) * PARAMETERS_KEPT * parameters + capacity.processes * whole_lm + parameters
    return (floats + 2 * images * capacity.embedding_size) * FLOAT / 2**20
