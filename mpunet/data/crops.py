"""Random training crops in a fixed order, so that a resumed training continues with the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mpunet.data.cache import CachedCase
from mpunet.memory import available_cores

__all__ = [
    "CropBatch",
    "CropLoader",
    "CropSampler",
    "Crops",
    "crop_geometry",
    "crop_loader",
    "default_workers",
]


class CropBatch(TypedDict):
    """A training batch.

    Attributes:
        thick: thick slices (B, 1, n, h, w) in [0, 1].
        thin: thin slices (B, 1, N, h, w) in [0, 1].
        lung: lung mask (B, 1, N, h, w) in {0, 1}.
    """

    thick: Tensor
    thin: Tensor
    lung: Tensor


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops. Item i depends only on i and the seed, not on the worker or rank that draws it.

    Args:
        cases: cached cases, drawn with equal probability.
        transforms: transforms from a cached case to a crop, see
            :func:`mpunet.data.transforms.training_transforms`.
        length: number of crops in one epoch.
        seed: seed of the crops.
        turned: cached cases in which an in-plane axis became the depth axis, see
            :mod:`mpunet.slices.in_plane`.
        turned_rate: fraction of the crops that are drawn from ``turned``; if ``cases`` is empty,
            all crops are.
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
    """Iterate over this rank's items of an epoch, starting after the items already trained on.

    Item numbers increase over the whole training. So no epoch repeats another one, and an epoch
    that is resumed half-way continues with the next crop.

    Args:
        crops: the dataset.
        trainer: the trainer that counts the batches trained on so far. If None, the start follows
            from the epoch that ``set_epoch`` sets.
        batch_size: number of crops in a batch of one rank.
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
    """A loader that Lightning treats as resumable.

    It has no state of its own, because :class:`CropSampler` uses the trainer's batch count.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state, which is empty."""


def crop_geometry(n_thick: int | None, ratio: int | None, *, net: Any) -> tuple[int, int]:
    """Return (n_thick, ratio) of crops: the given values, else those of the network, else (8, 5).

    Args:
        n_thick: number of thick slices in a crop; None if not given.
        ratio: thick spacing / thin spacing; None if not given.
        net: the network, whose attributes ``n_thick`` and ``ratio`` are used; None without one.

    Raises:
        ValueError: if a given value differs from that of the network.
    """
    out = []
    for key, given, default in (("n_thick", n_thick, 8), ("ratio", ratio, 5)):
        network = getattr(net, key, None)
        if given is not None and network is not None and given != network:
            raise ValueError(
                f"The network has {key} = {network}, the data {key} = {given}. Give the same "
                f"value, or omit data.{key} to use the network's."
            )
        out.append(next(v for v in (given, network, default) if v is not None))
    return out[0], out[1]


def crop_loader(
    crops: Crops, trainer: L.Trainer | None, *, batch_size: int, num_workers: int
) -> CropLoader:
    """Return a loader of batches of random crops for one rank.

    Args:
        crops: the dataset.
        trainer: the trainer, see :class:`CropSampler`.
        batch_size: number of crops in a batch of one rank.
        num_workers: number of processes that cut crops.

    Raises:
        ValueError: if an epoch has too few crops for one batch on each rank.
    """
    sampler = CropSampler(crops, trainer, batch_size=batch_size)
    loader = CropLoader(
        crops,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    if len(loader) == 0:
        raise ValueError(
            f"Expected crops_per_epoch of at least batch_size x processes = {batch_size} x "
            f"{sampler.num_replicas}, got {len(crops)}: an epoch would have no batch."
        )
    return loader


def default_workers() -> int:
    """Return the default number of worker processes.

    One per available core, at most 8; 0 (no extra process) with two cores or fewer.
    """
    cores = available_cores()
    return 0 if cores <= 2 else min(8, cores)
