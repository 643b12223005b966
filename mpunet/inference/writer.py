"""Lightning callback that writes predicted volumes and the manifest.

At the end of a run it prints which scans failed and why.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback

from mpunet.inference.check import ConsistencyCheck, data_profile, gather, summary_lines
from mpunet.inference.errors.file import with_error_map
from mpunet.inference.manifest import (
    NAME,
    Failure,
    Manifest,
    Written,
    new_record,
    note_skipped,
    one_line,
    order_record,
    outcome_lines,
)
from mpunet.inference.output_folder import Existing, plan_output
from mpunet.inference.reconstruct import Reconstructor, ThinSlices
from mpunet.inference.result import origin_of, write_result
from mpunet.io.base import ScanFile
from mpunet.io.dicom.scan import DicomScan
from mpunet.io.dicom.writer import Origin
from mpunet.io.scans import Format, PredictCase, Scan, output_path, writes_dicom
from mpunet.io.thin_file import Dtype
from mpunet.progress import Progress, Show
from mpunet.weights import file_sha256

__all__ = ["ThinVolumeWriter"]


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
        format: format of the results: "nifti"; "dicom", which needs DICOM scans or ``dicom_from``;
            "auto" is that of the scan.
        dicom_from: folder of DICOM series that the NIfTI scans were converted from. Each result is
            then a derived series in the study of the series with its scan's name, see
            :func:`mpunet.io.dicom.template.find_templates`.
        dtype: data type of the output voxels in NIfTI files. "int16" rounds and clips to
            [-1024, 3071] HU; "float32" keeps the values of the network.
        check: thicken each result while it is written and compare it with its scan, which is read
            again for this. Warn if the mean absolute difference exceeds 1.5 times the largest one
            in the checkpoint's validation.
        progress: "bar" shows a bar for the slices of each scan, "lines" prints lines at intervals,
            "none" prints failures only; "auto" is "bar" on a terminal and "lines" elsewhere.
            "verbose" adds Lightning's messages.

    Attributes:
        failures: failures of all ranks, on every rank; complete after ``predict``.
        disk_full: whether scans failed because the disk was full or the quota used up, on any rank;
            known on every rank after ``predict``. The same run may succeed later.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        *,
        existing: Existing = "skip",
        format: Format = "auto",  # noqa: A002 - the name of the option
        dicom_from: str | None = None,
        dtype: Dtype = "int16",
        check: bool = False,
        progress: Show = "auto",
    ) -> None:
        super().__init__()
        self.output_dir = output_dir
        self.existing = existing
        self.format: Format = format
        self.dicom_from = dicom_from
        self.dtype = dtype
        self.check = check
        self.progress: Show = progress
        self.failures: list[Failure] = []
        self.disk_full = False
        self._warnings: list[Failure] = []
        self._check: ConsistencyCheck | None = None
        self._progress = Progress(0, "scan", show="none")
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
            plan_output(
                self.output_dir,
                scans,
                self.existing,
                self.format,
                self.dicom_from,
                error_maps=getattr(getattr(pl_module, "inference", None), "error_map", False),
            )
            if trainer.is_global_zero
            else ([], None)
        )
        if problem is not None:
            raise ValueError(problem)
        datamodule.predict_scans = todo
        done = {scan.relative for scan in scans} - {scan.relative for scan in todo}
        self.failures, self._warnings, self._written = [], [], 0
        self.disk_full = self._disk_full = False
        self._checkpoint = self._check = None
        self._skipped = [scan for scan in scans if scan.relative in done]
        self._manifest = Manifest(Path(str(self.output_dir)), trainer.global_rank)
        if trainer.is_global_zero:
            self._manifest.merge()
            if self._skipped and self.progress != "none":
                print(
                    f"{len(self._skipped)} of {len(scans)} volumes are already in "
                    f"{self.output_dir}: skipped.",
                    flush=True,
                )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the consistency range from the module, whose checkpoint is now loaded."""
        batches = sum(trainer.num_predict_batches)
        show = self.progress
        if not trainer.is_global_zero and sys.stderr.isatty():
            show = "none"  # the terminal has the bars of rank 0
        self._progress = Progress(int(batches), "scan", show=show)
        if self.check:
            self._check = ConsistencyCheck(
                getattr(pl_module, "consistency_range", None),
                **data_profile(trainer),
                sampled=getattr(getattr(pl_module, "reconstructor", None), "profile", None),
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
        name = batch.scan.relative.as_posix()
        if trainer.world_size > 1:
            name = f"rank {trainer.global_rank}: {name}"
        size = len(outputs) if isinstance(outputs, (ThinSlices, np.ndarray)) else None
        with self._progress.item(name, size):
            self._predict_one(trainer, pl_module, outputs, batch)

    def _predict_one(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: ThinSlices | npt.NDArray[Any] | Exception | None,
        batch: PredictCase,
    ) -> None:
        start = time.perf_counter()
        reason = warning = written = None
        try:
            if batch.volume is None or outputs is None:
                problem = batch.error or "the model returned no prediction"
                raise ValueError(problem.removeprefix(f"{batch.scan.relative.name}: "))
            if isinstance(
                reconstructor := getattr(pl_module, "reconstructor", None), Reconstructor
            ):
                warning = reconstructor.scan_warning(batch.volume)
            if isinstance(outputs, Exception):
                raise outputs
            origin = origin_of(pl_module, self._hash(trainer, pl_module), batch.volume)
            written = self._write(batch.scan, batch.volume, outputs, origin)
            if isinstance(outputs, ThinSlices):
                written = written._replace(order=order_record(outputs.order_faults()))
                warning = "; ".join(filter(None, [warning, *outputs.warnings()])) or None
        except Exception as error:  # other volumes may succeed, whatever the error is
            reason = one_line(error)
            self.disk_full |= self._disk_full
        record = new_record(  # now, as tiles may have become smaller
            batch.scan,
            pl_module,
            self._hash(trainer, pl_module),
            written,
            reason=reason,
            warning=warning,
            seconds=round(time.perf_counter() - start, 3),
        )
        if warning is not None:
            self._warnings.append(Failure(record["file"], warning))
        if reason is None:
            self._written += 1
        else:
            self.failures.append(Failure(record["file"], reason))
            self._progress.fail(reason)
        self._manifest.add(record)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Collect the failures of all ranks, merge their manifests and print the summary."""
        if stage != "predict":
            return
        # Not in on_predict_end, which Lightning does not call on a rank without scans.
        self._progress.close()
        complete = self._manifest.flush()
        summary = self._check.summary if self._check else None
        counts = (self._written, self.failures, self._warnings)
        results = gather((*counts, complete, self.disk_full, summary))
        self.failures = sorted(failure for _, failures, *_ in results for failure in failures)
        self.disk_full = any(r[4] for r in results)
        if not trainer.is_global_zero:
            return
        self._manifest.merge()
        written, complete = sum(r[0] for r in results), all(r[3] for r in results)
        found = sorted(warning for _, _, warnings, *_ in results for warning in warnings)
        lines = outcome_lines(str(self.output_dir), written, self.failures, found)
        if not complete:
            lines.append(f"The last lines of {NAME} could not be written.")
        lines += summary_lines(summary for *_, summary in results if summary is not None)
        checkpoint = self._hash(trainer, pl_module)
        skipped = (new_record(scan, pl_module, checkpoint) for scan in self._skipped)
        lines += note_skipped(self._manifest, skipped)
        if self.progress != "none" or self.failures:
            print("\n".join(lines), flush=True)

    def _write(
        self,
        scan: Scan,
        volume: ScanFile,
        prediction: ThinSlices | npt.NDArray[Any],
        origin: Origin,
    ) -> Written:
        """Write a volume; ``origin`` is recorded in a DICOM series."""
        if isinstance(prediction, ThinSlices):
            ratio, last_first = prediction.ratio, prediction.last_first
        else:
            ratio, last_first = (len(prediction) - 1) // (volume.shape[0] - 1), False
        file_format: Format = self.format if self.dicom_from is None else "dicom"
        as_dicom = writes_dicom(scan, file_format)
        path = output_path(Path(str(self.output_dir)), scan, file_format)
        if self._disk_full:
            # Compute nothing until there is room for this volume without compression.
            voxels = int(np.prod((len(prediction), *volume.shape[1:])))
            needed = voxels * np.dtype(self.dtype).itemsize * 1.01
            if shutil.disk_usage(str(self.output_dir)).free < needed:
                raise OSError(errno.ENOSPC, f"not tried: the disk of {self.output_dir} is full")
        parts = (
            with_error_map(
                prediction,
                path,
                volume,
                "int16" if as_dicom else self.dtype,
                origin if as_dicom and isinstance(volume, DicomScan) else None,
            )
            if isinstance(prediction, ThinSlices)
            else nullcontext((iter([np.asarray(prediction)]), None))
        )
        meter = self._check.meter(volume, ratio, last_first=last_first) if self._check else None
        try:
            with parts as (chunks, errors):
                written = write_result(
                    path,
                    self._progress.watch(meter.watch(chunks) if meter else chunks),
                    volume,
                    ratio,
                    as_dicom=as_dicom,
                    origin=origin,
                    dtype=self.dtype,
                    last_first=last_first,
                )
        except OSError as error:
            self._disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = (
                "; free space and start again, finished volumes are skipped"
                if self._disk_full
                else ""
            )
            raise OSError(f"cannot write {path}: {error.strerror or error}{hint}") from error
        self._disk_full = False
        if errors is not None:
            written = written._replace(error=errors.record())
        if self._check is None or meter is None:
            return written
        name = scan.relative.as_posix()
        return written._replace(consistency=self._check.judge(name, meter))

    def _hash(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
        """Return the SHA-256 of the checkpoint; compute it once."""
        path = trainer.ckpt_path or getattr(pl_module, "weights_file", None)
        if self._checkpoint is None and path is not None:
            with suppress(OSError):  # the file may have been moved since it was loaded
                self._checkpoint = file_sha256(path)
        return self._checkpoint
