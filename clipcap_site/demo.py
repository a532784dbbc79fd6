"""`./run demo`: sets everything up below one folder and runs web and workers under one supervisor.

It is production in small: the same processes and settings, with SQLite, files and a broker that is a folder, and
without TLS. Every step of the set-up finds out what is there already, so a start that was cut off is completed by the
next one. Variables of the environment that are set already hold, but for the one that means development.
"""

import argparse
import errno
import fcntl
import http.client
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NoReturn, TextIO

import django
from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError
from django.utils import timezone

from clipcap_site.supervisor import Child, Supervisor, spawn

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "examples" / "coco_cc"
PYTHON = [sys.executable, "-P"]
MANAGE = [*PYTHON, str(ROOT / "manage.py")]
ADMINISTRATOR = "admin"


class Failure(Exception):
    """The demo cannot start, with a sentence for the user."""


def main() -> None:
    """Run the demo as the command line says."""
    parser = argparse.ArgumentParser(prog="./run demo", description="Set up and run the whole site on this machine.")
    parser.add_argument("--port", type=int, default=None, help="8000, or PORT of the environment; 0 for any free one")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s: this machine only)")
    parser.add_argument(
        "--new-password", action="store_true", help="set a new administrator password, print it and exit"
    )
    arguments = parser.parse_args()
    home = Path(os.environ.get("CLIPCAP_HOME") or ROOT / "var" / "demo").resolve()
    try:
        if arguments.new_password:
            new_password(home)
        else:
            run(home, arguments.host, _port(arguments.port))
    except (Failure, ImproperlyConfigured) as error:
        _end(str(error))
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _end(
            f"{error.filename or home} cannot be used ({error.strerror or error}); free some space, or use a "
            f"writable folder: CLIPCAP_HOME=/another/folder ./run demo"
        )
    except DatabaseError as error:
        _end(
            f"the database cannot be used ({error}); check that the disk is not full or read-only, or use another "
            f"folder: CLIPCAP_HOME=/another/folder ./run demo"
        )
    except KeyboardInterrupt:
        _end("stopped before the setup was complete; the next start continues from here")


def run(home: Path, host: str, port: int) -> None:
    """Set up what is missing, then run everything until a signal comes.

    Raises:
        Failure: it cannot start.
    """
    with _lock(home) as lock:
        listener = _listen(host, port)
        port = listener.getsockname()[1]
        names = [host, *_own_names(host)]
        address = f"http://{_bracketed(names[-1])}:{port}/"
        lock.write(address)
        lock.flush()
        _say(f"Setting up {home} ...")
        logs = home / "logs"
        logs.mkdir(exist_ok=True)
        _environment(home, names)
        password = _set_up(home)
        web = [*PYTHON, "-m", "gunicorn", "clipcap_site.wsgi", "--bind", f"fd://{listener.fileno()}"]
        web += ["--graceful-timeout", "10", "--log-level", "warning"]  # the rest is in gunicorn.conf.py
        children = [
            Child("web", web, logs / "web.log", pass_fds=[listener.fileno()]),
            Child("caption worker", [*MANAGE, "worker", "captions"], logs / "captions.log"),
            Child("training worker", [*MANAGE, "worker", "training"], logs / "training.log"),
        ]
        with Supervisor(children, cwd=ROOT, say=_say) as supervisor:
            chores = [_announce(names[-1], port, address, password), _welcome_workers(), _fill_gallery()]
            _supervise(supervisor, chores)
            _say("Stopping; the workers finish what they have started, or hand it back ...")
        _say("Stopped.")


def new_password(home: Path) -> None:
    """Give the administrator a new password, whether the demo runs or not.

    Raises:
        Failure: there is no administrator yet.
    """
    if not (home / "secret-key").exists():
        raise Failure(f"nothing is set up in {home} yet; run ./run demo first; it prints a password")
    _environment(home, [])
    from django.contrib.auth.models import User  # models can be imported after the settings only

    user = User.objects.filter(username=ADMINISTRATOR).first()
    if user is None:
        raise Failure(f"there is no user {ADMINISTRATOR} in {home}; create it with ./run demo")
    password = secrets.token_urlsafe(12)
    user.set_password(password)
    user.save(update_fields=["password"])
    _say(f"Administrator: {ADMINISTRATOR} / {password}")


def _supervise(supervisor: Supervisor, chores: list[Iterator[bool]]) -> None:
    """Let everything run until a signal comes, and get the chores done meanwhile."""
    while not supervisor.stopping:
        supervisor.look()
        hurry = {chore: next(chore, None) for chore in chores}
        chores = [chore for chore in chores if hurry[chore] is not None]
        if not any(hurry.values()):
            time.sleep(0.25)


# Chores do a little of their work whenever they are asked to, and tell whether to ask again at once.


def _announce(host: str, port: int, address: str, password: str) -> Iterator[bool]:
    """Say where the site is as soon as it answers."""
    while not _answers(host, port):
        yield False
    _say(f"\nOpen {address}")
    if password:
        _say(f"Administrator: {ADMINISTRATOR} / {password} (not shown again)")
    else:
        _say(f"Administrator: {ADMINISTRATOR}, password as printed before; ./run demo --new-password sets a new one")
    _say("Ctrl-C stops everything.\n")


def _welcome_workers() -> Iterator[bool]:
    """Tell of each worker that is ready: at the start, and when one was started again."""
    from captioner.models import Worker

    since = timezone.now()
    while True:
        with suppress(DatabaseError):  # it may be busy
            for worker in Worker.objects.filter(started_at__gt=since).order_by("started_at"):
                since = worker.started_at
                _say(f"The {'caption' if worker.queue == 'captions' else worker.queue} worker is ready.")
        yield False


def _fill_gallery() -> Iterator[bool]:
    """Ask for the captions of the example photos that are not there yet, and tell how far they are.

    People's captions of them become examples of the factual style, so that retraining it can be tried at once.
    """
    from captioner import services, uploads
    from captioner.errors import Refused
    from captioner.models import EVERYBODY, Caption, Style, Viewer
    from training.models import Example
    from training.services import add_example

    viewer = Viewer(visitor=EVERYBODY)
    gallery = Caption.objects.filter(visitor=EVERYBODY)
    try:
        styles = [style.slug for style in services.choose_styles(["all"])]
        for photo in json.loads((PHOTOS / "captions.json").read_text()):
            data = (PHOTOS / photo["file"]).read_bytes()
            there = set(gallery.filter(image__sha256=sha256(data).hexdigest()).values_list("style__slug", flat=True))
            missing = [slug for slug in styles if slug not in there]
            if missing:
                credit = f"From COCO 2017, under the {photo['licence']} ({photo['licence_url']})"
                image = uploads.store(data, credit=credit, credit_url=photo["flickr_url"])
                for style in Style.objects.filter(slug="factual"):
                    for text in photo["captions"]:
                        add_example(style=style, image=image, text=text, source=Example.Source.IMPORTED)
                services.request_captions(viewer=viewer, images=[image], styles=missing, bulk=True)
            yield True
        for caption in gallery.filter(status="failed", error_code__in=("deadline_exceeded", "worker_lost")):
            services.retry_caption(viewer, caption.pk)  # a demo that was stopped for hours
        total, said, said_at = gallery.count(), -1, 0.0
        while left := gallery.unfinished().count():
            if total - left != said and time.monotonic() - said_at >= 2.0:
                said, said_at = total - left, time.monotonic()
                _say(f"Gallery: {said} of {total} captions")
            yield False
        if said >= 0:
            _say(f"Gallery: {total} of {total} captions")
    except (Refused, DatabaseError, OSError) as error:
        _say(f"The gallery is not complete: {error}. The next start continues from here.")


def _set_up(home: Path) -> str:
    """Database, static files, styles and administrator.

    Returns:
        The administrator's password if one was just made.

    Raises:
        Failure: something is missing that cannot be made here.
    """
    from django.contrib.auth.models import User

    from captioner.checks import missing_models
    from captioner.models import MapperVersion, Worker
    from clipcap.fingerprint import file_sha256

    for problem in missing_models():
        raise Failure(f"{problem.msg}; {problem.hint}")
    call_command("migrate", verbosity=0, interactive=False)
    _collect_static(home)
    shipped = {file_sha256(path) for path in (settings.MODELS / "styles").glob("*.safetensors")}
    if shipped - set(MapperVersion.objects.exclude(promotions=None).values_list("sha256", flat=True)):
        Worker.objects.all().delete()  # the lock is ours, so none runs: other base models have nobody to wait for
        _run_once([*MANAGE, "install_styles"], home / "logs" / "install_styles.log")  # apart, because it loads torch
    if User.objects.filter(is_superuser=True).exists():
        return ""
    password = secrets.token_urlsafe(12)
    User.objects.create_superuser(ADMINISTRATOR, password=password)
    return password


def _collect_static(home: Path) -> None:
    """Collect the static files, which takes seconds, if any has changed since."""
    stamp = home / "static.stamp"
    files = [
        (name, storage.size(name), storage.get_modified_time(name))
        for finder in get_finders()
        for name, storage in finder.list([])
    ]
    now = sha256(repr(sorted(files)).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != now:
        call_command("collectstatic", verbosity=0, interactive=False)
        stamp.write_text(now)


def _run_once(command: list[str], log: Path) -> None:
    process = spawn(command, log=log, cwd=ROOT)
    if process.wait():
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise Failure(f"a setup step failed: {' '.join(last)} (its log: {log})")


def _environment(home: Path, names: list[str]) -> None:
    """Make the settings those of a site on this machine, and load them."""
    key = home / "secret-key"
    if not key.exists():
        unfinished = home / "secret-key.new"
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        unfinished.write_text(secrets.token_urlsafe(50))
        unfinished.rename(key)
    os.environ.pop("CLIPCAP_DEVELOPMENT", None)
    os.environ |= {"CLIPCAP_HOME": str(home), "DJANGO_SETTINGS_MODULE": "clipcap_site.settings"}
    for name, value in {
        "CLIPCAP_SECRET_KEY": key.read_text(),
        "CLIPCAP_ALLOWED_HOSTS": ",".join(["localhost", "127.0.0.1", "[::1]", *map(_bracketed, names)]),
        "CLIPCAP_HTTPS": "0",
        "CLIPCAP_ANONYMOUS": "1",
    }.items():
        os.environ.setdefault(name, value)
    django.setup()


@contextmanager
def _lock(home: Path) -> Iterator[TextIO]:
    """Keep a second demo out of the same folder.

    Yields:
        The lock file, to write into where this demo is, for the second one to print.

    Raises:
        Failure: one runs there.
    """
    os.umask(0o077)  # photos and password hashes are nobody else's business
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Failure(
                f"a demo is already running in {home}, at {file.read().strip()}; stop it, or use another folder "
                f"for this one: CLIPCAP_HOME=/another/folder ./run demo"
            ) from None
        file.truncate(0)
        yield file


def _listen(host: str, port: int) -> socket.socket:
    """The socket that the web process will serve: it stays open while that is restarted.

    Raises:
        Failure: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Failure(
                f"port {port} is taken; choose another, such as ./run demo --port {port % 65535 + 1}"
            ) from error
        if error.errno == errno.EACCES:
            raise Failure(
                f"port {port} is reserved for privileged users; choose one from 1024 up: ./run demo --port 8000"
            ) from error
        raise Failure(f"{host} is not an address of this machine ({error.strerror}); leave out --host") from error
    return listener


def _own_names(host: str) -> list[str]:
    """What this machine is called by others, if it listens to others on all addresses."""
    if host not in ("0.0.0.0", "::"):
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only looks up which address would be used
            return [socket.gethostname(), probe.getsockname()[0]]
        except OSError:
            return [socket.gethostname(), "127.0.0.1"]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/api/health/live")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _port(given: int | None) -> int:
    """The port of the command line or the environment.

    Raises:
        Failure: it is not a port.
    """
    text = os.environ.get("PORT") or "8000" if given is None else str(given)
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise Failure(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def _say(line: str) -> None:
    print(line, flush=True)


def _end(sentence: str) -> NoReturn:
    sys.exit(f"run demo: {sentence}")


if __name__ == "__main__":
    main()
