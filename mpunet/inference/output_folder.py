"""The output folder of a prediction run: whether it can be used, and which scans to process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mpunet.io.partial_file import remove_partials
from mpunet.io.scans import Scan

__all__ = ["Existing", "plan_output"]

Existing = Literal["skip", "overwrite", "error"]


def plan_output(
    output_dir: str | None, scans: Sequence[Scan], existing: Existing
) -> tuple[list[Scan], str | None]:
    """Create the output folder, remove partial files of killed runs, and select the scans.

    Args:
        output_dir: the output folder.
        scans: all scans of the run.
        existing: "skip" selects only scans without an output file, "overwrite" selects all scans,
            "error" allows no output file.

    Returns:
        The scans to process, and None; or no scans, and the reason why the run cannot start.
    """
    if output_dir is None:
        return [], "Expected an output folder for predict, got none; give --writer.output_dir."
    output = Path(output_dir)
    problem = _overlap(output, scans)
    if problem is not None:
        return [], problem
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        return [], f"Cannot write to the output folder {output}: {error}"
    remove_partials(output)
    todo = [scan for scan in scans if not (output / scan.relative).exists()]
    if existing == "error" and len(todo) < len(scans):
        done = next(output / scan.relative for scan in scans if (output / scan.relative).exists())
        return [], (
            f"{len(scans) - len(todo)} of {len(scans)} outputs already exist, such as {done}; "
            "use --writer.existing skip or overwrite, or another folder."
        )
    return (list(scans) if existing == "overwrite" else todo), None


def _overlap(output: Path, scans: Sequence[Scan]) -> str | None:
    """Return why results in ``output`` would damage the input; None if they would not."""
    inputs = {scan.path.resolve() for scan in scans}
    for scan in scans:
        if (output / scan.relative).resolve() in inputs:
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
