"""A training in several processes on this machine, which torch's own launcher (torchrun) starts and, when one of them
dies, starts again from the last state.

They get their job in a file, and come to the process that started them, over a socket, with whatever it is to be asked
or told: so the callbacks of a training are called there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

import torch

from clipcap.training.state import trained_weights
from clipcap.training.steps import EpochEnd, Progress, TrainingSetup

PROCESS = "clipcap.training.process"
RESTARTS = 3  # after which something else is wrong than a process that was killed
_LOOK = 1.0  # seconds between two looks whether the launcher is still there
_ENDS = 10.0  # seconds that it has for ending its processes
EPOCH, _JOB = "epoch.pt", "job.pt"  # in the folder: the weights at an epoch's end; what is to be done


def in_processes(
    job: TrainingSetup, count: int, on_progress: Callable[[Progress], bool], on_epoch: Callable[[EpochEnd], None]
) -> None:
    """Take all steps of a job in `count` processes.

    Raises:
        As `train_mapper`.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    weights = trained_weights(job.model)

    def answer(message: Any) -> bool:
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Progress):
            return on_progress(message)
        for name, tensor in torch.load(job.folder / EPOCH, map_location="cpu", weights_only=True).items():
            weights[name].copy_(tensor)
        on_epoch(message)
        return True

    handed = job.folder / _JOB
    with (
        tempfile.TemporaryDirectory(prefix="clipcap-") as private,
        Listener(f"{private}/socket", "AF_UNIX") as listener,
    ):
        launcher = None
        try:
            torch.save(job, handed)
            launcher = _launched(count, handed, f"{private}/socket")
            _listen(listener, launcher, answer)
        finally:
            if launcher:
                _end(launcher)
            for name in (_JOB, EPOCH):
                (job.folder / name).unlink(missing_ok=True)


def _launched(count: int, handed: Path, address: str) -> subprocess.Popen[bytes]:
    options = ("--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}", f"--max-restarts={RESTARTS}")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", *options, "-m", PROCESS, str(handed), address]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # they import what this process does
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # of each
        # By default, processes that are started again find in the launcher's store where the dead ones listened.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    # In a session of their own, they do not hear Ctrl+C, which this process answers.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _end(launcher: subprocess.Popen[bytes]) -> None:
    launcher.terminate()
    try:
        launcher.wait(_ENDS)
    except subprocess.TimeoutExpired:
        launcher.kill()  # those that it has started will find nobody to ask, and end
        launcher.wait()


def _listen(listener: Listener, launcher: subprocess.Popen[bytes], answer: Callable[[Any], bool]) -> None:
    """Answer the processes until the launcher has ended."""
    door: Any = listener._listener._socket  # type: ignore[attr-defined]  # to wait for it and others at once
    callers: list[Connection[Any, Any]] = []
    while launcher.poll() is None:
        for ready in wait([door, *callers], _LOOK):
            if ready is door:
                callers.append(listener.accept())
                continue
            assert isinstance(ready, Connection)
            try:
                ready.send(answer(ready.recv()))
            except (EOFError, ConnectionError):  # it has done its part or died, and the launcher knows which
                callers.remove(ready)
    if launcher.returncode:
        raise RuntimeError(
            f"a process of the training died {RESTARTS + 1} times; the log has what they wrote to standard error"
        )
