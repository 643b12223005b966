"""The LightningModule: training, validation, test and prediction steps, and logging.

The network, the losses and the reconstruction engine do not depend on it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mpunet.config import Configurable, from_config, to_config
from mpunet.data.crops import CropBatch
from mpunet.data.volumes import VolumeCase
from mpunet.inference.check import data_profile, gather
from mpunet.inference.errors import ErrorModel
from mpunet.inference.options import InferenceOptions, window_stride
from mpunet.inference.reconstruct import Reconstructor, ThinSlices
from mpunet.inference.spacing import SliceSpacing
from mpunet.io.scans import PredictCase
from mpunet.losses import Objective
from mpunet.memory import channels_last
from mpunet.metrics.consistency import ConsistencyRange, consistency
from mpunet.models import MPUNet
from mpunet.models.base import as_output, geometry_of
from mpunet.slices.sampled_profile import read_profile
from mpunet.training.adversarial import CriticTraining
from mpunet.training.case_metrics import CaseMetrics, hu_metrics
from mpunet.training.optimizers import lr_factor, make_optimizer
from mpunet.training.recorded_module import RecordedModule

__all__ = ["MPUNetModule"]


class MPUNetModule(RecordedModule):
    """Train a thick-to-thin network on crops; validate, test and predict on whole volumes.

    An optional critic ("MPU-Net + W-GAN") is updated manually within :meth:`training_step`, while
    Lightning optimises the network as usual. Therefore training steps, learning rate schedule,
    gradient clipping, gradient accumulation and loss scaling are the same with and without a
    critic.

    Args:
        net: the network: a :class:`mpunet.models.ThickToThin`, or a dictionary with its
            ``class_path`` and ``init_args``. Default: the network of the paper.
        objective: the losses and their weights: a module such as :class:`mpunet.losses.Objective`,
            or a dictionary with its ``class_path`` and ``init_args``. Default:
            :class:`mpunet.losses.Objective` with its default weights.
        lr: learning rate of AdamW after the warm-up. AdamW is our choice; the paper does not name
            an optimiser.
        betas: decay rates of AdamW's averages of gradients and squared gradients. A smaller second
            value, such as 0.95, allows a higher learning rate (docs/choices.md).
        weight_decay: weight decay of the optimiser. Default: 0.01 with AdamW; 1 with Muon, which
            needs a strong decay (docs/choices.md).
        muon_lr: learning rate of the optimiser Muon for convolution kernels; AdamW updates all
            other parameters (see :class:`mpunet.training.muon.Muon`). Default: AdamW only.
        warmup_steps: number of training steps in which the learning rate rises linearly. A cosine
            decay over the remaining steps follows.
        lr_floor: learning rate at the end of the cosine decay, as a fraction of ``lr``.
        critic: a WGAN-GP critic for adversarial training: a module such as
            :class:`mpunet.models.Critic`, or a dictionary with its ``class_path`` and
            ``init_args``. Default: no critic.
        adversarial: weight of the adversarial loss, which is added to the objective. Its gradient
            with respect to a crop has about the norm of this weight; the gradient of L1 has
            1 / sqrt(voxels), which is 2.6e-3 for 36 x 64 x 64 and 6.5e-4 for 36 x 256 x 256 voxels.
        gradient_penalty: weight of the gradient penalty in the critic's loss.
        critic_steps: number of critic updates per batch, before the update of the network.
        critic_lr: learning rate of the critic, which is constant (Adam).

    Attributes:
        inference: options for the reconstruction of whole volumes, an
            :class:`mpunet.inference.InferenceOptions`. It is not an argument, because it belongs to
            a run and is not stored in checkpoints.
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
        # Checkpoints store modules as plain values (class and arguments), so that they can be
        # loaded with weights_only and the modules can be rebuilt.
        configs = {
            name: to_config(part) for name, part in parts.items() if isinstance(part, Configurable)
        }
        self.save_hyperparameters(ignore=list(configs))
        self.save_hyperparameters(configs)
        self.net = channels_last(parts["net"])
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
        self._consistency: dict[int, float] = {}
        self._rates: list[dict[str, Any]] = []  # options of the optimiser's groups

    def setup(self, stage: str) -> None:
        """Check the options and load VGG-16 for feature matching before the data are read."""
        self._reconstructor = None
        window_stride(self.inference.stride, geometry_of(self.net).n_thick)
        if self.inference.profile is not None:
            read_profile(self.inference.profile)
        if stage == "fit" and isinstance(self.objective, Objective):
            self.objective.prepare()

    @property
    def reconstructor(self) -> Reconstructor:
        """The reconstructor of whole volumes, with ``inference`` as at the stage's first volume."""
        if self._reconstructor is None or self._reconstructor.device != self.device:
            options = dict(vars(self.inference))
            del options["limit_memory"]  # applies to the process, not to the reconstructor
            known = (
                None
                if options.pop("any_spacing")
                else SliceSpacing.from_record(self.training_record)
            )
            if options.pop("error_map"):
                options["error"] = ErrorModel.from_record(self.error_record)
            if options["flips"] is None:
                options["flips"] = bool(self._current_record().get("flips"))
            self._reconstructor = Reconstructor.from_network(
                self.net, device=self.device, check_hu=False, spacing=known, **options
            )
        return self._reconstructor

    def forward(self, thick: Tensor) -> Any:
        """Apply the network to windows (B, 1, n, H, W) with intensities in [0, 1]."""
        return self.net(thick)

    def training_step(self, batch: CropBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops; if there is a critic, update it first."""
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
        """Discard the cases of an interrupted validation."""
        self._consistency.clear()

    def validation_step(self, batch: VolumeCase, batch_idx: int) -> dict[str, Any]:
        """Reconstruct a case; measure its quality in HU and its consistency with the thick scan."""
        result = self._evaluate(batch, self.val_metrics)
        thin, thick = (image.float().cpu().numpy() for image in (result["image"], batch["thick"]))
        self._consistency[batch["index"]] = consistency(
            thin, thick, **data_profile(self.trainer)
        ).mae
        return result

    def test_step(self, batch: VolumeCase, batch_idx: int) -> dict[str, Any]:
        """Reconstruct a case and measure its quality in HU."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the means over cases and store their consistency range for the checkpoint."""
        self._log_metrics("val", self.val_metrics)
        # The sampler may repeat cases on several ranks; count each case once.
        cases = {index: mae for rank in gather(self._consistency) for index, mae in rank.items()}
        self.log("val/consistency", sum(cases.values()) / len(cases), prog_bar=True)
        if not self.trainer.sanity_checking and math.isfinite(high := max(cases.values())):
            self.consistency_range = ConsistencyRange(
                min(cases.values()), high, len(cases), **data_profile(self.trainer)
            )

    def on_test_epoch_end(self) -> None:
        """Log the means over cases."""
        self._log_metrics("test", self.test_metrics)

    def on_predict_start(self) -> None:
        """Raise an error for invalid options before the first scan."""
        _ = self.reconstructor

    def predict_step(self, batch: PredictCase, batch_idx: int) -> ThinSlices | ValueError | None:
        """Return the thin slices of a scan, which are computed while they are read.

        Returns:
            Slices ((D - 1) * r + 1, H, W); None if the scan could not be read; or the error, so
            that the run continues, if the options ``inference`` do not fit the scan.
        """
        try:
            return None if batch.volume is None else self.reconstructor.stream(batch.volume)
        except ValueError as error:
            return error

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Create the optimiser and a schedule of warm-up and cosine decay, updated every step."""
        if self._critic_training is not None:
            self._critic_training.start(self._critic_state if self.trainer.ckpt_path else None)
        parameters = [*self.net.parameters(), *self.objective.parameters()]
        optimizer = make_optimizer(
            parameters,
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            muon_lr=self.muon_lr,
        )
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: lr_factor(
                step, total, warmup_steps=self.warmup_steps, floor=self.lr_floor
            ),
        )
        self._rates = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Set the rates of this training: resuming has restored those of the checkpoint."""
        if not self._rates:  # a subclass has its own optimiser
            return
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        scheduler.base_lrs = [rates["initial_lr"] for rates in self._rates]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, rates, factor in zip(optimizer.param_groups, self._rates, factors, strict=True):
            group.update({**rates, "lr": rates["initial_lr"] * factor})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, and the state of the critic's optimiser if the network's is saved."""
        super().on_save_checkpoint(checkpoint)
        if self._critic_training is not None and "optimizer_states" in checkpoint:
            checkpoint["critic_optimizer"] = self._critic_training.optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the record, and keep the state of the critic's optimiser to resume a training."""
        super().on_load_checkpoint(checkpoint)
        # Used in configure_optimizers, when the critic is on its device.
        self._critic_state = checkpoint.get("critic_optimizer")

    def _add_adversarial(
        self, critic: CriticTraining, losses: dict[str, Tensor], real: Tensor, fake: Tensor
    ) -> dict[str, Tensor]:
        # A seed per step and rank gives the same numbers after a resume, and leaves the global
        # generator in the same state as without a critic.
        seed = self.trainer.global_step * self.trainer.world_size + self.global_rank
        generator = torch.Generator().manual_seed(seed)
        critic_losses = critic.step(
            real, fake, generator=generator, mean_over_ranks=self.trainer.strategy.reduce
        )
        adversarial = critic.generator_loss(fake)
        total = losses["loss"] + critic.weight * adversarial
        return {**losses, "loss": total, "adversarial": adversarial, **critic_losses}

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
