"""The LightningModule: steps, logging and optimisers only. The network, the losses and the engine know nothing of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mpunet.config import Configurable, from_config, to_config
from mpunet.data.crops import CropBatch
from mpunet.data.volumes import VolumeCase
from mpunet.inference.check import data_profile, gather
from mpunet.inference.options import InferenceOptions, window_stride
from mpunet.inference.reconstruct import Reconstructor, ThinSlices
from mpunet.inference.spacing import SliceSpacing
from mpunet.io.scans import PredictCase
from mpunet.losses import Objective
from mpunet.metrics.consistency import ConsistencyRange, consistency
from mpunet.models import MPUNet
from mpunet.models.base import as_output, geometry_of
from mpunet.training.adversarial import CriticTraining
from mpunet.training.case_metrics import CaseMetrics, hu_metrics
from mpunet.training.muon import Muon
from mpunet.weights import Weights

__all__ = ["MPUNetModule"]


class MPUNetModule(L.LightningModule):
    """Trains a thick-to-thin network on crops; validates, tests and predicts on whole volumes.

    A critic ("MPU-Net + W-GAN") is optimised by hand within :meth:`training_step`, and the network by Lightning as ever: so steps,
    learning rate schedule, gradient clipping, accumulation and loss scaling mean the same with a critic as without.

    Args:
        net: the network, a :class:`mpunet.models.ThickToThin` or its ``{"class_path": ..., "init_args": ...}``; the paper's by default.
        objective: the losses and their weights, likewise.
        lr: learning rate after warm-up (AdamW; our choice, as the paper names no optimiser).
        betas: AdamW's. A shorter memory of squared gradients, such as 0.95 for 0.999, bears a higher ``lr`` (docs/choices.md).
        weight_decay: the optimiser's; by default 0.01 with AdamW and 1 with Muon, which needs it (docs/choices.md).
        muon_lr: learning rate of Muon, which then steps the kernels, and AdamW all else; see :class:`mpunet.training.muon.Muon`.
        warmup_steps: steps of linear warm-up, before a cosine decay over what is left of the trainer's steps or epochs.
        lr_floor: what the cosine ends at, as a share of ``lr``.
        critic: a WGAN-GP critic, likewise, such as :class:`mpunet.models.Critic`; none by default.
        adversarial: weight of the adversarial loss beside the objective. It pulls each crop with a gradient of norm 1 times this;
            L1 with 1 / sqrt(voxels), which is 2.6e-3 for 36 x 64 x 64 and 6.5e-4 for 36 x 256 x 256.
        gradient_penalty: weight of the penalty in the critic's loss.
        critic_steps: the critic's updates on each batch, before the network's.
        critic_lr: the critic's learning rate; see :class:`mpunet.training.adversarial.CriticTraining`.

    Attributes:
        inference: how whole volumes are reconstructed, an :class:`mpunet.inference.InferenceOptions`. No argument, as it belongs to
            a run and not into a checkpoint.
        consistency_range: how far reconstructions, thickened again, were from their input in the last complete validation; kept in
            the checkpoint for ``predict --check``. None before.
        training_record: what the network was trained on, from the checkpoint, see
            :meth:`mpunet.ThickThinDataModule.training_record`; None where it is not known.
        weights_file: the file that :meth:`load_weights` had the network from.
    """

    def __init__(
        self,
        net: nn.Module | dict[str, Any] | None = None,
        objective: nn.Module | dict[str, Any] | None = None,
        *,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float | None = None,
        muon_lr: float | None = None,
        warmup_steps: int = 100,
        lr_floor: float = 0.01,
        critic: nn.Module | dict[str, Any] | None = None,
        adversarial: float = 1e-3,
        gradient_penalty: float = 10.0,
        critic_steps: int = 1,
        critic_lr: float = 1e-4,
    ) -> None:
        super().__init__()
        given = {
            "net": MPUNet() if net is None else net,
            "objective": Objective() if objective is None else objective,
        }
        if critic is not None:
            given["critic"] = critic
        parts = {
            name: from_config(part) if isinstance(part, dict) else part
            for name, part in given.items()
        }
        # Modules go into the checkpoint as plain values, so that weights_only loading can read it and rebuild them.
        configs = {
            name: to_config(part) for name, part in parts.items() if isinstance(part, Configurable)
        }
        self.save_hyperparameters(ignore=list(configs))
        self.save_hyperparameters(configs)
        # The order of channels that 3D convolutions are fastest with, on CPUs as on GPUs.
        self.net = parts["net"].to(memory_format=torch.channels_last_3d)
        self.objective = parts["objective"]
        self.critic = parts.get("critic")
        self._critic_training: CriticTraining | None = None
        self._critic_state: dict[str, Any] | None = None
        if self.critic is not None:
            self._critic_training = CriticTraining(
                self.critic,
                weight=adversarial,
                penalty=gradient_penalty,
                steps=critic_steps,
                lr=critic_lr,
            )
        self.lr = lr
        self.betas = betas
        self.weight_decay = (
            (0.01 if muon_lr is None else 1.0) if weight_decay is None else weight_decay
        )
        self.muon_lr = muon_lr
        self.warmup_steps = warmup_steps
        self.lr_floor = lr_floor
        self.inference = InferenceOptions()
        self._reconstructor: Reconstructor | None = None
        self.val_metrics = CaseMetrics()
        self.test_metrics = CaseMetrics()
        self.consistency_range: ConsistencyRange | None = None
        self.training_record: dict[str, Any] | None = None
        self.weights_file: Path | None = None
        self._consistency: dict[int, float] = {}

    def setup(self, stage: str) -> None:
        """Check options and load what training needs beside the network (VGG-16 for feature matching) before the data are read."""
        self._reconstructor = None
        window_stride(self.inference.stride, geometry_of(self.net).n_thick)
        if stage == "fit" and isinstance(self.objective, Objective):
            self.objective.prepare()

    @property
    def reconstructor(self) -> Reconstructor:
        """What reconstructs whole volumes: the network with ``inference`` as it was at the stage's first volume."""
        if self._reconstructor is None or self._reconstructor.device != self.device:
            options = dict(vars(self.inference))
            del options["limit_memory"]  # the process's, not the reconstructor's
            known = (
                None
                if options.pop("any_spacing")
                else SliceSpacing.from_record(self.training_record)
            )
            if options["flips"] is None:
                options["flips"] = bool(self._known_training().get("flips"))
            self._reconstructor = Reconstructor.from_network(
                self.net, device=self.device, check_hu=False, spacing=known, **options
            )
        return self._reconstructor

    def forward(self, thick: Tensor) -> Any:
        """(B, 1, n, H, W) in [0, 1] to the network's output."""
        return self.net(thick)

    def training_step(self, batch: CropBatch, batch_idx: int) -> Tensor:
        """The objective on a batch of crops, and the adversarial loss if there is a critic, which is updated first."""
        output = as_output(self.net(batch["thick"]))
        losses: dict[str, Tensor] = self.objective(output, batch["thin"], batch["lung"])
        if self._critic_training is not None:
            losses = self._add_adversarial(
                self._critic_training, losses, batch["thin"], output.image
            )
        self.log_dict(
            {f"train/{name}": value for name, value in losses.items()},
            batch_size=len(batch["thick"]),
        )
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the cases of a validation that was interrupted."""
        self._consistency.clear()

    def validation_step(self, batch: VolumeCase, batch_idx: int) -> dict[str, Any]:
        """Reconstruct a whole case, measure it in HU, and compare it, thickened again, with the thick slices."""
        result = self._evaluate(batch, self.val_metrics)
        thin, thick = (image.float().cpu().numpy() for image in (result["image"], batch["thick"]))
        self._consistency[batch["index"]] = consistency(
            thin, thick, **data_profile(self.trainer)
        ).mae
        return result

    def test_step(self, batch: VolumeCase, batch_idx: int) -> dict[str, Any]:
        """Likewise."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the means over cases, and keep the range of their consistency for the checkpoint."""
        self._log_metrics("val", self.val_metrics)
        cases = {
            index: mae for rank in gather(self._consistency) for index, mae in rank.items()
        }  # repeats of the sampler once
        self.log("val/consistency", sum(cases.values()) / len(cases), prog_bar=True)
        if not self.trainer.sanity_checking and math.isfinite(high := max(cases.values())):
            self.consistency_range = ConsistencyRange(
                min(cases.values()), high, len(cases), **data_profile(self.trainer)
            )

    def on_test_epoch_end(self) -> None:
        """Likewise."""
        self._log_metrics("test", self.test_metrics)

    def predict_step(self, batch: PredictCase, batch_idx: int) -> ThinSlices | ValueError | None:
        """Thin slices ((D - 1) * r + 1, H, W) of a thick scan, computed while they are taken; None where it could not be read.

        A scan that ``inference`` cannot serve costs the others nothing: its error is returned.
        """
        try:
            return None if batch.volume is None else self.reconstructor.stream(batch.volume)
        except ValueError as error:
            return error

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, or Muon, with linear warm-up and cosine decay, stepped with every batch."""
        if self._critic_training is not None:
            self._critic_training.start(self._critic_state if self.trainer.ckpt_path else None)
        parameters = [*self.net.parameters(), *self.objective.parameters()]
        options: dict[str, Any] = {
            "lr": self.lr,
            "betas": self.betas,
            "weight_decay": self.weight_decay,
        }
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, **options)
            if self.muon_lr is None
            else Muon(parameters, muon_lr=self.muon_lr, **options)
        )
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._lr_factor(step, total)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def load_weights(self, weights: Weights) -> None:
        """Take a network's weights and what is known of them, to predict with.

        Raises:
            ValueError: if they do not fit.
        """
        self.net.load_state_dict(weights.network().state_dict())
        self.training_record = weights.record.get("training")
        known = weights.record.get("consistency")
        self.consistency_range = None if known is None else ConsistencyRange(**known)
        self.weights_file = weights.source

    def initialize_from(self, weights: Weights) -> list[str]:
        """Take what fits, by name and shape, to train on from; the names of the tensors that begin at random.

        A network for another ratio can begin with all but a few. The checkpoint's record tells what it began with.

        Raises:
            ValueError: if nothing fits.
        """
        own = self.net.state_dict()
        fitting = {
            key: value
            for key, value in weights.tensors.items()
            if key in own and own[key].shape == value.shape
        }
        if not fitting:
            raise ValueError(
                f"{weights.source} has no tensor that {type(self.net).__name__} could take: it is for another network."
            )
        self.net.load_state_dict({**own, **fitting})
        before = {
            "file": weights.source.name,
            "sha256": weights.sha256,
            "training": weights.record.get("training"),
        }
        self.training_record = {"began_with": before}
        return sorted(set(own) - set(fitting))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what was trained on, the range of consistency, and the state of the critic's optimiser where Lightning saves the network's."""
        if known := self._known_training():
            checkpoint["training"] = known
        if self.consistency_range is not None:
            checkpoint["consistency"] = self.consistency_range._asdict()
        if self._critic_training is not None and "optimizer_states" in checkpoint:
            checkpoint["critic_optimizer"] = self._critic_training.optimizer.state_dict()

    def _known_training(self) -> dict[str, Any]:
        """The record of the data that are being trained on, or else of those that the checkpoint was trained on."""
        known = self.training_record or {}
        record: dict[str, Any] = getattr(
            getattr(self._trainer, "datamodule", None), "training_record", dict
        )()
        return (
            {**record, **({"began_with": known["began_with"]} if "began_with" in known else {})}
            if record
            else known
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take record and range; keep that state until the critic is on its device: a fit that goes on from this checkpoint takes it."""
        self.training_record = checkpoint.get("training")
        known = checkpoint.get("consistency")
        self.consistency_range = None if known is None else ConsistencyRange(**known)
        self._critic_state = checkpoint.get("critic_optimizer")

    def _add_adversarial(
        self, critic: CriticTraining, losses: dict[str, Tensor], real: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        # Each step and rank its own numbers, the same after a resume; the global generator stays as it is without a critic.
        seed = self.trainer.global_step * self.trainer.world_size + self.global_rank
        generator = torch.Generator().manual_seed(seed)
        critic_losses = critic.step(
            real, fake, generator=generator, mean_over_ranks=self.trainer.strategy.reduce
        )
        adversarial = critic.generator_loss(fake)
        total = losses["loss"] + critic.weight * adversarial
        return {**losses, "loss": total, "adversarial": adversarial, **critic_losses}

    def _lr_factor(self, step: int, total: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if math.isinf(total):  # training without an end has no decay
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        return self.lr_floor + (1 - self.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def _evaluate(self, batch: VolumeCase, metrics: CaseMetrics) -> dict[str, Any]:
        image = self.reconstructor(batch["thick"])
        values = hu_metrics(image, batch["thin"], batch["lung"])
        metrics.update(batch["index"], values)
        return {"image": image, "metrics": values}

    def _log_metrics(self, stage: str, metrics: CaseMetrics) -> None:
        self.log_dict(
            {f"{stage}/{name}": value for name, value in metrics.compute().items()}, prog_bar=True
        )
        metrics.reset()
