"""What became of each scan of a folder: one JSON line per scan and run, in ``manifest.jsonl`` beside the results."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypedDict

__all__ = ["NAME", "ConsistencyRecord", "Manifest", "Record", "read_manifest"]

NAME = "manifest.jsonl"
_PART = ".manifest.rank*.jsonl"


class ConsistencyRecord(TypedDict):
    """The result thickened again minus the scan, in HU; see :mod:`mpunet.metrics.consistency`.

    Attributes:
        mae: mean absolute difference; rmse its root mean square, bias its signed mean.
        limit: largest ``mae`` that is in the range of the checkpoint's validation; null where the checkpoint knows none.
        out_of_range: whether ``mae`` is above it, likewise.
    """

    mae: float
    rmse: float
    bias: float
    limit: float | None
    out_of_range: bool | None


class Record(TypedDict):
    """A line of the manifest. What is not known, as of a file that could not be read, is null.

    Attributes:
        file: path from the input folder, which is also that of the result.
        status: "written", "failed", or "skipped" for a result that was there before and that no line tells of.
        reason: why it failed.
        warning: what may be wrong with the result: slices that stand nearer or further apart than those the network was trained on.
            Older manifests do not have it.
        shape: voxels of the result along the stored axes.
        spacing: of the result along the stored axes, in mm.
        seconds: from the first window to the finished file.
        checkpoint: SHA-256 of the checkpoint.
        version: mpunet's.
        stride: thick slices between windows.
        thin_spacing: mm that were asked for between the slices of the result; null for the scan's divided by the network's ratio.
            Older manifests do not have it.
        tile: in-plane size of tiles, where planes were cut.
        consistency: with the scan, where it was asked for. Older manifests do not have it.
        time: when, in UTC (ISO 8601).
    """

    file: str
    status: Literal["written", "failed", "skipped"]
    reason: str | None
    warning: str | None
    shape: list[int] | None
    spacing: list[float] | None
    seconds: float | None
    checkpoint: str | None
    version: str
    stride: int | None
    thin_spacing: float | None
    tile: list[int] | None
    consistency: ConsistencyRecord | None
    time: str


class Manifest:
    """Appends records; each process has a file of its own until rank 0 merges them, as network file systems mix up shared ones.

    Args:
        folder: the output folder, which exists.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / (NAME if rank == 0 else _PART.replace("*", str(rank)))
        self._waiting: list[bytes] = []

    def add(self, record: Record) -> None:
        """Append a record. Where that fails (disk full) the run goes on, and the line waits for the next one."""
        self._waiting.append(json.dumps(record).encode() + b"\n")
        self.flush()

    def flush(self) -> bool:
        """Try to write what waits; whether nothing waits any more."""
        if self._waiting:
            try:
                _append(self.path, b"".join(self._waiting))
            except OSError:
                return False
            self._waiting.clear()
        return True

    def merge(self) -> None:
        """Move what the other ranks wrote, in this run or in one that was killed, into this manifest. For rank 0, while no other writes.

        What does not fit on the disk stays for the next time.
        """
        with suppress(OSError):
            for part in sorted(self.path.parent.glob(_PART)):
                _append(self.path, part.read_bytes())
                part.unlink()


def read_manifest(folder: Path) -> dict[str, Record]:
    """The last record of each file; none where there is no manifest. Lines that a killed process left half written are passed over."""
    try:
        lines = (folder / NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    records: dict[str, Record] = {}
    for line in lines:
        try:
            record = json.loads(line)
            records[record["file"]] = record
        except (ValueError, TypeError, KeyError):
            continue
    return records


def _append(path: Path, lines: bytes) -> None:
    """Append whole lines or nothing."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # A process that was killed may have left half a line: it is ended, not continued.
        if size and _last_byte(path) != b"\n":
            lines = b"\n" + lines
        written = 0
        try:
            while written < len(lines):
                written += file.write(lines[written:])
        except OSError:
            file.truncate(size)
            raise


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
