"""The output folder of a prediction run: whether it can be used, and which scans to process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mpunet.io.partial_file import remove_partials
from mpunet.io.scans import Scan

__all__ = ["Existing", "Format", "output_path", "plan_output", "writes_dicom"]

Existing = Literal["skip", "overwrite", "error"]
Format = Literal["auto", "nifti", "dicom"]


def writes_dicom(scan: Scan, file_format: Format) -> bool:
    """Return whether the result of a scan is a DICOM series: "auto" writes the scan's own format."""
    return file_format == "dicom" or (file_format == "auto" and scan.series is not None)


def output_path(output: Path, scan: Scan, file_format: Format) -> Path:
    """Return the path of a scan's result: a NIfTI file, or the folder of a DICOM series."""
    path = output / scan.relative
    if scan.series is None or writes_dicom(scan, file_format):
        return path
    return path.with_name(f"{path.name}.nii.gz")


def plan_output(
    output_dir: str | None, scans: Sequence[Scan], existing: Existing, file_format: Format = "auto"
) -> tuple[list[Scan], str | None]:
    """Create the output folder, remove partial files of killed runs, and select the scans.

    Args:
        output_dir: the output folder.
        scans: all scans of the run.
        existing: "skip" selects only scans without an output file, "overwrite" selects all scans,
            "error" allows no output file.
        file_format: format of the results.

    Returns:
        The scans to process, and None; or no scans, and the reason why the run cannot start.
    """
    if output_dir is None:
        return [], "Expected an output folder for predict, got none; give --writer.output_dir."
    output = Path(output_dir)
    files = [scan for scan in scans if scan.series is None and scan.problem is None]
    if file_format == "dicom" and files:
        return [], (
            f"Expected DICOM series for results in DICOM, got {files[0].path}; "
            "use --format nifti for it."
        )
    targets = {scan.relative: output_path(output, scan, file_format) for scan in scans}
    problem = _overlap(output, scans, targets)
    if problem is not None:
        return [], problem
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        return [], f"Cannot write to the output folder {output}: {error}"
    remove_partials(output)
    todo = [scan for scan in scans if not targets[scan.relative].exists()]
    if existing == "error" and len(todo) < len(scans):
        done = next(path for path in targets.values() if path.exists())
        return [], (
            f"{len(scans) - len(todo)} of {len(scans)} outputs already exist, such as {done}; "
            "use --writer.existing skip or overwrite, or another folder."
        )
    return (list(scans) if existing == "overwrite" else todo), None


def _overlap(output: Path, scans: Sequence[Scan], targets: Mapping[Path, Path]) -> str | None:
    """Return why results in ``output`` would damage the input; None if they would not."""
    inputs = {scan.path.resolve() for scan in scans}
    for scan in scans:
        if targets[scan.relative].resolve() in inputs:
            return (
                f"Writing to {output} would overwrite the scan {scan.path}; choose another output "
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
