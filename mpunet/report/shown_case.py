"""Data of a case for the viewer, stored in the page as JSON and read by ``assets/viewer.js``."""

from __future__ import annotations

from typing import Literal, TypedDict

__all__ = ["Plane", "ShownCase", "ShownPlane", "ShownVolume"]

Plane = Literal["coronal", "sagittal", "axial"]


class ShownPlane(TypedDict):
    """Slices of one volume in one plane.

    ``first`` is the position of the first pixel's centre and ``spacing`` the pixel spacing, both as
    [across, down] in mm. ``at`` is the position of each slice in mm. ``slices`` are encoded by
    :mod:`mpunet.report.hu_codec`.
    """

    rows: int
    columns: int
    first: list[float]
    spacing: list[float]
    at: list[float]
    slices: list[str]


class ShownVolume(TypedDict):
    """One panel of the viewer, or an error map that is painted over one.

    ``levels`` are the values of the codes 0 to 255. ``compared`` is True if the voxels are aligned
    with those of the reference. ``window`` (centre, width) is set if this volume is not in HU but
    others are. ``error_of`` is the volume of an error map, on whose grid it is.
    """

    name: str
    size: str
    caption: str
    spacing: list[float]
    unit: Literal["HU", ""]
    levels: list[float]
    window: tuple[float, float] | None
    compared: bool
    error_of: str | None
    planes: dict[Plane, ShownPlane]


class ShownCase(TypedDict):
    """Data of a case in the page.

    ``directions`` (3, 3) maps displayed positions to the patient's left, posterior and inferior.
    """

    name: str
    notes: list[str]
    windows: list[tuple[str, float, float]]
    directions: list[list[float]]
    positions: dict[Plane, list[float]]
    reference: str | None
    volumes: list[ShownVolume]
