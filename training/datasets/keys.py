"""What columns of tables and keys of JSON entries are called: the names that are known, and those chosen by hand."""

from __future__ import annotations

from dataclasses import dataclass

FILE_KEYS = ("file_name", "filename", "file", "image", "image_name", "image_path", "img", "image_id")
CAPTION_KEYS = ("captions", "caption", "text", "sentence", "comment")
KEYS = f"{', '.join(FILE_KEYS)} for the picture and {', '.join(CAPTION_KEYS)} for the caption"
SPLIT_KEY = "split"
LONGEST_KEY = 100  # characters of a name that is chosen


@dataclass(frozen=True)
class Keys:
    """The names that a person has chosen for the picture and the caption; "" for those that are known anyway."""

    chosen_picture: str = ""
    chosen_caption: str = ""

    @property
    def picture(self) -> tuple[str, ...]:
        """Names for the picture; the first that is there counts."""
        return (self.chosen_picture, *FILE_KEYS) if self.chosen_picture else FILE_KEYS

    @property
    def caption(self) -> tuple[str, ...]:
        """Names for the caption; the first that is there counts."""
        return (self.chosen_caption, *CAPTION_KEYS) if self.chosen_caption else CAPTION_KEYS

    def __str__(self) -> str:
        chosen = {"file name": self.chosen_picture, "caption": self.chosen_caption}
        return ", ".join(f"{what}: {name}" for what, name in chosen.items() if name)
