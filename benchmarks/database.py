"""A benchmark's own database, and settings for the processes that use it."""

import os
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager


def add_database(parser: ArgumentParser) -> None:
    """The option that names the database."""
    parser.add_argument("--database", default="", metavar="URL", help="an empty database (SQLite)")


def settings_of(home: str, database: str) -> dict[str, str]:
    """The variables of a process whose files are in `home`, and its database there too if no other is given."""
    return {
        "CLIPCAP_HOME": home,
        "CLIPCAP_DEVELOPMENT": "1",
        "CLIPCAP_DATABASE_URL": database or f"sqlite:///{home}/db.sqlite3",
        "CLIPCAP_LOG_LEVEL": "ERROR",
        "DJANGO_SETTINGS_MODULE": "clipcap_site.settings",
    }


@contextmanager
def own_database(database: str) -> Iterator[None]:
    """Let this process, and those that it starts, have this database and a home that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="clipcap-bench-") as home:
        os.environ |= settings_of(home, database)
        yield
