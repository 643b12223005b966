"""Read and write the CSV files of a reader study: findings of readers, and the standard.

Findings have the columns ``reader,condition,case,x,y,z,diameter``, the standard has
``case,x,y,z,diameter``. Other columns are ignored. Coordinates and diameters are in mm. A row whose
``x``, ``y``, ``z`` and ``diameter`` are all empty means that the case was read without findings, or
in the standard that the case has no nodule. A case without any row of a reader counts as not read
by this reader. Each line is checked; errors name the file and the line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = [
    "ALL_READERS",
    "Coordinates",
    "Finding",
    "Reading",
    "findings_csv",
    "read_findings",
    "read_standard",
    "standard_csv",
    "turned",
]

Coordinates = Literal["RAS", "LPS"]

ALL_READERS = "all readers"  # name of the pooled readers; no single reader may have this name
_PLACE = ("x", "y", "z", "diameter")
_READING = ("reader", "condition", "case")
_SHOWN = 120  # largest number of characters of a header in an error message


class Finding(NamedTuple):
    """A nodule of the standard, or a finding of a reader.

    Attributes:
        position: x, y, z in mm, RAS+ as in NIfTI.
        diameter: diameter in mm.
        score: score of the automatic reader in HU; None for human readers and the standard.
    """

    position: tuple[float, float, float]
    diameter: float
    score: float | None = None


class Reading(NamedTuple):
    """Identifies the reading of one case by one reader in one condition, such as "thick"."""

    reader: str
    condition: str
    case: str


def read_findings(
    path: str | Path, *, cases: Collection[str], coordinates: Coordinates = "RAS"
) -> dict[Reading, list[Finding]]:
    """Read a CSV file of findings.

    Args:
        path: CSV file in UTF-8 with a header.
        cases: names of the cases in the standard; other cases are errors.
        coordinates: coordinate system of the file: "RAS" as in NIfTI, or "LPS" as in DICOM, where x
            and y increase towards left and posterior.

    Returns:
        Findings of each reading, in the order of the file; an empty list for a reading without
        findings.

    Raises:
        ValueError: if a row is invalid, has an unknown case, or is repeated; with file and line.
    """
    readings: dict[Reading, list[Finding]] = {}
    for (reader, condition, case), finding, where in _rows(Path(path), _READING, coordinates):
        if case not in cases:
            raise ValueError(
                f"{where}: case {case!r} is not in the standard; list it there, "
                "with empty x, y, z and diameter if it has no nodule."
            )
        if reader == ALL_READERS:
            raise ValueError(
                f"{where}: a reader may not be called {ALL_READERS!r}, "
                "which is the name of all readers together."
            )
        found = readings.setdefault(Reading(reader, condition, case), [])
        found += [] if finding is None else [finding]
    if not readings:
        raise ValueError(
            f"{path}: expected at least one row of findings below the header, got none."
        )
    return readings


def read_standard(
    path: str | Path, *, coordinates: Coordinates = "RAS"
) -> dict[str, list[Finding]]:
    """Read a CSV file of a standard.

    Args:
        path: CSV file in UTF-8 with a header.
        coordinates: coordinate system of the file, see :func:`read_findings`.

    Returns:
        Nodules of each case; an empty list for a case without nodules.

    Raises:
        ValueError: if a row is invalid or repeated; with file and line.
    """
    standard: dict[str, list[Finding]] = {}
    for (case,), nodule, _ in _rows(Path(path), ("case",), coordinates):
        standard.setdefault(case, []).extend([] if nodule is None else [nodule])
    if not standard:
        raise ValueError(f"{path}: expected at least one case below the header, got none.")
    return standard


def turned(
    position: tuple[float, float, float], coordinates: Coordinates
) -> tuple[float, float, float]:
    """Convert a position between RAS+ and a coordinate system, in either direction.

    >>> turned((1.5, 0.0, 33.0), "LPS")
    (-1.5, 0.0, 33.0)
    """
    x, y, z = position
    return (0.0 - x, 0.0 - y, z) if coordinates == "LPS" else position


def findings_csv(
    readings: Mapping[Reading, Sequence[Finding]], coordinates: Coordinates = "RAS"
) -> str:
    """Return findings as CSV, with an additional column ``score``.

    >>> print(findings_csv({Reading("anna", "thick", "p1"): []}), end="")
    reader,condition,case,x,y,z,diameter,score
    anna,thick,p1,,,,,
    """
    lines = (
        [*reading, *place]
        for reading, found in readings.items()
        for place in _places(found, coordinates)
    )
    return _csv([*_READING, *_PLACE, "score"], lines)


def standard_csv(standard: Mapping[str, Sequence[Finding]]) -> str:
    """Return a standard as CSV (RAS+).

    >>> print(standard_csv({"p1": [Finding((1.5, -20, 33), 6.25)]}), end="")
    case,x,y,z,diameter
    p1,1.50,-20.00,33.00,6.25
    """
    return _csv(
        ["case", *_PLACE],
        ([case, *place[:4]] for case, found in standard.items() for place in _places(found, "RAS")),
    )


def _places(found: Sequence[Finding], coordinates: Coordinates) -> Iterator[list[str]]:
    for one in found:
        yield [f"{value:.2f}" for value in (*turned(one.position, coordinates), one.diameter)] + [
            "" if one.score is None else f"{one.score:.1f}"
        ]
    if not found:
        yield [""] * 5


def _csv(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def _rows(
    path: Path, keys: tuple[str, ...], coordinates: Coordinates
) -> Iterator[tuple[tuple[str, ...], Finding | None, str]]:
    """Yield the key columns of each row, its finding or None, and its file and line as text.

    Raise ValueError if two rows with the same key contradict or repeat each other.
    """
    if coordinates not in ("RAS", "LPS"):
        raise ValueError(f"Expected coordinates 'RAS' or 'LPS', got {coordinates!r}.")
    seen: dict[tuple[str, ...], dict[tuple[float, ...] | None, int]] = {}
    for line, row in _fields(path, (*keys, *_PLACE)):
        where = f"{path}, line {line}"
        key = tuple(row[name] for name in keys)
        if not all(key):
            raise ValueError(f"{where}: expected a {keys[key.index('')]}, got an empty field.")
        finding = _finding(row, coordinates, where)
        others = seen.setdefault(key, {})
        place = None if finding is None else finding.position
        if place in others:
            raise ValueError(f"{where}: the same as line {others[place]}; remove one of them.")
        if others and (place is None or None in others):
            first = next(iter(others.values()))
            raise ValueError(
                f"{where}: contradicts line {first}: {', '.join(key)} has findings, "
                "and a row that says there is none."
            )
        others[place] = line
        yield key, finding, where


def _finding(row: Mapping[str, str], coordinates: Coordinates, where: str) -> Finding | None:
    empty = [name for name in _PLACE if not row[name]]
    if len(empty) == len(_PLACE):
        return None
    if empty:
        raise ValueError(
            f"{where}: {', '.join(empty)} is empty; fill in x, y, z and diameter, "
            "or none of them for 'nothing found'."
        )
    values = []
    for name in _PLACE:
        try:
            value = float(row[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f"{where}: expected a finite number of mm for {name}, got {row[name]!r}."
            )
        values.append(value)
    x, y, z, diameter = values
    if diameter <= 0:
        raise ValueError(f"{where}: expected a diameter above 0 mm, got {row['diameter']}.")
    return Finding(turned((x, y, z), coordinates), diameter)


def _fields(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the named fields of each row that is not blank."""
    try:
        # -sig: spreadsheet programs write a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            head = [name.strip().lower() for name in next(reader, [])]
            missing = [name for name in names if name not in head]
            if missing:
                got = ",".join(head)[:_SHOWN]
                raise ValueError(
                    f"{path}, line 1: expected the columns {','.join(names)}, got {got!r}: "
                    f"no {', '.join(missing)}."
                )
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue
                if len(fields) != len(head):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: expected {len(head)} fields as in the "
                        f"header, got {len(fields)}; write decimals with a point."
                    )
                yield reader.line_num, {name: fields[head.index(name)].strip() for name in names}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8: {error}.") from error
    except csv.Error as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}.") from error
