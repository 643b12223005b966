"""The thick/thin data module: random crops for training, whole volumes for validation, test and prediction."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mpunet.data.cache import CachedCase, cache_case, default_cache_dir, open_case
from mpunet.data.pairs import Case, find_cases, split_by_patient
from mpunet.data.scans import PredictLoader, Scan, find_scans, share_out
from mpunet.data.simulate import Profile, thicken
from mpunet.data.transforms import training_transforms
from mpunet.geometry import thin_depth

__all__ = ["CropBatch", "CropLoader", "CropSampler", "Crops", "ThickThinDataModule", "VolumeCase", "WholeVolumes"]


class CropBatch(TypedDict):
    """A training batch: ``thick`` (B, 1, n, h, w) and ``thin`` (B, 1, N, h, w) in [0, 1], ``lung`` (B, 1, N, h, w) in {0, 1}."""

    thick: Tensor
    thin: Tensor
    lung: Tensor


class VolumeCase(TypedDict):
    """A whole case: ``thick`` (D, H, W) and ``thin`` ((D - 1) * r + 1, H, W) in HU, ``lung`` on the thin grid.

    ``name`` and ``index`` are the case's, ``spacing`` that of the thin grid (depth, height, width) in mm.
    """

    thick: Tensor
    thin: Tensor
    lung: Tensor
    name: str
    index: int
    spacing: tuple[float, float, float]


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops: item i is the same for the same seed, whichever worker or rank draws it.

    Args:
        cases: cached cases, each drawn equally often.
        transforms: see :func:`mpunet.data.transforms.training_transforms`.
        length: crops in one epoch.
    """

    def __init__(self, cases: Sequence[CachedCase], transforms: Any, *, length: int, seed: int = 0) -> None:
        self.cases = cases
        self.transforms = transforms
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, item])
        case = self.cases[int(rng.integers(len(self.cases)))]
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


class WholeVolumes(Dataset[VolumeCase]):
    """Whole cases, thick slices simulated where there are none."""

    def __init__(
        self, cases: Sequence[CachedCase], ratio: int, *, profile: Profile = "gaussian", fwhm: float | None = None
    ) -> None:
        self.cases = cases
        self.ratio = ratio
        self.profile: Profile = profile
        self.fwhm = fwhm

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> VolumeCase:
        case = self.cases[index]
        thick: npt.NDArray[Any] = (
            thicken(case.thin, self.ratio, profile=self.profile, fwhm=self.fwhm) if case.thick is None else case.thick
        )
        depth = thin_depth(len(thick), self.ratio)
        return VolumeCase(
            thick=torch.from_numpy(np.array(thick, np.float32)),
            thin=torch.from_numpy(np.array(case.thin[:depth], np.float32)),
            lung=torch.from_numpy(np.array(case.lung[:depth])),
            name=case.name,
            index=index,
            spacing=(float(case.spacing[0]), float(case.spacing[1]), float(case.spacing[2])),
        )


class ThickThinDataModule(L.LightningDataModule):
    """Folders of CT volumes to batches.

    Give ``data_dir`` to have it split by patient, or ``train_dir``, ``val_dir`` and ``test_dir``; each is a folder of pairs
    (subfolders ``thin``, ``thick``, perhaps ``lung``) or of thin volumes, whose thick slices are then simulated (see
    :func:`mpunet.data.pairs.find_cases`). ``predict_dir`` is a folder of thick volumes, searched recursively.

    Args:
        n_thick: thick slices of a crop; the network's by default.
        ratio: thick spacing / thin spacing; the network's by default.
        split: fractions for training, validation and test (the paper: 600, 104 and 176 of 880 pairs).
        split_seed: seed of the split.
        patient_pattern: regular expression for the patient in a case's name, see :func:`find_cases`.
        crop: height and width of training crops in voxels (the paper: 256 x 256); multiples of the network's in-plane factor.
        crops_per_epoch: training crops in an epoch, over all ranks.
        batch_size: crops in a batch, per rank.
        max_thin_spacing: leave out training volumes whose slices stand further apart than this, in mm. A folder that mixes 1 mm
            and 2.5 mm series would otherwise teach two different tasks.
        lung_rate: share of the crops centred on a lung voxel (our choice).
        flip: random flips along the three axes, and transposition of square crops.
        profile: slice profile of simulated thick slices.
        fwhm: its full width at half maximum in thick spacings; 0.9 for the Gaussian by default.
        slice_axis: stored axis along which slices are stacked, where spacings do not tell.
        check_hu: refuse scans to predict whose intensities cannot be HU.
        num_workers: processes that cut crops; by default one per core, up to 8, or none on a machine with two cores or fewer.
        cache_dir: where decompressed volumes are kept; ``$MPUNET_CACHE`` or ``~/.cache/mpunet`` by default.
        seed: seed of the crops.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        train_dir: str | None = None,
        val_dir: str | None = None,
        test_dir: str | None = None,
        predict_dir: str | None = None,
        *,
        n_thick: int | None = None,
        ratio: int | None = None,
        split: tuple[float, float, float] = (0.68, 0.12, 0.2),
        split_seed: int = 0,
        patient_pattern: str | None = None,
        crop: tuple[int, int] = (256, 256),
        crops_per_epoch: int = 1000,
        batch_size: int = 1,
        max_thin_spacing: float | None = None,
        lung_rate: float = 0.9,
        flip: bool = True,
        profile: Profile = "gaussian",
        fwhm: float | None = None,
        slice_axis: int | None = None,
        check_hu: bool = True,
        num_workers: int | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if data_dir is not None and (train_dir or val_dir or test_dir):
            raise ValueError("Give data_dir, which is split, or train_dir, val_dir and test_dir, not both.")
        self.data_dir = data_dir
        self.dirs = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.predict_dir = predict_dir
        self.n_thick = n_thick
        self.ratio = ratio
        self.split = tuple(split)
        self.split_seed = split_seed
        self.patient_pattern = patient_pattern
        self.crop = tuple(crop)
        self.crops_per_epoch = crops_per_epoch
        self.batch_size = batch_size
        self.max_thin_spacing = max_thin_spacing
        self.lung_rate = lung_rate
        self.flip = flip
        self.profile: Profile = profile
        self.fwhm = fwhm
        self.slice_axis = slice_axis
        self.check_hu = check_hu
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_workers = num_workers if num_workers is not None else 0 if cores <= 2 else min(8, cores)
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.seed = seed
        self.cases: dict[str, list[CachedCase]] = {}
        self.predict_scans: list[Scan] = []

    def prepare_data(self) -> None:
        """Build the cache, once per node."""
        if self._stage() != "predict":
            for name in self._parts():
                for case in self._find(name):
                    self._cached(case)

    def setup(self, stage: str) -> None:
        """Open what the stage ("fit", "validate", "test" or "predict") needs; raise ValueError where its folder is not given."""
        if stage == "predict":
            if self.predict_dir is None:
                raise ValueError("Expected a folder of thick volumes: give predict_dir (--data.predict_dir SCANS).")
            self.predict_scans = find_scans(self.predict_dir)
            self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer scans than devices
            return
        for name in self._parts(stage):
            if name not in self.cases:
                self.cases[name] = [open_case(self._cached(case), case.name) for case in self._find(name)]
                if name == "train":
                    self.cases[name] = self._thin_enough(self.cases[name])

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Random crops as a :class:`CropBatch`."""
        n_thick, ratio = self._geometry()
        transforms = training_transforms(
            n_thick, ratio, self.crop, lung_rate=self.lung_rate, flip=self.flip, profile=self.profile, fwhm=self.fwhm
        )
        crops = Crops(self.cases["train"], transforms, length=self.crops_per_epoch, seed=self.seed)
        return CropLoader(
            crops,
            batch_size=self.batch_size,
            sampler=CropSampler(crops, self.trainer, batch_size=self.batch_size),
            drop_last=True,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[VolumeCase] | list[Any]:
        """Whole validation cases, one a batch, as a :class:`VolumeCase`; no loader where there is no validation data."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[VolumeCase] | list[Any]:
        """Whole test cases, likewise."""
        return self._whole("test")

    def predict_dataloader(self) -> PredictLoader:
        """This rank's thick volumes of ``predict_dir``; a file that cannot be read comes with its error instead of a volume."""
        scans = self.predict_scans
        if self.trainer and self.trainer.world_size > 1:
            # Rank 0 decides for all, as a file may change while it is looked at.
            shares = share_out(scans, self.trainer.world_size) if self.trainer.is_global_zero else []
            scans = self.trainer.strategy.broadcast(shares)[self.trainer.global_rank]
        return PredictLoader(scans, slice_axis=self.slice_axis, check_hu=self.check_hu)

    def _whole(self, name: str) -> DataLoader[VolumeCase] | list[Any]:
        if not self.cases.get(name):
            return []
        volumes = WholeVolumes(self.cases[name], self._geometry()[1], profile=self.profile, fwhm=self.fwhm)
        return DataLoader(volumes, batch_size=None)

    def _stage(self) -> str | None:
        stage = self.trainer.state.fn if self.trainer else None
        return None if stage is None else str(stage.value)

    def _parts(self, stage: str | None = None) -> list[str]:
        """Which of train, val and test a stage needs (what the trainer is about to do, if not given) and has."""
        stage = stage or self._stage() or "fit"
        needed = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}[stage]
        if self.data_dir is not None:
            share = dict(zip(("train", "val", "test"), self.split, strict=True))
            if not share[needed[0]] > 0:
                raise ValueError(
                    f"The split {self.split} leaves no case for {stage}: give {needed[0]} a fraction above 0, "
                    f"or folders of their own ({needed[0]}_dir) instead of data_dir."
                )
            return [name for name in needed if share[name] > 0]
        if self.dirs[needed[0]] is None:
            raise ValueError(f"Expected a folder for {stage}: give {needed[0]}_dir, or data_dir to have it split.")
        return [n for n in needed if self.dirs[n] is not None]

    def _find(self, name: str) -> list[Case]:
        if self.data_dir is not None:
            cases = find_cases(self.data_dir, patient_pattern=self.patient_pattern)
            return split_by_patient(cases, self.split, seed=self.split_seed)[("train", "val", "test").index(name)]
        folder = self.dirs[name]
        return find_cases(folder, patient_pattern=self.patient_pattern) if folder is not None else []

    def _thin_enough(self, cases: list[CachedCase]) -> list[CachedCase]:
        limit = self.max_thin_spacing
        if limit is None:
            return cases
        kept = [case for case in cases if case.spacing[0] <= limit]
        if not kept:
            found = ", ".join(f"{case.name} {case.spacing[0]:.2f} mm" for case in cases)
            raise ValueError(f"No training volume has slices at most {limit} mm apart (max_thin_spacing): {found}.")
        return kept

    def _cached(self, case: Case) -> Path:
        return cache_case(case, self.cache_dir, ratio=self._geometry()[1], slice_axis=self.slice_axis)

    def _geometry(self) -> tuple[int, int]:
        """(n, r): the network's where a trainer has one, which must then agree with what was given; else what was given, or (8, 5)."""
        module = self.trainer.lightning_module if self.trainer else None
        net = getattr(module, "net", None)
        out = []
        for key, default in (("n_thick", 8), ("ratio", 5)):
            given, network = getattr(self, key), getattr(net, key, None)
            if given is not None and network is not None and given != network:
                raise ValueError(
                    f"The network has {key} = {network}, the data {key} = {given}. Give the same, or leave data.{key} out: "
                    "it is then taken from the network."
                )
            out.append(next(v for v in (given, network, default) if v is not None))
        return out[0], out[1]
