"""What trainers and administrators can do, one function each; see `captioner.services`."""

from training.services.examples import (
    PART,
    add_example,
    caption_text,
    dataset,
    leave_out,
    newest_example,
    open_corrections,
    take_corrections,
)
from training.services.imports import (
    cancel_import,
    is_there,
    resume_import,
    start_folder_import,
    start_import,
)
from training.services.policies import (
    NIGHT,
    REFUSED_FOR,
    start_due_runs,
)
from training.services.retention import (
    prune,
)
from training.services.runs import (
    LEAST_HELD_OUT,
    LEAST_TRAINING,
    cancel_run,
    resume_run,
    run_folder,
    run_options,
    start_run,
)
from training.services.waiting import (
    RUN_DEADLINE,
    rescue_stale,
    wake_workers,
)

__all__ = [
    "LEAST_HELD_OUT",
    "LEAST_TRAINING",
    "NIGHT",
    "PART",
    "REFUSED_FOR",
    "RUN_DEADLINE",
    "add_example",
    "cancel_import",
    "cancel_run",
    "caption_text",
    "dataset",
    "is_there",
    "leave_out",
    "newest_example",
    "open_corrections",
    "prune",
    "rescue_stale",
    "resume_import",
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
