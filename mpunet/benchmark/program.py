"""An external program as a method: thick scans in one folder, thin volumes in another."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from mpunet.benchmark.network import Reconstructed
from mpunet.data.layouts import files_by_name
from mpunet.data.volumes import VolumeCase
from mpunet.evaluation.cases import common_slices
from mpunet.geometry import thin_affine
from mpunet.io.scan_file import read_volume
from mpunet.io.volume import VolumeInfo

__all__ = ["Program", "last_line", "unset_variables"]

# Runs a command; writes its exit status and peak memory in bytes, NaN on Windows. In a small process
# of its own, because Linux counts the memory of the process that starts another as that of both.
_RUN = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
if hasattr(os, "wait4"):
    _, status, usage = os.wait4(process.pid, 0)
    status = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
else:
    status, peak = process.wait(), float("nan")
with open(sys.argv[1], "w") as file:
    json.dump([status, peak], file)
"""


class Program:
    """Run a command once on all cases and read its thin volumes.

    Args:
        command: command line; ``{thick}`` and ``{thin}`` stand for the folders, ``{ratio}`` for the
            ratio, ``{python}`` for this Python, ``$NAME`` for a variable of the environment. It runs
            in the current folder, without a shell. ``{thick}`` contains a NIfTI file in HU for each
            case. The command writes the thin volumes to ``{thin}`` under the same names.
        ratio: thick spacing / thin spacing.
        folder: folder of the row, for ``thick``, ``thin`` and ``program.log``.

    Attributes:
        peak_bytes: peak memory of the largest process of the program; NaN before the run.

    Raises:
        ValueError: if the command does not name both folders.
    """

    n_thick = 2  # of the data module; whole cases do not depend on it
    parameters = None
    gflops = None

    def __init__(self, command: str, ratio: int, folder: Path) -> None:
        missing = [word for word in ("{thick}", "{thin}") if word not in command]
        if missing:
            raise ValueError(
                f"Expected a command with {' and '.join(missing)} for its folders, got {command!r}."
            )
        self.command = command
        self.ratio = ratio
        self.folder = folder
        self.peak_bytes = float("nan")

    def reconstruct(self, cases: Iterable[VolumeCase]) -> Iterator[Reconstructed]:
        """Yield the cases with their thin slices, and the run time per case.

        The run time is that of the whole command, including its start, reading and writing.

        Args:
            cases: whole cases; iterated twice, so that only one is in memory.

        Raises:
            ValueError: if the command fails, or a thin volume is missing or does not cover all
                slices of its reference.
        """
        thick, thin = self.folder / "thick", self.folder / "thin"
        for place in (thick, thin):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        infos = {}
        for case in cases:
            file = thick / f"{case['name']}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            infos[case["name"]] = _write_thick(case, self.ratio, file)
        seconds = self._run(thick, thin) / len(infos)
        files = files_by_name(thin)
        for case in cases:
            name = case["name"]
            if name not in files:
                raise ValueError(
                    f"Expected the thin volume {name}.nii.gz in {thin}, found "
                    f"{', '.join(files)}: the command must keep the names of the thick scans."
                )
            yield Reconstructed(case, _read_thin(files[name], infos[name]), seconds)

    def _run(self, thick: Path, thin: Path) -> float:
        values = {
            "{thick}": str(thick),
            "{thin}": str(thin),
            "{ratio}": str(self.ratio),
            "{python}": sys.executable,
        }
        words = []
        for word in shlex.split(self.command):
            for key, value in values.items():
                word = word.replace(key, value)
            words.append(os.path.expandvars(word))
        if shutil.which(words[0]) is None:
            raise ValueError(f"The program cannot be started: no command {words[0]!r}.")
        log, usage = self.folder / "program.log", self.folder / "usage.json"
        start = time.perf_counter()
        with log.open("w", encoding="utf-8") as file:
            subprocess.run(
                [sys.executable, "-S", "-c", _RUN, str(usage), *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                check=True,
            )
        seconds = time.perf_counter() - start
        status, self.peak_bytes = json.loads(usage.read_text())
        if status:
            raise ValueError(f"The program ended with {status}: {last_line(log)}")
        return seconds


def unset_variables(command: str) -> list[str]:
    """Return the names of the environment variables in a command that are not set.

    >>> unset_variables("$HOME/bin/program {thick} ${NOT_SET_ANYWHERE}")
    ['NOT_SET_ANYWHERE']
    """
    found = re.findall(r"\$\{?(\w+)", command)
    return [name for name in dict.fromkeys(found) if not os.environ.get(name)]


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, and where to read the others."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[-1]} (see {log})" if lines else f"see {log}"


def _write_thick(case: VolumeCase, ratio: int, file: Path) -> VolumeInfo:
    """Write the thick slices of a case; return the grid that its thin slices must have."""
    depth, height, width = case["spacing"]
    # Slabs are (S, P, L) and NIfTI is RAS+. Stored as in most files: left, posterior, superior.
    affine = np.diag([-width, -height, depth * ratio, 1.0])
    stored = np.asarray(case["thick"], np.float32).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(stored, affine), file)
    shape = case["thin"].shape
    return VolumeInfo(
        (shape[0], shape[1], shape[2]), thin_affine(affine, 2, ratio), 2, nib.Nifti1Header()
    )


def _read_thin(file: Path, wanted: VolumeInfo) -> npt.NDArray[Any]:
    volume = read_volume(file, check_hu=False)
    try:
        mine, used = common_slices(volume, wanted)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if used != slice(0, wanted.shape[0]):
        raise ValueError(
            f"Expected thin slices at all {wanted.shape[0]} positions from the first to the last "
            f"thick slice, got {used.start} to {used.stop - 1} in {file}."
        )
    return volume.slab[mine].astype(np.float32)
