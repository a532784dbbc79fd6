"""A training in several processes, which torch's own launcher (torchrun) starts, here and on the machines that train
along. When one of them dies, all are started again from the last state.

They get their job in a file, and come to the process that started them, over a socket, with whatever it is to be asked
or told: so the callbacks of a training are called there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from clipcap.training.machines import Ended, Launch, Lost, Machine, Machines, Raised
from clipcap.training.network import interface_of
from clipcap.training.state import trained_weights
from clipcap.training.steps import EpochEnd, Progress, TrainingSetup

LAUNCHER, PROCESS = "clipcap.training.launcher", "clipcap.training.process"
RESTARTS = 3  # after which something else is wrong than a process that was killed
_LOOK = 1.0  # seconds between two looks whether the launcher is still there
_ENDS = 10.0  # seconds that it has for ending its processes
_MEET = 180.0  # seconds that processes of several machines have for starting and finding one another
EPOCH, _JOB = "epoch.pt", "job.pt"  # in the folder: the weights at an epoch's end; what is to be done


class Processes:
    """The processes of this machine that train together, alone or with those of others, until the block ends.

    Args:
        job: the file that says what is to be done.
        count: of this machine's processes.
        launch: as all machines got it.
        master: the address of the machine of the process that trains.
        local_address: of this machine, under which processes of others reach its own; empty if there are none.
        threads: of each process.
    """

    def __init__(
        self, job: Path, count: int, launch: Launch, *, master: str, local_address: str = "", threads: int
    ) -> None:
        self._private = tempfile.TemporaryDirectory(prefix="clipcap-")
        address = f"{self._private.name}/socket"
        self._listener = Listener(address, "AF_UNIX")
        self._door: Any = self._listener._listener._socket  # type: ignore[attr-defined]  # to wait for it and others
        self._callers: list[Connection[Any, Any]] = []
        options = (
            f"--nnodes={launch.nodes}",
            f"--node-rank={launch.rank}",
            f"--nproc-per-node={count}",
            f"--master-addr={master}",
            f"--master-port={launch.port}",
            "--max-restarts=0",  # whoever started the training starts all of them again, on all machines
        )
        command = [sys.executable, "-P", "-m", LAUNCHER, *options, "-m", PROCESS]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # they import what this process does
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": str(threads),
        }
        if local_address and "GLOO_SOCKET_IFNAME" not in environment and (name := interface_of(local_address)):
            environment["GLOO_SOCKET_IFNAME"] = name  # by default gloo looks up the host's name, often 127.0.1.1
        # In a session of their own, they do not hear Ctrl+C, which this process answers.
        self._launcher = subprocess.Popen(
            [*command, str(job), address, launch.backend], env=environment, start_new_session=True
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._launcher.terminate()
        try:
            self._launcher.wait(_ENDS)
        except subprocess.TimeoutExpired:
            self._launcher.kill()  # those that it has started will find nobody to ask, and end
            self._launcher.wait()
        self._listener.close()
        self._private.cleanup()

    @property
    def ended(self) -> bool | None:
        """None while they train; then whether all came to the end."""
        code = self._launcher.poll()
        return None if code is None else code == 0

    def ready(self, others: Sequence[Connection[Any, Any]]) -> list[Connection[Any, Any]]:
        """Those of the processes and of `others` that have something to say, after waiting for a moment at most."""
        found = []
        for ready in wait([self._door, *self._callers, *others], _LOOK):
            if ready is self._door:
                self._callers.append(self._listener.accept())
            else:
                assert isinstance(ready, Connection)
                found.append(ready)
        return found

    def answer(self, caller: Connection[Any, Any], answer: Callable[[Any], bool]) -> None:
        """Answer one of the processes."""
        try:
            caller.send(answer(caller.recv()))
        except (EOFError, ConnectionError):  # it has done its part or died, and the launcher knows which
            self._callers.remove(caller)


class _MachinesLost(Exception):
    """The training goes on without `machines`."""

    def __init__(self, machines: Sequence[Machine], message: str) -> None:
        super().__init__(message)
        self.machines = machines


def in_processes(
    job: TrainingSetup,
    count: int,
    machines: Machines | None,
    on_progress: Callable[[Progress], bool],
    on_epoch: Callable[[EpochEnd], None],
    on_message: Callable[[str], None],
) -> None:
    """Take all steps of a job in `count` processes here and in those of the machines that are there when they start.

    Raises:
        As `train_mapper`.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    weights = trained_weights(job.model)

    def answer(message: Any) -> bool:
        if message is None:
            return True
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Progress):
            return on_progress(message)
        for name, tensor in torch.load(job.folder / EPOCH, map_location="cpu", weights_only=True).items():
            weights[name].copy_(tensor)
        on_epoch(message)
        return True

    handed = job.folder / _JOB
    try:
        torch.save(job, handed)
        _until_done(job, handed, count, machines, answer, on_message)
    finally:
        for name in (_JOB, EPOCH):
            (job.folder / name).unlink(missing_ok=True)


def _until_done(
    job: TrainingSetup,
    handed: Path,
    count: int,
    machines: Machines | None,
    answer: Callable[[Any], bool],
    on_message: Callable[[str], None],
) -> None:
    on_gpus, name = job.lm.device.type == "cuda", uuid.uuid4().hex
    deaths, before, lost = 0, list[str](), set[str]()
    while True:
        there = machines.waiting() if machines else []
        others = [machine for machine in there if machine.name not in lost and (machine.has_gpus or not on_gpus)]
        names = [machine.name for machine in others]
        if names != before:
            on_message(f"training together with {', '.join(names)}" if names else "training on this machine alone")
        before = names
        try:
            if _attempt(handed, name, count, others, "nccl" if on_gpus else "gloo", answer):
                return
        except _MachinesLost as error:
            lost.update(machine.name for machine in error.machines)  # when they come again, until the next training
            on_message(f"{error}; continuing from the last state")
            continue
        deaths += 1
        if deaths > RESTARTS:
            raise RuntimeError(
                f"a process of the training died {deaths} times; the log has what they wrote to standard error"
            )


def _attempt(
    handed: Path, job: str, count: int, others: list[Machine], backend: str, answer: Callable[[Any], bool]
) -> bool:
    """Start the processes everywhere and answer them, until they are through.

    Returns:
        Whether they are; else one of them has died.

    Raises:
        _MachinesLost: the next attempt will do without some machines.
    """
    attempt, port = uuid.uuid4().hex, _free_port()
    launches = [Launch(job, attempt, len(others) + 1, rank, port, backend) for rank in range(len(others) + 1)]
    for machine, launch in zip(others, launches[1:], strict=True):
        machine.launch(launch, handed)
    inboxes = {machine.inbox: machine for machine in others}
    local_address = others[0].channel.local_address if others else ""
    threads = torch.get_num_threads()
    try:
        with Processes(
            handed, count, launches[0], master="127.0.0.1", local_address=local_address, threads=threads
        ) as processes:
            started, met = time.monotonic(), not others
            while processes.ended is None:
                for ready in processes.ready([*inboxes]):
                    if ready not in inboxes:
                        met = True
                        processes.answer(ready, answer)
                        continue
                    machine, message = inboxes[ready], ready.recv()
                    if isinstance(message, Lost):
                        raise _MachinesLost([machine], f"{machine.name} was lost")
                    if message.attempt == attempt and isinstance(message, Raised):
                        answer(message.error)
                    if message == Ended(attempt, well=False):
                        return False
                if not met and time.monotonic() - started > _MEET:
                    for machine in others:
                        machine.drop()
                    raise _MachinesLost(
                        others,
                        f"the processes of {', '.join(machine.name for machine in others)} and of this machine did not "
                        f"find one another within {_MEET:.0f} s: all ports must be open between the machines",
                    )
            return bool(processes.ended)
    finally:
        for machine in others:
            machine.stop(attempt)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
