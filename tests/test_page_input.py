"""Pages and admin on PostgreSQL, asked with whatever somebody types into the address: never a fault of the server."""

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import NoReverseMatch, URLResolver, get_resolver, reverse
from django.utils import timezone
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from captioner import services
from captioner.models import Caption, CaptionRequest, Image, Style
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
def site(django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A site on PostgreSQL with an example of what there can be, and its administrator."""
    with (
        django_db_blocker.unblock(),
        PostgreSQL() as server,
        default_database(server.create_site("clipcap")),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("django.conf.settings.MEDIA_ROOT", tmp_path_factory.mktemp("media"))
        furnish()
        client = Client(raise_request_exception=False)
        client.force_login(get_user_model().objects.create_superuser("root"))
        yield client


def furnish() -> None:
    style = Style.objects.create(slug="plain", name="Plain", is_default=True)
    version = style.versions.create(number=1, sha256="0" * 64, origin="shipped", file="mappers/one")
    style.promotions.create(version=version)
    request = CaptionRequest.objects.create(visitor="*")
    for number in range(3):
        image = Image.objects.create(sha256=f"{number:064}", file="images/x", width=1, height=1, size=1)
        Caption.objects.create(
            request=request,
            image=image,
            style=style,
            visitor="*",
            deadline_at=timezone.now() + timedelta(days=1),
            created_at=timezone.now() - timedelta(days=400 * number),
        )


def pages() -> list[str]:
    """The addresses of all pages and of the admin's own that need nothing but their name, or an id."""
    found = []

    def gather(resolver: URLResolver, namespace: str) -> None:
        for entry in resolver.url_patterns:
            if isinstance(entry, URLResolver):
                inner = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
                if inner != "v1:":
                    gather(entry, inner)
            elif entry.name:
                for arguments in ([], [1], ["00000000-0000-0000-0000-000000000001"]):
                    try:
                        found.append(reverse(namespace + entry.name, args=arguments))
                    except NoReverseMatch:
                        continue

    gather(get_resolver(), "")
    return sorted(set(found))


def filters(shown: Any) -> list[str]:
    """The names by which a list of the admin can be narrowed, and some by which it cannot."""
    names = [*OF_LISTS]
    for column in [*shown.list_filter, shown.date_hierarchy or "id"]:
        name = column[0] if isinstance(column, tuple) else getattr(column, "parameter_name", column)
        names += [f"{name}{lookup}" for lookup in LOOKUPS]
    return names


def test_every_page_answers_whatever_its_address_says(site: Client) -> None:
    addresses = pages()
    assert {"/", "/gallery/", "/gallery/captions.csv", "/admin/", "/sign-in/", "/tokens/"} <= set(addresses)
    assert len(addresses) > 60
    values = st.dictionaries(st.sampled_from(OF_PAGES), NASTY, max_size=3)

    @given(st.sampled_from(addresses), values)
    @hypothesis_settings(QUICKLY, max_examples=60)
    @example("/gallery/", {"style": "\0"})
    @example("/gallery/", {"status": "\0"})
    @example("/gallery/captions.csv", {"style": "\0"})
    @example("/gallery/", {"after": "0001-01-01T00:00:00+14:00~00000000-0000-0000-0000-000000000000"})
    @example("/gallery/", {"after": "9999-12-31T23:59:59-14:00~00000000-0000-0000-0000-000000000000"})
    def ask(address: str, query: dict[str, str]) -> None:
        query = {name: value.encode(errors="replace").decode() for name, value in query.items()}
        answer = site.get(address, query)
        assert answer.status_code < 500, (address, query, answer.content[-300:])
        if answer.streaming:
            assert b"".join(answer)

    ask()


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
