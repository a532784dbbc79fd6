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
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from clipcap.training.errors import TrainingCanceled, TrainingError
from clipcap.training.loop import EpochEnd, Progress
from clipcap.training.machines import Ended, Launch, Lost, Machine, Machines, Raised
from clipcap.training.network import interface_of
from clipcap.training.state import trained_weights
from clipcap.training.steps import TrainingSetup

LAUNCHER, PROCESS = "clipcap.training.launcher", "clipcap.training.process"
RESTARTS = 3  # after which something else is wrong than a process that was killed
_LOOK = 1.0  # seconds between two looks whether the launcher is still there
_ENDS = 10.0  # seconds that it has for ending its processes
_GOES = 2.0  # seconds that a machine which is going may take to be missed once its processes are
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
            f"--rdzv-conf=timeout={_MEET:.0f}",
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
        for caller in self._callers:
            caller.close()
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
        """Answer one of the processes.

        Raises:
            Exception: whatever `answer` raises.
        """
        try:
            message = caller.recv()
        except (EOFError, OSError):  # it has done its part or died, and the launcher knows which
            self._drop(caller)
            return
        answered = answer(message)
        try:
            caller.send(answered)
        except OSError:
            self._drop(caller)

    def _drop(self, caller: Connection[Any, Any]) -> None:
        self._callers.remove(caller)
        caller.close()


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
    on_wait: Callable[[], bool],
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
        _until_done(job, handed, count, machines, answer, on_message, _at_times(on_wait))
    finally:
        for name in (_JOB, EPOCH):
            (job.folder / name).unlink(missing_ok=True)


def _at_times(on_wait: Callable[[], bool]) -> Callable[[], None]:
    """Ask whether to go on, once a second at most; a false answer raises TrainingCanceled."""
    asked = time.monotonic()

    def ask() -> None:
        nonlocal asked
        if time.monotonic() - asked >= _LOOK:
            asked = time.monotonic()
            if not on_wait():
                raise TrainingCanceled("canceled while waiting for processes; call again to resume")

    return ask


def _until_done(
    job: TrainingSetup,
    handed: Path,
    count: int,
    machines: Machines | None,
    answer: Callable[[Any], bool],
    on_message: Callable[[str], None],
    goes_on: Callable[[], None],
) -> None:
    on_gpus, name = job.lm.device.type == "cuda", uuid.uuid4().hex
    deaths, before, lost = 0, list[str](), set[str]()
    while True:
        others = [machine for machine in (machines.waiting() if machines else []) if machine.identity not in lost]
        for machine in others:
            if on_gpus and not machine.has_gpus:
                on_message(f"{machine.name} has no GPU and is left out")
                lost.add(machine.identity)
        others = [machine for machine in others if machine.identity not in lost]
        names = [machine.name for machine in others]
        if names != before:
            on_message(f"training together with {', '.join(names)}" if names else "training on this machine alone")
        before = names
        try:
            for machine in others:
                machine.take(name, handed, goes_on)
            if _attempt(handed, count, others, "nccl" if on_gpus else "gloo", answer, goes_on):
                return
        except _MachinesLost as error:
            lost.update(machine.identity for machine in error.machines)  # until the next training
            on_message(f"{error}; continuing from the last state")
            continue
        deaths += 1
        if deaths > RESTARTS:
            raise RuntimeError(
                f"a process of the training died {deaths} times; the log has what they wrote to standard error"
            )


def _attempt(
    handed: Path,
    count: int,
    others: list[Machine],
    backend: str,
    answer: Callable[[Any], bool],
    goes_on: Callable[[], None],
) -> bool:
    """Start the processes everywhere and answer them, until they are through.

    Returns:
        Whether they are; else one of them has died.

    Raises:
        _MachinesLost: the next attempt will do without some machines.
    """
    attempt, port = uuid.uuid4().hex, _free_port()
    launches = [Launch(attempt, len(others) + 1, rank, port, backend) for rank in range(len(others) + 1)]
    for machine, launch in zip(others, launches[1:], strict=True):
        machine.launch(launch)
    inboxes = {machine.inbox: machine for machine in others}
    threads = torch.get_num_threads()
    try:
        with Processes(
            handed, count, launches[0], master="127.0.0.1", local_address=_reached_at(others), threads=threads
        ) as processes:
            started, met = time.monotonic(), not others
            while processes.ended is None:
                ready = processes.ready([*inboxes])
                for each in ready:
                    if each not in inboxes:
                        met = True
                        processes.answer(each, answer)
                    elif not _well(inboxes[each], each.recv(), attempt):
                        return _nobody_lost(inboxes, attempt)
                if not ready:
                    goes_on()
                if not met and time.monotonic() - started > _MEET:
                    for machine in others:
                        machine.drop()
                    raise _MachinesLost(
                        others,
                        f"the processes of {', '.join(machine.name for machine in others)} and of this machine did not "
                        f"find one another within {_MEET:.0f} s: all ports must be open between the machines",
                    )
            return processes.ended or _nobody_lost(inboxes, attempt)
    finally:
        for machine in others:
            machine.stop(attempt)


def _well(machine: Machine, message: Any, attempt: str) -> bool:
    """Whether what a machine says is no reason to start all processes again.

    Raises:
        _MachinesLost: the training goes on without it.
        TrainingError, TrainingCanceled: it says so.
    """
    if isinstance(message, Lost):
        raise _MachinesLost([machine], f"{machine.name} was lost")
    if isinstance(message, Raised) and message.attempt == attempt:
        if isinstance(message.error, (TrainingError, TrainingCanceled)):  # the same everywhere
            raise message.error
        raise _MachinesLost([machine], f"{machine.name} cannot train along ({message.error or 'out of memory'})")
    return not (isinstance(message, Ended) and message.attempt == attempt and not message.well)


def _nobody_lost(inboxes: Mapping[Connection[Any, Any], Machine], attempt: str) -> bool:
    """False, once it is clear that processes did not end because a machine was lost.

    Raises:
        As `_well`.
    """
    until = time.monotonic() + _GOES
    while inboxes and (left := until - time.monotonic()) > 0:
        for ready in wait([*inboxes], left):
            assert isinstance(ready, Connection)
            _well(inboxes[ready], ready.recv(), attempt)
    return False


def _reached_at(others: list[Machine]) -> str:
    """The address of this machine under which others reach it; empty if there are none."""
    addresses = [machine.channel.local_address for machine in others]
    elsewhere = [address for address in addresses if not address.startswith("127.") and address != "::1"]
    return next(iter(elsewhere or addresses), "")


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
