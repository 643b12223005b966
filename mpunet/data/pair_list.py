"""Pairs listed in a CSV, for data whose file names do not show which files belong together."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path, PurePath

from mpunet.data.case import PARTS, Case
from mpunet.io.volume import nifti_suffix, without_nifti_suffix

__all__ = ["read_pair_list"]

COLUMNS = ("thin", "thick", "lung", "patient", "split")
UID = re.compile(r"[0-9]+(\.[0-9]+)+(-[0-9]+)?")  # of one DICOM series in a folder of several


def read_pair_list(path: str | Path) -> list[Case]:
    """Read the cases of a CSV, in its order.

    The first line names the columns: ``thin``, and any of ``thick``, ``lung``, ``patient`` and
    ``split`` (train, val or test). Columns are separated by commas, semicolons or tabs. Volumes are
    NIfTI files or DICOM series: FOLDER, or FOLDER/UID for one of several. Their paths are absolute
    or relative to the CSV's folder. If ``thick`` is empty, thick slices are simulated;
    if ``lung`` is empty, the lung mask is computed; if ``patient`` is empty, so is the case's
    ``patient``. The name of a case is the path of its thin file as written, without ``..`` and
    without ``.nii`` or ``.nii.gz``.

    Raises:
        ValueError: if the file cannot be read, a column is unknown, a file is missing, a thin file
            is listed twice, a patient is in two parts, or only some lines have a split. The message
            gives the line.
    """
    path = Path(path)
    try:
        # "utf-8-sig", because spreadsheets write a byte order mark before the first column.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: cannot be read as a list of pairs: {reason}") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=next((mark for mark in ";\t" if mark in header), ","))
    columns = [column.strip().lower() for column in next(reader, [])]
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or "thin" not in columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"{path}, line 1: expected the columns thin and perhaps thick, lung, patient and "
            f"split, each once, got {', '.join(map(repr, columns)) or 'nothing'}."
        )
    cases: list[Case] = []
    lines_of: dict[str, int] = {}
    parts: dict[str, tuple[str, int]] = {}
    for values in reader:
        where = f"{path}, line {reader.line_num}"
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(columns):
            raise ValueError(f"{where}: expected {len(columns)} values, got {len(values)}.")
        case = _case(
            dict(zip(columns, (value.strip() for value in values), strict=True)), path.parent, where
        )
        if (first := lines_of.setdefault(case.name, reader.line_num)) != reader.line_num:
            raise ValueError(
                f"{where}: the thin volume {case.name!r} is in line {first} too; list it once."
            )
        if case.patient and case.part:
            part, first = parts.setdefault(case.patient, (case.part, reader.line_num))
            if part != case.part:
                raise ValueError(
                    f"{where}: the patient {case.patient!r} is in {case.part} here and in {part} "
                    f"in line {first}; "
                    "a patient in two parts makes results look better than they are."
                )
        cases.append(case)
    if not cases:
        raise ValueError(f"{path}: expected a line for each case below the first, found none.")
    if len({case.part is None for case in cases}) > 1:
        name = next(case.name for case in cases if case.part is None)
        raise ValueError(
            f"{path}, line {lines_of[name]}: expected a split as in other lines, got none; "
            "fill it in for all lines or for none."
        )
    return cases


def _case(row: dict[str, str], folder: Path, where: str) -> Case:
    if not row["thin"]:
        raise ValueError(f"{where}: expected a thin volume, got none.")
    files: dict[str, Path | None] = {}
    for kind in ("thin", "thick", "lung"):
        file = files[kind] = folder / row[kind] if row.get(kind) else None
        if file is None or file.is_dir() or (UID.fullmatch(file.name) and file.parent.is_dir()):
            continue  # none, or a DICOM series
        if nifti_suffix(file) is None:
            raise ValueError(
                f"{where}: expected a {kind} file ending in .nii or .nii.gz, or the folder of a "
                f"DICOM series, got {row[kind]!r}."
            )
        if not file.is_file():
            raise ValueError(
                f"{where}: no {kind} file at {file}; paths start from the list's folder."
            )
    part = next((part for part in PARTS if part == row.get("split")), None)
    if part is None and row.get("split"):
        raise ValueError(f"{where}: expected a split of train, val or test, got {row['split']!r}.")
    thin = PurePath(os.path.normpath(row["thin"]))
    path = "/".join(name for name in thin.parts if name not in (thin.anchor, ".."))
    name = without_nifti_suffix(path)
    return Case(
        name, row.get("patient", ""), folder / row["thin"], files["thick"], files["lung"], part
    )
