"""Finds the rows of a batch that cause a failure, and processes the batch without them."""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from django.db import Error as DatabaseError

from captioner.jobs.job import Failure
from captioner.models import Image
from captioner.workers.worker_process import FAULTY_DATA

log = logging.getLogger(__name__)

CONTROLS = 4  # other images asked for, to tell a file that is gone from a storage that is away
T = TypeVar("T")


def bisect_failures(
    items: list[T], work: Callable[[list[T]], None], release: Callable[[], None] = lambda: None
) -> list[tuple[list[T], Exception]]:
    """Do `work` on all items at once; on what makes it fail, in halves, down to the single items that are to blame.

    Out of memory, a smaller batch goes through; a poisonous item fails alone.

    Args:
        release: called before a smaller batch, to give back the memory of the failed one.

    Returns:
        The items that failed by themselves, each with its reason.
    """
    if not items:
        return []
    try:
        work(items)
        return []
    except DatabaseError as error:
        if not isinstance(error, FAULTY_DATA):
            raise
        reason: Exception = error
    except Exception as error:
        reason = error
    if len(items) == 1:
        log.error("work failed on one item", exc_info=reason, extra={"item": str(items[0])})
        return [(items, reason.with_traceback(None))]
    log.warning("a batch failed and is split in half", extra={"size": len(items), "error": repr(reason)})
    # The frames of what failed hold on to its tensors, and the halves need that memory.
    del reason
    release()
    half = len(items) // 2
    return bisect_failures(items[:half], work, release) + bisect_failures(items[half:], work, release)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether it says that memory, the machine's or the accelerator's, did not suffice."""
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory", "bad_alloc", "ALLOC_FAILED"))
    )


def storage_gives_others(than: Collection[uuid.UUID] = ()) -> bool:
    """Whether the storage has the files of other images than these: then it is not away."""
    try:
        others = Image.objects.exclude(pk__in=than).order_by("-created_at")[:CONTROLS]
        return any(image.file.storage.exists(str(image.file.name)) for image in others)
    except Exception as error:  # whatever a storage raises
        log.warning("the storage does not respond", extra={"error": error})
        return False


def failure_of(error: Exception, *, others_succeeded: bool = False) -> Failure:
    """The failure to record for an error while working on a row."""
    if is_out_of_memory(error):
        code, detail = "out_of_memory", "the worker does not have enough memory even for this single caption"
    elif isinstance(error, DatabaseError):
        code, detail = "database_error", "the database did not respond"
    elif isinstance(error, ValueError):
        return Failure("not_possible", str(error)[:500], own=True)
    else:
        code = "internal_error"
        detail = "unexpected error; the worker's log has the details under this caption's id"
    return Failure(code, detail, others_succeeded=others_succeeded)


def unread_failure(error: Exception, *, others_succeeded: bool) -> Failure:
    """The failure to record for an image that could not be read from the storage."""
    if is_out_of_memory(error):
        return failure_of(error, others_succeeded=others_succeeded)
    # That there is no such file is said of this one; any other error, of a connection say, is the storage's.
    missing = isinstance(error, FileNotFoundError)
    detail = "the stored image cannot be read; upload it again"
    return Failure("image_missing", detail, others_succeeded=missing and others_succeeded)
