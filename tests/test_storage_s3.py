"""Images and mappers in S3: the whole way from upload to deletion, against a server that speaks its protocol."""

import io
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from moto.server import ThreadedMotoServer

from captioner import services
from captioner.errors import Refused
from captioner.inference.engine import CaptionEngine
from captioner.models import CaptionRequest, Image, Style, Viewer

pytestmark = pytest.mark.django_db(transaction=True)
BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, in which the service stores its files."""
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    found = boto3.resource("s3", endpoint_url=s3_server).create_bucket(Bucket=BUCKET)
    storage = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {"bucket_name": BUCKET, "endpoint_url": s3_server},
    }
    settings.STORAGES = {**settings.STORAGES, "default": storage}
    yield found
    found.objects.all().delete()
    found.delete()


@pytest.fixture
def styles_on_s3(bucket: Any, db: None) -> list[Style]:
    call_command("install_styles", stdout=io.StringIO())
    return list(Style.objects.all())


def keys(bucket: Any, folder: str) -> list[str]:
    return [entry.key for entry in bucket.objects.filter(Prefix=folder)]


def test_a_photo_is_uploaded_captioned_shown_and_deleted(
    bucket: Any, styles_on_s3: list[Style], engine: CaptionEngine, photo: bytes, client: Client
) -> None:
    asked = client.post("/api/captions/", {"image": io.BytesIO(photo), "style": "all"})
    assert asked.status_code == 202, asked.content
    assert len(keys(bucket, "images/")) == len(keys(bucket, "thumbnails/")) == 1
    assert len(keys(bucket, "mappers/")) == len(styles_on_s3)

    while engine.work():
        pass

    made = client.get(asked.json()["url"]).json()
    assert made["status"] == "succeeded"
    assert all(caption["text"] for caption in made["captions"])
    picture = client.get(f"/api/images/{made['captions'][0]['image']}/file/")
    assert b"".join(picture).startswith(b"\xff\xd8\xff")
    for caption in made["captions"]:
        assert client.delete(caption["url"]).status_code == 204
    assert keys(bucket, "images/") == keys(bucket, "thumbnails/") == []


def test_pruning_deletes_the_files_too(
    bucket: Any, styles_on_s3: list[Style], engine: CaptionEngine, photo: bytes
) -> None:
    services.request_captions(viewer=Viewer(), images=[services.Upload(photo)])
    while engine.work():
        pass
    long_ago = timezone.now() - timedelta(days=2)
    CaptionRequest.objects.update(created_at=long_ago)
    Image.objects.update(created_at=long_ago)

    said = io.StringIO()
    call_command("prune", "--older-than", "1", stdout=said)

    assert said.getvalue() == "1 requests, 1 images, 0 uploads, 0 run folders deleted\n"
    assert keys(bucket, "images/") == keys(bucket, "thumbnails/") == []


def test_an_upload_is_refused_in_plain_words_while_the_bucket_is_away(
    bucket: Any, styles_on_s3: list[Style], photo: bytes, settings: Any
) -> None:
    gone = {**settings.STORAGES["default"]["OPTIONS"], "bucket_name": "no-such-bucket"}
    settings.STORAGES = {**settings.STORAGES, "default": {**settings.STORAGES["default"], "OPTIONS": gone}}
    with pytest.raises(Refused) as refusal:
        services.request_captions(viewer=Viewer(), images=[services.Upload(photo)])
    assert refusal.value.status == 507
    assert not Image.objects.exists()
