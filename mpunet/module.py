"""The LightningModule: steps, logging and optimisers only. The network, the losses and the engine know nothing of it."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mpunet.config import Configurable, from_config, to_config
from mpunet.data.datamodule import CropBatch, VolumeCase
from mpunet.data.scans import PredictCase
from mpunet.inference.reconstruct import Reconstructor
from mpunet.losses import Objective
from mpunet.metrics import CaseMetrics, hu_metrics
from mpunet.models import MPUNet

__all__ = ["MPUNetModule"]


class MPUNetModule(L.LightningModule):
    """Trains a thick-to-thin network on crops; validates, tests and predicts on whole volumes.

    Args:
        net: the network, a :class:`mpunet.models.ThickToThin` or its ``{"class_path": ..., "init_args": ...}``; the paper's by default.
        objective: the losses and their weights, likewise.
        lr: learning rate after warm-up (AdamW; our choice, as the paper names no optimiser).
        weight_decay: AdamW's.
        warmup_steps: steps of linear warm-up, before a cosine decay over what is left of the trainer's steps or epochs.
        lr_floor: what the cosine ends at, as a share of ``lr``.
    """

    def __init__(
        self,
        net: nn.Module | dict[str, Any] | None = None,
        objective: nn.Module | dict[str, Any] | None = None,
        *,
        lr: float = 5e-4,
        weight_decay: float = 1e-2,
        warmup_steps: int = 100,
        lr_floor: float = 0.01,
    ) -> None:
        super().__init__()
        given = {"net": MPUNet() if net is None else net, "objective": Objective() if objective is None else objective}
        parts = {name: from_config(part) if isinstance(part, dict) else part for name, part in given.items()}
        # Modules go into the checkpoint as plain values, so that weights_only loading can read it and rebuild them.
        configs = {name: to_config(part) for name, part in parts.items() if isinstance(part, Configurable)}
        self.save_hyperparameters(ignore=list(configs))
        self.save_hyperparameters(configs)
        # The order of channels that 3D convolutions are fastest with, on CPUs as on GPUs.
        self.net = parts["net"].to(memory_format=torch.channels_last_3d)
        self.objective = parts["objective"]
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.lr_floor = lr_floor
        self.val_metrics = CaseMetrics()
        self.test_metrics = CaseMetrics()

    def setup(self, stage: str) -> None:
        """Load what training needs beside the network (VGG-16 for feature matching), so that it fails before the data are read."""
        if stage == "fit" and isinstance(self.objective, Objective):
            self.objective.prepare()

    def forward(self, thick: Tensor) -> Any:
        """(B, 1, n, H, W) in [0, 1] to the network's output."""
        return self.net(thick)

    def training_step(self, batch: CropBatch, batch_idx: int) -> Tensor:
        """The objective on a batch of crops."""
        losses: dict[str, Tensor] = self.objective(self.net(batch["thick"]), batch["thin"], batch["lung"])
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch["thick"]))
        return losses["loss"]

    def validation_step(self, batch: VolumeCase, batch_idx: int) -> dict[str, Any]:
        """Reconstruct a whole case and measure it in HU."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: VolumeCase, batch_idx: int) -> dict[str, Any]:
        """Likewise."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the means over cases."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Likewise."""
        self._log_metrics("test", self.test_metrics)

    def predict_step(self, batch: PredictCase, batch_idx: int) -> npt.NDArray[np.float32] | None:
        """Thin slab ((D - 1) * r + 1, H, W) in HU of a thick scan; None where the scan could not be read."""
        return None if batch.volume is None else self._reconstructor().reconstruct_volume(batch.volume, dtype="float32")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and cosine decay, stepped with every batch."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._lr_factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_factor(self, step: int, total: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if math.isinf(total):  # training without an end has no decay
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        return self.lr_floor + (1 - self.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def _evaluate(self, batch: VolumeCase, metrics: CaseMetrics) -> dict[str, Any]:
        image = self._reconstructor()(batch["thick"])
        values = hu_metrics(image, batch["thin"], batch["lung"])
        metrics.update(batch["index"], values)
        return {"image": image, "metrics": values}

    def _log_metrics(self, stage: str, metrics: CaseMetrics) -> None:
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.compute().items()}, prog_bar=True)
        metrics.reset()

    def _reconstructor(self) -> Reconstructor:
        stride = getattr(getattr(self.trainer, "datamodule", None), "stride", 1)
        return Reconstructor.from_network(self.net, stride=stride, device=self.device, check_hu=False)
