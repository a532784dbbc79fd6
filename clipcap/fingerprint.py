"""How models and checkpoints are told apart: the SHA-256 of a file, and identities. Without torch."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def same_weights(identity: str, other: str) -> bool:
    """A folder's identity is NAME@DIGEST, and its name says nothing about what is in it; a published model is its
    name."""
    return identity.rpartition("@")[2] == other.rpartition("@")[2]
