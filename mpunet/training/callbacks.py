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
    """Coronal pictures of validation cases: thick, cubic, the network's, and the truth, in the lung window.

    They go to TensorBoard where that is the logger, and as PNG files into ``samples`` below the run's folder in any case.

    Args:
        cases: how many of the validation cases, the first ones.
        row: where along the height (front to back), 0 to 1.
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
        """Draw the case."""
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
    """Lightning's, whose ``last.ckpt`` is also written at the end of every epoch, and so with the last step of a training.

    Lightning's own leaves that step out where checkpoints are saved every so many steps. And where none is, it writes ``last.ckpt`` once
    training is over: with averaged weights (EMA) the average has then taken the place of the weights to train on from.

    Where a split leaves no case to validate on there is no best checkpoint, and the last is the only one.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See whether there is anything to monitor."""
        super().on_train_start(trainer, pl_module)
        if self.monitor is not None and not sum(trainer.num_val_batches):
            self.monitor, self.save_top_k = None, 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what Lightning saves, and the last."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
