"""Lightning callback that writes predicted volumes, and says at the end which ones failed and why."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy.typing as npt
import torch.distributed
from lightning.pytorch.callbacks import BasePredictionWriter

from mpunet.data.scans import PredictCase, Scan
from mpunet.data.volume import write_volume

__all__ = ["Failure", "ThinVolumeWriter"]


class Failure(NamedTuple):
    """A scan without a result: its path from the input folder, and the reason."""

    relative: str
    reason: str


class ThinVolumeWriter(BasePredictionWriter):
    """Writes each predicted volume under the scan's name and subfolder; a no-op outside ``predict``.

    Works with a datamodule that lists its scans in ``predict_scans`` (a list of :class:`mpunet.data.scans.Scan`, filled in
    ``setup`` and read by ``predict_dataloader``), batches that are a :class:`mpunet.data.scans.PredictCase`, and predictions
    that are the thin slab ((D - 1) * ratio + 1, H, W) in HU, or None where the case has an error.

    Args:
        output_dir: where to write; needed for ``predict``.
        existing: what to do with scans whose output is already there. "skip" goes on where an interrupted run stopped, which
            is safe because a file has its name only when it is whole; "overwrite" does them again, "error" refuses to begin.
        dtype: "int16" rounds and clips to [-1024, 3071] HU; "float32" writes predictions as they are.

    Attributes:
        failures: after ``predict``, on every rank, the failures of all ranks.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        *,
        existing: Literal["skip", "overwrite", "error"] = "skip",
        dtype: Literal["int16", "float32"] = "int16",
    ) -> None:
        super().__init__("batch")
        self.output_dir = output_dir
        self.existing = existing
        self.dtype = dtype
        self.failures: list[Failure] = []
        self._written = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before predict: make the output folder and leave only the scans to do in the datamodule's list."""
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        self.failures, self._written = [], 0
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        scans = getattr(datamodule, "predict_scans", None)
        if scans is None:
            raise ValueError("ThinVolumeWriter needs a datamodule with predict_scans, such as mpunet.ThickThinDataModule.")
        # Rank 0 decides for all: when another rank looks at the folder, rank 0 may already have written there.
        todo, problem = trainer.strategy.broadcast(self._plan(scans) if trainer.is_global_zero else ([], None))
        if problem is not None:
            raise ValueError(problem)
        if 0 < len(todo) < trainer.world_size:
            # Lightning's sampler for prediction asserts one case per rank, without a word.
            raise ValueError(
                f"Expected at least one scan per device, got {len(todo)} to predict on {trainer.world_size} devices; "
                f"use --trainer.devices {len(todo)}."
            )
        datamodule.predict_scans = todo
        if len(todo) < len(scans) and trainer.is_global_zero:
            print(f"{len(scans) - len(todo)} of {len(scans)} volumes are already in {self.output_dir}: skipped.", flush=True)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: npt.NDArray[Any] | None,
        batch_indices: Sequence[int] | None,
        batch: PredictCase,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one volume, or note why it cannot be."""
        relative = batch.scan.relative
        if batch.volume is None or prediction is None:
            reason = (batch.error or "the model returned no prediction").removeprefix(f"{relative.name}: ")
            self.failures.append(Failure(str(relative), reason))
            return
        path = Path(str(self.output_dir)) / relative
        ratio = (len(prediction) - 1) // (len(batch.volume.slab) - 1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, prediction, batch.volume, ratio, dtype=self.dtype)
            self._written += 1
        except Exception as error:  # disk full, no permission: the other volumes may still find their place
            self.failures.append(Failure(str(relative), f"cannot write {path}: {error}"))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the failures of all ranks together and print the summary."""
        results = [(self._written, self.failures)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            results *= trainer.world_size
            torch.distributed.all_gather_object(results, (self._written, self.failures))
        self.failures = sorted(failure for _, failures in results for failure in failures)
        if trainer.is_global_zero:
            summary = f"{sum(written for written, _ in results)} volumes written to {self.output_dir}"
            if self.failures:
                summary += f", {len(self.failures)} failed:"
            print("\n".join([summary, *(f"  {relative}: {reason}" for relative, reason in self.failures)]), flush=True)

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
        todo = [scan for scan in scans if not (output / scan.relative).exists()]
        if self.existing == "error" and len(todo) < len(scans):
            done = next(output / scan.relative for scan in scans if (output / scan.relative).exists())
            return [], (
                f"{len(scans) - len(todo)} of {len(scans)} outputs are already there, such as {done}; "
                "use --writer.existing skip or overwrite, or another folder."
            )
        return (list(scans) if self.existing == "overwrite" else todo), None


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
