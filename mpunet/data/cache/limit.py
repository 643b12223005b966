"""Limit the size of the cache: delete the least recently used entries when it is full."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from mpunet.io.file_lock import leased, locked

__all__ = ["bookkeeping_lock", "make_room", "parse_bytes", "sweep"]

_UNITS: dict[str, int] = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)},
    **{f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)},
}
_ABANDONED_S = 3600.0


def parse_bytes(size: int | str) -> int:
    """Return the number of bytes of a number or text, like "200 GB" (10^9) or "200 GiB" (2^30).

    >>> parse_bytes("1.5 GB"), parse_bytes("2KiB"), parse_bytes(7)
    (1500000000, 2048, 7)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:e\d+)?)\s*([a-z]*)\s*", str(size), re.IGNORECASE)
    number, unit = found.groups() if found else ("", "?")
    if unit.upper() not in _UNITS:
        raise ValueError(
            f"Expected a size in bytes, or with a unit as in '200 GB' or '1.5 TiB', got {size!r}."
        )
    return round(float(number) * _UNITS[unit.upper()])


def bookkeeping_lock(folder: Path) -> Path:
    """Return the path of the lock that protects leases and the deletion of entries.

    Hold it to create, extend or read leases and to delete entries, so that no leased entry is
    deleted.
    """
    return folder / "locks" / "bookkeeping"


def make_room(folder: Path, needed: int, limit: int | None) -> None:
    """Delete the least recently used entries until ``needed`` more bytes fit into the limit.

    Entries in use by a running process are kept.

    Args:
        folder: the cache folder.
        needed: bytes about to be written.
        limit: largest total size of all entries in bytes; None if there is no limit.

    Raises:
        ValueError: if the bytes still do not fit into the limit, or do not fit on the disk.
    """
    if limit is not None:
        with locked(bookkeeping_lock(folder)):
            _evict(folder, needed, limit)
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"The cache needs {_text(needed)} more, the disk of {folder} has {_text(free)} left; "
            "free some space, give a folder on another disk (cache_dir) or a limit (cache_limit)."
        )


def sweep(folder: Path) -> None:
    """Delete unfinished entries that did not change for an hour: their writer was killed."""
    for path in folder.glob("*.partial"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
        except FileNotFoundError:  # renamed by its writer or deleted by another process
            continue


def _evict(folder: Path, needed: int, limit: int) -> None:
    found = []
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.partial")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # deleted, or renamed and counted under its other name
        found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    if total + needed <= limit:
        return
    used = leased(folder / "leases")
    for _, size, path in sorted(found):
        if total + needed <= limit:
            return
        if path.suffix == ".safetensors" and path.stem not in used:
            path.unlink(missing_ok=True)
            total -= size
    if total + needed > limit:
        raise ValueError(
            f"The cache {folder} needs {_text(total + needed)} for entries in use by this and "
            f"other runs, above its limit of {_text(limit)}; raise the limit (cache_limit), train "
            "on fewer volumes, or give each run its own folder (cache_dir)."
        )


def _text(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
