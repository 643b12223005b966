"""Locks between processes, on one machine or on several that share a file system.

Locks are the kernel's (``flock``, which Linux passes on to an NFS server): they end with their process, however that ends. Nothing that
must be right depends on them, as some file systems have none: there, work may be done twice, and what is in use is taken to be in
use for ever.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Lease", "leased", "locked"]

# Leases of this process and, after a fork, of its parent. Where locks belong to the process (NFS), opening and closing one's own lock
# file would end the lock.
_OWN: set[Path] = set()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which is created if missing; wait for whoever holds it.

    Yields:
        False where the file system has no locks, so that others may hold it too.

    >>> import tempfile
    >>> with locked(Path(tempfile.mkdtemp()) / "lock"):
    ...     pass
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # No fallback: a lock that is only a file stays for ever when its process is killed.
    lock = FileLock(path, mode=0o666, fallback_to_soft=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class Lease:
    """Names of what this process uses, for :func:`leased` in other processes; ends with the object, and at the latest with the process.

    A process that was forked meanwhile holds on to it too.

    Args:
        folder: where leases are kept. Make, extend and read leases under one and the same lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / uuid.uuid4().hex
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _try_lock(descriptor)
        _OWN.add(self.path)
        weakref.finalize(self, _end, descriptor, self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # its end is here, so that another process gets None for it

    def add(self, names: Iterable[str]) -> None:
        """Use these as well."""
        extend_lease(self.path, names)


def extend_lease(path: Path, names: Iterable[str]) -> None:
    """Add names to the lease at ``path``: what :meth:`Lease.add` does, for a process that works for its holder."""
    with path.open("a") as file:
        file.writelines(f"{name}\n" for name in names)


def leased(folder: Path) -> set[str]:
    """All names that living processes use; the leases of others are deleted."""
    names: set[str] = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in _OWN or _is_held(path):
            names.update(path.read_text().split())
        else:
            path.unlink(missing_ok=True)
    return names


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _end(descriptor: int, path: Path) -> None:
    _OWN.discard(path)
    os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Whether the lock was taken; False too where the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
