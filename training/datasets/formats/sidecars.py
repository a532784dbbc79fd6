"""A text beside each picture: `x.jpg` and `x.txt`, as kohya's trainers, TagGUI and JoyCaption write them."""

from __future__ import annotations

from collections.abc import Iterator

from captioner.errors import Refused
from training.datasets.files import DatasetFiles
from training.datasets.formats.base import Annotations, Row, rows_of
from training.datasets.names import is_picture
from training.datasets.reading import lines

ENDINGS = (".txt", ".caption")


class Sidecar(Annotations):
    """The captions of one picture, one a line."""

    format = "text next to its photo"

    def __init__(self, files: DatasetFiles, name: str, picture: str, problem: str = "") -> None:
        super().__init__(files, name)
        self.picture, self.problem = picture, problem

    def rows(self) -> Iterator[Row]:
        """See `Annotations`; it is one of many, so that what is wrong with it as a whole is reported as a row, too."""
        if self.problem:
            yield Row(1, problem=self.problem)
            return
        there = False
        try:
            with self.files.open(self.name) as file:
                for number, line in enumerate(lines(file, self.name, self.files.check), start=1):
                    if line.strip():
                        there = True
                        yield from rows_of(number, self.picture, line)
        except Refused as error:
            yield Row(1, problem=error.detail)
        else:
            if not there:
                yield Row(1, problem="it is empty")


def sidecar(files: DatasetFiles, name: str) -> Sidecar | None:
    """The file as the text beside a picture, if it is called so: `x.txt`, or `x.jpg.txt`."""
    if not name.lower().endswith(ENDINGS):
        return None
    stem = name.rpartition(".")[0]
    try:
        picture = files.names.alike(stem) if is_picture(stem) else files.names.of_stem(stem)
    except Refused as error:
        return Sidecar(files, name, "", error.detail)
    return Sidecar(files, name, picture.rpartition("/")[2]) if picture else None
