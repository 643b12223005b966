"""Which cases belong to training, validation and test: one folder that is split, or a folder for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpunet.data.case import Case, Part
from mpunet.data.layouts import find_cases
from mpunet.data.pairs import split_cases
from mpunet.geometry import grid_spacing
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import read_info

__all__ = ["CaseSources", "Source", "thin_spacings"]

Source = dict[str, str] | str

NEEDED: dict[str, list[Part]] = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}


class CaseSources:
    """Finds the cases of each part; a source is searched once, as a large folder takes seconds on a network file system.

    Args:
        data_dir: a source for all parts, with a split of its own or to be split by patient.
        dirs: a source for each part instead; None for a part that is not given.
        split: fractions for training, validation and test, where ``data_dir`` has no split of its own.
        split_seed: seed of that split.
        patient_pattern: regular expression for the patient in a case's name, see :func:`find_cases`.
        intensity: what intensities within [0, 1] are, see :func:`find_cases`.
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
        """The parts that a stage ("fit", "validate" or "test") uses and that have cases.

        Raises:
            ValueError: if there is no case for the first part that the stage needs.
        """
        needed = NEEDED[stage]
        first = needed[0]
        if self.data_dir is None:
            if self.dirs[first] is None:
                raise ValueError(
                    f"Expected a folder for {stage}: give {first}_dir, or data_dir to have it split."
                )
            return [part for part in needed if self.dirs[part] is not None]
        has = [part for part in needed if self.cases(part)]
        if first not in has:
            raise ValueError(
                f"The split of {self.data_dir} leaves no case for {stage}: give {first} a fraction above 0 (now {self.split}), cases "
                f"if it is the data's own split, or a folder of its own ({first}_dir) instead of data_dir."
            )
        return has

    def cases(self, part: Part) -> list[Case]:
        """The cases of a part; none where it has no source.

        Raises:
            ValueError: if the source of this part has a split of its own, and no case in it for this part.
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
                    f"{source} has a split of its own, and no case in it for {part}: give another {part}_dir."
                )
        return self._found.get(part, [])

    def _search(self, source: Source) -> list[Case]:
        return find_cases(source, patient_pattern=self.patient_pattern, intensity=self.intensity)


def thin_spacings(cases: Sequence[Case], *, slice_axis: int | None = None) -> list[float]:
    """Distance of the thin slices of each case in mm, by its header."""
    infos = (read_info(case.thin, slice_axis=slice_axis) for case in cases)
    return [float(grid_spacing(info.slab_affine)[0]) for info in infos]
