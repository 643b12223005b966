"""Which weights are saved, and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from mpunet.training.callbacks import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|`dataloader` is empty)")


class Weight(L.LightningModule):
    """A module with given PSNRs, one for each validation."""

    def __init__(self, psnr: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.psnr = iter(psnr)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight - 1).square().sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/psnr", next(self.psnr))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Killed(L.Callback):
    """Records the step of ``last.ckpt`` when each step begins, as a killed run would leave it."""

    def __init__(self, folder: Path) -> None:
        self.last = folder / "last.ckpt"
        self.steps: list[int | None] = []

    def on_train_batch_start(self, *args: object) -> None:
        self.steps.append(step(self.last) if self.last.exists() else None)


def step(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def fit(folder: Path, psnr: Sequence[float], **options: int) -> list[int | None]:
    """Twelve steps with a validation every four; the step of last.ckpt before each of them."""
    saved = Checkpoints(
        dirpath=folder,
        filename="step={step}-psnr={val/psnr:.0f}",
        auto_insert_metric_name=False,
        monitor="val/psnr",
        mode="max",
        save_last=True,
        **options,
    )
    killed = Killed(folder)
    trainer = L.Trainer(
        max_steps=12,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[saved, killed],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    crops = torch.utils.data.DataLoader(torch.zeros(20, 1))
    trainer.fit(Weight(psnr), crops, torch.utils.data.DataLoader(torch.zeros(1, 1)))
    return killed.steps


@pytest.mark.parametrize("options", [{}, {"every_n_train_steps": 2}])
def test_the_best_are_the_weights_that_were_validated(
    tmp_path: Path, options: dict[str, int]
) -> None:
    fit(tmp_path, [1, 3, 2], save_top_k=2, **options)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last.ckpt", "step=12-psnr=2.ckpt", "step=8-psnr=3.ckpt"]
    assert [step(tmp_path / name) for name in names] == [12, 12, 8]


def test_last_is_never_older_than_asked_for(tmp_path: Path) -> None:
    """Also before the first validation, and without a new best."""
    assert fit(tmp_path / "validations", [3, 2, 1]) == [None] * 4 + [4] * 4 + [8] * 4
    steps = fit(tmp_path / "steps", [3, 2, 1], every_n_train_steps=2)
    assert steps == [None, None, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


def test_resuming_knows_the_best(tmp_path: Path) -> None:
    fit(tmp_path, [1, 3, 2])
    saved = next(iter(torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"].values()))
    assert Path(saved["best_model_path"]).name == "step=8-psnr=3.ckpt"
