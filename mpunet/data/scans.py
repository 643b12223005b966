"""The scans of a folder, and a data set that reads them one by one and survives broken files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from mpunet.data.volume import Volume, nifti_suffix, read_volume

__all__ = ["PredictCase", "PredictScans", "Scan", "find_scans"]


class Scan(NamedTuple):
    """A file of a folder of scans.

    Attributes:
        path: where it is.
        relative: the same from the folder, which names the case and its output.
    """

    path: Path
    relative: Path


class PredictCase(NamedTuple):
    """A scan with its volume, or with the reason why there is none."""

    scan: Scan
    volume: Volume | None
    error: str | None


def find_scans(folder: str | Path) -> list[Scan]:
    """The NIfTI files (``.nii``, ``.nii.gz``) of a folder and its subfolders, sorted; a single file is a list of one.

    Hidden files and folders are left out, and with them what an interrupted :func:`mpunet.data.volume.write_volume` leaves.
    Whatever else has such a name is listed, readable or not, so that a broken link shows up as a failure and not as nothing.
    """
    folder = Path(folder)
    if folder.is_file():
        if nifti_suffix(folder) is None:
            raise ValueError(f"Expected a folder or a file ending in .nii or .nii.gz, got {folder}.")
        return [Scan(folder, Path(folder.name))]
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of scans, found nothing at {folder}.")
    relatives = sorted(path.relative_to(folder) for path in folder.rglob("*") if nifti_suffix(path))
    scans = [Scan(folder / path, path) for path in relatives if not any(part.startswith(".") for part in path.parts)]
    if not scans:
        raise ValueError(f"Expected .nii or .nii.gz files in {folder} or its subfolders, found none.")
    return scans


class PredictScans(Dataset[PredictCase]):
    """Thick scans to predict, read when asked for: item i is the :class:`PredictCase` of scan i and never raises for its file.

    Args:
        scans: what to read, as :func:`find_scans` lists it.
        slice_axis: stored axis along which slices are stacked; found per file if not given.
        check_hu: refuse intensities that cannot be HU.
    """

    def __init__(self, scans: Sequence[Scan], *, slice_axis: int | None = None, check_hu: bool = True) -> None:
        self.scans = list(scans)
        self.slice_axis = slice_axis
        self.check_hu = check_hu

    def __len__(self) -> int:
        """Number of scans."""
        return len(self.scans)

    def __getitem__(self, index: int) -> PredictCase:
        """Read scan ``index``."""
        scan = self.scans[index]
        try:
            return PredictCase(scan, read_volume(scan.path, slice_axis=self.slice_axis, check_hu=self.check_hu), None)
        except ValueError as error:
            return PredictCase(scan, None, str(error))
        except Exception as error:  # one file of an archive, whatever is wrong with it, must not stop the others
            return PredictCase(scan, None, f"{scan.path.name}: {type(error).__name__}: {error}")
