"""Make the folder of real CT that the docs call `$MPUNET_CT`, from public scans.

    pip install idc-index
    python examples/get_data.py ct
    export MPUNET_CT=$PWD/ct

data/ct.csv lists the files: the DICOM series of each, the part of it that is used, and the SHA-256
of its voxels. A series is downloaded (1.1 GB in all, by idc-index from the Imaging Data Commons of
the US National Cancer Institute, by git from GitHub), cropped, clipped to [-1024, 3071] HU and
written as NIfTI. A file is kept only if its voxels have the SHA-256 of the table. Files that are
there already are only checked, so that an interrupted run can be repeated. Series that you have are
found with --dicom, by their UIDs; then nothing is downloaded.

Cite the collections and keep their licences: both are in the table. MIDRC-RICORD-1A (val/) is not
for commercial use.

What was run: everything but the download from the Imaging Data Commons, as the machine that this
was written on has no internet. Of the ten series, four were at hand as DICOM (LIDC-IDRI-0314, 95 of
the 266 slices of RIDER-0117, and the two of the head phantom): they give bit by bit the files that
the results in the docs were measured on. The UIDs of the others are from version 25 of the Commons'
index, by patient and number of slices; for two patients two series fit, which are tried one after
the other. If none gives the voxels of the table, the script says so and makes the other files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.intensity import round_hu
from mpunet.io.dicom.folder import dicom_files, visible
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.series import Rejected, Series, find_series
from mpunet.io.partial_file import partial_file, remove_partials
from mpunet.io.volume import one_line_errors

__all__ = ["Row", "cut", "main", "read_table"]

TABLE = Path(__file__).parent / "data" / "ct.csv"
Found = tuple[list[Series], list[Rejected]]
TOLERANCE = 0.1  # voxels: origins in headers are rounded (our choice)


class Row(NamedTuple):
    """A file to make; a line of the table.

    Attributes:
        file: path in the output folder.
        series: SeriesInstanceUIDs that it can be from; empty for a file that is in the repository.
        source: "IDC", or URL, commit and folder of a git repository, or a file beside the table.
        shape: voxels along x, y and z.
        origin: position of the first voxel in mm, RAS+.
        sha256: of the voxels as they are in the file: int16, little-endian, x fastest.
    """

    file: Path
    series: tuple[str, ...]
    source: str
    shape: tuple[int, ...]
    origin: tuple[float, ...]
    sha256: str


def main(words: Sequence[str] | None = None) -> int:
    """Make the files; 1 if one could not be made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument(
        "--dicom", type=Path, help="folder with the series, searched with its subfolders"
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="table of the files")
    args = parser.parse_args(words)
    folder: Path = args.folder
    try:
        rows = read_table(args.table)
        given = None if args.dicom is None else _series_in(args.dicom)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    failed = 0
    for row in rows:
        try:
            print(f"{row.file}: {_make(row, folder, args.table.parent, given)}", flush=True)
        except (OSError, ValueError) as error:
            failed += 1
            print(f"{row.file}: not made: {error}", flush=True)
    print(f"{len(rows) - failed} of {len(rows)} files are in {folder}")
    return int(failed > 0)


def read_table(path: Path) -> list[Row]:
    """Read the table of the files.

    Raises:
        ValueError: if a column is missing or a value is none.
    """
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        return [
            Row(
                Path(line["file"]),
                tuple(line["series"].split()),
                line["source"],
                tuple(int(count) for count in line["shape"].split()),
                tuple(float(mm) for mm in line["origin"].split()),
                line["sha256"],
            )
            for line in lines
        ]
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name}: missing column or wrong value: {error}") from error


def cut(series: Series, row: Row) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """Cut the part of a series that a row of the table describes.

    Returns:
        Voxels (x, y, z) in HU, clipped to [-1024, 3071], and their affine (4, 4), RAS+ in mm.

    Raises:
        ValueError: if the part does not lie in the series, or its voxels cannot be read.
    """
    scan = DicomScan(series)
    first = np.linalg.solve(scan.affine, [*row.origin, 1])[:3]
    start = np.rint(first).astype(int)
    if (
        np.abs(first - start).max() > TOLERANCE
        or min(start) < 0
        or (start + row.shape > scan.stored_shape).any()
    ):
        raise ValueError(
            f"series {series.uid} has no {row.shape} voxels from {row.origin} mm on; it has "
            f"{scan.stored_shape} from {tuple(np.round(scan.affine[:3, 3], 3).tolist())} mm on"
        )
    box = tuple(slice(low, low + count) for low, count in zip(start, row.shape, strict=True))
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [*start, 1])[:3]
    return round_hu(scan.frame.to_stored(scan.read().slab)[box]), affine


def _make(row: Row, folder: Path, beside: Path, given: Found | None) -> str:
    """Make a file unless it is there; return what was done."""
    path = folder / row.file
    if path.exists():
        _check(row, _voxels(path), "the file that is there")
        return "is there"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not row.series:
        _check(row, _voxels(beside / row.source), row.source)
        with partial_file(path) as file:
            file.write((beside / row.source).read_bytes())
        return f"copied from {row.source}"
    reasons = []
    for uid in row.series:
        with TemporaryDirectory() as place:
            try:
                if given is None:
                    _download(row.source, uid, Path(place))
                for series in _with_uid(uid, _series_in(Path(place)) if given is None else given):
                    voxels, affine = cut(series, row)
                    _check(row, voxels, f"series {uid}")
                    _write(path, voxels, affine)
                    return f"made from series {uid}"
            except ValueError as error:
                reasons.append(str(error))
    raise ValueError("; ".join(dict.fromkeys(reasons)))


def _voxels(path: Path) -> npt.NDArray[np.int16]:
    with one_line_errors(path.name, "not a NIfTI file"):
        return np.asanyarray(nib.load(path).dataobj)


def _check(row: Row, voxels: npt.NDArray[np.int16], what: str) -> None:
    found = hashlib.sha256(voxels.astype("<i2", copy=False).tobytes(order="F")).hexdigest()
    if found != row.sha256:
        raise ValueError(
            f"{what} has other voxels than the table says (SHA-256 {found[:12]}..., expected "
            f"{row.sha256[:12]}...)"
        )


def _write(path: Path, voxels: npt.NDArray[np.int16], affine: npt.NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    with partial_file(path) as file:
        file.write(gzip.compress(image.to_bytes(), 6, mtime=0))


def _series_in(folder: Path) -> Found:
    if not folder.is_dir():
        raise ValueError(f"expected a folder of DICOM series, found none at {folder}")
    return find_series(dicom_files(visible(folder)))


def _with_uid(uid: str, found: Found) -> list[Series]:
    series, rejected = found
    wanted = [item for item in series if item.uid == uid]
    if not wanted:
        reasons = [item.reason for item in rejected if item.uid == uid]
        raise ValueError(f"series {uid}: {reasons[0] if reasons else 'not found'}")
    return wanted


def _download(source: str, uid: str, folder: Path) -> None:
    """Download a series into a folder; needs the internet.

    Raises:
        ValueError: if the client is missing or does not succeed.
    """
    if source != "IDC":
        url, commit, part = source.split()
        clone = str(folder / "clone")
        # Of the repository only this folder and this commit are downloaded.
        for command in (
            ["clone", "--quiet", "--filter=blob:none", "--no-checkout", url, clone],
            ["-C", clone, "sparse-checkout", "set", part],
            ["-C", clone, "checkout", "--quiet", commit],
        ):
            if subprocess.run(["git", *command], check=False).returncode:
                raise ValueError(f"git could not get {part} of {url}; its message is above")
        return
    try:
        from idc_index import IDCClient  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            f"the download needs the package idc-index ({error}): pip install idc-index, or name "
            "the folder of a series that you have by --dicom"
        ) from error
    client = IDCClient.client()
    client.download_from_selection(str(folder), seriesInstanceUID=[uid], dirTemplate=None)
    if not any(folder.iterdir()):  # it logs errors and returns
        raise ValueError(f"series {uid} could not be downloaded; the message of idc-index is above")


if __name__ == "__main__":
    sys.exit(main())
