"""Lightning callbacks for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
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
    """Lightning's checkpoints, with ``last.ckpt`` also saved at the end of every epoch.

    Thus ``last.ckpt`` includes the last training step. Lightning's own callback misses it if
    checkpoints are saved every few steps. If none is saved during training, Lightning writes
    ``last.ckpt`` afterwards; with averaged weights (EMA), the average has then replaced the weights
    that a resumed training needs.

    Without validation cases there is no best checkpoint; only ``last.ckpt`` is saved.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn off the best checkpoint if there are no validation cases."""
        super().on_train_start(trainer, pl_module)
        if self.monitor is not None and not sum(trainer.num_val_batches):
            self.monitor, self.save_top_k = None, 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save Lightning's checkpoints, and ``last.ckpt``."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
