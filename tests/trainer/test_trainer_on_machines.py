"""Training one style on several machines: here processes that come to one another by way of the network alone."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from clipcap import cli
from clipcap.language_model import LanguageModel
from clipcap.training import Machines, Progress, TrainingCanceled, TrainingError
from clipcap.training import channel as training_channel
from clipcap.training import machines as training_machines
from clipcap.training import processes as training_processes
from clipcap.training.channel import Channel
from clipcap.training.join import join as join_training
from clipcap.training.processes import PROCESS
from tests.hosts import Host, need_namespaces
from tests.servers import PATIENCE, free_port, wait_until
from tests.trainer.models import Train, model_for
from tests.trainer.test_trainer_in_processes import TWICE, about, children, losses

KEY = "a key that both machines know, and nobody else"
SILENCE = 8  # seconds, where either side of a cut network has to notice it
PROGRAM = f"""
import sys
from clipcap.cli import main
from clipcap.training import channel
channel.SILENCE = {SILENCE}
sys.exit(main())
"""
HERE = f"{socket.gethostname()} (127.0.0.1)"


class Joined:
    """A machine that trains along: `clipcap join`, with what it prints.

    host: on which it is, if it is not this one.
    """

    def __init__(self, port: int, out: Path, host: Host | None = None) -> None:
        self.out = out
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CLIPCAP_TRAINING_KEY": KEY}
        address = f"{host.gateway if host else '127.0.0.1'}:{port}"
        within = ["ip", "netns", "exec", host.name] if host else []
        command = [*within, sys.executable, "-P", "-c", PROGRAM, "join", address, "--threads", "1"]
        with out.open("w") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd=out.parent
            )

    def said(self) -> str:
        return self.out.read_text()

    def at_work(self) -> list[int]:
        """Its training processes."""
        found = [process for child in children(self.process.pid) for process in children(child)]
        return [process for process in found if PROCESS in about(process, "cmdline").split("\0")]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture
def machines() -> Iterator[Machines]:
    found = Machines("127.0.0.1:0", KEY)
    yield found
    found.close()


@pytest.fixture
def join(machines: Machines, tmp_path: Path) -> Iterator[Callable[[], Joined]]:
    """Let a machine join, and wait until it is there."""
    with ExitStack() as resources:

        def start() -> Joined:
            before = len(machines.waiting())
            joined = Joined(machines.port, tmp_path / f"joined-{before}.log")
            resources.callback(joined.end)
            wait_until(lambda: len(machines.waiting()) > before, "the machine is there")
            return joined

        yield start


@pytest.fixture
def alone(train: Train, tiny_lm: LanguageModel, tmp_path: Path) -> list[float]:
    """The losses of a single process."""
    return losses(train(model=model_for(tiny_lm, "adapters"), options=TWICE, folder=tmp_path / "alone"))


def trained_together(train: Train, lm: LanguageModel, machines: Machines, **changes: Any) -> list[float]:
    """The losses of the same training on these machines, whose state is kept every second step."""
    model = model_for(lm, "adapters")
    return losses(train(model=model, options=TWICE, machines=machines, state_every=2, **changes))


@contextmanager
def peer(machines: Machines, does: Callable[[Channel, Any], None], identity: str = "1") -> Iterator[None]:
    """A machine that has joined and does as it likes with each message that it gets."""
    before = len(machines.waiting())
    channel = Channel(socket.create_connection(("127.0.0.1", machines.port)), KEY.encode(), first=False)
    hello = {"name": "other", "identity": identity, "has_gpus": False, "versions": training_machines.versions()}
    channel.send(hello)
    assert channel.receive() == ""

    def listen() -> None:
        with suppress(OSError, EOFError):
            while True:
                message = channel.receive()
                does(channel, message)
                if isinstance(message, training_machines.Job):
                    channel.receive_file(Path(os.devnull))

    wait_until(lambda: len(machines.waiting()) > before, "it is there")
    thread = Thread(target=listen)
    thread.start()
    yield
    channel.close()
    thread.join()


def test_a_machine_that_joins_takes_its_part_in_a_training_even_if_its_process_is_killed(
    train: Train, tiny_lm: LanguageModel, alone: list[float], tmp_path: Path
) -> None:
    port, said, steps = free_port(), list[str](), list[int]()
    joined = Joined(port, tmp_path / "log")
    wait_until(lambda: "cannot be reached" in joined.said(), "it says that nobody is there yet")
    machines = Machines(f"127.0.0.1:{port}", KEY)
    wait_until(machines.waiting, "it has joined")

    def kill_it_in_the_fourth_step(progress: Progress) -> bool:
        (process,) = joined.at_work()
        steps.append(progress.step)
        if steps == [1, 2, 3, 4]:
            os.kill(process, signal.SIGKILL)
        return True

    changes = {"on_progress": kill_it_in_the_fourth_step, "on_message": said.append}
    assert trained_together(train, tiny_lm, machines, **changes) == pytest.approx(alone, abs=1e-4)
    # From the state of the second step, or of the fourth if the death took a moment.
    assert {*steps[4:]} in ({*range(3, 11)}, {*range(5, 11)})
    assert said == [f"training together with {HERE}"]
    wait_until(lambda: joined.said().count("waiting for the next") == 2, "it waits again")
    assert not joined.at_work()
    written = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert written == ["alone", "run"], "the machine that joined writes nothing"
    joined.end()
    assert joined.process.returncode == 0
    wait_until(lambda: not machines.waiting(), "it is missed")
    machines.close()


def test_when_the_other_machine_is_lost_this_one_continues_alone(
    train: Train, tiny_lm: LanguageModel, alone: list[float], machines: Machines, join: Callable[[], Joined]
) -> None:
    joined, steps, said = join(), list[int](), list[str]()
    orphans: list[int] = []

    def kill_it_in_the_fourth_step(progress: Progress) -> bool:
        steps.append(progress.step)
        if steps == [1, 2, 3, 4]:
            orphans.extend(joined.at_work())
            joined.process.kill()
        return True

    changes = {"on_progress": kill_it_in_the_fourth_step, "on_message": said.append}
    assert trained_together(train, tiny_lm, machines, **changes) == pytest.approx(alone, abs=1e-4)
    assert said == [
        f"training together with {HERE}",
        f"{HERE} was lost; continuing from the last state",
        "training on this machine alone",
    ]
    assert orphans
    wait_until(lambda: not any(PROCESS in about(orphan, "cmdline") for orphan in orphans), "what it started has ended")


def test_a_host_that_is_cut_off_is_done_without_and_takes_part_in_the_next_training(
    train: Train, tiny_lm: LanguageModel, alone: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_namespaces()
    monkeypatch.setattr(training_channel, "SILENCE", SILENCE)
    steps, said = list[int](), list[str]()
    with ExitStack() as resources:
        host = Host(1, resources)
        machines = Machines("0.0.0.0:0", KEY)
        resources.callback(machines.close)
        joined = Joined(machines.port, tmp_path / "log", host)
        resources.callback(joined.end)
        wait_until(machines.waiting, "it has joined")

        def cut_it_off_in_the_fourth_step(progress: Progress) -> bool:
            steps.append(progress.step)
            if steps == [1, 2, 3, 4]:
                assert joined.at_work()
                host.cut_off()
            return True

        for folder in ("first", "second"):
            changes = {
                "on_progress": cut_it_off_in_the_fourth_step,
                "on_message": said.append,
                "folder": tmp_path / folder,
            }
            assert trained_together(train, tiny_lm, machines, **changes) == pytest.approx(alone, abs=1e-4)
            host.reconnect()
            wait_until(lambda: machines.waiting() and not joined.at_work(), "it is there again, and free")
    there = f"{socket.gethostname()} ({host.address})"
    together_with = f"training together with {there}"
    lost = f"{there} was lost; continuing from the last state"
    assert said == [together_with, lost, "training on this machine alone", together_with]


def test_a_machine_that_loses_the_training_worker_ends_its_processes_and_waits_for_it(
    train: Train, tiny_lm: LanguageModel, machines: Machines, join: Callable[[], Joined]
) -> None:
    class Over(Exception):
        pass

    joined = join()

    def lose_it(progress: Progress) -> bool:
        machines.waiting()[0].drop()
        wait_until(lambda: not joined.at_work(), "its processes have ended")
        raise Over

    with pytest.raises(Over):
        trained_together(train, tiny_lm, machines, on_progress=lose_it)
    wait_until(lambda: len(machines.waiting()) == 1, "it is there again")
    assert joined.said().count("connected with") == 2
    assert "Traceback" not in joined.said()


def test_a_machine_that_goes_is_no_death_of_a_process_even_if_its_processes_end_first(
    train: Train, tiny_lm: LanguageModel, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_processes, "RESTARTS", 0)

    def goes(channel: Channel, message: Any) -> None:
        if isinstance(message, training_machines.Launch):
            channel.send(training_machines.Ended(message.attempt, well=False))
            channel.close()

    said: list[str] = []
    with peer(machines, goes):
        train(model=model_for(tiny_lm, "adapters"), machines=machines, on_message=said.append)
    assert said[1:] == ["other (127.0.0.1) was lost; continuing from the last state", "training on this machine alone"]


def test_of_two_machines_with_the_same_name_the_one_that_is_there_is_not_done_without(
    train: Train, tiny_lm: LanguageModel, machines: Machines
) -> None:
    def hangs_up(channel: Channel, message: Any) -> None:
        channel.close()

    said: list[str] = []
    with (
        peer(machines, hangs_up),
        peer(machines, lambda channel, message: None, identity="2"),
        pytest.raises(TrainingCanceled),
    ):
        train(
            model=model_for(tiny_lm, "adapters"),
            machines=machines,
            on_message=said.append,
            on_wait=lambda: len(said) < 3,
        )
    other = "other (127.0.0.1)"
    assert said == [
        f"training together with {other}, {other}",
        f"{other} was lost; continuing from the last state",
        f"training together with {other}",
    ]


@pytest.mark.parametrize("error", [MemoryError("no memory left there"), TrainingError("nothing can be learned")])
def test_a_machine_that_cannot_train_along_is_done_without_and_what_nobody_can_train_ends_the_training(
    error: Exception, train: Train, tiny_lm: LanguageModel, machines: Machines
) -> None:
    def fails(channel: Channel, message: Any) -> None:
        if isinstance(message, training_machines.Launch):
            channel.send(training_machines.Raised(message.attempt, error))

    said: list[str] = []
    everybodys = isinstance(error, TrainingError)
    with peer(machines, fails), pytest.raises(TrainingError, match=str(error)) if everybodys else nullcontext():
        train(model=model_for(tiny_lm, "adapters"), machines=machines, on_message=said.append)
    says = "other (127.0.0.1) cannot train along (no memory left there); continuing from the last state"
    assert said[1:] == ([] if everybodys else [says, "training on this machine alone"])


def test_a_training_that_waits_for_processes_is_canceled_all_the_same(
    train: Train, tiny_lm: LanguageModel, machines: Machines
) -> None:
    with peer(machines, lambda channel, message: None), pytest.raises(TrainingCanceled):
        train(model=model_for(tiny_lm, "adapters"), machines=machines, on_wait=lambda: False)


def test_an_error_of_a_callback_is_no_death_of_a_process(
    train: Train, tiny_lm: LanguageModel, machines: Machines
) -> None:
    def no_connection(progress: Progress) -> bool:
        raise ConnectionResetError("to something else")

    with pytest.raises(ConnectionResetError, match="to something else"):
        train(model=model_for(tiny_lm, "adapters"), on_progress=no_connection, processes=2)


def test_a_machine_that_is_lost_before_it_has_the_job_is_done_without(
    train: Train, tiny_lm: LanguageModel, machines: Machines
) -> None:
    said: list[str] = []

    def hangs_up(channel: Channel, message: Any) -> None:
        channel.close()

    with peer(machines, hangs_up):
        train(model=model_for(tiny_lm, "adapters"), machines=machines, on_message=said.append)
    assert said[1:] == ["other (127.0.0.1) was lost; continuing from the last state", "training on this machine alone"]


def test_machines_whose_processes_do_not_find_one_another_are_done_without(
    train: Train, tiny_lm: LanguageModel, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_processes, "_MEET", 1)
    said: list[str] = []
    with peer(machines, lambda channel, message: None):
        result = train(model=model_for(tiny_lm, "adapters"), machines=machines, on_message=said.append)
    assert len(result.history) == 3
    assert "did not find one another within 1 s: all ports must be open" in said[1]
    assert said[2] == "training on this machine alone"


def test_who_does_not_know_the_key_is_refused_with_the_reason(machines: Machines) -> None:
    with pytest.raises(ValueError, match="has another key; it must be the same on all machines"):
        join_training(f"127.0.0.1:{machines.port}", "another key", 1, 1, print)
    assert not machines.waiting()


def test_a_machine_with_another_release_is_refused_with_the_reason(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = training_machines.versions()
    monkeypatch.setattr(training_machines, "versions", lambda: mine | {"torch": "1.0"})
    says = f"has torch {re.escape(mine['torch'])} and the training worker 1.0; install the same on both"
    with pytest.raises(ValueError, match=says):
        join_training(f"127.0.0.1:{machines.port}", KEY, 1, 1, print)


def test_strangers_who_say_nothing_or_nonsense_keep_nobody_else_from_joining(machines: Machines) -> None:
    silent = [socket.create_connection(("127.0.0.1", machines.port)) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", machines.port)) as loud:
        loud.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    with peer(machines, lambda channel, message: None):
        assert len(machines.waiting()) == 1
    for each in silent:
        each.close()


@pytest.mark.parametrize(
    ("key", "processes", "says"),
    [
        (None, "1", "CLIPCAP_TRAINING_KEY is not set; set it to the same value"),
        (KEY, "10000", "--processes is 10000, and there are"),
    ],
)
def test_the_command_says_what_it_needs(
    key: str | None, processes: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CLIPCAP_TRAINING_KEY", raising=False)
    if key:
        monkeypatch.setenv("CLIPCAP_TRAINING_KEY", key)
    assert cli.main(["join", "127.0.0.1:1", "--processes", processes]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "key", "says"),
    [
        ("127.0.0.1", KEY, "'127.0.0.1' is not an address; write HOST:PORT"),
        ("127.0.0.1:99999", KEY, "is not an address"),
        ("127.0.0.1:0", "", "a key is needed"),
        ("192.0.2.1:29400", KEY, r"cannot listen at 192.0.2.1:29400 \(.*\); name an address of this machine"),
    ],
)
def test_an_address_or_key_that_cannot_be_used_is_an_error_that_says_what_to_do(
    address: str, key: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Machines(address, key)
