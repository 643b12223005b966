"""Evaluate folders of predictions against a folder of references, case by case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from mpunet import __version__
from mpunet.data.case import Case
from mpunet.data.layouts import files_by_name, find_cases, is_one_scan
from mpunet.evaluation.aggregate import (
    agreements,
    paired_differences,
    scores_by_case,
    summaries,
)
from mpunet.evaluation.case_inputs import reference_lung, write_baseline
from mpunet.evaluation.case_scores import Measured, against_reference, against_thick, alone, bias
from mpunet.evaluation.cases import common_slices, match_cases, misplaced
from mpunet.evaluation.densitometry import DENSITIES, thick_densities
from mpunet.evaluation.error_maps import against_error_map, error_map_of, read_error_map
from mpunet.evaluation.scores import THICK, TRUTH, Evaluation, Measure, Problem, Score
from mpunet.geometry import grid_spacing
from mpunet.io.rplhr import Intensity
from mpunet.io.scan_file import read_info, read_volume
from mpunet.io.volume import Volume
from mpunet.metrics.quality import PROTOCOLS, Protocol
from mpunet.slices.interpolate import Interpolation
from mpunet.slices.simulate import Profile

__all__ = ["Evaluator"]


class _Method(NamedTuple):
    """Name of a method and its file for each case."""

    name: str
    files: dict[str, Path]


class Evaluator:
    """Measure methods on the same references, case by case.

    At most three volumes and a lung mask are in memory at a time.

    Args:
        predictions: for each method, its folder of thin volumes. The first method is compared with
            each of the others.
        references: folder of thin volumes with the same names as the predictions, or a folder with
            the subfolders ``thin`` and optionally ``thick`` and ``lung``.
        protocol: window, range and trim: a name in :data:`mpunet.metrics.quality.PROTOCOLS` or a
            custom protocol.
        inputs: folder of thick scans with the same names, for consistency and baselines. The
            default is ``references/thick``.
        lungs: folder of lung masks on the grids of the references; "auto" uses ``references/lung``
            or, if there are none, computes masks (:func:`mpunet.lungs.threshold`); "none" measures
            whole volumes only.
        baselines: interpolations of the thick scans ("linear", "cubic") to measure as further
            methods.
        baselines_dir: folder to which the baselines are written, in a subfolder for each; required
            with ``baselines``.
        fidelity: also measure bias, lung density, noise, sharpness and consistency.
        error_maps: folder of the error maps of the first method, NAME_error or NAME, to measure how
            well they tell its errors.
        profile: slice profile with which predictions are thickened for the consistency.
        fwhm: full width at half maximum of the profile in thick spacings; by default 0.9 for the
            Gaussian, else 1.
        intensity: meaning of intensities within [0, 1], see :mod:`mpunet.io.rplhr`.
        check_hu: reject volumes whose intensities cannot be HU.
        title: title of the report.

    Raises:
        ValueError: if an option is invalid or a folder cannot be used. Errors in single files are
            recorded as problems of the evaluation instead.
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
        error_maps: str | Path | None = None,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
        intensity: Intensity = "auto",
        check_hu: bool = True,
        title: str = "Evaluation",
    ) -> None:
        if isinstance(protocol, str) and protocol not in PROTOCOLS:
            raise ValueError(f"Expected a protocol among {', '.join(PROTOCOLS)}, got {protocol!r}.")
        names = [*predictions, *baselines]
        if not predictions or len(set(names)) < len(names) or {TRUTH, THICK} & set(names):
            raise ValueError(
                f"Expected methods with distinct names other than {TRUTH!r} and {THICK!r}, "
                f"got {', '.join(names) or 'none'}."
            )
        unknown = sorted(set(baselines) - set(get_args(Interpolation)))
        if unknown:
            raise ValueError(
                f"Expected baselines among {', '.join(get_args(Interpolation))}, "
                f"got {', '.join(unknown)}."
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
            if not self.inputs.keys() & self.cases.keys():
                raise ValueError(
                    f"No thick scan in {inputs} has the same name as a file in {references}: thick "
                    f"scans include {next(iter(self.inputs))!r}, references include "
                    f"{next(iter(self.cases))!r}."
                )
        if baselines and not self.inputs:
            raise ValueError("Expected the thick scans that baselines interpolate: give inputs.")
        if baselines and baselines_dir is None:
            raise ValueError("Expected a folder to write baselines to: give baselines_dir.")
        self.lungs = lungs
        self.masks = {} if lungs in ("auto", "none") else self._files(lungs)
        self.baselines = cast(list[Interpolation], list(baselines))
        self.baselines_dir = Path(baselines_dir or ".")
        self.fidelity = fidelity
        self.error_maps = {} if error_maps is None else self._files(error_maps)
        self.profile: Profile = profile
        self.fwhm = fwhm
        self._read = partial(read_volume, intensity=intensity, check_hu=check_hu)
        self.title = title
        self.scores: list[Score] = []
        self._done: set[tuple[str, str]] = set()
        self.files: dict[str, dict[str, Path]] = {}
        self._error_maps: dict[str, Path] = {}  # those that were measured

    @property
    def names(self) -> list[str]:
        """Names of the cases that have a prediction."""
        return [name for name in self.cases if any(name in method.files for method in self.methods)]

    def run(self) -> Iterator[str]:
        """Measure one case after the other; yield the name of each measured case."""
        for name in self.names:
            self._measure(self.cases[name])
            yield name

    def result(self) -> Evaluation:
        """Return the results for the cases measured so far."""
        methods = [*(method.name for method in self.methods), *self.baselines]
        values = scores_by_case(self.scores)
        return Evaluation(
            title=self.title,
            protocol=self.protocol,
            methods=methods,
            scores=self.scores,
            summaries=summaries(values),
            agreements=agreements(values, DENSITIES, TRUTH),
            differences=paired_differences(values, methods),
            problems=self.problems,
            files=self.files,
            version=__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            error_maps=self._error_maps,
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
        """Files by case; a single scan is used for a single case whatever its name is."""
        files = files_by_name(folder)
        return (
            dict(zip(self.cases, files.values(), strict=False))
            if len(self.cases) == 1 and is_one_scan(folder, files.values())
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
            shown[THICK] = self.inputs[case.name]
            try:
                thick = self._read(shown[THICK]) if self.fidelity or self.baselines else None
                files |= {
                    kind: write_baseline(
                        self.baselines_dir / kind / f"{case.name}.nii.gz", kind, thick, reference
                    )
                    for kind in self.baselines
                    if thick
                }
            except (ValueError, OSError) as error:
                self.problems.append(
                    Problem(THICK, case.name, f"no consistency and no baselines: {error}", False)
                )
        elif self.inputs:
            note = "no consistency and no baselines: no thick scan of this name"
            self.problems.append(Problem(THICK, case.name, note, False))
        within = self._shared(case.name, files, reference)
        for method, path in files.items():
            try:
                volume = self._read(path)
                self._measure_one(method, case.name, volume, reference, lung, thick, within)
            except (ValueError, OSError) as error:
                self.problems.append(Problem(method, case.name, str(error), False))
            else:
                shown[method] = path
        # Only where the truth was measured too, so that both means are over the same cases.
        if (TRUTH, case.name) in self._done and thick is not None and lung is not None:
            shared = np.zeros_like(lung)
            shared[within] = lung[within]
            try:
                self._add(THICK, case.name, list(thick_densities(thick, reference, shared)))
            except ValueError as error:
                self.problems.append(Problem(THICK, case.name, f"no lung density: {error}", True))
        self.files[case.name] = {**shown, TRUTH: case.thin}

    def _shared(self, case: str, files: Mapping[str, Path], reference: Volume) -> slice:
        """Return the slices of the reference that all methods cover, so that they can be compared.

        Methods that cannot be measured are left out; :meth:`_measure_one` says why.
        """
        start, stop, covered = 0, len(reference.slab), {}
        for method, path in files.items():
            with suppress(ValueError, OSError):
                one = common_slices(read_info(path), reference)[1]
                if one.start < stop and start < one.stop:
                    start, stop = max(start, one.start), min(stop, one.stop)
                    covered[method] = f"{one.start} to {one.stop - 1}"
        if len(set(covered.values())) > 1:
            parts = ", ".join(f"{method} has {slices}" for method, slices in covered.items())
            note = (
                f"methods cover different slices of the reference ({parts}): all are compared on "
                f"{start} to {stop - 1}"
            )
            self.problems.append(Problem(TRUTH, case, note, True))
        return slice(start, stop)

    def _measure_one(
        self,
        method: str,
        case: str,
        volume: Volume,
        reference: Volume,
        lung: npt.NDArray[np.bool_] | None,
        thick: Volume | None,
        within: slice,
    ) -> None:
        mine, used = common_slices(volume, reference)
        offset = used.start or -mine.start
        if used.start > within.start or used.stop < within.stop:
            raise ValueError("it has no slice in common with the other methods")
        first = mine.start + within.start - used.start
        mine, used = slice(first, first + within.stop - within.start), within
        prediction, truth = volume.slab[mine], reference.slab[used]
        mask = None if lung is None else lung[used]
        # Not reference.spacing: sharpness is measured along lines of voxels, tilted or not.
        spacing = grid_spacing(reference.slab_affine)
        # All scores are computed before any is added, so that a case that fails halfway does not
        # contribute to some of the means.
        found = list(against_reference(prediction, truth, mask, self.protocol))
        work: list[tuple[str, Measured]] = []
        if self.fidelity:
            work = [
                (method, bias(prediction, truth, mask)),
                (method, alone(prediction, mask, spacing)),
            ]
            if (TRUTH, case) not in self._done:
                work.append((TRUTH, alone(truth, mask, spacing)))
        # NumPy releases the GIL for most of this work. Metrics in torch are not computed here, as
        # torch is slow in other threads.
        with ThreadPoolExecutor(2) as pool:
            measured = list(pool.map(list[tuple[Measure, float]], (part for _, part in work)))
        self._add(method, case, found)
        for (name, _), part in zip(work, measured, strict=True):
            self._add(name, case, part)
            self._done.add((name, case))
        if self.error_maps and method == self.methods[0].name:
            self._measure_errors(case, volume, mine, truth, mask)
        if len(prediction) < len(reference.slab) and offset:
            note = (
                f"slice offset of {offset} from the reference: "
                f"{len(prediction)} of {len(reference.slab)} slices compared"
            )
            self.problems.append(Problem(method, case, note, True))
        if (how := misplaced(prediction, truth)) is not None:
            note = (
                f"agrees clearly better with the reference when {how}; "
                "check its affine and the order of its voxels"
            )
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

    def _measure_errors(
        self,
        case: str,
        volume: Volume,
        mine: slice,
        truth: npt.NDArray[Any],
        mask: npt.NDArray[np.bool_] | None,
    ) -> None:
        method, files = self.methods[0]
        try:
            path = error_map_of(case, self.error_maps, files[case])
            estimate = read_error_map(path, volume)[mine]
            self._add(
                method, case, list(against_error_map(estimate, volume.slab[mine], truth, mask))
            )
            self._error_maps[case] = path
        except (ValueError, OSError) as error:
            self.problems.append(Problem(method, case, f"no error map: {error}", True))

    def _add(self, method: str, case: str, measured: Iterable[tuple[Measure, float]]) -> None:
        self.scores += [Score(method, case, measure, float(value)) for measure, value in measured]

    def _lung(self, case: Case, reference: Volume) -> npt.NDArray[np.bool_] | None:
        if self.lungs == "none":
            return None
        path = self.masks.get(case.name) if self.masks else case.lung
        if path is None and self.masks:
            raise ValueError(f"no lung mask of this name in {self.lungs}")
        return reference_lung(reference, path)
