"""What a file holds, told by the hash of its bytes, which is remembered for as long as the file does not change."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from mpunet.io.volume import one_line_errors

__all__ = ["FileState", "content_hash", "file_state", "known_hash"]

_CHUNK = 1 << 20
# A file that was written this short a time ago may be written again within the same tick of the file system's clock.
_SETTLED_NS = 2_000_000_000


class FileState(NamedTuple):
    """What tells that a file was not changed: its size in bytes, and the time of its last change in ns."""

    size: int
    changed: int


def file_state(path: Path) -> FileState:
    """State of the file now."""
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns)


def known_hash(path: Path, index: Path) -> str | None:
    """The hash of a file's bytes as it was remembered in the folder ``index``; None if it was not, or the file changed since."""
    try:
        found = json.loads(_note(path, index).read_text())
        known: str | None = found["sha256"] if tuple(found["state"]) == file_state(path) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no note, or none of ours
        return None
    return known


def content_hash(path: Path, index: Path) -> str:
    """The SHA-256 of a file's bytes, remembered in the folder ``index`` by the file's place, size and time of change.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a").write_bytes(b"abc")
    >>> content_hash(folder / "a", folder / "index")[:8]
    'ba7816bf'
    """
    if (known := known_hash(path, index)) is not None:
        return known
    digest = hashlib.sha256()
    with one_line_errors(path.name, "cannot be read"):
        state = file_state(path)
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("not a file but a folder or device")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    if file_state(path) == state and state.changed < time.time_ns() - _SETTLED_NS:
        _remember(path, index, state, digest.hexdigest())
    return digest.hexdigest()


def _note(path: Path, index: Path) -> Path:
    return index / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _remember(path: Path, index: Path, state: FileState, digest: str) -> None:
    index.mkdir(parents=True, exist_ok=True)
    note = _note(path, index)
    partial = index / f"{uuid.uuid4().hex}.partial"
    partial.write_text(json.dumps({"path": str(path.resolve()), "state": state, "sha256": digest}))
    partial.replace(note)
