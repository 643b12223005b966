"""What is known of one examination before its files are opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from mpunet.io.rplhr import Intensity

__all__ = ["PARTS", "Case", "Part", "patient_of"]

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


class Case(NamedTuple):
    """One examination.

    Attributes:
        name: path below its folder, without ``.nii`` or ``.nii.gz``.
        patient: what the split keeps together.
        thin: thin-slice file.
        thick: thick-slice file of the same examination; None if it is to be simulated.
        lung: lung mask on the thin grid; None if it is to be computed.
        part: where the data's own split puts it; None if they have none.
        intensity: what intensities of ``thin`` and ``thick`` within [0, 1] are, see :func:`mpunet.io.scan_file.open_scan`.
    """

    name: str
    patient: str
    thin: Path
    thick: Path | None = None
    lung: Path | None = None
    part: Part | None = None
    intensity: Intensity = "auto"


def patient_of(name: str, pattern: str | None) -> str:
    """The first group, or else the whole match, of a pattern in a case's name; the name itself without a pattern.

    >>> patient_of("LIDC-0012_chest", r"^(LIDC-[0-9]+)_")
    'LIDC-0012'
    """
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None:
        raise ValueError(f"patient_pattern {pattern!r} does not match the case {name!r}.")
    return match.group(1) if match.groups() else match.group(0)
