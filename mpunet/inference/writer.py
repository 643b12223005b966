"""Lightning callback that writes predicted volumes and the manifest.

At the end of a run it prints which scans failed and why.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback

from mpunet.geometry import grid_spacing, thin_affine
from mpunet.inference.check import ConsistencyCheck, data_profile, gather, summary_lines
from mpunet.inference.manifest import (
    NAME,
    ConsistencyRecord,
    Manifest,
    Record,
    new_record,
    note_skipped,
)
from mpunet.inference.output_folder import Existing, plan_output
from mpunet.inference.reconstruct import Reconstructor, ThinSlices
from mpunet.io.scan_file import ScanFile
from mpunet.io.scans import PredictCase, Scan
from mpunet.io.thin_file import Dtype, write_slices
from mpunet.memory import is_out_of_memory
from mpunet.weights import file_sha256

__all__ = ["Failure", "ThinVolumeWriter"]

_SHOWN = 20  # most failures to list in the summary; the manifest lists all


class Failure(NamedTuple):
    """A scan without a result, or with a warning.

    Attributes:
        relative: path relative to the input folder.
        reason: why the scan failed, or the warning.
    """

    relative: str
    reason: str


class ThinVolumeWriter(Callback):
    """Write each predicted volume to a file with the name and subfolder of its scan.

    The callback does nothing outside ``predict``. It requires:

    - a data module with the list ``predict_scans`` of :class:`mpunet.io.scans.Scan`, which is
      created in ``setup`` and read by ``predict_dataloader``;
    - batches of type :class:`mpunet.io.scans.PredictCase`;
    - predictions that are :class:`mpunet.inference.ThinSlices` (computed while they are written),
      an array ((D - 1) * ratio + 1, H, W) in HU, an exception with the reason of a failure, or None
      if the case has an error.

    The outcome of each scan is appended to ``manifest.jsonl`` in the output folder, see
    :class:`mpunet.inference.manifest.Record`.

    Args:
        output_dir: folder for the results; required for ``predict``. Results have the names and
            subfolders of the scans.
        existing: what to do with scans that have an output file. "skip" leaves them out, which
            continues an interrupted run (output files are always complete); "overwrite" processes
            them again; "error" stops before the first scan.
        dtype: data type of the output voxels. "int16" rounds and clips to [-1024, 3071] HU;
            "float32" keeps the values of the network.
        check: thicken each result while it is written and compare it with its scan, which is read
            again for this. Warn if the mean absolute difference exceeds 1.5 times the largest one
            in the checkpoint's validation. The command line option --check has the same effect.

    Attributes:
        failures: failures of all ranks, on every rank; complete after ``predict``.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        *,
        existing: Existing = "skip",
        dtype: Dtype = "int16",
        check: bool = False,
    ) -> None:
        super().__init__()
        self.output_dir = output_dir
        self.existing = existing
        self.dtype = dtype
        self.check = check
        self.failures: list[Failure] = []
        self._warnings: list[Failure] = []
        self._check: ConsistencyCheck | None = None
        self._checkpoint: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare the output folder and reduce ``predict_scans`` to the scans to process."""
        if stage != "predict":
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        scans = getattr(datamodule, "predict_scans", None)
        if scans is None:
            raise ValueError(
                "ThinVolumeWriter needs a datamodule with predict_scans, such as "
                "mpunet.ThickThinDataModule."
            )
        # Only rank 0 looks at the folder: a later rank might already find results of this run.
        todo, problem = trainer.strategy.broadcast(
            plan_output(self.output_dir, scans, self.existing)
            if trainer.is_global_zero
            else ([], None)
        )
        if problem is not None:
            raise ValueError(problem)
        datamodule.predict_scans = todo
        self.failures, self._warnings, self._written = [], [], 0
        self._disk_full, self._checkpoint, self._check = False, None, None
        self._skipped = set(scans) - set(todo) if trainer.is_global_zero else set()
        self._manifest = Manifest(Path(str(self.output_dir)), trainer.global_rank)
        if trainer.is_global_zero:
            self._manifest.merge()
            if self._skipped:
                print(
                    f"{len(self._skipped)} of {len(scans)} volumes are already in "
                    f"{self.output_dir}: skipped.",
                    flush=True,
                )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the consistency range from the module, whose checkpoint is now loaded."""
        if self.check:
            self._check = ConsistencyCheck(
                getattr(pl_module, "consistency_range", None), **data_profile(trainer)
            )

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: ThinSlices | npt.NDArray[Any] | Exception | None,
        batch: PredictCase,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compute and write one volume, or record why this fails."""
        start = time.perf_counter()
        reason = warning = shape = spacing = consistency = None
        if batch.volume is None or outputs is None:
            reason = (batch.error or "the model returned no prediction").removeprefix(
                f"{batch.scan.relative.name}: "
            )
        else:
            try:
                if isinstance(
                    reconstructor := getattr(pl_module, "reconstructor", None), Reconstructor
                ):
                    warning = reconstructor.spacing_warning(batch.volume)
                if isinstance(outputs, Exception):
                    raise outputs
                shape, spacing, consistency = self._write(batch.scan, batch.volume, outputs)
            except Exception as error:  # other volumes may succeed, whatever the error is
                reason = _one_line(error)
        record = self._record(trainer, pl_module, batch.scan)
        record["shape"], record["spacing"], record["seconds"] = (
            shape,
            spacing,
            round(time.perf_counter() - start, 3),
        )
        record["consistency"], record["warning"] = consistency, warning
        if warning is not None:
            self._warnings.append(Failure(record["file"], warning))
        if reason is None:
            self._written += 1
        else:
            record["status"], record["reason"] = "failed", reason
            self.failures.append(Failure(record["file"], reason))
        self._manifest.add(record)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Collect the failures of all ranks, merge their manifests and print the summary."""
        if stage != "predict":
            return
        # Not in on_predict_end, which Lightning does not call on a rank without scans.
        complete = self._manifest.flush()
        summary = self._check.summary if self._check else None
        results = gather((self._written, self.failures, self._warnings, complete, summary))
        self.failures = sorted(failure for _, failures, *_ in results for failure in failures)
        if not trainer.is_global_zero:
            return
        self._manifest.merge()
        lines = [f"{sum(written for written, *_ in results)} volumes written to {self.output_dir}"]
        if self.failures:
            lines[0] += f", {len(self.failures)} failed:"
            lines += self._list(self.failures)
        if warnings := sorted(warning for _, _, warnings, *_ in results for warning in warnings):
            lines += [f"{len(warnings)} with a warning:", *self._list(warnings)]
        if not all(complete for *_, complete, _ in results):
            lines.append(f"The last lines of {NAME} could not be written.")
        lines += summary_lines(summary for *_, summary in results if summary is not None)
        skipped = [self._record(trainer, pl_module, scan) for scan in sorted(self._skipped)]
        print("\n".join([*lines, *note_skipped(self._manifest, skipped)]), flush=True)

    def _write(
        self, scan: Scan, volume: ScanFile, prediction: ThinSlices | npt.NDArray[Any]
    ) -> tuple[list[int], list[float], ConsistencyRecord | None]:
        """Write a volume.

        Returns:
            Shape and spacing (mm) of the file along its stored axes, and its consistency if it was
            checked.
        """
        ratio = (
            prediction.ratio
            if isinstance(prediction, ThinSlices)
            else (len(prediction) - 1) // (volume.shape[0] - 1)
        )
        path = Path(str(self.output_dir)) / scan.relative
        if self._disk_full:
            # Compute nothing until there is room for this volume without compression.
            voxels = int(np.prod((len(prediction), *volume.shape[1:])))
            needed = voxels * np.dtype(self.dtype).itemsize * 1.01
            if shutil.disk_usage(str(self.output_dir)).free < needed:
                raise OSError(errno.ENOSPC, f"not tried: the disk of {self.output_dir} is full")
        if isinstance(prediction, ThinSlices):
            chunks, last_first = prediction.chunks(self.dtype), prediction.last_first
        else:
            chunks, last_first = iter([np.asarray(prediction)]), False
        meter = self._check.meter(volume, ratio, last_first=last_first) if self._check else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            watched = meter.watch(chunks) if meter else chunks
            write_slices(path, watched, volume, ratio, dtype=self.dtype, last_first=last_first)
        except OSError as error:
            self._disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = (
                "; free space and start again, finished volumes are skipped"
                if self._disk_full
                else ""
            )
            raise OSError(f"cannot write {path}: {error.strerror or error}{hint}") from error
        self._disk_full = False
        shape = [
            len(prediction) if axis == volume.slice_axis else size
            for axis, size in enumerate(volume.stored_shape)
        ]
        spacing = grid_spacing(thin_affine(volume.affine, volume.slice_axis, ratio))
        consistency = (
            self._check.judge(scan.relative.as_posix(), meter) if self._check and meter else None
        )
        return shape, [round(float(mm), 6) for mm in spacing], consistency

    def _list(self, entries: Sequence[Failure]) -> list[str]:
        """Return one indented line per failure, at most ``_SHOWN``."""
        lines = [f"  {relative}: {text}" for relative, text in entries[:_SHOWN]]
        if len(entries) > _SHOWN:
            lines.append(
                f"  ... and {len(entries) - _SHOWN} more, see {Path(str(self.output_dir)) / NAME}"
            )
        return lines

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, scan: Scan) -> Record:
        return new_record(scan, pl_module, self._hash(trainer, pl_module))

    def _hash(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
        """Return the SHA-256 of the checkpoint; compute it once."""
        path = trainer.ckpt_path or getattr(pl_module, "weights_file", None)
        if self._checkpoint is None and path is not None:
            with suppress(OSError):  # the file may have been moved since it was loaded
                self._checkpoint = file_sha256(path)
        return self._checkpoint


def _one_line(error: Exception) -> str:
    """Return the message of an error without line breaks."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error) and not isinstance(error, MemoryError):
        return f"not enough memory: {text}"
    return (
        text
        if isinstance(error, (OSError, ValueError, MemoryError)) and text
        else f"{type(error).__name__}: {text}"
    )
