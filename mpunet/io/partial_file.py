"""Write files and folders under a temporary name, so that they appear only when complete.

Temporary names of scans are locked; what killed processes left is removed later.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from mpunet.io.file_lock import held_file, remove_unless_held
from mpunet.io.volume import nifti_suffix

__all__ = ["partial_file", "partial_folder", "remove_partials", "whole_file"]

_PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}\.partial\.nii(\.gz)?", re.IGNORECASE)
_PARTIAL_FOLDER = re.compile(r"\..*\.[0-9a-f]{8}\.partial")
_LOCK = re.compile(r"\..*\.[0-9a-f]{8}\.partial\.lock")  # file beside a temporary folder


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to ``path`` on success, remove it on failure.

    The temporary path is in the same folder and has the suffix of ``path``. Missing folders are
    created.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "a.txt") as unfinished:
    ...     _ = unfinished.write_text("a")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def partial_file(path: Path) -> Iterator[BufferedIOBase]:
    """Open a temporary file in the same folder; rename it to ``path`` on success, else remove it.

    Raises:
        ValueError: if the name of ``path`` does not end in ``.nii`` or ``.nii.gz``.
    """
    suffix = nifti_suffix(path)
    if suffix is None:
        raise ValueError(f"Expected a file name ending in .nii or .nii.gz, got {path.name}.")
    partial = path.with_name(f".{path.name[: -len(suffix)]}.{uuid.uuid4().hex[:8]}.partial{suffix}")
    try:
        with held_file(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                partial.replace(path)  # before the lock ends
        if sys.platform == "win32":  # Windows cannot rename an open file
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside ``path``; rename it to ``path`` on success, else remove it.

    A folder at ``path`` is replaced.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    lock = _lock_of(partial)
    try:
        with held_file(lock):
            partial.mkdir()
            yield partial
            if path.exists():
                old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
                path.rename(old)
                partial.rename(path)
                shutil.rmtree(old)
            else:
                partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.unlink(missing_ok=True)


def remove_partials(folder: str | Path) -> list[Path]:
    """Remove temporary files and folders of killed processes from a folder and its subfolders.

    What a running process writes is locked and is kept. On a file system that does not
    support locks, all files are kept.

    Returns:
        The paths of what was removed.
    """
    patterns = {True: (_PARTIAL_FOLDER,), False: (_PARTIAL, _LOCK)}
    found = [
        path
        for path in Path(folder).rglob(".*.partial*")
        if any(pattern.fullmatch(path.name) for pattern in patterns[path.is_dir()])
    ]
    return [path for path in sorted(found) if _remove_if_left(path)]


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.lock")


def _remove_if_left(path: Path) -> bool:
    if path.is_dir():
        lock = _lock_of(path)
        if lock.exists() and not _remove_if_left(lock):
            return False
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    return remove_unless_held(path)
