"""DICOM series: which slices of a folder form a volume, in which order, and what forbids it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
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
    "MIN_IP": "a projection",
    "PROJECTION IMAGE": "a projection",
    "DOSE": "a dose report",
    "DOSE_INFO": "a dose report",
    "SCREEN SAVE": "a secondary capture",
}
TOLERANCE = 0.02  # of the slice spacing: largest difference of two distances (our choice)
LEAST_TOLERANCE = 0.02  # mm: positions are written with a few digits
ALIKE = 1e-3  # largest difference of cosines, and of pixel spacings in mm, within a volume
MOST = 32767  # rows, columns and slices: as in NIfTI
LARGEST = 1e5  # mm: a larger position is damaged
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

    Slices belong to one series by their SeriesInstanceUID, whatever folder they are in. A series
    with at least two slices in each of several orientations is divided by orientation. If several
    slices are at one position, it is also divided by acquisition and convolution kernel. A file that
    cannot be read may be a slice of the series in its folder, which is no volume then. Where there
    are several, the file is rejected alone, as it must not cost all of them (our choice).

    Returns:
        The series, sorted by folder and UID, and what is not a volume, with the reason.

    Raises:
        ValueError: if pydicom is not installed.
    """
    by_uid: dict[tuple[str, str | None], list[SliceHeader]] = defaultdict(list)
    rejected: list[Rejected] = []
    broken: dict[Path, list[Rejected]] = defaultdict(list)
    for path, found in read_headers(paths):
        if isinstance(found, ValueError):
            broken[path.parent].append(Rejected("", path.parent, str(found), True))
            continue
        for header in found:
            by_uid[header.series, _other_kind(header)].append(header)
    series: list[Series] = []
    in_folder = Counter(
        folder
        for (_, kind), slices in by_uid.items()
        if kind is None
        for folder in {header.path.parent for header in slices}
    )
    told: set[Path] = set()  # folders whose broken files are the reason why a series is rejected
    for (uid, kind), slices in by_uid.items():
        folders = {header.path.parent for header in slices}
        place = Path(os.path.commonpath(folders))
        if kind is not None:
            rejected.append(Rejected(uid, place, f"left out: {kind}", False))
            continue
        if spoiled := {one for one in folders & broken.keys() if in_folder[one] == 1}:
            reason = f"{broken[min(spoiled)][0].reason}; it may be a slice: copy or remove it"
            rejected.append(Rejected(uid, place, reason, True))
            told |= spoiled
            continue
        for part in _divided(slices):
            try:
                series.append(Series(uid, place, sort_slices(part)))
            except ValueError as error:
                rejected.append(Rejected(uid, place, str(error), True))
    rejected += (item for folder in broken.keys() - told for item in broken[folder])
    return sorted(series, key=lambda s: (s.folder, s.uid)), rejected


def sort_slices(slices: Sequence[SliceHeader]) -> tuple[SliceHeader, ...]:
    """Put slices in order along their normal, and check that they form a regular volume.

    A gantry tilt, which shifts all slices alike, is allowed: the volume's grid is then sheared.

    Raises:
        ValueError: if geometry is missing, sizes or orientations differ, there are fewer than two
            slices, or slices are doubled, missing, unevenly spaced or shifted. The message names
            the slice by its file.
    """
    unique = _unique(slices)
    first = unique[0]
    for header in unique:
        _check_alike(header, first)
    if len(unique) < 2:
        raise ValueError(f"expected at least 2 slices, got 1, {_name(first)}")
    if len(unique) > MOST:
        raise ValueError(f"expected at most {MOST} slices, got {len(unique)}")
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
    if header.patient != first.patient:
        raise ValueError(f"{_name(header)} is of another patient than {_name(first)}")
    lengths = (len(header.position), len(header.orientation), len(header.pixel_spacing))
    if lengths != (3, 6, 2):
        raise ValueError(
            f"{_name(header)} has no ImagePositionPatient, ImageOrientationPatient or PixelSpacing"
        )
    axes = np.clip(np.reshape(header.orientation, (2, 3)), -2, 2)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise ValueError(
            f"{_name(header)}: expected two perpendicular unit vectors as ImageOrientationPatient, "
            f"got {_numbers(header.orientation)}"
        )
    if not all(abs(value) <= LARGEST for value in header.position):
        raise ValueError(f"{_name(header)} is at an impossible place: {_numbers(header.position)}")
    if not 1 <= min(header.size) <= max(header.size) <= MOST:
        raise ValueError(
            f"{_name(header)}: expected 1 to {MOST} rows and columns, got {header.size[0]} and "
            f"{header.size[1]}"
        )
    if not all(0 < value <= LARGEST for value in header.pixel_spacing):
        raise ValueError(f"{_name(header)} has no positive PixelSpacing")
    if header.size != first.size:
        raise ValueError(
            f"{_name(header)} has {header.size[0]} x {header.size[1]} pixels, {_name(first)} has "
            f"{first.size[0]} x {first.size[1]}"
        )
    for what in ("orientation", "pixel_spacing"):
        if not _same(getattr(header, what), getattr(first, what)):
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


def _other_kind(header: SliceHeader) -> str | None:
    """Return what an image is if it is no slice of a stack of CT slices."""
    if header.sop_class not in CT_CLASSES:
        return f"{pydicom().uid.UID(header.sop_class).name}, not a CT image"
    if header.modality not in ("CT", ""):
        return f"a series of modality {header.modality}"
    return next((kind for word, kind in OTHER_KINDS.items() if word in header.image_type), None)


def _unique(slices: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Leave out copies of a file. Damaged UIDs may be alike, positions of different slices not."""
    return list({(item.instance, item.frame, item.position): item for item in slices}.values())


def _divided(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Divide slices by orientation, and by acquisition and kernel where several are at a place."""
    groups: list[list[SliceHeader]] = []
    for header in _unique(slices):
        near = (group for group in groups if _same(header.orientation, group[0].orientation))
        group = next(near, None)
        if group is None:
            groups.append(group := [])
        group.append(header)
    if min(map(len, groups)) == 1:  # rather a damaged slice than a volume of its own
        groups = [[header for group in groups for header in group]]
    parts = []
    for group in groups:
        places = {tuple(round(value, 2) for value in header.position) for header in group}
        if len(places) == len(group):
            parts.append(group)
            continue
        by_kind: dict[tuple[int | None, str], list[SliceHeader]] = defaultdict(list)
        for header in group:
            by_kind[header.acquisition, header.kernel].append(header)
        parts += [by_kind[key] for key in sorted(by_kind, key=str)]
    return parts


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= ALIKE for a, b in zip(one, other, strict=True)
    )


def _name(header: SliceHeader) -> str:
    return header.path.name if header.frame is None else f"frame {header.frame + 1}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
