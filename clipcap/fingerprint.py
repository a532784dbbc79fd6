"""SHA-256 of a file: how models and checkpoints are told apart."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
