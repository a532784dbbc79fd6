"""Arguments that several commands take, a style and a user, and what they name, found or refused in the same words."""

from argparse import ArgumentParser

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core.management.base import CommandError

from captioner.models import Style


def add_style(parser: ArgumentParser) -> None:
    """STYLE, for `named_style`."""
    parser.add_argument("style", metavar="STYLE", help="slug of the style")


def add_user(parser: ArgumentParser) -> None:
    """--user, for `named_user`."""
    parser.add_argument("--user", metavar="NAME", help="user name to record")


def named_style(slug: str) -> Style:
    """The style with this slug.

    Raises:
        CommandError: there is none; it tells which there are.
    """
    style = Style.objects.filter(slug=slug).first()
    if style is None:
        slugs = ", ".join(Style.objects.values_list("slug", flat=True)) or "none yet"
        raise CommandError(f"there is no style {slug!r}; the styles are {slugs}")
    return style


def named_user(name: str | None) -> User | None:
    """The user with this name; None where no name was given.

    Raises:
        CommandError: there is none.
    """
    if not name:
        return None
    user: User | None = get_user_model()._default_manager.filter(username=name).first()
    if user is None:
        raise CommandError(f"there is no user {name!r}; create one with ./run manage createsuperuser")
    return user
