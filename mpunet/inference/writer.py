"""Lightning callback that writes predicted volumes, keeps the manifest, and says at the end which ones failed and why."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback

from mpunet import __version__
from mpunet.geometry import grid_spacing, thin_affine
from mpunet.inference.check import ConsistencyCheck, data_profile, gather, summary_lines
from mpunet.inference.manifest import NAME, ConsistencyRecord, Manifest, Record, read_manifest
from mpunet.inference.reconstruct import Reconstructor, ThinSlices
from mpunet.io.scan_file import ScanFile
from mpunet.io.scans import PredictCase, Scan
from mpunet.io.thin_file import Dtype, remove_partials, write_slices
from mpunet.memory import is_out_of_memory
from mpunet.weights import file_sha256

__all__ = ["Failure", "ThinVolumeWriter"]

_SHOWN = 20  # failures in the summary; the manifest has them all


class Failure(NamedTuple):
    """A scan without a result, or with a doubtful one: its path from the input folder, and the reason."""

    relative: str
    reason: str


class ThinVolumeWriter(Callback):
    """Writes each predicted volume under the scan's name and subfolder; a no-op outside ``predict``.

    Works with a datamodule that lists its scans in ``predict_scans`` (a list of :class:`mpunet.io.scans.Scan`, filled in
    ``setup`` and read by ``predict_dataloader``), batches that are a :class:`mpunet.io.scans.PredictCase`, and predictions
    that are :class:`mpunet.inference.ThinSlices`, computed here while they are written, or an array ((D - 1) * ratio + 1, H, W)
    in HU, or an exception that says why there is none, or None where the case has an error.

    What became of each scan is appended to ``manifest.jsonl`` in the output folder, see :class:`mpunet.inference.manifest.Record`.

    Args:
        output_dir: where to write; needed for ``predict``.
        existing: what to do with scans whose output is already there. "skip" goes on where an interrupted run stopped, which
            is safe because a file has its name only when it is whole; "overwrite" does them again, "error" refuses to begin.
        dtype: "int16" rounds and clips to [-1024, 3071] HU; "float32" writes predictions as they are.
        check: thicken each result again while it is written, compare it with the scan, which is read once more for that, and
            warn where they differ by more than 1.5 times what the checkpoint's validation saw; for the command line also --check.

    Attributes:
        failures: after ``predict``, on every rank, the failures of all ranks.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        *,
        existing: Literal["skip", "overwrite", "error"] = "skip",
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
        """Before predict: make the output folder, clear away what killed runs left, and leave only the scans to do in the list."""
        if stage != "predict":
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        scans = getattr(datamodule, "predict_scans", None)
        if scans is None:
            raise ValueError(
                "ThinVolumeWriter needs a datamodule with predict_scans, such as mpunet.ThickThinDataModule."
            )
        # Rank 0 decides for all: when another rank looks at the folder, rank 0 may already have written there.
        todo, problem = trainer.strategy.broadcast(
            self._plan(scans) if trainer.is_global_zero else ([], None)
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
                    f"{len(self._skipped)} of {len(scans)} volumes are already in {self.output_dir}: skipped.",
                    flush=True,
                )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask the module, whose checkpoint is now loaded, what consistency its validation saw."""
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
        """Compute and write one volume, or note why it cannot be."""
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
            except Exception as error:  # whatever it is, the other volumes may still succeed
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
        """After predict: bring the failures of all ranks together, merge their manifests and print the summary."""
        if stage != "predict":
            return
        # Not in on_predict_end, which Lightning leaves out on a rank that has no scan.
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
        print("\n".join([*lines, *self._note_skipped(trainer, pl_module)]), flush=True)

    def _write(
        self, scan: Scan, volume: ScanFile, prediction: ThinSlices | npt.NDArray[Any]
    ) -> tuple[list[int], list[float], ConsistencyRecord | None]:
        """Shape and spacing of the file that was written, along its stored axes, and its consistency if it was checked."""
        ratio = (
            prediction.ratio
            if isinstance(prediction, ThinSlices)
            else (len(prediction) - 1) // (volume.shape[0] - 1)
        )
        path = Path(str(self.output_dir)) / scan.relative
        if (
            self._disk_full
        ):  # wait for more room than any file of this volume takes, before computing for nothing
            needed = (
                int(np.prod((len(prediction), *volume.shape[1:])))
                * np.dtype(self.dtype).itemsize
                * 1.01
            )
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
        lines = [f"  {relative}: {text}" for relative, text in entries[:_SHOWN]]
        if len(entries) > _SHOWN:
            lines.append(
                f"  ... and {len(entries) - _SHOWN} more, see {Path(str(self.output_dir)) / NAME}"
            )
        return lines

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule, scan: Scan) -> Record:
        """The record of a scan that was written, but for what the volume itself tells."""
        reconstructor = getattr(pl_module, "reconstructor", None)
        engine = getattr(reconstructor, "engine", None)
        tile = getattr(engine, "tile", None)
        return Record(
            file=scan.relative.as_posix(),
            status="written",
            reason=None,
            warning=None,
            shape=None,
            spacing=None,
            seconds=None,
            checkpoint=self._hash(trainer, pl_module),
            version=__version__,
            stride=getattr(engine, "stride", None),
            thin_spacing=getattr(reconstructor, "thin_spacing", None),
            tile=None if tile is None else list(tile),
            consistency=None,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _hash(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
        path = trainer.ckpt_path or getattr(pl_module, "weights_file", None)
        if self._checkpoint is None and path is not None:
            with suppress(OSError):  # moved away since it was loaded
                self._checkpoint = file_sha256(path)
        return self._checkpoint

    def _note_skipped(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[str]:
        """Record the results that were there before and of which nothing is known; tell of those that were made in another way."""
        known = read_manifest(Path(str(self.output_dir)))
        others = 0
        for scan in sorted(self._skipped):
            now = self._record(trainer, pl_module, scan)
            before = known.get(now["file"])
            if before is None:
                unknown: Any = dict.fromkeys(("checkpoint", "stride", "thin_spacing", "tile"))
                self._manifest.add({**now, **unknown, "status": "skipped"})
            elif before["status"] == "written":
                changed = any(
                    before[key] != now[key]
                    for key in ("checkpoint", "stride")
                    if now[key] is not None
                )
                others += changed or before.get("thin_spacing") != now["thin_spacing"]
        if not others:
            return []
        return [
            f"{others} of the skipped volumes were made with another checkpoint, stride or thin_spacing (see {NAME}); "
            "--writer.existing overwrite does them again."
        ]

    def _plan(self, scans: Sequence[Scan]) -> tuple[list[Scan], str | None]:
        """The scans to do, or the reason why nothing can be done."""
        if self.output_dir is None:
            return [], "Expected an output folder for predict, got none; give --writer.output_dir."
        output = Path(self.output_dir)
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
        if self.existing == "error" and len(todo) < len(scans):
            done = next(
                output / scan.relative for scan in scans if (output / scan.relative).exists()
            )
            return [], (
                f"{len(scans) - len(todo)} of {len(scans)} outputs are already there, such as {done}; "
                "use --writer.existing skip or overwrite, or another folder."
            )
        return (list(scans) if self.existing == "overwrite" else todo), None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if is_out_of_memory(error) and not isinstance(error, MemoryError):
        return f"not enough memory: {text}"
    return (
        text
        if isinstance(error, (OSError, ValueError, MemoryError)) and text
        else f"{type(error).__name__}: {text}"
    )


def _overlap(output: Path, scans: Sequence[Scan]) -> str | None:
    """Why results in ``output`` would harm the scans, if they would."""
    inputs = {scan.path.resolve() for scan in scans}
    for scan in scans:
        if (output / scan.relative).resolve() in inputs:
            return f"Writing to {output} would overwrite the scan {scan.path}; choose another output folder."
        source = scan.path.parents[len(scan.relative.parts) - 1].resolve()
        # A single scan is the exception: it may be a file given by name, with its result in a folder beside it.
        if len(scans) > 1 and source in output.resolve().parents:
            return f"The output folder {output} is in the input folder {source}, where a later run would take results for scans."
    return None
