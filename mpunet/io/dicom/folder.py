"""DICOM series in folders: which files to look at, and the names of the series."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from mpunet.io.dicom.headers import is_dicom
from mpunet.io.dicom.series import Rejected, Series, find_series

__all__ = ["NamedSeries", "dicom_files", "name_series", "series_at", "visible"]

_log = logging.getLogger(__name__)


class NamedSeries(NamedTuple):
    """A DICOM series in a folder.

    Attributes:
        name: path relative to the folder, without suffix; it need not exist.
        series: the slices; None if they are no volume.
        problem: why they are no volume.
    """

    name: Path
    series: Series | None
    problem: str | None


def visible(folder: Path, failed: Callable[[OSError], None] | None = None) -> list[Path]:
    """List what is in a folder and its subfolders, sorted, without hidden files and folders.

    Linked folders are followed, each folder once and none that has ``folder`` in it.

    Args:
        folder: the folder.
        failed: called with the error of each folder that cannot be read, of which ``filename`` is
            the path.
    """
    found: list[Path] = []
    waiting = [folder]
    seen = set(map(str, Path(os.path.realpath(folder)).parents))
    while waiting:  # linked folders wait until all others were seen under their own names
        for place, folders, files in os.walk(waiting.pop(0), onerror=failed):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            shown = [name for name in files if not name.startswith(".")]
            found += (Path(place, name) for name in (*folders, *shown))
            waiting += (Path(place, name) for name in folders if Path(place, name).is_symlink())
    return sorted(found)


def dicom_files(paths: Sequence[Path]) -> list[Path]:
    """Select the DICOM files among paths, and those beside them that may be broken slices.

    These are other files ``*.dcm``, and files that are empty or cannot be read and whose names end
    as that of a DICOM file in their folder. A DICOMDIR only lists others and is left out.
    """
    kinds = {path: is_dicom(path) for path in paths if path.name != "DICOMDIR"}
    endings = {(path.parent, _ending(path)) for path, kind in kinds.items() if kind}
    folders = {folder for folder, _ in endings}

    def may_be_slice(path: Path) -> bool:
        if _ending(path) == ".dcm":
            return path.parent in folders and not path.is_dir()
        return kinds[path] is None and (path.parent, _ending(path)) in endings

    return [path for path, kind in kinds.items() if kind or may_be_slice(path)]


def _ending(path: Path) -> str:
    """Return the suffix in lower case; none for names that end with numbers, such as UIDs."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def name_series(
    folder: Path, files: Sequence[Path], taken: Collection[Path] = ()
) -> list[NamedSeries]:
    """Find the series of files in a folder. Log those that are left out because of their kind.

    A series has the name of its folder, or FOLDER/UID if the folder has several, has another in a
    subfolder, or is ``folder`` itself. So no name is that of a folder with another series.

    Args:
        folder: the folder.
        files: DICOM files in it or in its subfolders.
        taken: names of NIfTI files, relative to the folder. The series of a folder ``a`` beside
            ``a.nii.gz`` has the name ``a/UID``.
    """
    series, rejected = find_series(files)
    left_out = [item for item in rejected if not item.failed]
    if left_out:
        listed = ", ".join(f"{item.uid} ({item.reason})" for item in left_out[:5])
        more = "" if len(left_out) <= 5 else f" and {len(left_out) - 5} more"
        _log.warning("%d DICOM series are left out: %s%s", len(left_out), listed, more)
    return _named(folder, series, rejected, taken)


def series_at(path: Path) -> Series | None:
    """Return the series at a path: a folder with one series, FOLDER/UID, or a multi-frame file.

    Returns:
        None if there is no DICOM file.

    Raises:
        ValueError: if the folder has several series, or the series is no volume.
    """
    if path.is_dir():
        series, rejected = find_series(dicom_files(visible(path)))
        here = [item for item in series if item.folder == path] or series
        if len(here) > 1:
            names = ", ".join(str(path / item.uid) for item in here[:3])
            raise ValueError(
                f"{path.name}: expected one DICOM series, found {len(here)}; name one of them: "
                f"{names}{', ...' if len(here) > 3 else ''}."
            )
        if not here:
            _refuse(path, rejected)
        return here[0] if here else None
    if path.is_file():
        series, rejected = find_series([path])
        if not series:
            _refuse(path, rejected)
        return series[0] if series else None
    if not path.parent.is_dir():
        return None
    found = _named(path.parent, *find_series(dicom_files(visible(path.parent))), ())
    for item in found:
        if item.name == Path(path.name):
            if item.problem is not None:
                raise ValueError(f"series {item.name}: {item.problem}")
            return item.series
    return None


def _refuse(path: Path, rejected: Sequence[Rejected]) -> None:
    """Raise the reason why there is no volume at a path, if there is one."""
    if rejected:
        first = max(rejected, key=lambda item: item.failed)
        raise ValueError(f"{path.name}: series {first.uid or 'without a UID'}: {first.reason}")


def _named(
    folder: Path, series: Sequence[Series], rejected: Sequence[Rejected], taken: Collection[Path]
) -> list[NamedSeries]:
    found: list[tuple[Series | None, Rejected | None, Path, str]] = [
        *((item, None, item.folder, item.uid) for item in series),
        *((None, item, item.folder, item.uid) for item in rejected if item.failed),
    ]
    in_folder = Counter(place for _, _, place, _ in found)
    above = {parent for place in in_folder for parent in place.parents}
    used: Counter[Path] = Counter()
    named = []
    for item, problem, place, uid in found:
        name = place.relative_to(folder)
        beside = name.with_name(f"{name.name}.nii.gz") if name.name else name
        if not name.name or in_folder[place] > 1 or place in above or beside in taken:
            # A damaged UID may hold anything, and must not lead out of the folder.
            name = name / (re.sub(r"[^0-9A-Za-z.]", "_", uid).strip(".") or "unreadable")
        used[name] += 1
        if used[name] > 1:  # parts of a series, or several files that cannot be read
            name = name.with_name(f"{name.name}-{used[name]}")
        named.append(NamedSeries(name, item, problem.reason if problem else None))
    return named
