"""Find the cases for training, validation and test, in one source that is split or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpunet.data.case import Case, Part
from mpunet.data.layouts import find_cases
from mpunet.data.pairs import check_apart, split_cases
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import read_info

__all__ = ["CaseSources", "Source", "split_by_spacing", "thin_spacings"]

Source = dict[str, str] | str

NEEDED: dict[str, list[Part]] = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}


class CaseSources:
    """Find the cases of each part of the data.

    Each source is searched only once, because searching a large folder takes seconds on a network
    file system.

    Args:
        data_dir: one source for all parts, which comes with a split or is split by patient.
        dirs: a source for each part, as an alternative to ``data_dir``; None for a missing part.
        split: fractions for training, validation and test, used if ``data_dir`` comes without a
            split.
        split_seed: seed of the split.
        patient_pattern: regular expression that finds the patient in a case's name, see
            :func:`mpunet.data.layouts.find_cases`.
        intensity: meaning of intensities within [0, 1], see :func:`mpunet.data.layouts.find_cases`.

    Raises:
        ValueError: if both ``data_dir`` and a source of a part are given.
    """

    def __init__(
        self,
        data_dir: Source | None,
        dirs: Mapping[Part, Source | None],
        *,
        split: tuple[float, float, float],
        split_seed: int = 0,
        patient_pattern: str | None = None,
        intensity: Intensity = "auto",
    ) -> None:
        if data_dir is not None and any(dirs.values()):
            raise ValueError(
                "Give data_dir, which is split, or train_dir, val_dir and test_dir, not both."
            )
        self.data_dir = data_dir
        self.dirs = dict(dirs)
        self.split = split
        self.split_seed = split_seed
        self.patient_pattern = patient_pattern
        self.intensity: Intensity = intensity
        self._found: dict[Part, list[Case]] = {}

    def parts(self, stage: str) -> list[Part]:
        """Return the parts that a stage ("fit", "validate" or "test") uses and that have cases.

        Raises:
            ValueError: if the first part that the stage needs has no case, or if a patient is in
                two parts. Without ``data_dir``, only "fit" compares the parts, all that are given:
                later the training data may be elsewhere.
        """
        needed = NEEDED[stage]
        first = needed[0]
        if self.data_dir is None:
            if self.dirs[first] is None:
                raise ValueError(
                    f"Expected a folder for {stage}: give {first}_dir, or data_dir, which is split."
                )
            if stage == "fit":
                check_apart({part: self.cases(part) for part in self.dirs})
            return [part for part in needed if self.dirs[part] is not None]
        has = [part for part in needed if self.cases(part)]
        if first not in has:
            raise ValueError(
                f"The split of {self.data_dir} leaves no case for {stage}: give {first} a fraction "
                f"above 0 (now {self.split}), cases if it is the data's own split, or a folder of "
                f"its own ({first}_dir) instead of data_dir."
            )
        return has

    def cases(self, part: Part) -> list[Case]:
        """Return the cases of a part; an empty list if the part has no source.

        Raises:
            ValueError: if the source of this part comes with a split that has no case for it.
        """
        if self.data_dir is not None:
            if not self._found:
                self._found.update(
                    split_cases(self._search(self.data_dir), self.split, seed=self.split_seed)
                )
        elif part not in self._found and (source := self.dirs[part]) is not None:
            self._found[part] = [case for case in self._search(source) if case.part in (None, part)]
            if not self._found[part]:
                raise ValueError(
                    f"{source} has a split of its own, and no case in it for {part}: "
                    f"give another {part}_dir."
                )
        return self._found.get(part, [])

    def _search(self, source: Source) -> list[Case]:
        return find_cases(source, patient_pattern=self.patient_pattern, intensity=self.intensity)


def thin_spacings(cases: Sequence[Case], *, slice_axis: int | None = None) -> list[float]:
    """Return the spacing of the thin slices of each case in mm, read from its header."""
    infos = (read_info(case.thin, slice_axis=slice_axis) for case in cases)
    return [float(info.spacing[0]) for info in infos]


def split_by_spacing(
    cases: Sequence[Case],
    limit: float | None,
    *,
    slice_axis: int | None = None,
    allow_none: bool = False,
) -> tuple[list[Case], list[Case]]:
    """Split training cases by the spacing of their thin slices, read from the headers.

    Args:
        cases: the training cases.
        limit: largest spacing of the first part in mm; None puts all cases into the first part.
        slice_axis: stored axis along which slices are stacked; detected per file if None.
        allow_none: whether the first part may be empty.

    Returns:
        The cases with a spacing of at most ``limit``, and the other cases.

    Raises:
        ValueError: if the first part is empty and ``allow_none`` is false.
    """
    if limit is None:
        return list(cases), []
    spaced = list(zip(cases, thin_spacings(cases, slice_axis=slice_axis), strict=True))
    kept = [case for case, spacing in spaced if spacing <= limit]
    if not kept and not allow_none:
        found = ", ".join(f"{case.name} {spacing:.2f} mm" for case, spacing in spaced)
        raise ValueError(
            f"No training volume has slices at most {limit} mm apart (max_thin_spacing): {found}. "
            "Raise it, or have them turned (in_plane_as_depth)."
        )
    return kept, [case for case, spacing in spaced if spacing > limit]
