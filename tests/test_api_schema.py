"""The OpenAPI document, and that the API keeps to it whatever it is sent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.db.models import Model
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from accounts.services import make_token
from captioner import services
from captioner.inference.engine import CaptionEngine
from captioner.models import Album, BaseModels, Caption, CaptionRequest, Image, Style, Viewer, Worker
from training.models import TrainingRun

# That wrong data is refused is the matter of test_api_bad_input.py; here: nothing breaks, nothing is undocumented.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
    unsupported_method,
]
ROWS: dict[str, type[Model]] = {
    "captions": Caption,
    "requests": CaptionRequest,
    "images": Image,
    "albums": Album,
    "training-runs": TrainingRun,
    "base-models": BaseModels,
}
PEOPLE = ("nobody", "user", "administrator")


@pytest.fixture
def document(styles: dict[str, Style], engine: CaptionEngine, photo: bytes, settings: Any) -> Iterator[BaseSchema]:
    """The document of a service with finished, corrected, failed and queued captions of an anonymous program, captions
    of a user, and training runs."""
    rates = {"anonymous": "100000/minute", "user": "100000/minute"}
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "DEFAULT_THROTTLE_RATES": rates}
    settings.ALLOWED_HOSTS = ["localhost"]
    tomorrow = timezone.now() + timedelta(days=1)  # so that it stays a worker heard from recently
    Worker.objects.create(name="w", queue="captions", models_loaded="an encoder, an LM", seen_at=tomorrow)
    ask: dict[str, Any] = {"viewer": Viewer(), "images": [services.Upload(photo, "photo.jpg")]}
    services.request_captions(**ask, styles=["all"], webhook_url="https://example.com/hook")
    engine.work()
    done, failed, _ = Caption.objects.all()
    services.correct_caption(Viewer(), done.pk, "Two people on a bench.")
    Caption.objects.filter(pk=failed.pk).update(status="failed", error_code="image_missing", error_detail="It is gone.")
    services.request_captions(**ask)
    ada = get_user_model().objects.create_user("ada")
    services.request_captions(**ask | {"viewer": Viewer(ada)}, webhook_url="https://example.com/hook")
    services.create_album(Viewer(ada), "Holiday")
    for status in ("queued", "failed"):
        ended = {"finished_at": timezone.now(), "error_code": "no_examples"} if status == "failed" else {}
        TrainingRun.objects.create(
            style=styles["factual"], status=status, deadline_at=tomorrow, last_example=0, **ended
        )
    BaseModels.record(encoder="an encoder", language_model="an LM", encoder_source="a", language_model_source="b")
    BaseModels.objects.create(encoder_source="c", language_model_source="d", preparing=True)
    # They would end the test's transaction; Django's own test client does the same.
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    wanted = {"Accept": "application/vnd.oai.openapi+json"}
    yield schemathesis.openapi.from_wsgi("/api/schema/", get_wsgi_application(), headers=wanted)
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


def test_the_document_is_valid_and_complete(tmp_path: Path) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", file=str(tmp_path / "openapi.yml"))

    assert "openapi: 3.1" in (tmp_path / "openapi.yml").read_text()


@pytest.fixture(params=PEOPLE)
def headers(request: pytest.FixtureRequest, document: BaseSchema) -> dict[str, str]:
    """The headers of a program of this kind of person."""
    if request.param == "nobody":
        return {}
    users = get_user_model().objects
    person = users.get(username="ada") if request.param == "user" else users.create_superuser("root")
    return {"Authorization": f"Token {make_token(person, name='tests')[1]}"}


def known(case: Case[Any]) -> list[Any]:
    """Keys of rows that the path may be about: of everybody's and of the user's."""
    model = ROWS.get(case.operation.path.split("/")[2])
    if not model or "id" not in case.path_parameters:
        return [""]
    rows = list(model._base_manager.all())
    own = [row.pk for row in rows if getattr(row, "owner", None) or "user:" in getattr(row, "sender", "")]
    return [*[row.pk for row in rows if row.pk not in own][:2], *own[:1]]


def test_no_answer_is_a_server_error_or_undocumented(document: BaseSchema, headers: dict[str, str]) -> None:
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) > 20
    for operation in operations:
        # That nothing is ready, as here, is an answer of its own: a 503 that the document has.
        told = operation.path == "/api/health/ready"
        checks = [check for check in CHECKS if not (told and check is not_a_server_error)]

        @given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
        @hypothesis_settings(
            max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        def send(case: Case[Any]) -> None:
            if case.headers and "Prefer" in case.headers:
                case.headers["Prefer"] = "wait=0"  # nobody works here
            case.call_and_validate(checks=checks, headers=headers)  # noqa: B023 (called in this turn of the loop)
            # Again, to what is there. What that changes is undone.
            for pk in known(case):
                for name in case.path_parameters:
                    case.path_parameters[name] = str(pk) if name == "id" else "factual"
                with transaction.atomic():
                    case.call_and_validate(checks=checks, headers=headers)  # noqa: B023
                    transaction.set_rollback(True)

        send()


def test_the_document_is_whole_for_all_who_ask_at_once_in_a_fresh_process() -> None:
    program = """
import sys, threading
sys.setswitchinterval(1e-6)
import django
django.setup()
from django.test import Client
answers, start = [], threading.Barrier(6)
def ask():
    client = Client(raise_request_exception=False)
    start.wait()
    answers.append(client.get("/api/schema/", headers={"host": "localhost"}))
threads = [threading.Thread(target=ask) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print([answer.status_code for answer in answers], len({answer.content for answer in answers}))
"""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "clipcap_site.settings", "CLIPCAP_DEVELOPMENT": "1"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.stdout.strip() == f"{[200] * 6} 1", ended.stderr
