"""Imports of examples, and what became of them."""

import hashlib
import io
import itertools
from collections.abc import Callable

from django.core.files.base import ContentFile
from django.core.management import call_command
from django.test import TestCase

from captioner.models import Style
from training import services
from training.datasets.importer import run_import
from training.models import Import


def queued(style: Style, content: bytes, name: str = "dataset") -> Import:
    return services.start_import(style=style, file=ContentFile(content), name=name)


def processed(batch: Import, stopping: Callable[[], bool] = lambda: False) -> Import:
    (claimed,) = Import.objects.filter(pk=batch.pk).claim("tests", 1)
    with TestCase.captureOnCommitCallbacks(execute=True):  # its file goes when that is committed
        run_import(claimed, stopping)
    batch.refresh_from_db()
    return batch


def imported(style: Style, content: bytes, name: str = "dataset") -> Import:
    return processed(queued(style, content, name))


def stop_after(calls: int) -> Callable[[], bool]:
    counter = itertools.count()
    return lambda: next(counter) >= calls


def examples(style: Style) -> set[tuple[str, str]]:
    """Sha-256 and text of all examples."""
    return set(style.examples.values_list("image__sha256", "text"))


def said_of(style: Style, files: dict[str, bytes]) -> set[tuple[str, str]]:
    """All examples, each with the name that its picture has among these files."""
    names = {hashlib.sha256(data).hexdigest(): name for name, data in files.items()}
    return {(names[digest], text) for digest, text in examples(style)}


def reasons(batch: Import) -> list[tuple[int, str]]:
    return list(batch.rejected.values_list("line", "reason"))


def assert_consistent(batch: Import) -> None:
    """Every row read is an example, a duplicate or rejected, and the examples are there."""
    batch.refresh_from_db()
    assert batch.rows == batch.accepted + batch.duplicates + batch.rejected.count()
    assert batch.accepted == batch.examples.count()


def run_command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("import_examples", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()
