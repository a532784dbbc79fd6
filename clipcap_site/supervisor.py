"""Keeps child processes running: starts them, restarts those that die, stops them all.

Each child writes its whole output to a log file of its own, so nothing is lost if the supervisor dies; of what it
writes, the supervisor repeats warnings and errors, one line each. On Linux the kernel tells the children to stop when
the supervisor is killed; elsewhere a supervisor killed by force leaves them running.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

GRACE = 30.0  # seconds to stop in, after SIGTERM
QUICK = 60.0  # a child that dies younger than this, in seconds, waits longer and longer for its next start
LONGEST_PAUSE = 60.0
SAME_AGAIN = 60.0  # seconds in which a child's warning is not repeated
LOG_KEPT = 20_000_000  # bytes; a longer log is put aside at the start, in place of the one put aside before

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def spawn(command: Sequence[str], *, log: Path, cwd: Path, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process that appends its output to `log` and gets SIGTERM when this process ends, however it ends.

    It is given a session of its own: a Ctrl-C on the terminal reaches this process alone, which stops it in order.

    Raises:
        OSError: the log cannot be written or the program cannot be started.
    """
    parent = os.getpid()

    def stop_with_parent() -> None:
        if _libc:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=stop_with_parent,
        )


class Child:
    """A program that is to run for as long as the supervisor does."""

    def __init__(self, name: str, command: Sequence[str], log: Path, pass_fds: Sequence[int] = ()) -> None:
        self.name, self.command, self.log, self.pass_fds = name, command, log, pass_fds
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.due_at = 0.0
        self.last_words = ""
        self.quick_deaths = 0
        self._read = 0  # bytes of the log
        self._said: dict[str, float] = {}

    def start(self, cwd: Path) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_KEPT:
            self.log.replace(self.log.with_suffix(".log.old"))
        self._read = self.log.stat().st_size if self.log.exists() else 0
        self.last_words = ""
        self.started_at = time.monotonic()
        self.process = spawn(self.command, log=self.log, cwd=cwd, pass_fds=self.pass_fds)

    def news(self) -> list[str]:
        """The warnings and errors that it has logged since the last call, each at most once in a while."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # to be read when it is whole
        news = []
        now = time.monotonic()
        for line in lines:
            self._read += len(line)
            text, urgent = readable(line.decode(errors="replace").strip())
            self.last_words = text or self.last_words
            if urgent and now - self._said.get(text, -SAME_AGAIN) >= SAME_AGAIN:
                self._said[text] = now
                news.append(text)
        return news

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it has started."""
        if self.process:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return


class Supervisor:
    """Runs children until it is told to stop. It belongs in the main thread, whose end is what the children notice.

    Used as a context manager, it leaves no child behind.
    """

    def __init__(self, children: Sequence[Child], *, cwd: Path, say: Callable[[str], None]) -> None:
        self.children, self.cwd, self.say = children, cwd, say
        self.signals = 0

    def __enter__(self) -> "Supervisor":
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._count) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked for the end."""
        return self.signals > 0

    def look(self) -> None:
        """Start what is due, notice what has died, repeat what they complain about. To be called again and again."""
        for child in self.children:
            if child.process is None:
                if time.monotonic() >= child.due_at:
                    child.start(self.cwd)
                continue
            status = child.process.poll()
            for line in child.news():
                self.say(f"{child.name}: {line}")
            if status is not None:
                self._bury(child, status)

    def _bury(self, child: Child, status: int) -> None:
        child.signal_all(signal.SIGKILL)  # what it has started, if it left that behind
        child.process = None
        quick = time.monotonic() - child.started_at < QUICK
        child.quick_deaths = child.quick_deaths + 1 if quick else 1
        pause = min(LONGEST_PAUSE, 2.0 ** (child.quick_deaths - 1))
        child.due_at = time.monotonic() + pause
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        self.say(f"{child.name} {how}; restarting in {pause:.0f} s.")
        if child.quick_deaths >= 3:
            reason = f"its last output: {child.last_words}" if child.last_words else "it printed nothing"
            self.say(
                f"{child.name} stopped {child.quick_deaths} times soon after starting; {reason} (its log: {child.log})"
            )

    def stop(self) -> None:
        """Ask all children to stop; kill those that have not after some time, or at once at a second signal."""
        running = [child for child in self.children if child.process]
        for child in running:
            if child.process:
                child.process.terminate()
        asked, ends = self.signals, time.monotonic() + GRACE
        while time.monotonic() < ends and self.signals <= max(1, asked):
            if all(child.process is None or child.process.poll() is not None for child in running):
                break
            time.sleep(0.05)
        for child in running:
            if child.process and child.process.poll() is None:
                self.say(f"{child.name} did not stop in time and was killed.")
            child.signal_all(signal.SIGKILL)
            if child.process:
                child.process.wait()
                child.process = None


def readable(line: str) -> tuple[str, bool]:
    """A line of a log as a person reads it, and whether it is a warning or an error."""
    try:
        record = json.loads(line)
        message, level = str(record["message"]), record["level"]
    except (ValueError, TypeError, KeyError):  # not one of our JSON lines
        return line, False
    more = [f"{k} {v}" for k, v in record.items() if k not in ("time", "level", "logger", "message", "traceback")]
    if "traceback" in record:
        more.append(record["traceback"].strip().splitlines()[-1])
    return f"{message} ({', '.join(more)})" if more else message, level in ("warning", "error", "critical")
