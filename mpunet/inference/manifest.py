"""The manifest: the outcome of each scan of a prediction run.

It has one JSON line per scan and run and is written to ``manifest.jsonl`` in the output folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from mpunet import __version__
from mpunet.data.checks.order import OrderFault
from mpunet.inference.errors.file import ErrorRecord
from mpunet.io.scans import Scan
from mpunet.memory import is_out_of_memory

__all__ = [
    "NAME",
    "ConsistencyRecord",
    "Failure",
    "Manifest",
    "OrderRecord",
    "Record",
    "Written",
    "new_record",
    "note_skipped",
    "one_line",
    "order_record",
    "outcome_lines",
    "read_manifest",
]

_SHOWN = 20  # most failures to list; the manifest lists all

NAME = "manifest.jsonl"
_PART = ".manifest.rank*.jsonl"


class ConsistencyRecord(TypedDict):
    """Difference between the thickened result and the scan; see :mod:`mpunet.metrics.consistency`.

    Attributes:
        mae: mean absolute difference in HU.
        rmse: root mean square difference in HU.
        bias: mean signed difference (result minus scan) in HU.
        limit: largest ``mae`` in HU that the checkpoint's validation allows; null if the checkpoint
            has no consistency range.
        out_of_range: whether ``mae`` is above ``limit``; null if there is no limit.
    """

    mae: float
    rmse: float
    bias: float
    limit: float | None
    out_of_range: bool | None


class OrderRecord(TypedDict):
    """A fault in the order of the scan's slices; see :mod:`mpunet.data.checks.order`.

    Attributes:
        code: "repeated", "exchanged", "foreign" or "disorder".
        slices: the slices, counted from 0 towards superior in an axial scan; empty for a scan
            without order.
    """

    code: str
    slices: list[int]


class Written(NamedTuple):
    """A result on disk; the fields are those of :class:`Record`."""

    shape: list[int] | None = None
    spacing: list[float] | None = None
    series: str | None = None
    consistency: ConsistencyRecord | None = None
    error: ErrorRecord | None = None
    order: list[OrderRecord] | None = None


class Record(TypedDict):
    """A line of the manifest. Unknown values are null, for example the shape of a failed scan.

    Attributes:
        file: path of the scan relative to the input folder. The result has the same path in the
            output folder, but for a suffix if its format differs.
        status: "written", "failed", or "skipped" for an existing result without a manifest line.
        reason: why the scan failed.
        warning: possible problems of the result, separated by "; ": the scan's gantry is tilted,
            its slices overlap, have gaps or are not in their order, or its slice spacing differs
            from the spacing that the network was trained on. Missing in older manifests.
        shape: voxels of the result along the stored axes.
        spacing: voxel spacing of the result along the stored axes, in mm; slice spacing is
            measured along the normal of the slices.
        seconds: time from the first window to the finished file.
        checkpoint: SHA-256 of the checkpoint file.
        version: version of mpunet.
        stride: distance between windows in thick slices.
        thin_spacing: requested slice spacing of the result in mm; null for the scan's spacing
            divided by the network's ratio. Missing in older manifests.
        profile: SHA-256 of the samples of the scanner's slice profile, if one was given. Missing in
            older manifests.
        series: SeriesInstanceUID of a result in DICOM. Missing in older manifests.
        tile: height and width of tiles in pixels, if planes were cut into tiles.
        consistency: agreement with the scan, if it was checked. Missing in older manifests.
        error: summary of the error map, if there is one. Missing in older manifests.
        order: faults in the order of the scan's slices; empty if there are none. Missing in older
            manifests.
        time: time of writing in UTC (ISO 8601).
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
    profile: str | None
    series: str | None
    tile: list[int] | None
    consistency: ConsistencyRecord | None
    error: ErrorRecord | None
    order: list[OrderRecord] | None
    time: str


class Manifest:
    """Append records to the manifest.

    Each process writes its own file until rank 0 merges them, because concurrent appends to one
    file are unsafe on network file systems.

    Args:
        folder: existing output folder.
        rank: rank of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / (NAME if rank == 0 else _PART.replace("*", str(rank)))
        self._waiting: list[bytes] = []

    def add(self, record: Record) -> None:
        """Append a record. If writing fails (disk full), keep the line for the next call."""
        self._waiting.append(json.dumps(record).encode() + b"\n")
        self.flush()

    def flush(self) -> bool:
        """Try to write the waiting lines; return whether all lines are written."""
        if self._waiting:
            try:
                _append(self.path, b"".join(self._waiting))
            except OSError:
                return False
            self._waiting.clear()
        return True

    def merge(self) -> None:
        """Move the lines of the other ranks, from this run or a killed one, into this manifest.

        Call it on rank 0 while no other rank writes. If the disk is full, the remaining files are
        kept for the next call.
        """
        with suppress(OSError):
            for part in sorted(self.path.parent.glob(_PART)):
                _append(self.path, part.read_bytes())
                part.unlink()


def read_manifest(folder: Path) -> dict[str, Record]:
    """Read the last record of each file; return an empty dictionary if there is no manifest.

    Incomplete lines, which a killed process may leave, are skipped.
    """
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


def new_record(
    scan: Scan,
    module: Any,
    checkpoint: str | None,
    written: Written | None = None,
    *,
    reason: str | None = None,
    warning: str | None = None,
    seconds: float | None = None,
) -> Record:
    """Return the record of a scan.

    Args:
        scan: the scan.
        module: the LightningModule; stride, tile and slice spacing are read from its
            ``reconstructor``, if it has one.
        checkpoint: SHA-256 of the checkpoint file.
        written: the result.
        reason: why the scan failed.
        warning: possible problems of the result.
        seconds: time since the first window.
    """
    reconstructor = getattr(module, "reconstructor", None)
    engine = getattr(reconstructor, "engine", None)
    tile = getattr(engine, "tile", None)
    written = written or Written()
    return Record(
        file=scan.relative.as_posix(),
        status="written" if reason is None else "failed",
        reason=reason,
        warning=warning,
        shape=written.shape,
        spacing=written.spacing,
        seconds=seconds,
        checkpoint=checkpoint,
        version=__version__,
        stride=getattr(engine, "stride", None),
        thin_spacing=getattr(reconstructor, "thin_spacing", None),
        profile=getattr(getattr(reconstructor, "profile", None), "sha256", None),
        series=written.series,
        tile=None if tile is None else list(tile),
        consistency=written.consistency,
        error=written.error,
        order=written.order,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def order_record(faults: Iterable[OrderFault]) -> list[OrderRecord]:
    """Return faults in the order of slices as plain values."""
    return [OrderRecord(code=fault.code, slices=list(fault.slices)) for fault in faults]


def note_skipped(manifest: Manifest, records: Iterable[Record]) -> list[str]:
    """Add skipped results that the manifest does not list, and compare the settings of the others.

    Args:
        manifest: the merged manifest of rank 0.
        records: for each skipped scan, the record that this run would have written.

    Returns:
        A message if some skipped results were made with different settings, else nothing.
    """
    known = read_manifest(manifest.path.parent)
    others = 0
    for now in records:
        before = known.get(now["file"])
        if before is None:
            unknown: Any = dict.fromkeys(
                ("checkpoint", "stride", "thin_spacing", "profile", "tile")
            )
            manifest.add({**now, **unknown, "status": "skipped"})
        elif before["status"] == "written":
            changed = any(
                before[key] != now[key] for key in ("checkpoint", "stride") if now[key] is not None
            )
            others += changed or any(
                before.get(key) != now[key] for key in ("thin_spacing", "profile")
            )
    if not others:
        return []
    return [
        f"{others} of the skipped volumes were made with another checkpoint, stride, thin_spacing "
        f"or profile (see {NAME}); --writer.existing overwrite processes them again."
    ]


def _append(path: Path, lines: bytes) -> None:
    """Append all lines, or none if the write fails."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # A killed process may have left an incomplete line; end it so that ours starts a new one.
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


class Failure(NamedTuple):
    """A scan without a result, or with a warning.

    Attributes:
        relative: path relative to the input folder.
        reason: why the scan failed, or the warning.
    """

    relative: str
    reason: str


def outcome_lines(
    output_dir: str, written: int, failures: Sequence[Failure], warnings: Sequence[Failure]
) -> list[str]:
    """Return the lines that tell how many volumes were written, and which failed and why."""
    lines = [f"{written} volumes written to {output_dir}"]
    if failures:
        lines[0] += f", {len(failures)} failed:"
        lines += _listed(failures, output_dir)
    if warnings:
        lines += [f"{len(warnings)} with a warning:", *_listed(warnings, output_dir)]
    return lines


def _listed(entries: Sequence[Failure], output_dir: str) -> list[str]:
    """Return one indented line per entry, at most ``_SHOWN``."""
    lines = [f"  {relative}: {text}" for relative, text in entries[:_SHOWN]]
    if len(entries) > _SHOWN:
        lines.append(f"  ... and {len(entries) - _SHOWN} more, see {Path(output_dir) / NAME}")
    return lines


def one_line(error: Exception) -> str:
    """Return the message of an error without line breaks."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error) and not isinstance(error, MemoryError):
        return f"not enough memory: {text}"
    return (
        text
        if isinstance(error, (OSError, ValueError, MemoryError)) and text
        else f"{type(error).__name__}: {text}"
    )
