"""One of the processes of a training: what torch's launcher starts for `clipcap.training.processes`."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Client, Connection
from typing import Any

import torch
from torch import distributed

from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.group import TOLD
from clipcap.training.loop import EpochEnd, Progress
from clipcap.training.processes import EPOCH
from clipcap.training.state import trained_weights
from clipcap.training.steps import TrainingSetup, take_steps


def main(handed: str, address: str, backend: str) -> None:
    """Take the steps of the job in a file, together with the others."""
    try:
        with Client(address, "AF_UNIX") as starter:
            _take_part(handed, starter, backend)
    except (EOFError, ConnectionError, FileNotFoundError):
        sys.exit("the process that started the training has gone")


def _take_part(handed: str, starter: Connection[Any, Any], backend: str) -> None:
    def ask(message: Progress | EpochEnd | Exception | None) -> bool:
        starter.send(message)
        answer: bool = starter.recv()
        return answer

    def tell_epoch(epoch: EpochEnd) -> None:
        torch.save(trained_weights(job.model), job.folder / EPOCH)
        ask(epoch)

    number = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    distributed.init_process_group(backend)
    distributed.all_reduce(torch.zeros(1, device=device))  # nccl connects no sooner
    ask(None)  # it has met the others
    try:
        job = _read(handed, number)
        take_steps(job, ask, tell_epoch)
    except ConnectionError:
        raise
    # Others end this process, and all of them are started again: most come of another process's death.
    except (TrainingError, TrainingCanceled, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if TOLD not in getattr(error, "__notes__", ()):
            ask(error)


def _read(handed: str, number: int) -> TrainingSetup:
    """The job in a file; what lay on a GPU comes to this process's own, of that number."""

    def place(storage: Any, where: str) -> Any:
        return storage if where == "cpu" else storage.cuda(number)

    # Nobody else could have written it, and it is mapped: what the processes only read, they have once.
    job: TrainingSetup = torch.load(handed, map_location=place, weights_only=False, mmap=True)
    for lm in filter(None, (job.lm, job.model.language_model)):
        lm.device = next(lm.model.parameters()).device
    return job


if __name__ == "__main__":
    main(*sys.argv[1:])
