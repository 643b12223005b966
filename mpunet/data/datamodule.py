"""The Lightning data module: random training crops, and whole volumes for everything else."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from mpunet.data.augmentation import NO_AUGMENTATION, Augmentation
from mpunet.data.cache import Cache, CachedCase, Preparation
from mpunet.data.case import Case, Part
from mpunet.data.crops import Crops, crop_geometry, crop_loader, default_workers
from mpunet.data.lung_source import LungMasks
from mpunet.data.pairs import check_alignment
from mpunet.data.record import describe_training_data
from mpunet.data.sources import CaseSources, Source, split_by_spacing
from mpunet.data.transforms import training_transforms
from mpunet.data.volumes import VolumeCase, WholeVolumes
from mpunet.io.rplhr import Intensity
from mpunet.io.scans import PredictLoader, Scan, find_scans, share_out
from mpunet.slices.profile_range import ProfileRange
from mpunet.slices.simulate import Profile

__all__ = ["ThickThinDataModule"]


class ThickThinDataModule(L.LightningDataModule):
    """Read CT volumes for training, validation, test and prediction.

    See :func:`mpunet.data.layouts.find_cases` for the supported folder layouts.

    Args:
        data_dir: data for training, validation and test: a folder, a CSV of pairs, or folders by
            kind, {thin: DIR, thick: DIR}. If the data come without a split, they are split by
            patient. Thick slices are simulated if there are none.
        train_dir: training data in the formats of data_dir; only without data_dir.
        val_dir: validation data in the formats of data_dir; only without data_dir.
        test_dir: test data in the formats of data_dir; only without data_dir.
        predict_dir: folder of thick volumes for prediction, searched recursively.
        n_thick: number of thick slices in a crop; by default that of the network.
        ratio: thick spacing / thin spacing; by default that of the network.
        split: fractions of the patients for training, validation and test, used if data_dir comes
            without a split (the paper: 600, 104 and 176 of 880 pairs).
        split_seed: seed of the split by patient.
        patient_pattern: regular expression that finds the patient in a case's name: its first
            group, or else the whole match. By default each case is a patient of its own.
        crop: height and width of training crops in voxels, multiples of the network's in-plane
            factor (the paper: 256 x 256).
        crops_per_epoch: training crops per epoch over all processes; at least a batch per process.
        batch_size: number of crops in a batch of one process.
        max_thin_spacing: largest slice spacing of a training volume in mm; volumes with a larger
            one are left out. A mix of 1 mm and 2.5 mm series would teach two different tasks.
        in_plane_as_depth: fraction of the training crops, 0 to 1, cut from volumes that
            max_thin_spacing leaves out, turned so that an in-plane axis becomes the depth axis. If
            it is above 0 and all volumes are left out, all crops are turned.
        in_plane_spacing: slice spacing of the turned volumes in mm.
        lung_rate: fraction of the training crops that are centred near a lung voxel (our choice).
        flip: flip training crops at random along the three axes, and transpose square ones.
        augmentation: random changes of training crops: rotation, noise, offset and scale of HU.
        profile: slice profile of simulated thick slices, or a list from which each training crop
            draws one. Validation and test use the first.
        fwhm: full width at half maximum of the slice profile in thick spacings; by default 0.9 for
            "gaussian", else 1. From a range, for example (0.7, 1.1), each training crop draws a
            width, so that the network learns to support several scanners. Validation and test use
            the middle of the range, so that their results are comparable.
        slice_axis: stored axis (0, 1 or 2) along which slices are stacked; by default detected.
        check_data: refuse to cache training, validation and test cases that `mpunet check` refuses.
        check_hu: refuse prediction scans whose intensities cannot be HU.
        intensity: how to read intensities within [0, 1]: as those of RPLHR-CT if the file is in
            that data set's folder layout ("auto"), or in any folder ("rplhr").
        lung_masks: source of lung masks: "files", "threshold", the package "lungmask", or "auto",
            which uses the file of a case if it has one and "threshold" otherwise.
        num_workers: number of processes that fill the cache and cut crops; by default one per core,
            at most 8, and none with two cores or fewer.
        cache_dir: folder for decompressed volumes; by default $MPUNET_CACHE or ~/.cache/mpunet.
        cache_limit: largest size of the cache, in bytes or as text like "200 GB"; the least
            recently used volumes are deleted first. By default there is no limit.
        seed: seed of the training crops.
    """

    def __init__(
        self,
        data_dir: Source | None = None,
        train_dir: Source | None = None,
        val_dir: Source | None = None,
        test_dir: Source | None = None,
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
        in_plane_as_depth: float = 0.0,
        in_plane_spacing: float = 1.0,
        lung_rate: float = 0.9,
        flip: bool = True,
        augmentation: Augmentation = NO_AUGMENTATION,
        profile: Profile | list[Profile] = "gaussian",
        fwhm: float | tuple[float, float] | None = None,
        slice_axis: int | None = None,
        check_data: bool = True,
        check_hu: bool = True,
        intensity: Intensity = "auto",
        lung_masks: LungMasks = "auto",
        num_workers: int | None = None,
        cache_dir: str | None = None,
        cache_limit: int | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = CaseSources(
            data_dir,
            {"train": train_dir, "val": val_dir, "test": test_dir},
            split=split,
            split_seed=split_seed,
            patient_pattern=patient_pattern,
            intensity=intensity,
        )
        self.predict_dir = predict_dir
        self.n_thick = n_thick
        self.ratio = ratio
        self.crop = tuple(crop)
        self.crops_per_epoch = crops_per_epoch
        self.batch_size = batch_size
        if not 0 <= in_plane_as_depth <= 1 or (in_plane_as_depth and max_thin_spacing is None):
            raise ValueError(
                "Expected in_plane_as_depth from 0 to 1, and 0 unless max_thin_spacing is given; "
                f"got {in_plane_as_depth} with max_thin_spacing {max_thin_spacing}."
            )
        self.max_thin_spacing = max_thin_spacing
        self.in_plane_as_depth = in_plane_as_depth
        self.in_plane_spacing = in_plane_spacing
        self.lung_rate = lung_rate
        self.flip = flip
        self.augmentation = augmentation
        self.profiles = ProfileRange.of(profile, fwhm)
        self.slice_axis = slice_axis
        self.check_data = check_data
        self.check_hu = check_hu
        self.intensity: Intensity = intensity
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.lung_masks: LungMasks = lung_masks
        self.cache = Cache(cache_dir, limit=cache_limit)
        self.seed = seed
        self.cases: dict[str, list[CachedCase]] = {}
        self.turned: list[CachedCase] = []
        self.predict_scans: list[Scan] = []

    def prepare_data(self) -> None:
        """Build the cache; Lightning calls this once per node."""
        if self._stage() != "predict":
            for name in self._parts():
                check_alignment(
                    self._wanted(name), ratio=self._geometry()[1], slice_axis=self.slice_axis
                )
                self._cached(name)
                if name == "train":
                    self._cached_turned()

    def setup(self, stage: str) -> None:
        """Open the data of a stage ("fit", "validate", "test" or "predict").

        Raises:
            ValueError: if the folder of the stage is not given.
        """
        if stage == "predict":
            if self.predict_dir is None:
                raise ValueError(
                    "Expected a folder of thick scans: give predict_dir (--data.predict_dir SCANS)."
                )
            self.predict_scans = find_scans(self.predict_dir)
            self.allow_zero_length_dataloader_with_multiple_devices = True  # if scans are few
            return
        for name in self._parts(stage):
            if name not in self.cases:
                self.cases[name] = self._cached(name)
                if name == "train":
                    self.turned = self._cached_turned()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return a loader of random crops; each batch is a :class:`mpunet.data.crops.CropBatch`.

        Raises:
            ValueError: if ``crops_per_epoch`` is too small for one batch on each process.
        """
        transforms = training_transforms(
            *self._geometry(),
            self.crop,
            lung_rate=self.lung_rate,
            flip=self.flip,
            profile=self.profiles.kinds,
            fwhm=self.profiles.fwhm,
            augmentation=self.augmentation,
        )
        crops = Crops(
            self.cases["train"],
            transforms,
            length=self.crops_per_epoch,
            seed=self.seed,
            turned=self.turned,
            turned_rate=self.in_plane_as_depth,
        )
        return crop_loader(
            crops, self.trainer, batch_size=self.batch_size, num_workers=self.num_workers
        )

    def training_record(self) -> dict[str, Any]:
        """Describe the training data for checkpoints; an empty dictionary before ``setup("fit")``.

        See :func:`mpunet.data.record.describe_training_data` for the keys.
        """
        cases = self.cases.get("train", [])
        if not cases and not self.turned:
            return {}
        return describe_training_data(
            cases, self.turned, ratio=self._geometry()[1], profiles=self.profiles, flip=self.flip
        )

    def val_dataloader(self) -> DataLoader[VolumeCase] | list[Any]:
        """Return a loader of whole validation cases (``VolumeCase``); an empty list if none."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[VolumeCase] | list[Any]:
        """Return a loader of whole test cases, like :meth:`val_dataloader`."""
        return self._whole("test")

    def predict_dataloader(self) -> PredictLoader:
        """Return a loader of this rank's thick volumes in ``predict_dir``.

        For a file that cannot be read, it yields the error message instead of a volume.
        """
        scans = self.predict_scans
        if (trainer := self.trainer) and trainer.world_size > 1:
            # Rank 0 assigns the files, because ranks could see different files if some change.
            shares = share_out(scans, trainer.world_size) if trainer.is_global_zero else []
            scans = trainer.strategy.broadcast(shares)[trainer.global_rank]
        return PredictLoader(
            scans, slice_axis=self.slice_axis, check_hu=self.check_hu, intensity=self.intensity
        )

    def _whole(self, name: str) -> DataLoader[VolumeCase] | list[Any]:
        if not self.cases.get(name):
            return []
        profile, fwhm = self.profiles.fixed
        volumes = WholeVolumes(self.cases[name], self._geometry()[1], profile=profile, fwhm=fwhm)
        return DataLoader(volumes, batch_size=None)

    def _stage(self) -> str | None:
        stage = self.trainer.state.fn if self.trainer else None
        return None if stage is None else str(stage.value)

    def _parts(self, stage: str | None = None) -> list[Part]:
        """Return the parts that a stage uses; by default the stage that the trainer runs next."""
        return self.sources.parts(stage or self._stage() or "fit")

    def _wanted(self, part: Part) -> list[Case]:
        """Return the cases of a part, without those that ``max_thin_spacing`` leaves out."""
        return self._by_spacing()[0] if part == "train" else self.sources.cases(part)

    def _by_spacing(self) -> tuple[list[Case], list[Case]]:
        """Return the training cases to use, and those that ``max_thin_spacing`` leaves out."""
        return split_by_spacing(
            self.sources.cases("train"),
            self.max_thin_spacing,
            slice_axis=self.slice_axis,
            allow_none=bool(self.in_plane_as_depth),
        )

    def _cached(self, name: Part) -> list[CachedCase]:
        return self.cache.cases(self._wanted(name), self._preparation(), workers=self.num_workers)

    def _cached_turned(self) -> list[CachedCase]:
        """Return the cases that ``max_thin_spacing`` leaves out, turned in both ways."""
        if not self.in_plane_as_depth:
            return []
        return self.cache.turned_cases(
            self._by_spacing()[1],
            self._preparation(),
            spacing=self.in_plane_spacing,
            workers=self.num_workers,
        )

    def _preparation(self) -> Preparation:
        return Preparation(
            self._geometry()[1], self.slice_axis, self.lung_masks, examine=self.check_data
        )

    def _geometry(self) -> tuple[int, int]:
        """Return (n_thick, ratio), see :func:`mpunet.data.crops.crop_geometry`."""
        module = self.trainer.lightning_module if self.trainer else None
        return crop_geometry(self.n_thick, self.ratio, net=getattr(module, "net", None))
