"""DICOM series: which slices of a folder form a volume, in which order, and what forbids it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpunet.io.dicom.headers import SliceHeader, pydicom, read_headers

__all__ = ["Rejected", "Series", "find_series", "sort_slices"]

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
}
# Words of ImageType of images that are no stack of slices of the scan itself.
OTHER_KINDS = {
    "LOCALIZER": "a localizer",
    "SCOUT": "a localizer",
    "MPR": "a reformatted series",
    "REFORMATTED": "a reformatted series",
    "MIP": "a projection",
    "MAX_IP": "a projection",
    "PROJECTION IMAGE": "a projection",
    "DOSE": "a dose report",
}
TOLERANCE = 0.02  # of the slice spacing: largest difference of two distances (our choice)
LEAST_TOLERANCE = 0.02  # mm: positions are written with a few digits
SHIFT = 0.1  # mm: largest distance of a slice's corner from the straight line through all corners


class Series(NamedTuple):
    """Slices that form a volume, in order along their normal.

    Attributes:
        uid: SeriesInstanceUID.
        folder: folder that has all of its files.
        slices: the slices, from the first along the normal to the last.
    """

    uid: str
    folder: Path
    slices: tuple[SliceHeader, ...]


class Rejected(NamedTuple):
    """A series or a file that is no volume.

    Attributes:
        uid: SeriesInstanceUID; empty if it could not be read.
        folder: folder of its files.
        reason: why, in one line.
        failed: whether it should have been a volume. False for series that are left out because of
            their kind, such as localizers.
    """

    uid: str
    folder: Path
    reason: str
    failed: bool


def find_series(paths: Sequence[Path]) -> tuple[list[Series], list[Rejected]]:
    """Find the CT series among DICOM files, whatever the files are called.

    Slices belong to one series by their SeriesInstanceUID, whatever folder they are in. If a series
    has several slices at one position, it is divided by acquisition and convolution kernel.

    Returns:
        The series, sorted by folder and UID, and what is not a volume, with the reason.

    Raises:
        ValueError: if pydicom is not installed.
    """
    by_uid: dict[str, list[SliceHeader]] = defaultdict(list)
    rejected = []
    for path, found in read_headers(paths):
        if isinstance(found, ValueError):
            rejected.append(Rejected("", path.parent, str(found), True))
            continue
        for header in found:
            by_uid[header.series].append(header)
    series = []
    for uid, slices in by_uid.items():
        place = _common_folder(slices)
        if (kind := _other_kind(slices)) is not None:
            rejected.append(Rejected(uid, place, f"left out: {kind}", False))
            continue
        for part in _divided(slices):
            try:
                series.append(Series(uid, place, sort_slices(part)))
            except ValueError as error:
                rejected.append(Rejected(uid, place, str(error), True))
    return sorted(series, key=lambda s: (s.folder, s.uid)), rejected


def sort_slices(slices: Sequence[SliceHeader]) -> tuple[SliceHeader, ...]:
    """Put slices in order along their normal, and check that they form a regular volume.

    A gantry tilt, which shifts all slices alike, is allowed: the volume's grid is then sheared.

    Raises:
        ValueError: if geometry is missing, sizes or orientations differ, there are fewer than two
            slices, or slices are doubled, missing, unevenly spaced or shifted. The message names
            the slice by its file.
    """
    unique = list({(header.instance, header.frame): header for header in slices}.values())
    first = unique[0]
    for header in unique:
        _check_alike(header, first)
    if len(unique) < 2:
        raise ValueError(f"expected at least 2 slices, got 1, {_name(first)}")
    row, column = np.reshape(first.orientation, (2, 3))
    normal = np.cross(row, column)
    along = np.array([normal @ np.array(header.position) for header in unique])
    order = np.argsort(along, kind="stable")
    ordered = [unique[index] for index in order]
    _check_distances(ordered, np.diff(along[order]))
    corners = np.array([header.position for header in ordered])
    line = np.linspace(corners[0], corners[-1], len(corners))
    off = np.linalg.norm(corners - line, axis=1)
    if off.max() > SHIFT:
        worst = ordered[int(off.argmax())]
        raise ValueError(
            f"{_name(worst)} is shifted by {off.max():.2f} mm against the other slices; expected "
            f"at most {SHIFT} mm"
        )
    return tuple(ordered)


def _check_alike(header: SliceHeader, first: SliceHeader) -> None:
    lengths = (len(header.position), len(header.orientation), len(header.pixel_spacing))
    if lengths != (3, 6, 2) or not np.isfinite([*header.position, *header.orientation]).all():
        raise ValueError(
            f"{_name(header)} has no ImagePositionPatient, ImageOrientationPatient or PixelSpacing"
        )
    if min(header.size) < 1 or min(header.pixel_spacing) <= 0:
        raise ValueError(f"{_name(header)} has no pixels or no positive PixelSpacing")
    if header.size != first.size:
        raise ValueError(
            f"{_name(header)} has {header.size[0]} x {header.size[1]} pixels, {_name(first)} has "
            f"{first.size[0]} x {first.size[1]}"
        )
    for what in ("orientation", "pixel_spacing"):
        if not np.allclose(getattr(header, what), getattr(first, what), atol=1e-3):
            raise ValueError(
                f"{_name(header)} has another {what.replace('_', ' ')} than {_name(first)}: "
                f"{_numbers(getattr(header, what))}, not {_numbers(getattr(first, what))}"
            )


def _check_distances(ordered: Sequence[SliceHeader], distances: npt.NDArray[np.float64]) -> None:
    spacing = float(np.median(distances))
    tolerance = max(TOLERANCE * spacing, LEAST_TOLERANCE)
    for index, distance in enumerate(distances):
        before, after = _name(ordered[index]), _name(ordered[index + 1])
        if distance <= LEAST_TOLERANCE:
            raise ValueError(f"{before} and {after} are at the same position")
        if abs(distance - spacing) <= tolerance:
            continue
        missing = round(distance / spacing) - 1
        if missing > 0 and abs(distance - (missing + 1) * spacing) <= tolerance:
            slices = "a slice is" if missing == 1 else f"{missing} slices are"
            raise ValueError(
                f"{slices} missing between {before} and {after}: they are {distance:.4g} mm apart, "
                f"the others {spacing:.4g} mm"
            )
        raise ValueError(
            f"slices are unevenly spaced: {before} and {after} are {distance:.4g} mm apart, most "
            f"others {spacing:.4g} mm"
        )


def _other_kind(slices: Sequence[SliceHeader]) -> str | None:
    """Return what a series is if it is no stack of CT slices."""
    first = slices[0]
    if first.sop_class not in CT_CLASSES:
        name = pydicom().uid.UID(first.sop_class).name if first.sop_class else "no image"
        return f"{name}, not a CT image"
    if first.modality not in ("CT", ""):
        return f"a series of modality {first.modality}"
    words = {word for header in slices for word in header.image_type}
    return next((kind for word, kind in OTHER_KINDS.items() if word in words), None)


def _divided(slices: Sequence[SliceHeader]) -> Iterable[Sequence[SliceHeader]]:
    """Divide slices by acquisition and kernel if several are at one position."""
    positions = {(header.position, header.orientation) for header in slices}
    if len(positions) == len({(header.instance, header.frame) for header in slices}):
        return [slices]
    parts: dict[tuple[int | None, str], list[SliceHeader]] = defaultdict(list)
    for header in slices:
        parts[header.acquisition, header.kernel].append(header)
    return [parts[key] for key in sorted(parts, key=str)]


def _common_folder(slices: Sequence[SliceHeader]) -> Path:
    parents = {header.path.parent for header in slices}
    common = min(parents, key=lambda path: len(path.parts))
    while not all(common == path or common in path.parents for path in parents):
        common = common.parent
    return common


def _name(header: SliceHeader) -> str:
    return header.path.name if header.frame is None else f"frame {header.frame + 1}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
