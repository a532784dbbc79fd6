"""`./run manage caption_folder DIR`: caption all photos of a folder through the queue, into a file of JSON lines."""

import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from django.conf import settings
from django.core.management.base import CommandError

from captioner import services
from captioner.errors import Refused
from captioner.management.arguments import named_user
from captioner.management.command import SiteCommand
from captioner.models import SILENCE, Caption, Viewer, Worker, probability
from clipcap import jsonl
from clipcap.image import SUFFIXES
from clipcap.options import is_unsure
from clipcap.progress import ProgressBar

BEGINNING = b'{"image": "'  # of every line
AHEAD = 128  # photos that wait in the queue at a time: enough for full batches of several workers


class Command(SiteCommand):
    """Caption all photos below a folder in one or more styles, with one JSON line for each photo and style. With --out,
    an interrupted command continues where it stopped when it is run again: what has a line is not captioned again."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--style", nargs="+", default=[], help="slugs, or all; the default style if left out")
        parser.add_argument(
            "--min-confidence", type=float, metavar="P", help="0 to 1; a caption with a lower confidence is left empty"
        )
        parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="standard output if left out")
        parser.add_argument("--user", help="owner of the captions; nobody if left out")
        parser.add_argument(
            "--bulk",
            action=BooleanOptionalAction,
            default=True,
            help="low priority: captions that people are waiting for go first",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        folder: Path = options["folder"]
        if not folder.is_dir():
            raise CommandError(f"{folder} is not a directory; give one that contains photos")
        least = options["min_confidence"]
        if least is not None and not 0 <= least <= 1:
            raise CommandError(f"--min-confidence must be from 0 to 1, not {least:g}")
        viewer = Viewer(named_user(options["user"]))
        styles = [style.slug for style in services.choose_styles(options["style"])]
        photos, others = jsonl.photos_in(folder)
        if not photos:
            raise CommandError(f"{folder} contains no photos ({', '.join(SUFFIXES)})")
        with _lines(options["out"]) as (out, there):
            names = [path.relative_to(folder).as_posix() for path in photos]
            missing = {name: [slug for slug in styles if not {(name, slug), (name, None)} & there] for name in names}
            todo = {name: wanted for name, wanted in missing.items() if wanted}
            self.stderr.write(
                f"{len(photos)} photos, {len(photos) - len(todo)} of them done already; {others} other files skipped"
            )
            wishes = {"bulk": options["bulk"], "min_confidence": least}
            failed = FolderCaptions(self, folder, viewer, wishes, out).do(todo)
        if failed:
            raise CommandError(f"{failed} of {len(todo)} photos could not be captioned; their lines give the reason")


class FolderCaptions:
    """One run over the photos that have no line yet."""

    def __init__(self, command: Command, folder: Path, viewer: Viewer, wishes: dict[str, Any], out: TextIO) -> None:
        self.command, self.folder, self.viewer, self.wishes, self.out = command, folder, viewer, wishes, out
        self.failed = 0
        self.waiting: dict[Any, str] = {}  # the photo's name, by its request
        self.heard_at = 0.0

    def do(self, todo: dict[str, list[str]]) -> int:
        """Caption the photos, each in its styles.

        Returns:
            How many failed.

        Raises:
            CommandError: the service cannot go on.
        """
        left: Iterator[tuple[str, list[str]]] = iter(todo.items())
        try:
            with ProgressBar("photo", total=len(todo)) as self.progress:
                while True:
                    while len(self.waiting) < AHEAD and (item := next(left, None)):
                        if not self._ask(*item):
                            left = chain([item], left)
                            break
                    else:
                        if not self.waiting:
                            return self.failed
                    if not self._collect():
                        self._wait()
        except KeyboardInterrupt:
            Caption.objects.filter(request__in=self.waiting).cancel()
            raise CommandError("stopped; with --out, the same command continues from here") from None

    def _ask(self, name: str, styles: list[str]) -> bool:
        """Queue a photo, or say why not; False where too much is queued already."""
        try:
            upload = services.Upload((self.folder / name).read_bytes(), name)
            request = services.request_captions(viewer=self.viewer, images=[upload], styles=styles, **self.wishes)
        except OSError as error:
            self._tell(name, [_failure(name, "unreadable_file", error.strerror or str(error))])
        except Refused as error:
            if error.code == "too_many_queued":
                return False
            if error.status >= 500:  # the service's fault, not the photo's
                raise CommandError(f"{error.detail}; with --out, the same command continues from here") from error
            self._tell(name, [_failure(name, error.code, error.detail)])
        else:
            self.waiting[request.pk] = name
        return True

    def _collect(self) -> bool:
        """Write the lines of all photos that are finished, and say whether there were any."""
        captions = Caption.objects.filter(request__in=self.waiting)
        unfinished = set(captions.unfinished().values_list("request", flat=True))
        finished = [pk for pk in self.waiting if pk not in unfinished]
        lines: dict[Any, list[dict[str, Any]]] = {pk: [] for pk in finished}
        for caption in (
            captions.filter(request__in=finished).select_related("style", "version__style").order_by("style__slug")
        ):
            lines[caption.request_id].append(_line(self.waiting[caption.request_id], caption))
        for pk in finished:
            name = self.waiting.pop(pk)
            self._tell(name, lines[pk] or [_failure(name, "deleted", "the request was deleted")])
        return bool(finished)

    def _wait(self) -> None:
        now = time.monotonic()
        if now - self.heard_at > SILENCE.total_seconds():
            self.heard_at = now
            if not Worker.objects.alive("captions").exists():
                self.progress.write(
                    f"No caption worker reported in the last {SILENCE.seconds} seconds: the captions wait until one "
                    "runs. Start one in another terminal: ./run worker captions"
                )
        services.rescue_stale(Caption.objects.filter(request__in=self.waiting).unfinished()[:1])
        time.sleep(0.2)

    def _tell(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Write a photo's lines, all at once, so that an interruption leaves whole lines only."""
        self.out.write("".join(map(jsonl.written, lines)))
        self.out.flush()
        errors = [line["error"] for line in lines if "error" in line]
        if errors:
            self.failed += 1
            self.progress.write(f"{jsonl.shown(name)}: {errors[0]['detail']}")
        self.progress.advance()


@contextmanager
def _lines(path: Path | None) -> Iterator[tuple[TextIO, set[tuple[str, str | None]]]]:
    """The file to append lines to, and what it has lines of: name and style; no style if the photo is bad."""
    if path is None:
        yield jsonl.as_utf8(sys.stdout), set()
        return
    try:
        there = _cut_and_read(path)
        with path.open("a", encoding="utf-8") as file:
            yield file, there
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}); choose another file for --out") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{path} contains lines that this command did not write; choose another file for --out"
        ) from error


def _cut_and_read(path: Path) -> set[tuple[str, str | None]]:
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    there = {(line["image"], line.get("style")) for line in jsonl.read(whole)}
    if rest := data[len(whole) :]:  # a write that was cut off, or a file of somebody else's
        if not rest.startswith(BEGINNING[: len(rest)]):
            raise ValueError("not a line of this command")
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return there


def _line(name: str, caption: Caption) -> dict[str, Any]:
    if caption.status != "succeeded":
        code, detail = caption.error_code or "canceled", caption.error_detail or "it was canceled"
        return {**_failure(name, code, detail), "style": caption.style.slug}
    captions = [jsonl.caption(caption.text, caption.shown_confidence, caption.log_probability, caption.unsure)]
    for other in caption.others:
        confidence = probability(other.confidence)
        unsure = is_unsure(confidence, settings.UNSURE_BELOW)
        captions.append(jsonl.caption(other.text, confidence, other.log_probability, unsure))
    return jsonl.record(name, caption.style.slug, captions, str(caption.version), caption.withheld)


def _failure(name: str, code: str, detail: str) -> dict[str, Any]:
    return {"image": name, "error": {"code": code, "detail": detail}}
