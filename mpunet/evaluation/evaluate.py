"""Folders of predictions against a folder of references: every case measured, and what could not be, told."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from mpunet import __version__
from mpunet.data.case import Case
from mpunet.data.layouts import files_by_name, find_cases
from mpunet.evaluation.case_scores import Measured, against_reference, against_thick, alone, bias
from mpunet.evaluation.cases import common_slices, match_cases, misplaced
from mpunet.evaluation.scores import Evaluation, Measure, PairedDifference, Problem, Score, Summary
from mpunet.geometry import grid_spacing
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import read_volume
from mpunet.io.thin_file import write_slices
from mpunet.io.volume import Volume
from mpunet.lungs.threshold import lung_mask
from mpunet.metrics.quality import PROTOCOLS, Protocol
from mpunet.metrics.statistics import bootstrap_mean, paired_difference
from mpunet.slices.interpolate import Interpolation, interpolated
from mpunet.slices.simulate import Profile

__all__ = ["Evaluator"]

TRUTH = "truth"


class _Method(NamedTuple):
    """A method's name and its files by case."""

    name: str
    files: dict[str, Path]


class Evaluator:
    """Measures methods on the same references, case by case: at no time are more than three volumes and a mask in memory.

    Args:
        predictions: method to its folder of thin volumes; the first is the one in question, the others are compared with it.
        references: thin volumes of the same names, or a folder with the subfolders ``thin`` and perhaps ``thick`` and ``lung``.
        protocol: window, range and trim: a name in :data:`mpunet.metrics.quality.PROTOCOLS` or one's own.
        inputs: the thick scans, by the same names, for the consistency and the baselines; ``references/thick`` by default.
        lungs: a folder of lung masks on the references' grids; "auto" takes ``references/lung`` or else computes them
            (:func:`mpunet.lungs.threshold`), "none" measures whole volumes only.
        baselines: interpolations of the thick scans to measure beside the predictions, "linear" or "cubic".
        baselines_dir: where they are written, a folder for each; needed with ``baselines``.
        fidelity: measure bias, lung density, noise, sharpness and consistency too.
        profile: slice profile that thickens predictions for the consistency.
        fwhm: its full width at half maximum in thick spacings.
        intensity: what intensities within [0, 1] are, see :mod:`mpunet.io.rplhr`.
        check_hu: refuse volumes whose intensities cannot be HU.
        title: of the report.

    Raises:
        ValueError: if a folder cannot be used; what is wrong with single files becomes a problem of the evaluation instead.
    """

    def __init__(
        self,
        predictions: Mapping[str, str | Path],
        references: str | Path,
        *,
        protocol: str | Protocol = "paper",
        inputs: str | Path | None = None,
        lungs: str | Path = "auto",
        baselines: Sequence[str] = (),
        baselines_dir: str | Path | None = None,
        fidelity: bool = True,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
        intensity: Intensity = "auto",
        check_hu: bool = True,
        title: str = "Evaluation",
    ) -> None:
        if isinstance(protocol, str) and protocol not in PROTOCOLS:
            raise ValueError(f"Expected a protocol among {', '.join(PROTOCOLS)}, got {protocol!r}.")
        names = [*predictions, *baselines]
        if not predictions or len(set(names)) < len(names) or TRUTH in names:
            raise ValueError(
                f"Expected methods of distinct names other than {TRUTH!r}, got {', '.join(names) or 'none'}."
            )
        unknown = sorted(set(baselines) - set(get_args(Interpolation)))
        if unknown:
            raise ValueError(
                f"Expected baselines among {', '.join(get_args(Interpolation))}, got {', '.join(unknown)}."
            )
        self.protocol = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
        self.cases = {case.name: case for case in find_cases(references)}
        self.problems: list[Problem] = []
        self.methods = [
            _Method(name, self._match(name, folder, references))
            for name, folder in predictions.items()
        ]
        self.inputs = {name: case.thick for name, case in self.cases.items() if case.thick}
        if inputs is not None:
            self.inputs = self._files(inputs)
        if baselines and not self.inputs:
            raise ValueError("Expected the thick scans that baselines interpolate: give inputs.")
        if baselines and baselines_dir is None:
            raise ValueError("Expected a folder to write baselines to: give baselines_dir.")
        self.lungs = lungs
        self.masks = {} if lungs in ("auto", "none") else self._files(lungs)
        self.baselines = cast(list[Interpolation], list(baselines))
        self.baselines_dir = Path(baselines_dir or ".")
        self.fidelity = fidelity
        self.profile: Profile = profile
        self.fwhm = fwhm
        self._read = partial(read_volume, intensity=intensity, check_hu=check_hu)
        self.title = title
        self.scores: list[Score] = []
        self._done: set[tuple[str, str]] = set()
        self.files: dict[str, dict[str, Path]] = {}

    def run(self) -> Iterator[str]:
        """Measure case after case; the name of each when it is done."""
        for name, case in self.cases.items():
            if any(name in method.files for method in self.methods):
                self._measure(case)
                yield name

    def result(self) -> Evaluation:
        """All that was measured so far."""
        methods = [*(method.name for method in self.methods), *self.baselines]
        values: dict[tuple[str, Measure], dict[str, float]] = defaultdict(dict)
        for score in self.scores:
            values[score.method, score.measure][score.case] = score.value
        differences = [
            PairedDifference(methods[0], other, measure, *_paired(mine, values[other, measure]))
            for other in methods[1:]
            for (method, measure), mine in list(values.items())
            if method == methods[0] and (other, measure) in values
        ]
        return Evaluation(
            title=self.title,
            protocol=self.protocol,
            methods=methods,
            scores=self.scores,
            summaries=[
                _summary(method, measure, found)
                for (method, measure), found in values.items()
                if found
            ],
            differences=differences,
            problems=self.problems,
            files=self.files,
            version=__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _match(self, method: str, folder: str | Path, references: str | Path) -> dict[str, Path]:
        pairs, missing, extra = match_cases(folder, references)
        self.problems += [
            Problem(method, name, "no prediction of this name", False) for name in missing
        ]
        self.problems += [
            Problem(method, name, "no reference of this name", False) for name in extra
        ]
        return {case.name: path for case, path in pairs}

    def _files(self, folder: str | Path) -> dict[str, Path]:
        """By name; a single file belongs to a single case whatever its name."""
        files = files_by_name(folder)
        return (
            dict(zip(self.cases, files.values(), strict=False))
            if Path(folder).is_file() and len(self.cases) == 1
            else files
        )

    def _measure(self, case: Case) -> None:
        thick = lung = None
        try:
            reference = self._read(case.thin)
        except (ValueError, OSError) as error:
            self.problems.append(Problem(TRUTH, case.name, str(error), False))
            return
        try:
            lung = self._lung(case, reference)
        except (ValueError, OSError) as error:
            self.problems.append(Problem(TRUTH, case.name, f"whole volume only: {error}", True))
        files = {
            method.name: method.files[case.name]
            for method in self.methods
            if case.name in method.files
        }
        shown: dict[str, Path] = {}
        if case.name in self.inputs:
            shown["thick"] = self.inputs[case.name]
            try:
                thick = self._read(shown["thick"]) if self.fidelity or self.baselines else None
                files |= {
                    kind: self._interpolate(kind, case.name, thick, reference)
                    for kind in self.baselines
                    if thick
                }
            except (ValueError, OSError) as error:
                self.problems.append(
                    Problem(
                        "thick", case.name, f"neither consistency nor baselines: {error}", False
                    )
                )
        for method, path in files.items():
            try:
                self._measure_one(method, case.name, self._read(path), reference, lung, thick)
            except (ValueError, OSError) as error:
                self.problems.append(Problem(method, case.name, str(error), False))
            else:
                shown[method] = path
        self.files[case.name] = {**shown, TRUTH: case.thin}

    def _measure_one(
        self,
        method: str,
        case: str,
        volume: Volume,
        reference: Volume,
        lung: npt.NDArray[np.bool_] | None,
        thick: Volume | None,
    ) -> None:
        mine, used = common_slices(volume, reference)
        prediction, truth = volume.slab[mine], reference.slab[used]
        mask = None if lung is None else lung[used]
        spacing = grid_spacing(reference.slab_affine)
        # All or nothing: a case that breaks off half-way must not be in some of the means only.
        found = list(against_reference(prediction, truth, mask, self.protocol))
        work: list[tuple[str, Measured]] = []
        if self.fidelity:
            work = [
                (method, bias(prediction, truth, mask)),
                (method, alone(prediction, mask, spacing)),
            ]
            if (TRUTH, case) not in self._done:
                work.append((TRUTH, alone(truth, mask, spacing)))
        with (
            ThreadPoolExecutor(2) as pool
        ):  # NumPy lets go of the interpreter for most of this; torch is slow in other threads
            measured = list(pool.map(list[tuple[Measure, float]], (part for _, part in work)))
        self._add(method, case, found)
        for (name, _), part in zip(work, measured, strict=True):
            self._add(name, case, part)
            self._done.add((name, case))
        if len(prediction) < len(reference.slab) and (used.start > 0 or mine.start > 0):
            note = f"begins {used.start or -mine.start} slices off: {len(prediction)} of {len(reference.slab)} slices compared"
            self.problems.append(Problem(method, case, note, True))
        if (how := misplaced(prediction, truth)) is not None:
            note = f"agrees clearly better with the reference when {how}: are its affine and its voxels' order right?"
            self.problems.append(Problem(method, case, note, True))
        if self.fidelity and thick is not None:
            try:
                if lung is not None:
                    mask = np.zeros(volume.shape, dtype=bool)
                    mask[mine] = lung[used]
                self._add(
                    method,
                    case,
                    list(against_thick(volume, thick, mask, profile=self.profile, fwhm=self.fwhm)),
                )
            except ValueError as error:
                self.problems.append(Problem(method, case, f"no consistency: {error}", True))

    def _add(self, method: str, case: str, measured: Iterable[tuple[Measure, float]]) -> None:
        self.scores += [Score(method, case, measure, float(value)) for measure, value in measured]

    def _lung(self, case: Case, reference: Volume) -> npt.NDArray[np.bool_] | None:
        if self.lungs == "none":
            return None
        path = self.masks.get(case.name) if self.masks else case.lung
        if path is None and self.masks:
            raise ValueError(f"no lung mask of this name in {self.lungs}")
        if path is None:
            lung = lung_mask(reference.slab, grid_spacing(reference.slab_affine))
        else:
            mask = read_volume(path, slice_axis=reference.slice_axis, check_hu=False)
            _, covered = common_slices(mask, reference)
            if covered != slice(0, reference.shape[0]) or mask.shape != reference.shape:
                raise ValueError(f"{path} does not cover the reference's slices")
            lung = mask.slab > 0
        if not lung.any():
            raise ValueError("no lung found; give masks (lungs) if there are lungs")
        return lung

    def _interpolate(
        self, kind: Interpolation, case: str, thick: Volume, reference: Volume
    ) -> Path:
        ratio = max(
            1, round(grid_spacing(thick.slab_affine)[0] / grid_spacing(reference.slab_affine)[0])
        )
        path = self.baselines_dir / kind / f"{case}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_slices(path, interpolated(thick.slab, ratio, kind=kind), thick, ratio)
        return path


def _summary(method: str, measure: Measure, values: Mapping[str, float]) -> Summary:
    finite = [value for value in values.values() if not math.isnan(value)]
    return Summary(method, measure, len(finite), *bootstrap_mean(finite))


def _paired(
    a: Mapping[str, float], b: Mapping[str, float]
) -> tuple[int, float, float, float, float]:
    both = [(a[case], b[case]) for case in a if case in b and not math.isnan(a[case] + b[case])]
    found = paired_difference([x for x, _ in both], [y for _, y in both])
    return len(both), found.mean, found.low, found.high, found.p
