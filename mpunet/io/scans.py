"""The scans of a folder, shared out over processes and opened one by one, whatever is wrong with some of them."""

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
    """A file of a folder of scans.

    Attributes:
        path: where it is.
        relative: the same from the folder, which names the case and its output.
    """

    path: Path
    relative: Path


class PredictCase(NamedTuple):
    """A scan that is open to be read, or the reason why it is not."""

    scan: Scan
    volume: ScanFile | None
    error: str | None


def find_scans(folder: str | Path) -> list[Scan]:
    """The NIfTI files (``.nii``, ``.nii.gz``) of a folder and its subfolders, sorted; a single file is a list of one.

    Hidden files and folders are left out, and with them what an interrupted :func:`mpunet.io.thin_file.write_slices` leaves.
    Whatever else has such a name is listed, readable or not, so that a broken link shows up as a failure and not as nothing.
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
    """Each rank's scans, so that all finish at about the same time: the largest first, each to the rank that has least to do.

    Sizes are numbers of voxels by the header; a file without a readable one is as good as done.
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
    """Iterates over scans as :class:`PredictCase`; never raises for a file. The next scan is opened while one is worked on.

    Args:
        scans: what to read, as :func:`find_scans` lists it.
        slice_axis: stored axis along which slices are stacked; found per file if not given.
        check_hu: refuse intensities that cannot be HU.
        intensity: what intensities within [0, 1] are, see :func:`mpunet.io.scan_file.open_scan`.
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
        except (
            Exception
        ) as error:  # one file of an archive, whatever is wrong with it, must not stop the others
            return PredictCase(scan, None, f"{scan.path.name}: {type(error).__name__}: {error}")


def _voxels(path: Path) -> int:
    try:
        return math.prod(nib.load(path).shape) if path.is_file() else 1
    except Exception:  # its error is told when its turn comes
        return 1
