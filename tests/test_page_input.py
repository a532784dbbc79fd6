"""Pages and admin on PostgreSQL, asked with whatever somebody types into the address: never a fault of the server."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC
from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.db.models import FloatField
from django.test import Client
from django.urls import NoReverseMatch, reverse
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from captioner import services
from captioner.models import Image, Style
from tests.addresses import ADDRESSES, PATTERNS, something_everywhere, url_of
from tests.servers import PostgreSQL, default_database

QUICKLY = hypothesis_settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
NUMBERS = (
    *("-1", "0", "99", "1e400", "NaN", "-inf", "12026", "٣", "²"),
    *("2147483648", "9223372036854775808", "-9999999999999999999"),
)
DATES = (
    *("0000-00-00", "0001-01-01", "2026-02-30", "10000-01-01"),
    *("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"),
)
IDS = ("00000000-0000-0000-0000-000000000000", *(f"{when}~{UUID(int=0)}" for when in ("99999", *DATES)))
TEXTS = ("\0", "a\0b", "", "true", "[]", "{}", "%00", "\ud800", "\U0001d4b3" * 300, "a" * 5000, "9" * 40)
NASTY = st.one_of(
    st.sampled_from([*NUMBERS, *DATES, *IDS, *TEXTS, "' OR 1=1", "1,2,3", "None", "../..", "\\", "%", "_"]),
    st.text(max_size=20),
    st.integers().map(str),
    st.datetimes(timezones=st.just(UTC)).map(str),
)
FILES = st.sampled_from([b"", b"\0", b"PK\3\4", b"\xff\xd8\xff", b"caption,image\n\0,\0", b"\x89PNG\r\n\x1a\n"])
LOOKUPS = (
    *("", "__exact", "__isnull", "__gte", "__lt", "__id__exact", "__pk__in", "__in"),
    *("__range", "__regex", "__year", "__month", "__day"),
)
OF_LISTS = ("q", "p", "o", "all", "e", "_facets", "_to_field", "_popup")
OF_PAGES = (
    *("q", "style", "status", "unsure", "mine", "album", "name", "since", "until", "sort", "order", "at"),
    *("after", "request", "next", "version", "run", "image", "page"),
)


@pytest.fixture(scope="module")
def where(
    django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory, photo: bytes
) -> Iterator[tuple[Client, dict[str, Any]]]:
    """A site on PostgreSQL with an example of all there can be: its administrator, and what each address shows."""
    with (
        django_db_blocker.unblock(),
        PostgreSQL() as server,
        default_database(server.create_site("clipcap")),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("django.conf.settings.MEDIA_ROOT", tmp_path_factory.mktemp("media"))
        root = get_user_model().objects.create_superuser("root")
        style = Style.objects.create(slug="factual", name="Factual", is_default=True)
        version = style.versions.create(number=1, sha256="0" * 64, origin="shipped", file="mappers/one")
        style.promotions.create(version=version)
        things = something_everywhere(root, get_user_model().objects.create_user("other"), style, photo)
        client = Client(raise_request_exception=False)
        client.force_login(root)
        yield client, things


@pytest.fixture(scope="module")
def site(where: tuple[Client, dict[str, Any]]) -> Client:
    """The administrator's browser."""
    return where[0]


def filters(shown: Any) -> list[str]:
    """The names by which a list of the admin can be narrowed, and some by which it cannot."""
    names = [*OF_LISTS]
    for column in [*shown.list_filter, shown.date_hierarchy or "id"]:
        name = column[0] if isinstance(column, tuple) else getattr(column, "parameter_name", column)
        names += [f"{name}{lookup}" for lookup in LOOKUPS]
    return names


def fields(page: bytes) -> list[str]:
    """The names of a page's fields."""
    return re.findall(r'<(?:input|select|textarea|button)[^>]* name="([\w-]+)"', page.decode(errors="replace"))


PAGES = sorted(name for name, may in ADDRESSES.items() if may and not name.startswith("v1:"))


@pytest.mark.parametrize("name", PAGES)
def test_every_page_answers_whatever_it_is_asked_and_sent(where: tuple[Client, dict[str, Any]], name: str) -> None:
    """Each page with an id that exists and with ids that cannot, any query, and any values in the fields it has."""
    site, things = where
    signed_in, address = deepcopy(site.cookies), url_of(name, things)
    names = sorted({*OF_PAGES, *fields(read(site.get(address)))})
    pattern = PATTERNS[name].pattern
    ids = st.just(address)
    if pattern.converters or pattern.regex.groupindex:
        count = len(pattern.converters) or len(pattern.regex.groupindex)
        ids |= st.lists(NASTY, min_size=count, max_size=count).map(partial(address_of, name, address))
    queries = st.dictionaries(st.sampled_from(names), NASTY, max_size=3)
    bodies: st.SearchStrategy[dict[str, Any] | None] = st.none()
    if "POST" in ADDRESSES[name]:
        bodies = st.dictionaries(st.sampled_from(names), st.one_of(NASTY, st.lists(NASTY, max_size=3), FILES))

    @given(ids, queries, bodies)
    @hypothesis_settings(QUICKLY, max_examples=5)
    def ask(address: str, query: dict[str, str], body: dict[str, Any] | None) -> None:
        site.cookies = deepcopy(signed_in)  # some end the session
        address = f"{address}?{urlencode(query, errors='replace')}"
        with transaction.atomic():
            answer = site.get(address) if body is None else site.post(address, sendable(body))
            assert answer.status_code < 500, (address, body, answer.content[-300:])
            read(answer)
            transaction.set_rollback(True)

    ask()
    site.cookies = signed_in


def read(answer: Any) -> bytes:
    return b"".join(answer) if answer.streaming else answer.content


def address_of(name: str, known: str, ids: list[str]) -> str:
    """The address of that name with these ids; the known one where no address takes them."""
    try:
        return reverse(name, args=[id.encode(errors="replace").decode() for id in ids])
    except NoReverseMatch:
        return known


def sendable(value: Any) -> Any:
    """As a form would send it: a lone surrogate is no text of any encoding."""
    if isinstance(value, dict):
        return {name: sendable(given) for name, given in value.items()}
    if isinstance(value, list):
        return [sendable(given) for given in value]
    if isinstance(value, bytes):
        return SimpleUploadedFile("photo.jpg", value)
    return value.encode(errors="replace").decode()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_whatever_numbers_are_stored_every_address_answers_and_the_api_in_json(
    where: tuple[Client, dict[str, Any]], number: str
) -> None:
    """PostgreSQL keeps all three in any column of floating point numbers."""
    site, things = where
    signed_in = deepcopy(site.cookies)

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    with transaction.atomic(), connection.cursor() as cursor:
        columns = [
            (model._meta.db_table, column.column)
            for model in apps.get_models()
            for column in model._meta.concrete_fields
            if isinstance(column, FloatField)
        ]
        assert len(columns) >= 10
        for table, column in columns:
            cursor.execute(f"UPDATE {table} SET {column} = %s", [number])
        for name, may in ADDRESSES.items():
            if "GET" in may:
                site.cookies = deepcopy(signed_in)
                answer = site.get(url_of(name, things), HTTP_ACCEPT="application/json, text/html, */*")
                assert answer.status_code != 500, (name, answer.content[-300:])
                content = read(answer)
                if "json" in answer.get("Content-Type", ""):
                    json.loads(content, parse_constant=refuse)
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("address", "query"),
    [
        ("/gallery/", {"style": "\0"}),
        ("/gallery/", {"status": "\0"}),
        ("/gallery/captions.csv", {"style": "\0"}),
        ("/gallery/", {"after": "0001-01-01T00:00:00+14:00~00000000-0000-0000-0000-000000000000"}),
        ("/gallery/", {"after": "9999-12-31T23:59:59-14:00~00000000-0000-0000-0000-000000000000"}),
    ],
)
def test_what_was_once_a_fault_of_the_server_is_none(site: Client, address: str, query: dict[str, str]) -> None:
    assert site.get(address, query).status_code < 500


@pytest.mark.parametrize("shown", admin.site._registry.values(), ids=lambda shown: str(shown.opts.label_lower))
def test_every_list_of_the_admin_answers_whatever_it_is_filtered_by(site: Client, shown: Any) -> None:
    address = reverse(f"admin:{shown.opts.app_label}_{shown.opts.model_name}_changelist")

    @given(st.dictionaries(st.sampled_from(filters(shown)), NASTY, min_size=1, max_size=3))
    @QUICKLY
    @example({"status__exact": "\0"})
    @example({"status__range": ""})
    @example({"status__in": ""})
    @example({"id__range": ""})
    @example({"q": "\0"})
    @example({"p": "9" * 40})
    @example({"created_at__year": "99999"})
    @example({"created_at__gte": "0001-01-01T00:00:00+14:00"})
    def ask(query: dict[str, str]) -> None:
        query = {name: value.encode(errors="replace").decode() for name, value in query.items()}
        answer = site.get(address, query)
        assert answer.status_code < 500, (query, answer.content[-300:])

    ask()


def test_forms_with_a_nul_are_refused(site: Client) -> None:
    for address, sent in (
        ("/tokens/", {"delete": "a\0b"}),
        ("/progress/", {"waiting": "\0"}),
        ("/sign-in/", {"username": "\0", "password": "\0"}),
        (reverse("image-captions", args=[Image.objects.all()[0].pk]), {"styles": "\0"}),
        ("/admin/captioner/caption/", {"action": "cancel_chosen", "_selected_action": "\0"}),
        ("/admin/captioner/style/add/", {"slug": "\0", "name": "\0"}),
        ("/admin/captioner/mapperversion/compare/photos/", {"photo": "\0", "version": "\0"}),
    ):
        assert site.post(address, sent).status_code < 500, address


def test_a_list_is_narrowed_by_its_filters_alone(site: Client) -> None:
    address = "/admin/captioner/caption/"
    style = Style.objects.get()
    for asked in (
        f"style__id__exact={style.pk}",
        "status__exact=queued&q=dog&p=1&o=-1",
        "created_at__year=2026",
        "unsure=yes",
    ):
        assert site.get(f"{address}?{asked}").status_code == 200, asked
    for asked in ("text__regex=(a*)*b", "style__slug__startswith=p", "image__width__gt=5", "nothing=1"):
        assert site.get(f"{address}?{asked}").status_code == 400, asked


def test_what_is_asked_in_vain_is_said(site: Client) -> None:
    answer = site.get("/gallery/?style=%00")
    assert answer.status_code == 400
    assert "text/html" in answer["Content-Type"]


def test_a_fault_of_the_server_stays_one(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("nobody's input is to blame")

    monkeypatch.setattr(services, "visible_images", fail)
    assert site.get("/gallery/").status_code == 500
