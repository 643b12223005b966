"""Find the scans of a folder, distribute them over processes, and open them one by one.

A scan that cannot be opened does not stop the others.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib

from mpunet.io.dicom.headers import is_dicom
from mpunet.io.dicom.scan import open_series
from mpunet.io.dicom.series import Rejected, Series, find_series
from mpunet.io.read_ahead import read_ahead
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import ScanFile, open_scan
from mpunet.io.volume import nifti_suffix

__all__ = ["PredictCase", "PredictLoader", "Scan", "find_scans", "share_out"]


_log = logging.getLogger(__name__)


class Scan(NamedTuple):
    """A scan in a folder of scans: a NIfTI file or a DICOM series.

    Attributes:
        path: path of the file; for a series, a path in the folder that need not exist.
        relative: path relative to the folder; names the case and its output. For a series it has no
            suffix.
        series: the slices of a DICOM series; None for a file.
        problem: why this series is no volume.
    """

    path: Path
    relative: Path
    series: Series | None = None
    problem: str | None = None


class PredictCase(NamedTuple):
    """A scan that is open for reading, or the reason why it could not be opened."""

    scan: Scan
    volume: ScanFile | None
    error: str | None


def find_scans(folder: str | Path, *, dicom: bool = True) -> list[Scan]:
    """List the NIfTI files and DICOM series of a folder and its subfolders, sorted by path.

    A series has the name of its folder, or its UID if the folder has several or is ``folder``
    itself. A single file gives a list of one; a DICOM file with several frames may be one. Hidden
    files and folders are skipped; this includes the temporary files of an interrupted
    :func:`mpunet.io.thin_file.write_slices`. Every other entry with such a name is listed, readable
    or not, so that a broken link is reported as a failure instead of being ignored.

    Args:
        folder: folder, or one file.
        dicom: look for DICOM series, too.

    Raises:
        ValueError: if there is no scan.
    """
    folder = Path(folder)
    if folder.is_file():
        if nifti_suffix(folder) is not None:
            return [Scan(folder, Path(folder.name))]
        if dicom and is_dicom(folder):
            return _dicom_scans(folder.parent, [folder])
        raise ValueError(
            f"Expected a folder, a DICOM file or a file ending in .nii or .nii.gz, got {folder}."
        )
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of scans, found nothing at {folder}.")
    relatives = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    shown = [path for path in relatives if not any(part.startswith(".") for part in path.parts)]
    scans = [Scan(folder / path, path) for path in shown if nifti_suffix(path)]
    if dicom:
        others = [folder / path for path in shown if nifti_suffix(path) is None]
        files = [path for path in others if path.name != "DICOMDIR" and is_dicom(path)]
        scans += _dicom_scans(folder, files, taken={scan.relative for scan in scans})
    if not scans:
        kinds = "NIfTI files (.nii, .nii.gz)" + (" or DICOM series" if dicom else "")
        raise ValueError(f"Expected {kinds} in {folder} or its subfolders, found none.")
    return sorted(scans, key=lambda scan: scan.relative)


def _dicom_scans(folder: Path, files: Sequence[Path], taken: Collection[Path] = ()) -> list[Scan]:
    """Return the DICOM series of files, each named after its folder or its UID."""
    if not files:
        return []
    series, rejected = find_series(files)
    left_out = [item for item in rejected if not item.failed]
    if left_out:
        listed = ", ".join(f"{item.uid} ({item.reason})" for item in left_out[:5])
        more = "" if len(left_out) <= 5 else f" and {len(left_out) - 5} more"
        _log.warning("%d DICOM series are left out: %s%s", len(left_out), listed, more)
    found: list[tuple[Series | None, Rejected | None, Path, str]] = [
        *((item, None, item.folder, item.uid) for item in series),
        *((None, item, item.folder, item.uid) for item in rejected if item.failed),
    ]
    in_folder = Counter(place for _, _, place, _ in found)
    used: Counter[Path] = Counter()
    scans = []
    for item, problem, place, uid in found:
        name = place.relative_to(folder)
        beside = name.with_name(f"{name.name}.nii.gz") if name.name else name
        if not name.name or in_folder[place] > 1 or beside in taken:
            # A damaged UID may hold anything, and must not lead out of the folder.
            name = name / (re.sub(r"[^0-9A-Za-z.]", "_", uid).strip(".") or "unreadable")
        used[name] += 1
        if used[name] > 1:  # parts of a series, or several files that cannot be read
            name = name.with_name(f"{name.name}-{used[name]}")
        scans.append(Scan(folder / name, name, item, problem.reason if problem else None))
    return scans


def share_out(scans: Sequence[Scan], ranks: int) -> list[list[Scan]]:
    """Distribute scans over ``ranks`` processes so that all finish at about the same time.

    Scans are assigned from the largest to the smallest, each to the rank with the least work so
    far. The size of a scan is its number of voxels in the header; a file without a readable header
    counts as one voxel.
    """
    shares: list[list[Scan]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    sizes = {scan.relative: _voxels(scan) for scan in scans}
    for scan in sorted(scans, key=lambda scan: -sizes[scan.relative]):
        rank = loads.index(min(loads))
        shares[rank].append(scan)
        loads[rank] += sizes[scan.relative]
    return shares


class PredictLoader:
    """Iterates over scans and yields a :class:`PredictCase` for each.

    A file that cannot be opened gives a case with an error; nothing is raised. The next scan is
    opened while the current one is processed.

    Args:
        scans: scans to open, as listed by :func:`find_scans`.
        slice_axis: stored axis (0, 1 or 2) along which slices are stacked; by default it is found
            for each file.
        check_hu: reject intensities that cannot be HU.
        intensity: scale of intensities in [0, 1], see :func:`mpunet.io.scan_file.open_scan`.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        *,
        slice_axis: int | None = None,
        check_hu: bool = True,
        intensity: Intensity = "auto",
    ) -> None:
        self.scans = list(scans)
        self.slice_axis = slice_axis
        self.check_hu = check_hu
        self.intensity: Intensity = intensity

    def __len__(self) -> int:
        return len(self.scans)

    def __iter__(self) -> Iterator[PredictCase]:
        return read_ahead(map(self._open, self.scans), 1)

    def _open(self, scan: Scan) -> PredictCase:
        if scan.problem is not None:
            return PredictCase(scan, None, scan.problem)
        try:
            if scan.series is not None:
                volume: ScanFile = open_series(
                    scan.series, check_hu=self.check_hu, intensity=self.intensity
                )
                return PredictCase(scan, volume, None)
            volume = open_scan(
                scan.path,
                slice_axis=self.slice_axis,
                check_hu=self.check_hu,
                intensity=self.intensity,
            )
            return PredictCase(scan, volume, None)
        except ValueError as error:
            return PredictCase(scan, None, str(error))
        except Exception as error:  # no defect of one file may stop the others
            return PredictCase(scan, None, f"{scan.path.name}: {type(error).__name__}: {error}")


def _voxels(scan: Scan) -> int:
    if scan.series is not None:
        return len(scan.series.slices) * math.prod(scan.series.slices[0].size)
    try:
        return math.prod(nib.load(scan.path).shape) if scan.path.is_file() else 1
    except Exception:  # the error is reported when the scan is opened
        return 1
