"""Find the scans of a folder, distribute them over processes, and open them one by one.

A scan that cannot be opened does not stop the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import nibabel as nib

from mpunet.io.dicom.folder import dicom_files, name_series, visible
from mpunet.io.dicom.headers import is_dicom
from mpunet.io.dicom.scan import open_series
from mpunet.io.dicom.series import Series
from mpunet.io.dicom.template import TemplatedScan
from mpunet.io.read_ahead import read_ahead
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import ScanFile, open_scan
from mpunet.io.volume import nifti_suffix, without_nifti_suffix

__all__ = [
    "Format",
    "PredictCase",
    "PredictLoader",
    "Scan",
    "find_scans",
    "has_result",
    "input_places",
    "opened",
    "output_path",
    "scan_name",
    "share_out",
    "writes_dicom",
]

Format = Literal["auto", "nifti", "dicom"]


class Scan(NamedTuple):
    """A scan in a folder of scans: a NIfTI file or a DICOM series.

    Attributes:
        path: path of the file; for a series, a path in the folder that need not exist.
        relative: path relative to the folder; names the case and its output. For a series it has no
            suffix.
        series: the slices of a DICOM series; None for a file.
        problem: why this series is no volume, or this file has no template.
        template: for a file, the DICOM series whose patient, study and positions its result has.
    """

    path: Path
    relative: Path
    series: Series | None = None
    problem: str | None = None
    template: Series | None = None


class PredictCase(NamedTuple):
    """A scan that is open for reading, or the reason why it could not be opened."""

    scan: Scan
    volume: ScanFile | None
    error: str | None


def find_scans(folder: str | Path) -> list[Scan]:
    """List the NIfTI files and DICOM series of a folder and its subfolders, sorted by path.

    A series has the name of its folder, or FOLDER/UID if the folder has several, has another in a
    subfolder, or is ``folder`` itself. A single file gives a list of one; a DICOM file with several
    frames may be one. Links to folders are followed. Hidden files and folders are skipped; this
    includes the temporary files of an interrupted :func:`mpunet.io.thin_file.write_slices`. Every
    other entry with such a name is listed, readable or not, and so are folders that cannot be read,
    so that a broken link is reported as a failure instead of being ignored.

    Args:
        folder: folder, or one file; a file DICOMDIR stands for its folder.

    Raises:
        ValueError: if there is no scan, or the folder cannot be read.
    """
    folder = Path(folder)
    if folder.name == "DICOMDIR" and folder.is_file():
        folder = folder.parent
    if folder.is_file():
        if nifti_suffix(folder) is not None:
            return [Scan(folder, Path(folder.name))]
        if not is_dicom(folder):
            raise ValueError(
                f"Expected a folder, a DICOM file or a file ending in .nii or .nii.gz, got {folder}."
            )
        files, root, scans = [folder], folder.parent, []
    elif folder.is_dir():
        root, closed = folder, list[OSError]()
        shown = visible(folder, closed.append)
        scans = [Scan(path, path.relative_to(root)) for path in shown if nifti_suffix(path)]
        scans += [_closed(error, root) for error in closed]
        files = dicom_files([path for path in shown if nifti_suffix(path) is None])
    else:
        raise ValueError(f"Expected a folder of scans, found nothing at {folder}.")
    if files:
        named = name_series(root, files, taken={scan.relative for scan in scans})
        scans += [Scan(root / name, name, series, problem) for name, series, problem in named]
    if not scans:
        raise ValueError(
            f"Expected NIfTI files (.nii, .nii.gz) or DICOM series in {folder} or its subfolders, "
            "found none."
        )
    return sorted(scans, key=lambda scan: scan.relative)


def _closed(error: OSError, root: Path) -> Scan:
    """Return the entry of a folder that cannot be read."""
    path, reason = Path(error.filename), f"folder cannot be read: {(error.strerror or '').lower()}"
    if path == root:
        raise ValueError(f"{path}: {reason}") from error
    return Scan(path, path.relative_to(root), problem=reason)


def input_places(scans: Sequence[Scan]) -> dict[Path, Scan]:
    """Map the real paths of all files of scans, and of all folders above them, to a scan there.

    What replaces one of these paths destroys input.
    """
    places: dict[Path, Scan] = {}
    for scan in scans:
        files = {header.path for header in scan.series.slices} if scan.series else set()
        for file in (scan.path, *files):
            path = file.resolve()
            for place in (path, *path.parents):
                if place in places:
                    break
                places[place] = scan
    return places


def has_result(path: Path) -> bool:
    """Return whether a result is at a path: a file, or a folder with ``.dcm`` files in itself."""
    return path.is_file() or any(path.glob("*.dcm"))


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


def opened(
    scan: Scan,
    *,
    slice_axis: int | None = None,
    check_hu: bool = True,
    intensity: Intensity = "auto",
) -> ScanFile:
    """Open a listed scan as :func:`mpunet.io.scan_file.open_scan` does; known headers are used.

    Raises:
        ValueError: see ``open_scan``; also if the scan has a problem.
    """
    if scan.problem is not None:
        raise ValueError(scan.problem)
    if scan.series is not None:
        return open_series(scan.series, check_hu=check_hu, intensity=intensity)
    file = open_scan(scan.path, slice_axis=slice_axis, check_hu=check_hu, intensity=intensity)
    return file if scan.template is None else TemplatedScan(file, scan.template)


def scan_name(scan: Scan) -> Path:
    """Return the relative path of a scan without the suffix of a NIfTI file."""
    if scan.series is not None:
        return scan.relative
    return scan.relative.with_name(without_nifti_suffix(scan.relative.name))


def writes_dicom(scan: Scan, file_format: Format) -> bool:
    """Return whether the result of a scan is a DICOM series: "auto" writes the scan's own format."""
    return file_format == "dicom" or (file_format == "auto" and scan.series is not None)


def output_path(output: Path, scan: Scan, file_format: Format) -> Path:
    """Return the path of a scan's result: a NIfTI file, or the folder of a DICOM series."""
    if writes_dicom(scan, file_format):
        return output / scan_name(scan)
    path = output / scan.relative
    return path if scan.series is None else path.with_name(f"{path.name}.nii.gz")


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
        try:
            volume = opened(
                scan,
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
