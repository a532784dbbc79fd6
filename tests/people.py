"""People, and the browsers, programs and windows of a real Chromium in which they have signed in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.test import Client
from playwright.sync_api import Browser, Page, expect
from rest_framework.test import APIClient

PATIENCE = 120_000  # ms; the machine may be busy
expect.set_options(timeout=PATIENCE)  # for all of a process: set in several files, the last one read would win


def member(name: str, *groups: str, **fields: Any) -> User:
    """A new user in these of the ready groups."""
    user = User.objects.create_user(name, **fields)
    user.groups.set(Group.objects.get(name=group) for group in groups)
    return user


def client_of(user: Any) -> Client:
    """A browser, as Django's tests have one."""
    client = Client()
    client.force_login(user)
    return client


def program_of(user: Any) -> APIClient:
    """A program that calls the API."""
    client = APIClient()
    client.force_authenticate(user)
    return client


@contextmanager
def window_of(user: Any, browser: Browser, address: str, *, listens: bool = True, **options: Any) -> Iterator[Page]:
    """A window in which the user, if it is not None, has signed in; errors in its console fail the test.

    Args:
        address: of the site.
        listens: to the console; not where a test itself causes errors, as axe does with styles of its own.
        options: of Playwright's context.
    """
    complaints: list[str] = []
    context = browser.new_context(base_url=address, **options)
    context.set_default_timeout(PATIENCE)
    if user is not None:
        session = client_of(user).cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": address}])
    page = context.new_page()
    if listens:
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []
