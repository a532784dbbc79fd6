"""What trainers and administrators can do, one function each; see `captioner.services`."""

from training.services.base_models import (
    LONGEST_SOURCE,
    Preparation,
    StyleMove,
    advance_preparations,
    advance_preparations_each_minute,
    cancel_preparation,
    prepare_base,
    progress,
    resume_preparation,
)
from training.services.examples import (
    LEAST_HELD_OUT,
    LEAST_TRAINING,
    PART,
    Photos,
    add_example,
    add_sentences,
    count_photos,
    dataset,
    held_out_captions,
    leave_out,
    newest_example,
    open_corrections,
    take_corrections,
)
from training.services.imports import (
    cancel_import,
    is_there,
    preview_import,
    resume_import,
    start_folder_import,
    start_import,
)
from training.services.new_styles import (
    FEWEST_SENTENCES,
    MOST_SENTENCES,
    new_style,
)
from training.services.policies import (
    NIGHT,
    REFUSED_FOR,
    promote_preferred,
    start_due_runs,
)
from training.services.prospects import (
    Prospect,
    prospect,
)
from training.services.retention import (
    prune,
)
from training.services.runs import (
    cancel_run,
    resume_run,
    run_folder,
    run_options,
    start_run,
)
from training.services.steps import (
    Step,
    next_step,
)
from training.services.waiting import (
    RUN_DEADLINE,
    rescue_stale,
    wake_workers,
)
from training.texts import caption_text

__all__ = [
    "FEWEST_SENTENCES",
    "LEAST_HELD_OUT",
    "LEAST_TRAINING",
    "LONGEST_SOURCE",
    "MOST_SENTENCES",
    "NIGHT",
    "PART",
    "REFUSED_FOR",
    "RUN_DEADLINE",
    "Photos",
    "Preparation",
    "Prospect",
    "Step",
    "StyleMove",
    "add_example",
    "add_sentences",
    "advance_preparations",
    "advance_preparations_each_minute",
    "cancel_import",
    "cancel_preparation",
    "cancel_run",
    "caption_text",
    "count_photos",
    "dataset",
    "held_out_captions",
    "is_there",
    "leave_out",
    "new_style",
    "newest_example",
    "next_step",
    "open_corrections",
    "prepare_base",
    "preview_import",
    "progress",
    "promote_preferred",
    "prospect",
    "prune",
    "rescue_stale",
    "resume_import",
    "resume_preparation",
    "resume_run",
    "run_folder",
    "run_options",
    "start_due_runs",
    "start_folder_import",
    "start_import",
    "start_run",
    "take_corrections",
    "wake_workers",
]
