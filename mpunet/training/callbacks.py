"""Lightning callbacks for training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from mpunet.data.volumes import VolumeCase
from mpunet.models import DepthInterpolation
from mpunet.report.pictures import coronal, side_by_side

__all__ = ["Checkpoints", "CoronalSamples"]


class CoronalSamples(L.Callback):
    """Save coronal pictures of validation cases in the lung window.

    Each picture shows the thick scan, its cubic interpolation, the network's output and the true
    thin scan. Pictures are saved as PNG files in the subfolder ``samples`` of the run's folder and,
    if the logger is TensorBoard, also logged there.

    Args:
        cases: number of validation cases to draw, starting from the first.
        row: position of the coronal plane along the height (front to back), from 0 to 1.
    """

    def __init__(self, cases: int = 1, row: float = 0.5) -> None:
        self.cases = cases
        self.row = row

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: VolumeCase,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the case that was validated."""
        if batch["index"] >= self.cases or trainer.sanity_checking or trainer.log_dir is None:
            return
        row = int(self.row * (batch["thick"].shape[1] - 1))
        thick, image, thin = (
            v[:, row : row + 1].float().cpu()
            for v in (batch["thick"], outputs["image"], batch["thin"])
        )
        ratio = (len(thin) - 1) // (len(thick) - 1)
        cubic = DepthInterpolation(len(thick), ratio, "cubic")(thick[None, None])[0, 0]
        planes = [np.asarray(plane) for plane in (thick, cubic, image, thin)]
        spacing = batch["spacing"]
        pictures = [
            coronal(plane, (spacing[0] * (ratio if i == 0 else 1), spacing[1], spacing[2]))
            for i, plane in enumerate(planes)
        ]
        picture = side_by_side(pictures)
        folder = Path(trainer.log_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        name = batch["name"].replace("/", "_")
        Image.fromarray(picture).save(folder / f"{name}-step{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_image"):
                experiment.add_image(
                    f"coronal/{name}", picture, trainer.global_step, dataformats="HW"
                )


class Checkpoints(ModelCheckpoint):
    """Lightning's checkpoints, with the best chosen at validations only.

    ``last.ckpt`` is saved after each validation, at the end of every epoch, and as often as
    ``every_n_train_steps`` or ``train_time_interval`` says. Lightning's own callback would also
    choose the best between validations, by the metrics of earlier weights, and save ``last.ckpt``
    only with a new best. If none is saved during training, Lightning writes ``last.ckpt``
    afterwards; with averaged weights (EMA), the average has then replaced the weights that a
    resumed training needs.

    Without validation cases there is no best checkpoint; only ``last.ckpt`` is saved. With
    ``monitor=None``, checkpoints are saved as by Lightning.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn off the best checkpoint if there are no validation cases."""
        super().on_train_start(trainer, pl_module)
        if self.monitor is not None and not sum(trainer.num_val_batches):
            self.monitor, self.save_top_k = None, 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save ``last.ckpt`` if the number of steps or the time says so."""
        if self.monitor is None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        due = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        if self._train_time_interval is not None and self._last_time_checked is not None:
            waited = time.monotonic() - self._last_time_checked
            # All ranks save together, so they follow the clock of the first.
            due = trainer.strategy.broadcast(waited >= self._train_time_interval.total_seconds())
        if due:
            self._last_time_checked = time.monotonic()
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the weights if they are among the best, and then ``last.ckpt``."""
        if self.monitor is None:
            super().on_validation_end(trainer, pl_module)
            return
        debugged = trainer.fast_dev_run  # type: ignore[attr-defined] # Lightning sets it
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or debugged:
            return
        if (trainer.current_epoch + 1) % max(1, self._every_n_epochs) == 0:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save ``last.ckpt``, and without a monitor Lightning's checkpoints."""
        if self.monitor is None:
            super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        """Save ``last.ckpt`` unless a checkpoint of this step exists."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
