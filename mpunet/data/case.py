"""The description of one examination: its files, its patient and its part of the split."""

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
        name: path of the thin file relative to its folder, without ``.nii`` or ``.nii.gz``.
        patient: name of the patient. All cases of a patient go to the same part of a split.
        thin: thin-slice file.
        thick: thick-slice file of the same examination; None if thick slices are simulated.
        lung: lung mask file on the thin grid; None if the mask is computed.
        part: part ("train", "val" or "test") in the split that comes with the data; None if the
            data have no split.
        intensity: meaning of intensities within [0, 1] in ``thin`` and ``thick``, see
            :func:`mpunet.io.scan_file.open_scan`.
    """

    name: str
    patient: str
    thin: Path
    thick: Path | None = None
    lung: Path | None = None
    part: Part | None = None
    intensity: Intensity = "auto"

    @property
    def name_in_part(self) -> str:
        """The name without the folder of the part, so that a patient has one name in all parts."""
        return self.name.removeprefix(f"{self.part}/") if self.part else self.name


def patient_of(name: str, pattern: str | None) -> str:
    """Return the patient of a case, extracted from the case's name by a regular expression.

    This is the first group of ``pattern``, or the whole match if it has no group, or the case's
    name if ``pattern`` is None.

    Raises:
        ValueError: if the pattern does not match the name.

    >>> patient_of("LIDC-0012_chest", r"^(LIDC-[0-9]+)_")
    'LIDC-0012'
    """
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None:
        raise ValueError(f"patient_pattern {pattern!r} does not match the case {name!r}.")
    return match.group(1) if match.groups() else match.group(0)
