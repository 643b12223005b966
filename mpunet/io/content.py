"""SHA-256 hashes of scans, stored in a folder and reused until the files change.

A scan is a NIfTI file, or a DICOM series: a folder, or FOLDER/UID, see
:func:`mpunet.io.scan_file.open_scan`. The hash of a series is made of all files of its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from mpunet.io.dicom.folder import visible
from mpunet.io.volume import nifti_suffix, one_line_errors

__all__ = ["FileState", "content_hash", "file_sha256", "file_state", "known_hash"]

_CHUNK = 1 << 20
# A file that changed more recently than this may change again within the same tick of the file
# system's clock. Its hash is not stored.
_SETTLED_NS = 2_000_000_000


class FileState(NamedTuple):
    """Size in bytes and time of the last change in ns, of the files of a scan.

    A scan whose state is the same as before counts as unchanged.
    """

    size: int
    changed: int


def file_state(path: Path) -> FileState:
    """Return the current state of a scan."""
    states = [file.stat() for file in _files(path)]
    return FileState(
        sum(status.st_size for status in states), max(status.st_mtime_ns for status in states)
    )


def known_hash(path: Path, index: Path) -> str | None:
    """Look up the stored SHA-256 of a scan in the folder ``index``.

    Returns:
        None if no hash is stored or a file has changed since.
    """
    try:
        found = json.loads(_record_path(path, index).read_text())
        known: str | None = found["sha256"] if tuple(found["state"]) == file_state(path) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no record, or an invalid one
        return None
    return known


def content_hash(path: Path, index: Path) -> str:
    """Compute the SHA-256 of a scan's bytes, or return the hash stored in the folder ``index``.

    The stored hash is valid while the scan's path, size and time of change stay the same.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a").write_bytes(b"abc")
    >>> content_hash(folder / "a", folder / "index")[:8]
    'ba7816bf'
    """
    if (known := known_hash(path, index)) is not None:
        return known
    with one_line_errors(path.name, "cannot be read"):
        state = file_state(path)
        files = _files(path)
        if not all(file.is_file() for file in files):  # opening a pipe would wait forever
            raise ValueError("not a file but a folder or device")
        digests = [file_sha256(file) for file in files]
    if files == [path]:
        (digest,) = digests
    else:
        uid = "" if path.exists() else path.name  # which series of the folder
        digest = hashlib.sha256(" ".join([*sorted(digests), uid]).encode()).hexdigest()
    if file_state(path) == state and state.changed < time.time_ns() - _SETTLED_NS:
        _store(path, index, state, digest)
    return digest


def _files(path: Path) -> list[Path]:
    """Return the file, or all files in the folder of a series and below it."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or not (path.exists() or path.is_symlink() or nifti_suffix(path)):
        return [file for file in visible(folder) if file.is_file()] or [path]
    return [path]


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _record_path(path: Path, index: Path) -> Path:
    return index / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _store(path: Path, index: Path, state: FileState, digest: str) -> None:
    index.mkdir(parents=True, exist_ok=True)
    record = _record_path(path, index)
    partial = index / f"{uuid.uuid4().hex}.partial"
    partial.write_text(json.dumps({"path": str(path.resolve()), "state": state, "sha256": digest}))
    partial.replace(record)
