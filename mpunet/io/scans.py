"""Find the scans of a folder, distribute them over processes, and open them one by one.

A scan that cannot be opened does not stop the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib

from mpunet.io.read_ahead import read_ahead
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import ScanFile, open_scan
from mpunet.io.volume import nifti_suffix

__all__ = ["PredictCase", "PredictLoader", "Scan", "find_scans", "share_out"]


class Scan(NamedTuple):
    """A scan file in a folder of scans.

    Attributes:
        path: path of the file.
        relative: path relative to the folder; names the case and its output.
    """

    path: Path
    relative: Path


class PredictCase(NamedTuple):
    """A scan that is open for reading, or the reason why it could not be opened."""

    scan: Scan
    volume: ScanFile | None
    error: str | None


def find_scans(folder: str | Path) -> list[Scan]:
    """List the NIfTI files (``.nii``, ``.nii.gz``) of a folder and its subfolders, sorted by path.

    A single file gives a list of one. Hidden files and folders are skipped; this includes the
    temporary files of an interrupted :func:`mpunet.io.thin_file.write_slices`. Every other entry
    with such a name is listed, readable or not, so that a broken link is reported as a failure
    instead of being ignored.
    """
    folder = Path(folder)
    if folder.is_file():
        if nifti_suffix(folder) is None:
            raise ValueError(
                f"Expected a folder or a file ending in .nii or .nii.gz, got {folder}."
            )
        return [Scan(folder, Path(folder.name))]
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of scans, found nothing at {folder}.")
    relatives = sorted(path.relative_to(folder) for path in folder.rglob("*") if nifti_suffix(path))
    scans = [
        Scan(folder / path, path)
        for path in relatives
        if not any(part.startswith(".") for part in path.parts)
    ]
    if not scans:
        raise ValueError(
            f"Expected .nii or .nii.gz files in {folder} or its subfolders, found none."
        )
    return scans


def share_out(scans: Sequence[Scan], ranks: int) -> list[list[Scan]]:
    """Distribute scans over ``ranks`` processes so that all finish at about the same time.

    Scans are assigned from the largest to the smallest, each to the rank with the least work so
    far. The size of a scan is its number of voxels in the header; a file without a readable header
    counts as one voxel.
    """
    shares: list[list[Scan]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    sizes = {scan: _voxels(scan.path) for scan in scans}
    for scan in sorted(scans, key=lambda scan: -sizes[scan]):
        rank = loads.index(min(loads))
        shares[rank].append(scan)
        loads[rank] += sizes[scan]
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
        try:
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


def _voxels(path: Path) -> int:
    try:
        return math.prod(nib.load(path).shape) if path.is_file() else 1
    except Exception:  # the error is reported when the scan is opened
        return 1
