"""The command ``mpunet evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mpunet.evaluation.evaluate import Evaluator
from mpunet.evaluation.tables import screen, write_tables
from mpunet.io.rplhr import Intensity
from mpunet.io.volume import without_nifti_suffix
from mpunet.progress import Progress
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
    error_maps: str | None = None,
    profile: Profile = "gaussian",
    fwhm: float | None = None,
    intensity: Intensity = "auto",
    check_hu: bool = True,
    report: bool = True,
) -> int:
    """Measure predicted thin volumes against true ones, case by case.

    Files are matched by name. Writes scores.csv, summary.csv, agreement.csv, differences.csv,
    problems.csv, evaluation.json and report.html.

    Args:
        predictions: folder of predicted thin volumes, or one file.
        references: folder of true thin volumes with the same names, or one file; or a folder with
            the subfolder thin and optionally thick and lung.
        output: folder for the results.
        name: name of the method in the results; by default the name of the predictions folder.
        against: other methods to compare with, as "NAME=DIR,NAME=DIR"; adds paired differences and
            a Wilcoxon signed-rank test.
        protocol: HU window, data range, trimmed slices and planes: "paper", "rplhr" or "mss-ct";
            see docs/evaluate.md.
        inputs: folder of the thick scans, or one file, for consistency and baselines; default
            references/thick.
        lungs: folder of lung masks on the grids of the references, or one file; "auto" reads masks
            from references/lung or else computes them, "none" measures whole volumes only.
        baselines: interpolations of the thick scans to measure as well: "linear", "cubic" or
            "linear,cubic"; they are written to output/baselines.
        fidelity: also measure bias, lung density, noise, sharpness and consistency.
        error_maps: folder of the error maps that `mpunet predict --error_map` wrote, usually that
            of the predictions, to measure how well they tell the errors.
        profile: slice profile that thickens the predictions to measure consistency.
        fwhm: full width at half maximum of the slice profile in thick spacings; default 0.9 for the
            Gaussian, else 1.
        intensity: scale of volumes with intensities in [0, 1]: "auto" converts them to HU only in
            the folders of RPLHR-CT, "rplhr" everywhere.
        check_hu: refuse volumes whose intensities cannot be HU.
        report: write report.html, a page with tables and pictures.

    Returns:
        1 if the evaluation lists problems, such as a case that could not be measured, else 0.
    """
    folder = Path(output)
    name = name or without_nifti_suffix(Path(predictions).resolve().name)
    evaluator = Evaluator(
        {name: predictions, **_named(against)},
        references,
        protocol=protocol,
        inputs=inputs,
        lungs=lungs,
        baselines=_words(baselines),
        baselines_dir=folder / "baselines",
        fidelity=fidelity,
        error_maps=error_maps,
        profile=profile,
        fwhm=fwhm,
        intensity=intensity,
        check_hu=check_hu,
        title=f"{name} against {Path(references).name}",
    )
    progress = Progress(len(evaluator.names), "case")
    for _ in progress.each(evaluator.run(), evaluator.names):
        pass
    progress.close()
    evaluation = evaluator.result()
    write_tables(evaluation, folder)
    if report:
        write_report(folder / "report.html", evaluation)
    print(f"{screen(evaluation)}\n\nTables{' and report' if report else ''}: {folder}")
    return int(bool(evaluation.problems))


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
    """Run :func:`evaluate` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet evaluate", description=(evaluate.__doc__ or "").split("\n\n    Args:")[0]
    )
    parser.add_function_arguments(evaluate, as_positional=True)
    return evaluate(**vars(parser.parse_args(list(args))))
