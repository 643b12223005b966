"""The output folder of a prediction run: whether it can be used, and which scans to process."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from mpunet.inference.errors.file import error_path
from mpunet.io.dicom.template import find_templates
from mpunet.io.partial_file import remove_partials
from mpunet.io.scans import (
    Format,
    Scan,
    has_result,
    input_places,
    output_path,
    scan_name,
    writes_dicom,
)
from mpunet.io.volume import nifti_suffix

__all__ = ["Existing", "plan_output"]

Existing = Literal["skip", "overwrite", "error"]


def plan_output(
    output_dir: str | None,
    scans: Sequence[Scan],
    existing: Existing,
    file_format: Format = "auto",
    dicom_from: str | None = None,
    *,
    error_maps: bool = False,
) -> tuple[list[Scan], str | None]:
    """Create the output folder, remove partial files of killed runs, and select the scans.

    Args:
        output_dir: the output folder.
        scans: all scans of the run.
        existing: "skip" selects only scans without an output file, "overwrite" selects all scans,
            "error" allows no output file.
        file_format: format of the results.
        dicom_from: folder of the DICOM series that are the templates of NIfTI scans; with it the
            results are in DICOM.
        error_maps: each result has an error map; a result without one counts as missing.

    Returns:
        The scans to process, each NIfTI scan with its template or the problem that it has none; and
        None. Or no scans, and the reason why the run cannot start.
    """
    if output_dir is None:
        return [], "Expected an output folder for predict, got none; give --writer.output_dir."
    output = Path(output_dir)
    files = [scan for scan in scans if _is_file(scan)]
    if dicom_from is not None:
        if file_format == "nifti":
            return [], "Expected results in DICOM with --dicom_from, got --format nifti."
        file_format = "dicom"
        try:
            scans = _with_templates(scans, dicom_from)
        except ValueError as error:
            return [], str(error)
    elif file_format == "dicom" and files:
        return [], (
            f"Expected DICOM series for results in DICOM, got {files[0].path}; "
            "use --format nifti for it, or --dicom_from FOLDER with the series that it was made of."
        )
    targets = {scan.relative: output_path(output, scan, file_format) for scan in scans}
    maps = {
        scan.relative: error_path(targets[scan.relative], as_dicom=writes_dicom(scan, file_format))
        for scan in (scans if error_maps else ())
    }
    folders = [scan for scan in scans if writes_dicom(scan, file_format)]
    inputs = input_places(scans)
    problem = (
        _overlap(output, scans, targets, inputs)
        or _template_overlap(output, scans, targets, dicom_from)
        or _nested(folders, targets)
        or _error_overlap(targets, maps, inputs)
    )
    if problem is not None:
        return [], problem
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        return [], f"Cannot write to the output folder {output}: {error}"
    remove_partials(output)
    todo = [
        scan
        for scan in scans
        if not all(has_result(one[scan.relative]) for one in (targets, maps or targets))
    ]
    done = [path for path in targets.values() if has_result(path)]
    if existing == "error" and done:
        return [], (
            f"{len(done)} of {len(scans)} outputs already exist, such as {done[0]}; "
            "use --writer.existing skip or overwrite, or another folder."
        )
    return (list(scans) if existing == "overwrite" else todo), None


def _is_file(scan: Scan) -> bool:
    return scan.series is None and nifti_suffix(scan.relative) is not None


def _with_templates(scans: Sequence[Scan], folder: str) -> list[Scan]:
    """Give each NIfTI scan its template, or the problem that it has none."""
    files = [scan for scan in scans if _is_file(scan)]
    found = find_templates(folder, [scan_name(scan) for scan in files])
    by_path = {
        scan.relative: scan._replace(template=item.series, problem=item.problem)
        for scan, item in zip(files, found, strict=True)
    }
    return [by_path.get(scan.relative, scan) for scan in scans]


def _overlap(
    output: Path,
    scans: Sequence[Scan],
    targets: Mapping[Path, Path],
    inputs: Mapping[Path, Scan],
) -> str | None:
    """Return why results in ``output`` would damage the input; None if they would not."""
    for scan in scans:
        if (lost := inputs.get(targets[scan.relative].resolve())) is not None:
            return (
                f"Writing to {output} would overwrite the scan {lost.path}; choose another output "
                "folder."
            )
        source = scan.path.parents[len(scan.relative.parts) - 1].resolve()
        # A single scan is allowed: it may be given as a file, with the output folder beside it.
        if len(scans) > 1 and source in output.resolve().parents:
            return (
                f"The output folder {output} is in the input folder {source}, where a later run "
                "would read results as scans."
            )
    return None


def _error_overlap(
    targets: Mapping[Path, Path], maps: Mapping[Path, Path], inputs: Mapping[Path, Scan]
) -> str | None:
    """Return why error maps would replace scans or results; None if they would not."""
    taken = _places([*targets.values(), *maps.values()])
    for name, path in maps.items():
        if path.resolve() in inputs or taken[path] > 1:
            return (
                f"The error map of {name} would have the path {path}, which is that of another "
                "scan or result; rename that scan."
            )
    return None


def _template_overlap(
    output: Path, scans: Sequence[Scan], targets: Mapping[Path, Path], dicom_from: str | None
) -> str | None:
    """Return why results in DICOM would replace or become templates; None if they would not."""
    if dicom_from is None:
        return None
    root = Path(dicom_from).resolve()
    if root in (output.resolve(), *output.resolve().parents):
        return (
            f"The output folder {output} is in the folder of templates {dicom_from}, where a later "
            "run would read results as templates."
        )
    templates = _places(
        {scan.template.folder.resolve() for scan in scans if scan.template is not None}
    )
    for scan in scans:
        path = targets[scan.relative]
        if path.resolve() in templates:
            return (
                f"Writing to {output} would replace the templates in {path}; choose another output "
                "folder."
            )
    return None


def _nested(scans: Sequence[Scan], targets: Mapping[Path, Path]) -> str | None:
    """Return why results in DICOM would replace other results; None if they would not."""
    taken = _places(targets.values())
    for scan in scans:
        path = targets[scan.relative]
        if taken[path] > 1:
            return (
                f"The result of {scan.relative} would have the same folder {path} as that of "
                "another scan; give them different names, or run them into different folders."
            )
    return None


def _places(paths: Iterable[Path]) -> Counter[Path]:
    """Count for each path how many of ``paths`` are there or below."""
    return Counter(place for path in paths for place in (path, *path.parents))
