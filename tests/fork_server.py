"""Forks workers that have their libraries imported and their models loaded already, which takes a worker longer than
all else.

Reads queues and names of workers from stdin, one worker a line, and answers each with the process's id.
"""

# ruff: noqa: E402 (Django has to be set up before anything imports its models)
import ctypes
import os
import signal
import sys
from typing import Any, NoReturn

import django

django.setup()

import celery.bin.worker  # noqa: F401 (this and what follows, only so that it is there already)
import psycopg  # noqa: F401
import redis  # noqa: F401
from django.conf import settings

import training.worker  # noqa: F401
from captioner.inference.engine import CaptionEngine
from clipcap.captioner import Captioner
from clipcap_site import app

PR_SET_PDEATHSIG = 1


def short_of_memory(*_: Any, **__: Any) -> NoReturn:
    """What a worker of such a name finds whenever it writes captions."""
    raise MemoryError


def main() -> None:
    loaded = CaptionEngine.load("fork server").captioner

    def load(name: str) -> CaptionEngine:
        return CaptionEngine(loaded, name, settings.BATCH_SIZE)

    CaptionEngine.load = load  # type: ignore[method-assign]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        queue, name = line.split()
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is left behind
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)
            if name.startswith("short"):
                Captioner.caption = short_of_memory  # type: ignore[method-assign]
            app.worker_main(["worker", "-P", "solo", "-Q", queue, "--without-mingle", "--without-gossip", "-n", name])
        finally:
            os._exit(0)


if __name__ == "__main__":
    main()
