"""The settings as the environment makes them, and the checks that complain about them."""

import json
import logging
import math
import os
import re
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import RequestFactory

from captioner import checks
from clipcap_site.logs import JsonLines
from training import checks as training_checks

ROOT = Path(__file__).parent.parent
SHOW = """
import json, sys
from django.conf import settings
print(json.dumps({name: getattr(settings, name) for name in sys.argv[1:]}, default=str))
"""
SECRET = {"CLIPCAP_SECRET_KEY": "k" * 50}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with no variable of ours set but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CLIPCAP_", "DJANGO_"))}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "clipcap_site.settings", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def values(*names: str, **environment: str) -> dict[str, Any]:
    done = python("-c", SHOW, *names, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_without_a_secret_key_a_command_says_in_a_sentence_how_to_make_one() -> None:
    done = python(str(ROOT / "manage.py"), "check")
    assert done.returncode == 1
    assert done.stderr.startswith("manage.py: CLIPCAP_SECRET_KEY is not set. Set it to")
    assert "Traceback" not in done.stderr


def test_a_site_with_nothing_but_a_key_and_a_name_is_safe_and_lives_in_one_folder(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    found = values(
        *("DEBUG", "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT", "SECURE_HSTS_SECONDS"),
        *("SECURE_PROXY_SSL_HEADER", "ALLOWED_HOSTS", "ANONYMOUS", "DATABASES", "MEDIA_ROOT", "STORAGES"),
        CLIPCAP_HOME=str(home),
        CLIPCAP_ALLOWED_HOSTS="captions.example.org",
        **SECRET,
    )
    assert not found["DEBUG"]
    assert not found["ANONYMOUS"]
    assert found["SESSION_COOKIE_SECURE"]
    assert found["CSRF_COOKIE_SECURE"]
    assert found["SECURE_SSL_REDIRECT"]
    assert found["SECURE_HSTS_SECONDS"] > 0
    assert found["SECURE_PROXY_SSL_HEADER"] is None
    assert found["DATABASES"]["default"]["NAME"] == str(home / "db.sqlite3")
    assert found["DATABASES"]["default"]["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert found["MEDIA_ROOT"] == str(home / "media")
    assert found["STORAGES"]["default"]["BACKEND"].endswith(".FileSystemStorage")


def test_postgresql_redis_and_s3_are_chosen_by_the_environment_alone(tmp_path: Path) -> None:
    found = values(
        *("DATABASES", "CACHES", "CELERY_BROKER_URL", "CELERY_BROKER_TRANSPORT_OPTIONS", "STORAGES"),
        CLIPCAP_HOME=str(tmp_path),
        CLIPCAP_DATABASE_URL="postgres://ada:l%40velace@db.example.org:5433/captions",
        CLIPCAP_CACHE_URL="redis://cache.example.org:6379/1",
        CLIPCAP_BROKER_URL="redis://cache.example.org:6379/0",
        CLIPCAP_S3_BUCKET="pictures",
        CLIPCAP_S3_ENDPOINT="https://s3.example.org",
        **SECRET,
    )
    database = found["DATABASES"]["default"]
    assert database["ENGINE"] == "clipcap_site.postgresql"
    assert database["OPTIONS"]["tcp_user_timeout"] == 20_000
    assert "patience" not in database["OPTIONS"], "workers wait for as long as it takes"
    assert (database["USER"], database["PASSWORD"], database["PORT"]) == ("ada", "l@velace", 5433)
    assert found["CACHES"]["shared"]["LOCATION"] == "redis://cache.example.org:6379/1"
    assert found["CELERY_BROKER_URL"] == "redis://cache.example.org:6379/0"
    assert "data_folder_in" not in found["CELERY_BROKER_TRANSPORT_OPTIONS"]
    assert found["STORAGES"]["default"]["BACKEND"] == "storages.backends.s3.S3Storage"
    options = found["STORAGES"]["default"]["OPTIONS"]
    assert (options["bucket_name"], options["endpoint_url"]) == ("pictures", "https://s3.example.org")


def test_web_processes_wait_for_the_database_as_long_as_people_do(tmp_path: Path) -> None:
    show = "import json; from clipcap_site import wsgi; from django.conf import settings; print(json.dumps("
    given = {"CLIPCAP_HOME": str(tmp_path), **SECRET}
    done = python("-c", f"{show}settings.DATABASES['default']['OPTIONS']))", **given)
    assert json.loads(done.stdout)["timeout"] == 15, done.stderr
    done = python(
        "-c", f"{show}settings.DATABASES['default']['OPTIONS']))", CLIPCAP_DATABASE_URL="postgres://host/name", **given
    )
    options = json.loads(done.stdout)
    assert options["patience"] == 17
    assert options["options"].endswith("-c statement_timeout=15000")


def test_options_of_ones_own_for_postgresql_come_last_and_so_win(tmp_path: Path) -> None:
    url = "postgres://host/name?sslmode=require&options=-c%20tcp_user_timeout%3D1000"
    found = values("DATABASES", CLIPCAP_HOME=str(tmp_path), CLIPCAP_DATABASE_URL=url, **SECRET)
    options = found["DATABASES"]["default"]["OPTIONS"]
    assert options["sslmode"] == "require"
    assert options["options"].startswith("-c tcp_keepalives_idle=10 ")
    assert options["options"].endswith(" -c tcp_user_timeout=1000")


def test_a_relative_home_means_the_folder_the_command_was_given_in(tmp_path: Path) -> None:
    found = values("HOME", CLIPCAP_HOME="here", **SECRET)
    assert found["HOME"] == str(Path("here").resolve())


def test_whatever_a_process_writes_is_its_users_alone(tmp_path: Path) -> None:
    write = """
import django; django.setup()
from django.conf import settings
from django.core.files.base import ContentFile
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.files.storage import default_storage
from django.db import connection
default_storage.save("images/a.jpg", ContentFile(b"a"))
staticfiles_storage.save("a.css", ContentFile(b"a"))
connection.cursor().execute("CREATE TABLE a (b)")
(settings.HOME / "runs/1").mkdir(parents=True)
(settings.HOME / "runs/1/checkpoint").write_bytes(b"a")
"""
    home = tmp_path / "home"
    done = python("-c", write, CLIPCAP_HOME=str(home), CLIPCAP_ALLOWED_HOSTS="example.org", **SECRET)
    assert done.returncode == 0, done.stderr
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [home, *home.rglob("*")]}
    assert {"a.jpg", "a.css", "db.sqlite3", "checkpoint", "broker"} <= {path.name for path in found}
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}


@pytest.mark.parametrize(
    ("environment", "complaint", "remedy"),
    [
        ({"CLIPCAP_SECRET_KEY": "short"}, "fewer than 32 characters", "token_urlsafe"),
        ({"CLIPCAP_ALLOWED_HOSTS": ""}, "every request would be refused", "captions.example.org"),
    ],
)
def test_unsafe_settings_keep_a_worker_from_starting(
    tmp_path: Path, environment: dict[str, str], complaint: str, remedy: str
) -> None:
    usual = {"CLIPCAP_HOME": str(tmp_path), "CLIPCAP_ALLOWED_HOSTS": "captions.example.org", **SECRET}
    done = python(str(ROOT / "manage.py"), "worker", "captions", **{**usual, **environment})
    assert done.returncode == 1
    assert complaint in done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_a_development_server_is_left_alone(settings: Any) -> None:
    settings.DEBUG, settings.SECRET_KEY, settings.ALLOWED_HOSTS = True, "short", []
    assert checks.unsafe_settings() == []


def test_any_host_name_is_warned_of(settings: Any) -> None:
    settings.DEBUG, settings.SECRET_KEY, settings.ALLOWED_HOSTS = False, "k" * 50, ["*"]
    (warning,) = checks.unsafe_settings()
    assert warning.id == "captioner.W001"


def test_log_lines_carry_the_ids_given_and_no_http_request() -> None:
    record = logging.makeLogRecord({"msg": "caption failed", "request": "an-id", "caption": "another"})
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["request"], line["caption"]) == ("caption failed", "an-id", "another")
    record = logging.makeLogRecord({"msg": "Not Found", "request": RequestFactory().get("/nowhere")})
    assert "request" not in json.loads(JsonLines().format(record))


def test_a_lease_shorter_than_what_it_has_to_outlast_is_warned_of(settings: Any) -> None:
    assert checks.short_lease() == []
    settings.LEASE = timedelta(seconds=10)
    (warning,) = checks.short_lease()
    assert "CLIPCAP_LEASE_SECONDS is 10" in warning.msg


def test_a_cache_that_several_web_processes_cannot_share_is_warned_of(settings: Any) -> None:
    settings.DEBUG, settings.CELERY_BROKER_URL = False, "redis://localhost"
    (warning,) = checks.cache_of_one_process()
    assert "CLIPCAP_CACHE_URL" in (warning.hint or "")
    settings.CACHES = settings.CACHES | {"shared": {"BACKEND": "django.core.cache.backends.redis.RedisCache"}}
    assert checks.cache_of_one_process() == []


def test_models_that_are_not_there_are_named_with_the_setting(settings: Any, tmp_path: Path) -> None:
    assert checks.missing_models() == []
    settings.ENCODER, settings.LANGUAGE_MODEL = "ViT-B-32/openai", f"local-dir:{tmp_path / 'lm'}"
    (warning,) = checks.missing_models()
    assert str(tmp_path / "lm") in warning.msg
    assert "CLIPCAP_LANGUAGE_MODEL" in (warning.hint or "")


def test_every_variable_is_documented_and_every_documented_one_exists() -> None:
    read = set(re.findall(r'env\.\w+\(\s*"(CLIPCAP_\w+)"', (ROOT / "clipcap_site/settings.py").read_text()))
    documented = set(re.findall(r"^\| `(CLIPCAP_\w+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert "CLIPCAP_HOME" in read
    assert documented == read


def test_a_value_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    done = python(str(ROOT / "manage.py"), "check", CLIPCAP_HOME=str(tmp_path), CLIPCAP_BATCH_SIZE="lots", **SECRET)
    assert done.returncode == 1
    assert done.stderr.startswith("manage.py: CLIPCAP_BATCH_SIZE cannot be 'lots'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["mysterious://host/name", "postgres//host", "postgres://host:port/name"])
def test_a_database_that_cannot_be_understood_is_named(tmp_path: Path, url: str) -> None:
    done = python(str(ROOT / "manage.py"), "check", CLIPCAP_HOME=str(tmp_path), CLIPCAP_DATABASE_URL=url, **SECRET)
    assert done.returncode == 1
    assert "CLIPCAP_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_numbers_that_would_stop_all_work_are_named(settings: Any) -> None:
    assert checks.nonsense() == []
    settings.BATCH_SIZE = settings.TRAINING_PROCESSES = 0
    settings.MODEL_CACHE_BYTES = -1
    settings.UNSURE_BELOW = math.nan
    settings.LABELLED_TWICE = 1.5
    settings.REST_FRAMEWORK = {"DEFAULT_THROTTLE_RATES": {"user": "often", "anonymous": "60/minute"}}
    assert [error.msg.split()[0] for error in checks.nonsense()] == [
        "CLIPCAP_BATCH_SIZE",
        "CLIPCAP_MODEL_CACHE_BYTES",
        "CLIPCAP_THROTTLE_USER",
        "CLIPCAP_UNSURE_BELOW",
        "CLIPCAP_LABELLED_TWICE",
    ]
    assert [error.msg.split()[0] for error in training_checks.nonsense()] == ["CLIPCAP_TRAINING_PROCESSES"]


def test_an_address_for_other_machines_needs_a_key_that_nobody_guesses(settings: Any) -> None:
    assert training_checks.unsafe_address() == []
    settings.TRAINING_ADDRESS, settings.TRAINING_KEY = "10.0.0.5:29400", "short"
    (error,) = training_checks.unsafe_address()
    assert error.msg == "CLIPCAP_TRAINING_ADDRESS is set, and CLIPCAP_TRAINING_KEY has fewer than 32 characters"
    settings.TRAINING_KEY = "x" * 32
    assert training_checks.unsafe_address() == []
