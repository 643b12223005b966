"""The command ``mpunet check``."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser

from mpunet.data.case import Case
from mpunet.data.checks import Finding, examine, verdict
from mpunet.data.layouts import find_cases
from mpunet.io.rplhr import Intensity
from mpunet.memory import available_cores
from mpunet.progress import Progress

__all__ = ["check", "run"]

Found = tuple[Case, list[Finding]]


def check(
    data: str,
    *,
    ratio: int | None = None,
    output: str | None = None,
    workers: int | None = None,
    intensity: Intensity = "auto",
    slice_axis: int | None = None,
) -> int:
    """Check every case of a data set before training: fine, repaired (how) or refused (why).

    Checks that files can be read, that intensities are HU, and that no slices are blank, repeated,
    out of order or missing. For pairs, also checks grids, ratio and position, both by the headers
    and by the voxels alone. docs/data.md lists the findings and their limits.

    Args:
        data: pairs, thin volumes, a split, or a CSV file of pairs, as for
            `mpunet fit --data.train_dir`; or a folder of thick scans.
        ratio: thick spacing / thin spacing of the network; by default any integer is accepted.
        output: folder for findings.csv and findings.json; by default findings are only printed.
        workers: number of processes; by default one per CPU core, at most 8.
        intensity: scale of volumes with intensities in [0, 1]: "auto" converts them to HU only in
            the folders of RPLHR-CT, "rplhr" everywhere.
        slice_axis: stored axis along which slices are stacked; needed only if the voxel spacings do
            not identify it.

    Returns:
        1 if a case is refused, else 0.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"Expected at least 1 worker, got {workers}.")
    cases = find_cases(data, intensity=intensity)
    look = partial(examine, ratio=ratio, slice_axis=slice_axis)
    number = min(workers or min(8, available_cores()), len(cases))
    progress = Progress(len(cases), "case")
    findings = progress.each(_each(look, cases, number), [case.name for case in cases])
    found = list(zip(cases, findings, strict=True))
    progress.close()
    if output is not None:
        _write(Path(output), found)
    _print(found)
    return int(any(verdict(findings) == "refused" for _, findings in found))


def _each(
    look: partial[list[Finding]], cases: Sequence[Case], workers: int
) -> Iterator[list[Finding]]:
    """Yield the findings of each case, in the order of the cases."""
    if workers == 1:
        yield from map(look, cases)
        return
    # Not "fork": libraries that have started threads may hang in a forked process.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(look, case) for case in cases]:
            try:
                yield future.result()
            except BrokenProcessPool:
                text = (
                    "not examined, as a process was killed: not enough memory? Try fewer --workers"
                )
                yield [Finding("unreadable", "refused", text)]


def _print(found: Sequence[Found]) -> None:
    """Print each finding on a line, refused cases first, then the number of cases by verdict."""
    by_verdict = {
        word: [item for item in found if verdict(item[1]) == word]
        for word in ("refused", "repaired", "fine")
    }
    for word, items in by_verdict.items():
        for case, findings in items:
            name = case.name if case.part is None else f"{case.part}/{case.name}"
            shown = [f for f in findings if f.verdict != "fine"] if word != "fine" else findings
            kind = "pair" if case.thick else "scan"
            print(f"{word:9s} {name}" + (f" ({kind})" if not shown else ""))
            for finding in shown:
                volume = (
                    "" if finding.volume == "pair" or case.thick is None else f"{finding.volume}: "
                )
                print(f"            {volume}{finding.text} [{finding.code}]")
    print(
        ", ".join(f"{len(items)} {word}" for word, items in by_verdict.items())
        + f" of {len(found)} cases"
    )


def _write(folder: Path, found: Sequence[Found]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "verdict", "volume", "code", "finding", "text"])
    for case, findings in found:
        rows = [
            [finding.volume, finding.code, finding.verdict, finding.text] for finding in findings
        ] or [[""] * 4]
        writer.writerows([case.name, verdict(findings), *row] for row in rows)
    (folder / "findings.csv").write_text(text.getvalue(), encoding="utf-8")
    content = [
        {
            "case": case.name,
            "part": case.part,
            "files": {
                kind: str(path)
                for kind in ("thin", "thick", "lung")
                if (path := getattr(case, kind)) is not None
            },
            "verdict": verdict(findings),
            "findings": [finding._asdict() for finding in findings],
        }
        for case, findings in found
    ]
    (folder / "findings.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def run(args: Sequence[str]) -> int:
    """Run :func:`check` with command line arguments."""
    parser = ArgumentParser(
        prog="mpunet check", description=(check.__doc__ or "").split("\n\n    Args:")[0]
    )
    parser.add_function_arguments(check, as_positional=True)
    return check(**vars(parser.parse_args(list(args))))
