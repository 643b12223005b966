"""The command ``mpunet evaluate``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.tables import screen, write_tables
from mpunet.io.rplhr import Intensity
from mpunet.report.report import write_report
from mpunet.slices.simulate import Profile

__all__ = ["evaluate", "run"]


def evaluate(
    predictions: str,
    references: str,
    *,
    output: str = "evaluation",
    name: str | None = None,
    against: str | None = None,
    protocol: str = "paper",
    inputs: str | None = None,
    lungs: str = "auto",
    baselines: str | None = None,
    fidelity: bool = True,
    profile: Profile = "gaussian",
    fwhm: float | None = None,
    intensity: Intensity = "auto",
    check_hu: bool = True,
    report: bool = True,
) -> int:
    """Measure a folder of predicted thin volumes against a folder of true ones, case by case, matched by name.

    Writes scores.csv, summary.csv, differences.csv, problems.csv, evaluation.json and report.html.

    Args:
        predictions: folder of thin volumes, or one.
        references: true thin volumes of the same names; or a folder with the subfolders thin and perhaps thick and lung.
        output: folder for the results.
        name: what to call the method; the folder's name by default.
        against: other methods to compare it with, "NAME=DIR,NAME=DIR": paired differences, Wilcoxon signed-rank test.
        protocol: "paper" or "rplhr": window, range, and what is trimmed; see docs/evaluate.md.
        inputs: the thick scans, for consistency and baselines; references/thick by default.
        lungs: folder of lung masks on the references' grids; "auto" takes references/lung or else computes them, "none" does without.
        baselines: interpolations of the thick scans to measure too, "linear", "cubic" or "linear,cubic"; written below output/baselines.
        fidelity: measure bias, lung density, noise, sharpness and consistency too.
        profile: slice profile that thickens predictions again for the consistency.
        fwhm: its full width at half maximum in thick spacings; 0.9 for the Gaussian by default.
        intensity: what intensities within [0, 1] are: RPLHR-CT's where files lie in its folders ("auto"), or anywhere ("rplhr").
        check_hu: refuse volumes whose intensities cannot be HU.
        report: write report.html, a page with the pictures.

    Returns:
        1 if a case could not be measured, else 0.
    """
    folder = Path(output)
    name = name or Path(predictions).resolve().name.removesuffix(".gz").removesuffix(".nii")
    evaluator = Evaluator(
        {name: predictions, **_named(against)},
        references,
        protocol=protocol,
        inputs=inputs,
        lungs=lungs,
        baselines=_words(baselines),
        baselines_dir=folder / "baselines",
        fidelity=fidelity,
        profile=profile,
        fwhm=fwhm,
        intensity=intensity,
        check_hu=check_hu,
        title=f"{name} against {Path(references).name}",
    )
    start = time.monotonic()
    for done, case in enumerate(evaluator.run(), 1):
        print(f"{done} {case}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        start = time.monotonic()
    evaluation = evaluator.result()
    write_tables(evaluation, folder)
    if report:
        write_report(folder / "report.html", evaluation)
    print(f"{screen(evaluation)}\n\nTables{' and report' if report else ''}: {folder}")
    return int(any(not problem.measured for problem in evaluation.problems))


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def _named(text: str | None) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(text)]
    if not all(name and sign and folder for name, sign, folder in pairs) or len(
        {name for name, *_ in pairs}
    ) < len(pairs):
        raise ValueError(
            f"Expected other methods as NAME=DIR,NAME=DIR with distinct names, got {text}."
        )
    return {name: folder for name, _, folder in pairs}


def run(args: Sequence[str]) -> int:
    """The command line of :func:`evaluate`."""
    parser = ArgumentParser(
        prog="mpunet evaluate", description=(evaluate.__doc__ or "").split("\n\n    Args:")[0]
    )
    parser.add_function_arguments(evaluate, as_positional=True)
    return evaluate(**vars(parser.parse_args(list(args))))
