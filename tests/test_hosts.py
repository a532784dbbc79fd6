"""Workers on several hosts, which share PostgreSQL, Redis and S3 and nothing else: each has a network of its own, a
namespace of this machine's kernel, and a folder of its own."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from celery import Celery
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from moto.server import ThreadedMotoServer

from captioner import services
from captioner.jobs import wakeup
from captioner.jobs.job import Status
from captioner.models import Caption, CaptionRequest, Image, Style, Viewer, Worker
from clipcap_site.settings import STORAGES
from tests.hosts import Host, need_namespaces
from tests.servers import PATIENCE, PostgreSQL, Redis, default_database, wait_until
from tests.stack import LEASE, Stack
from tests.test_faults import ENDINGS, check_that_all_end, photos
from training import services as training_services
from training.models import Example, TrainingRun

pytestmark = pytest.mark.faults
BUCKET = "pictures-of-hosts"  # the server of buckets in this process is that of other tests too
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
PHOTOS = 30  # of a request, each in three styles
# In a transaction that does not end, at each line that it reads: those that a worker has in hand.
LOCKS = """
import sys, django
django.setup()
from django.db import transaction
from captioner.models import Caption
with transaction.atomic():
    print("ready", flush=True)
    for worker in sys.stdin:
        print(len(Caption.objects.filter(status="running", lease_holder=worker.strip()).lock()), flush=True)
"""


@pytest.fixture
def hosts(tmp_path: Path, django_db_blocker: Any, tables: Path) -> Iterator[list[tuple[Host, Stack]]]:
    """Two hosts with the processes that workers are forked from, on an installation with the shipped styles."""
    need_namespaces()
    with ExitStack() as resources:
        resources.enter_context(django_db_blocker.unblock())
        networks = [Host(number, resources) for number in (1, 2)]
        addresses = [host.gateway for host in networks]
        redis = resources.enter_context(Redis(*addresses))
        postgresql = resources.enter_context(PostgreSQL(addresses=addresses))
        s3 = ThreadedMotoServer("0.0.0.0", 0)
        s3.start()
        resources.callback(s3.stop)
        port = s3.get_host_and_port()[1]
        database = postgresql.create_site("clipcap")
        patch = resources.enter_context(pytest.MonkeyPatch.context())
        for name, value in KEYS.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
        found = []
        for host in networks:

            def at(address: str, gateway: str = host.gateway) -> str:
                return address.replace("127.0.0.1", gateway)

            where = {"CLIPCAP_S3_BUCKET": BUCKET, "CLIPCAP_S3_ENDPOINT": f"http://{host.gateway}:{port}", **KEYS}
            within = ("ip", "netns", "exec", host.name)
            stack = Stack(tmp_path / host.name, at(database), at(redis.url), redis, within=within, variables=where)
            stack.open()
            resources.callback(stack.close)
            found.append((host, stack))
        resources.enter_context(default_database(database))
        here = {"bucket_name": BUCKET, "endpoint_url": f"http://127.0.0.1:{port}"}
        storage = {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": here}
        resources.enter_context(
            override_settings(STORAGES={**STORAGES, "default": storage}, LEASE=timedelta(seconds=LEASE))
        )
        app = Celery(broker=redis.url, set_as_current=False)
        app.conf.update(broker_transport_options={"socket_connect_timeout": 1}, task_default_queue="captions")
        patch.setattr(wakeup, "app", app)
        call_command("install_styles", stdout=io.StringIO())
        with connection.cursor() as cursor:
            cursor.execute(ENDINGS["postgresql"])
        yield found


def ask(viewer: Viewer, times: int) -> list[CaptionRequest]:
    """Queue captions of the photos in all three styles, so many times."""
    return [
        services.request_captions(viewer=viewer, images=photos(PHOTOS), styles=["all"], options={"method": "greedy"})
        for _ in range(times)
    ]


@contextmanager
def locks(stack: Stack) -> Iterator[Callable[[str], int]]:
    """A transaction of the host, in which what a worker has in hand can be locked; it answers with how many."""
    command = [*stack.within, sys.executable, "-P", "-c", LOCKS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=stack.environment, text=True) as process:
        assert process.stdin
        assert process.stdout
        asked, answers = process.stdin, process.stdout
        assert answers.readline() == "ready\n"

        def lock(worker: str) -> int:
            print(worker, file=asked, flush=True)
            return int(answers.readline())

        yield lock
        process.kill()


def running(worker: str) -> bool:
    return Caption.objects.filter(status=Status.RUNNING, lease_holder=worker).exists()


def test_two_hosts_caption_and_retrain_and_lose_and_double_nothing_when_one_is_cut_off(
    hosts: list[tuple[Host, Stack]], pytestconfig: pytest.Config
) -> None:
    (_, here), (second, there) = hosts
    ada = Viewer(User.objects.create_user("ada"))
    times = math.ceil(pytestconfig.getoption("captions") / (3 * 3 * PHOTOS))
    here.fork("captions", "w1@first")
    there.fork("captions", "w2@second")
    wait_until(lambda: Worker.objects.alive("captions").count() == 2, "a worker on each host has loaded its models")
    with locks(there) as lock:
        requests = ask(ada, times)
        wait_until(lambda: lock("w2@second"), "the second host has a batch in hand, and its rows are locked")
        second.cut_off()
        assert running("w2@second"), "it was cut off in the midst of a batch"
        check_that_all_end(requests, 3 * PHOTOS * times, "one host cut off", PATIENCE * times)
        second.reconnect()

    style = Style.objects.get(slug="factual")
    for image in Image.objects.order_by("sha256"):
        training_services.add_example(
            style=style, image=image, text=f"A photo of {image.width} pixels.", source=Example.Source.IMPORTED
        )
    there.fork("training", "t2@second")
    options = {"start": "scratch", "prefix_length": 3, "layers": 1, "epochs": 1}
    run = training_services.start_run(style=style, options=options)
    requests += ask(ada, times)  # captions go on meanwhile

    def it_has_some() -> bool:
        if not Caption.objects.unfinished().exists():
            requests.extend(ask(ada, times))  # the first host was faster
        return running("w2@second")

    wait_until(it_has_some, "the host that was cut off is at work again")
    wait_until(lambda: TrainingRun.objects.get(pk=run.pk).finished, "the run ends", PATIENCE * times)
    run.refresh_from_db()
    assert (run.status, run.error_detail) == (Status.SUCCEEDED, "")
    assert run.version is not None
    services.promote(version=run.version, reason="trained on the second host")
    requests += ask(ada, times)
    ended = check_that_all_end(
        requests, 3 * PHOTOS * len(requests), "a retraining and a promotion across both", PATIENCE * times
    )
    assert ended["succeeded"] == ended.total()
    assert not [path for _, stack in hosts for path in (stack.home / "media").rglob("*")], "what they share is in S3"
