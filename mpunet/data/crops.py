"""Random crops for training, drawn so that an interrupted training goes on with the crop that was next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mpunet.data.cache import CachedCase

__all__ = ["CropBatch", "CropLoader", "CropSampler", "Crops"]


class CropBatch(TypedDict):
    """A training batch: ``thick`` (B, 1, n, h, w) and ``thin`` (B, 1, N, h, w) in [0, 1], ``lung`` (B, 1, N, h, w) in {0, 1}."""

    thick: Tensor
    thin: Tensor
    lung: Tensor


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops: item i is the same for the same seed, whichever worker or rank draws it.

    Args:
        cases: cached cases, each drawn equally often.
        transforms: see :func:`mpunet.data.transforms.training_transforms`.
        length: crops in one epoch.
        turned: cases whose depth was in plane, see :mod:`mpunet.slices.in_plane`.
        turned_rate: share of the crops that are drawn from them; all, where there are no other cases.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        transforms: Any,
        *,
        length: int,
        seed: int = 0,
        turned: Sequence[CachedCase] = (),
        turned_rate: float = 0.0,
    ) -> None:
        self.cases = cases
        self.transforms = transforms
        self.length = length
        self.seed = seed
        self.turned = turned
        self.turned_rate = turned_rate

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, item])
        cases = (
            self.turned
            if self.turned and (not self.cases or rng.random() < self.turned_rate)
            else self.cases
        )
        case = cases[int(rng.integers(len(cases)))]
        self.transforms.set_random_state(seed=int(rng.integers(2**32 - 1)))
        data: dict[str, Any] = {"thin": case.thin, "lung": case.lung, "lung_box": case.lung_box}
        if case.thick is not None:
            data["thick"] = case.thick
        out = self.transforms(data)
        return {key: out[key] for key in ("thick", "thin", "lung")}


class CropSampler(DistributedSampler[int]):
    """Each rank's share of an epoch's items, numbered on from where the training stands: no epoch repeats another, and one that is
    resumed half-way goes on with the crop that was next.

    Args:
        crops: the dataset.
        trainer: tells how many batches were trained on so far; without one, epochs are counted by ``set_epoch``.
        batch_size: crops in a batch, per rank.
    """

    def __init__(self, crops: Crops, trainer: L.Trainer | None, *, batch_size: int) -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        super().__init__(crops, num_replicas=world, rank=rank, shuffle=False, drop_last=True)
        self.trainer = trainer
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        if self.trainer is None:
            first = self.epoch * self.total_size
        else:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
            first = progress.processed * self.batch_size * self.num_replicas
        return (first + i for i in super().__iter__())


class CropLoader(DataLoader[dict[str, Tensor]]):
    """A loader that Lightning knows to be resumable; there is no state to keep, as :class:`CropSampler` counts by the trainer's."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""
