"""A folder that looks like a machine on which docs/production.md is followed."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from tests.servers import PATIENCE, PostgreSQL, Redis, free_port, installed

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs/production.md").read_text()
SNIPPETS: dict[str, str] = dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', GUIDE, re.MULTILINE | re.DOTALL))
PARSER = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")
HOST = "captions.example.org"
PASSWORD = "p#ss w/rd 100%"
VISITING = ("curl", "--silent", "--header", f"Host: {HOST}", "--header", "X-Forwarded-Proto: https")  # as a proxy does
SHIMS = {
    "sudo": '[ "$1" = -u ] && shift 2\nexec "$@"',
    "systemd-sysusers": 'exec /usr/bin/systemd-sysusers --root="$MACHINE"',
    "systemctl": 'echo "$@" >>"$MACHINE/systemctl"',
}


@dataclass
class Machine:
    """A folder that looks like a machine on which the guide is followed."""

    root: Path
    postgresql: PostgreSQL
    redis: Redis
    port: int = field(default_factory=free_port)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # by unit

    def __post_init__(self) -> None:
        maker = re.findall(r"^# (python3 -c .+)$", SNIPPETS["/etc/clipcap.env"], re.MULTILINE)
        self.key = subprocess.check_output(["/bin/sh", "-c", *maker], text=True).strip()
        for folder in ("etc/systemd/system", "srv/clipcap", "tmp", "var/backups/clipcap/media", "var/lib"):
            (self.root / folder).mkdir(parents=True)
        for name, script in SHIMS.items():
            self.write(f"/usr/local/bin/{name}", f"#!/bin/sh\n{script}\n")
        self._check_out()
        hba = self.postgresql.folder / "data/pg_hba.conf"
        hba.write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self.ask("SELECT pg_reload_conf()", database="postgres")
        for title in ("/etc/sysusers.d/clipcap.conf", "/usr/local/bin/clipcap-manage"):
            self.write(title)

    def _check_out(self) -> None:
        """The project in /srv/clipcap, with the environment that the tests run in as its own."""
        project, venv = self.root / "srv/clipcap", self.root / "srv/clipcap/.venv"
        for path in ROOT.iterdir():
            if path.name not in (".venv", "run", "var"):
                (project / path.name).symlink_to(path)
        (project / "run").write_bytes((ROOT / "run").read_bytes())
        (project / "run").chmod(0o755)
        venv.mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        version = f"Python {sys.version_info.major}.{sys.version_info.minor}\n"
        (venv / "requirements.txt.installed").write_text(version + (ROOT / "requirements.txt").read_text())

    def here(self, text: str) -> str:
        """A snippet with the names of this machine."""
        for pattern, own in (
            (r"(?<![\w.])/(etc|srv|var)/", rf"{self.root}/\1/"),
            (r"--owner=\w+ --group=\w+ ", ""),
            (r"clipcap:clipcap /", f"{os.getuid()}:{os.getgid()} /"),
            (r"\bclipcap:password@", f"clipcap:{quote(PASSWORD, safe='')}@"),
            (r"^(CLIPCAP_SECRET_KEY=)$", rf"\g<1>{self.key}"),
            (r"localhost:5432", f"localhost:{self.postgresql.port}"),
            (r"localhost:6379", f"localhost:{self.redis.port}"),
            (r"127\.0\.0\.1:8000", f"127.0.0.1:{self.port}"),
        ):
            text = re.sub(pattern, own, text, flags=re.MULTILINE)
        return text

    def write(self, path: str, text: str = "", *more: str) -> Path:
        """A file of the guide, or this text, and lines of the test's own."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((text or self.here(SNIPPETS[path])) + "".join(f"{line}\n" for line in more))
        if "/bin/" in path:
            file.chmod(0o755)
        return file

    def do(self, title: str, given: str = "", lines: slice = slice(None)) -> str:
        """Run the commands of a snippet, or some of its lines; returns what they print."""
        commands = "".join(self.here(SNIPPETS[title]).splitlines(keepends=True)[lines])
        done = subprocess.run(
            ["/bin/sh", "-ec", commands],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "PATH": f"{self.root}/usr/local/bin:{self.postgresql.programs}:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(self.root),
                "TMPDIR": f"{self.root}/tmp",  # what is swept there is this machine's
                "MACHINE": str(self.root),
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.postgresql.port),
                "PGUSER": "postgres",
            },
            start_new_session=True,  # without a terminal, passwords are read from the input
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def ask(self, query: str, database: str = "clipcap") -> list[tuple[Any, ...]]:
        """What PostgreSQL's administrator is answered."""
        address = f"postgres://postgres@127.0.0.1:{self.postgresql.port}/{database}"
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    @property
    def environment(self) -> dict[str, str]:
        """What systemd makes of the file."""
        return parsed_by_systemd(self.root / "etc/clipcap.env", self.root / "parser")

    @contextmanager
    def service(self, unit: str) -> Iterator[None]:
        """What a unit starts, as systemd starts it; at the end it is stopped in the same way."""
        self._start(unit)
        try:
            yield
            if unit in self.running:
                self.stop(unit)
        finally:
            if unit in self.running:
                self._kill(unit)

    def _start(self, unit: str) -> None:
        service = unit_file(self.here(SNIPPETS[f"/etc/systemd/system/{unit}"]).replace("%i", "1"))["Service"]
        self.running[unit] = subprocess.Popen(
            shlex.split(service["ExecStart"]),
            cwd=service["WorkingDirectory"],
            env={
                **{
                    "PATH": "/usr/local/bin:/usr/bin:/bin",
                    "USER": service["User"],
                    "HOME": f"{self.root}/var/lib/clipcap",
                },
                **{"OMP_NUM_THREADS": "1", "PGAPPNAME": unit},
                **self.environment,
            },
            start_new_session=True,
        )

    def _kill(self, unit: str) -> None:
        process = self.running.pop(unit)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def crash(self, unit: str) -> None:
        """Kill all processes of a unit; systemd starts them again."""
        self._kill(unit)
        self._start(unit)

    def stop(self, unit: str) -> None:
        """As systemd does it."""
        process = self.running.pop(unit)
        assert process.poll() is None, f"{unit} has ended by itself"
        process.terminate()
        limit = unit_file(SNIPPETS[f"/etc/systemd/system/{unit}"])["Service"]["TimeoutStopSec"]
        assert process.wait(float(limit)) == 0

    def carry_out(self, title: str) -> None:
        """Stop what a snippet's calls of `systemctl stop` name, in their order."""
        (self.root / "systemctl").unlink(missing_ok=True)
        self.do(title)
        for line in (self.root / "systemctl").read_text().splitlines():
            verb, *names = shlex.split(line)
            assert verb == "stop"
            for name in names:
                for unit in [unit for unit in self.running if fnmatch(unit.replace("@.", "@1."), f"{name}.service")]:
                    self.stop(unit)

    def forget_throttles(self) -> None:
        subprocess.run(
            [*("redis-cli", "-p", str(self.redis.port), "-n", "1"), "flushdb"], check=True, capture_output=True
        )

    def connections(self, unit: str) -> int:
        ((count,),) = self.ask(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{unit}'")
        return int(count)


def unit_file(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # as documented
    unit.read_string(text)
    return unit


def ask(port: int, path: str) -> int:
    """The status of an answer without a proxy; 0 if there is none."""
    done = subprocess.run(
        [*VISITING, "--output", "/dev/null", "--write-out", "%{http_code}", f"http://127.0.0.1:{port}{path}"],
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


def budget(process: str) -> int:
    """How many connections a process may take, by the guide's table."""
    found = re.search(rf"^\| {process} \| (?:`CLIPCAP_WEB_THREADS` \+ )?(\d+)", GUIDE, re.MULTILINE)
    assert found
    return int(found[1])


def parsed_by_shell(file: Path) -> dict[str, str]:
    done = subprocess.run(
        ["/bin/sh", "-ec", 'set -a; . "$0"; env -0', file], env={}, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line and not line.startswith("PWD="))


def parsed_by_systemd(file: Path, scratch: Path) -> dict[str, str]:
    """The variables of an EnvironmentFile, by the parser that systemd itself has.

    It differs in one thing: here, `$` is expanded.
    """
    if not PARSER.exists():
        pytest.skip(f"there is no {PARSER}; apt-get install systemd")
    (scratch / "environment.d").mkdir(parents=True, exist_ok=True)
    (scratch / "environment.d/test.conf").write_text(file.read_text())
    done = subprocess.run(
        [PARSER], env={"XDG_CONFIG_HOME": str(scratch), "HOME": "/"}, capture_output=True, text=True, check=True
    )
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines())
    names = re.findall(r"^(\w+)=", file.read_text(), re.MULTILINE)
    return {name: shlex.split(lines[name])[0] if lines[name] else "" for name in names}


@dataclass
class Proxy:
    """A proxy in front of the site, for visitors who come by HTTPS."""

    kind: str
    folder: Path
    machine: Machine
    secure: int = field(default_factory=free_port)
    plain: int = field(default_factory=free_port)

    @property
    def certificate(self) -> Path:
        return self.machine.root / f"etc/letsencrypt/live/{HOST}/fullchain.pem"

    def start(self) -> subprocess.Popen[bytes]:
        key = self.certificate.with_name("privkey.pem")
        if not key.exists():
            self.certificate.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [*("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                 *("-keyout", key, "-out", self.certificate, "-subj", f"/CN={HOST}"),
                 *("-addext", f"subjectAltName=DNS:{HOST}")],
                check=True, capture_output=True,
            )  # fmt: skip
        config = self.folder / "config"
        if self.kind == "nginx":
            program = installed("nginx", "nginx")
            text = self.machine.here(SNIPPETS["/etc/nginx/sites-available/clipcap"])
            text = re.sub(r"listen 443", f"listen 127.0.0.1:{self.secure}", text)
            text = re.sub(r"listen 80", f"listen 127.0.0.1:{self.plain}", text)
            paths = "".join(
                f"{name}_temp_path {self.folder}/{name};"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            user = "user root;" if os.getuid() == 0 else ""
            config.write_text(
                f"{user} daemon off; pid {self.folder}/pid; events {{}}\nhttp {{ access_log off; {paths}\n{text} }}"
            )
            command: list[str | Path] = [program, "-c", config, "-p", self.folder, "-e", self.folder / "errors"]
        else:
            program = installed("caddy", "caddy")
            text = self.machine.here(SNIPPETS["/etc/caddy/Caddyfile"])
            text = text.replace(f"{HOST} {{", f"{HOST} {{\n\ttls {self.certificate} {key}")
            options = f"admin off\nhttps_port {self.secure}\nhttp_port {self.plain}\ndefault_bind 127.0.0.1"
            config.write_text(f"{{\n{options}\n}}\n{text}")
            command = [program, "run", "--config", config, "--adapter", "caddyfile"]
        with (self.folder / "log").open("wb") as log:
            environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def call(self, *arguments: str | Path) -> tuple[int, dict[str, str], str]:
        """What curl is answered: status, headers in lower case, body. Throttles know nothing of earlier calls."""
        options: list[str | Path] = ["--silent", "--include", "--cacert", self.certificate]
        options += ["--connect-to", f"{HOST}:443:127.0.0.1:{self.secure}"]
        options += ["--connect-to", f"{HOST}:80:127.0.0.1:{self.plain}"]
        done = subprocess.run(["curl", "--http1.1", *options, "--header", "Expect:", *arguments], capture_output=True)
        head, _, body = done.stdout.decode().partition("\r\n\r\n")
        if not head:
            return 0, {}, done.stderr.decode()
        status, *lines = head.split("\r\n")
        return int(status.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body
