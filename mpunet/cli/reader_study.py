"""The command ``mpunet reader-study``."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mpunet.data.layouts import files_by_name
from mpunet.evaluation.cases import is_error_map
from mpunet.evaluation.error_maps import error_map_of, read_error_map
from mpunet.evaluation.tables import write_whole
from mpunet.io.scan_file import read_volume
from mpunet.lungs.threshold import lung_mask
from mpunet.reader_study.blob_reader import MIN_SCORE_HU, blob_findings
from mpunet.reader_study.error_places import Place, places, places_csv, places_table
from mpunet.reader_study.figure import draw_study
from mpunet.reader_study.findings import (
    Coordinates,
    Finding,
    Reading,
    findings_csv,
    read_findings,
    read_standard,
)
from mpunet.reader_study.matching import RADIUS_MM
from mpunet.reader_study.study import reader_study
from mpunet.reader_study.table import markdown, write_study

__all__ = ["AUTOMATIC", "read_folder", "run", "study"]

AUTOMATIC = "automatic reader"


def study(
    findings: list[str],
    standard: str,
    *,
    output: str = "reader_study",
    thresholds: str = "4,6",
    radius: float = RADIUS_MM,
    reference: str | None = None,
    coordinates: Coordinates = "RAS",
    min_score: float = MIN_SCORE_HU,
    error_maps: str | None = None,
    figure: bool = True,
) -> int:
    """Compare readers' findings in several conditions (such as thick and thin) with a standard.

    Writes rates.csv, differences.csv, study.json, study.md and study.png. If the automatic reader
    reads volumes, also writes its findings to findings.csv. docs/reader_study.md explains files and
    rules.

    Args:
        findings: CSV files with the columns reader,condition,case,x,y,z,diameter, in mm; or
            CONDITION=FOLDER with volumes for the automatic reader, where the name of a file is the
            name of its case.
        standard: CSV file with the columns case,x,y,z,diameter, in mm.
        output: folder for the results.
        thresholds: smallest nodule diameters in mm, separated by commas; one result for each.
        radius: largest distance in mm between a finding and the centre of the nodule that it hits;
            the radius of the nodule is used instead if it is larger.
        reference: condition that the others are compared with; by default the first one.
        coordinates: coordinate system of all CSV files, read and written: RAS as in NIfTI, or LPS
            as in DICOM.
        min_score: lowest score in HU of the findings that the automatic reader reports.
        error_maps: CONDITION=FOLDER, where FOLDER is that of `mpunet predict --error_map`, to
            compare the findings of this condition with the error maps; writes error_places.csv.
        figure: draw study.png.

    Returns:
        1 if a volume could not be read, else 0.
    """
    wanted = _numbers(thresholds)
    truth = read_standard(standard, coordinates=coordinates)
    folder = Path(output)
    readings: dict[Reading, list[Finding]] = {}
    automatic: dict[Reading, list[Finding]] = {}
    failures: list[str] = []
    for source in findings:
        condition, equals, volumes = source.partition("=")
        if equals and not Path(source).is_file():
            found, broken = read_folder(
                volumes, condition=condition, cases=truth, min_score=min_score
            )
            automatic |= found
            failures += broken
        else:
            found = read_findings(source, cases=truth, coordinates=coordinates)
        if both := readings.keys() & found.keys():
            raise ValueError(
                f"{source}: {', '.join(min(both))} was read before; give each reading once."
            )
        readings |= found
    result = reader_study(readings, truth, thresholds=wanted, radius=radius, reference=reference)
    if automatic:
        write_whole(folder / "findings.csv", findings_csv(automatic, coordinates))
    write_study(result, folder)
    if figure:
        draw_study(result, folder / "study.png")
    judged = _judged(error_maps, readings, truth, radius)
    if judged:
        write_whole(folder / "error_places.csv", places_csv(judged, coordinates))
        print(f"Error map at what the readers judged:\n\n{places_table(judged)}\n")
    print(f"{markdown(result)}\nTables{' and figure' if figure else ''}: {folder}")
    if failures:
        print(
            "\n".join(
                [
                    f"{len(failures)} volumes could not be read and count as unread:",
                    *(f"  {line}" for line in failures),
                ]
            )
        )
    return int(bool(failures))


def read_folder(
    folder: str | Path, *, condition: str, cases: Collection[str], min_score: float = MIN_SCORE_HU
) -> tuple[dict[Reading, list[Finding]], list[str]]:
    """Run the automatic reader on a folder of volumes, with lungs segmented from each volume.

    Args:
        folder: volumes, each named after its case; error maps beside them are left out.
        condition: name of the condition that the volumes show.
        cases: names of the cases in the standard.
        min_score: lowest score in HU of the findings to report.

    Returns:
        Findings by reading, and a line for each volume that could not be read and was skipped.

    Raises:
        ValueError: if there is no volume, none can be read, or a case is not in ``cases``.
    """
    if not condition:
        raise ValueError(f"Expected CONDITION=FOLDER, such as thick=scans, got '={folder}'.")
    files = files_by_name(folder)
    files = {
        name: path for name, path in files.items() if name in cases or not is_error_map(name, files)
    }
    if unknown := files.keys() - set(cases):
        raise ValueError(
            f"{folder}: case {min(unknown)!r} is not in the standard; list it there, "
            "with empty x, y, z and diameter if it has no nodule."
        )
    readings: dict[Reading, list[Finding]] = {}
    failures = []
    for case, path in files.items():
        start = time.monotonic()
        try:
            volume = read_volume(path)
        except (ValueError, OSError) as error:
            failures.append(f"{condition}, {case}: {error}")
            continue
        lung = lung_mask(volume.slab, volume.spacing)
        found = blob_findings(volume.slab, volume.slab_affine, lung, min_score=min_score)
        readings[Reading(AUTOMATIC, condition, case)] = found
        print(
            f"{condition}, {case}: {len(found)} findings, {time.monotonic() - start:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    if not readings:
        raise ValueError(f"No volume of {folder} could be read: {failures[0]}")
    return readings, failures


def _judged(
    source: str | None,
    readings: Mapping[Reading, Sequence[Finding]],
    standard: Mapping[str, Sequence[Finding]],
    radius: float,
) -> list[Place]:
    """Look up the findings of a condition in its error maps."""
    if source is None:
        return []
    condition, _, folder = source.partition("=")
    chosen = {key: found for key, found in readings.items() if key.condition == condition}
    if not chosen or not folder:
        known = ", ".join(dict.fromkeys(key.condition for key in readings))
        raise ValueError(
            f"Expected error maps as CONDITION=FOLDER with a condition among {known}, got {source}."
        )
    files = files_by_name(folder)
    judged = []
    for case in dict.fromkeys(key.case for key in chosen):
        if case not in files:
            raise ValueError(f"{folder}: no volume of case {case!r} beside its error map.")
        volume = read_volume(files[case])
        errors = read_error_map(error_map_of(case, files, files[case]), volume)
        lung = lung_mask(volume.slab, volume.spacing)
        if not lung.any():
            raise ValueError(
                f"{files[case]}: no lung found; expected a chest, as the error map is compared with "
                "its values in the lungs."
            )
        for key, found in chosen.items():
            if key.case == case:
                judged += places(
                    key, found, standard[case], errors, volume.slab_affine, lung, radius=radius
                )
    return judged


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(
            f"Expected thresholds in mm with commas between, such as 4,6; got {text!r}."
        ) from None


def run(args: Sequence[str]) -> int:
    """Run :func:`study` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet reader-study", description=(study.__doc__ or "").split("\n\n    Args:")[0]
    )
    parser.add_argument(
        "findings",
        nargs="+",
        help="CSV files with the columns reader,condition,case,x,y,z,diameter, in mm; "
        "or CONDITION=FOLDER with volumes for the automatic reader",
    )
    parser.add_argument("standard", help="CSV file with the columns case,x,y,z,diameter, in mm")
    parser.add_function_arguments(study, skip={"findings", "standard"})
    return study(**vars(parser.parse_args(list(args))))
