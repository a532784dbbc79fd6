"""The release before this one on this one's tables, as while an update goes on (docs/production.md).

Its code lies in tests/data as `git archive` made it; CONTRIBUTING.md says when it is exchanged.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.executor import MigrationExecutor
from django.test import override_settings
from django.utils import timezone

from captioner import services
from captioner.models import Caption, Viewer
from tests.servers import PATIENCE, PostgreSQL, default_database, wait_until

ROOT = Path(__file__).parent.parent
(ARCHIVE,) = (ROOT / "tests/data").glob("clipcap-*.tar.xz")
PHOTO = ROOT / "examples/coco_cc/000000000790.jpg"
# Packages that its settings name and our environment lacks. They bring static files, of which none is asked for here.
GONE = ("drf_spectacular_sidecar",)

# What a web process of the release before does: it puts styles in service, and takes a caption in.
ASK = """
import sys, django
django.setup()
from django.core.management import call_command
from captioner import services
from captioner.models import Viewer
if "install" in sys.argv:
    call_command("install_styles")
services.request_captions(viewer=Viewer(), images=[services.Upload(open(sys.argv[1], "rb").read())])
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the release before."""
    with tarfile.open(ARCHIVE) as archive:
        folder = tmp_path_factory.mktemp("release")
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in the first releases of Python 3.11
        archive.extractall(folder)
        release = folder / archive.getnames()[0]
    for package in GONE:
        (release / package).mkdir()
        (release / package / "__init__.py").touch()
    return release


def tables_of(release: Path) -> list[tuple[str, str]]:
    """The last migration of each of its apps."""
    return [(app, max(release.glob(f"{app}/migrations/0*.py")).stem) for app in ("captioner", "training")]


def a_row(model: Any, made: dict[Any, Any]) -> Any:
    """A row of this model with nothing but what it must have, and the rows it refers to."""
    if model not in made:
        values: dict[str, Any] = {}
        for column in model._meta.concrete_fields:
            if column.primary_key and isinstance(column, models.AutoField):
                continue
            if column.is_relation and not column.null:
                values[column.name] = a_row(column.related_model, made)
            elif not column.has_default() and not column.null and not column.is_relation:
                values[column.name] = "" if column.blank else VALUES[column.get_internal_type()]
        made[model] = model.objects.create(**values)
    return made[model]


VALUES: dict[str, Any] = {
    **dict.fromkeys(("CharField", "TextField", "SlugField", "FileField", "EmailField"), "x"),
    **dict.fromkeys(("IntegerField", "BigIntegerField", "PositiveIntegerField", "PositiveSmallIntegerField"), 1),
    **{"DateTimeField": timezone.now(), "FloatField": 0.5, "BooleanField": False, "JSONField": [], "BinaryField": b"x"},
}


def test_the_release_before_writes_and_reads_every_table_that_it_knows(db: None, before: Path) -> None:
    state = MigrationExecutor(connection).loader.project_state(tables_of(before))
    known: list[Any] = [
        model for model in state.apps.get_models() if model._meta.app_label in ("captioner", "training")
    ]
    assert len(known) > 15
    made: dict[Any, Any] = {}
    for model in known:
        row = a_row(model, made)
        row.save()
        assert model.objects.filter(pk=row.pk).values().get(), model
    for model, row in reversed(made.items()):
        row.delete()
        assert not model.objects.exists()


@contextmanager
def worker(code: Path, name: str, log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A caption worker of a release, which is told to stop in the end."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-P", code / "manage.py", "worker", "captions", "--name", name],
            cwd=code,
            env={**environment, "PYTHONPATH": str(code), "PGAPPNAME": name},
            stderr=written,
            stdout=written,
        )
        try:
            yield process
            assert process.poll() is None, log.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


def captioned(log: Path) -> set[str]:
    """The captions that a worker has written, by its log."""
    lines = [json.loads(line) for line in re.findall(r'^\{"time".*"captioned".*$', log.read_text(), re.MULTILINE)]
    return {caption for line in lines for caption in line["captions"]}


def test_workers_of_both_releases_go_on_while_the_tables_change(
    before: Path, small_bundle: Path, tmp_path: Path, django_db_blocker: Any
) -> None:
    old_log, new_log, back_log = (tmp_path / f"{name}.log" for name in ("old", "new", "back"))
    with (
        PostgreSQL() as server,
        django_db_blocker.unblock(),
        default_database(url := server.create_database("clipcap")),
        override_settings(MEDIA_ROOT=tmp_path / "media", MAX_QUEUED=1000),
    ):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPCAP_")} | {
            **{"CLIPCAP_SECRET_KEY": "k" * 50, "CLIPCAP_ALLOWED_HOSTS": "x", "CLIPCAP_HOME": str(tmp_path)},
            **{"CLIPCAP_DATABASE_URL": url, "CLIPCAP_MODELS": str(small_bundle)},
            **{"CLIPCAP_BATCH_SIZE": "1", "CLIPCAP_THREADS": "1", "OMP_NUM_THREADS": "1"},
            "DJANGO_SETTINGS_MODULE": "clipcap_site.settings",
        }

        def ask_before(*arguments: str) -> None:
            code = {**environment, "PYTHONPATH": str(before)}
            command = [sys.executable, "-P", "-c", ASK, str(PHOTO), *arguments]
            subprocess.run(command, cwd=before, env=code, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)

        def connections(name: str) -> int:
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name])
                return int(cursor.fetchone()[0])

        for app, name in tables_of(before):
            call_command("migrate", app, name, verbosity=0)
        ask_before("install")
        with worker(before, "old", old_log, environment), worker(ROOT, "new", new_log, environment) as new:
            wait_until(lambda: captioned(old_log), "the old worker writes on the old tables")
            wait_until(lambda: connections("new"), "the new worker looks for its tables")
            assert new.poll() is None
            earlier = captioned(old_log)

            call_command("migrate", verbosity=0)
            ask_before()

            def both_have_worked() -> bool:
                if not Caption.objects.exclude(status="succeeded").exists():
                    if captioned(old_log) - earlier and captioned(new_log):
                        return True
                    for _ in range(4):
                        services.request_captions(viewer=Viewer(), images=[services.Upload(PHOTO.read_bytes())])
                return False

            wait_until(both_have_worked, "both write on the new tables")
        with worker(before, "back", back_log, environment):
            ask_before()
            wait_until(lambda: captioned(back_log), "the release before, started again, writes on the new tables")
        # Not that all are equal: releases store and embed a photo with roundings of their own.
        assert "" not in Caption.objects.values_list("text", flat=True)
        written = captioned(old_log) | captioned(new_log) | captioned(back_log)
        assert {str(pk) for pk in Caption.objects.values_list("pk", flat=True)} == written
