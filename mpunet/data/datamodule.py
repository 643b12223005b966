"""The thick/thin data module: random crops for training, whole volumes for validation, test and prediction."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mpunet.data.augmentation import NO_AUGMENTATION, Augmentation
from mpunet.data.cache import Cache, CachedCase, Preparation
from mpunet.data.case import Case, Part
from mpunet.data.crops import CropLoader, Crops, CropSampler
from mpunet.data.lung_source import LungMasks
from mpunet.data.pairs import check_alignment
from mpunet.data.sources import CaseSources, Source, thin_spacings
from mpunet.data.transforms import training_transforms
from mpunet.data.volumes import VolumeCase, WholeVolumes
from mpunet.io.rplhr import Intensity
from mpunet.io.scans import PredictLoader, Scan, find_scans, share_out
from mpunet.slices.in_plane import DEPTH_AXES
from mpunet.slices.profile_range import ProfileRange
from mpunet.slices.simulate import Profile

__all__ = ["ThickThinDataModule"]


class ThickThinDataModule(L.LightningDataModule):
    """CT volumes to batches.

    Give ``data_dir``, which comes with a split or is split by patient, or ``train_dir``, ``val_dir`` and ``test_dir``. Each is a
    folder, a CSV of pairs, or folders by kind, ``{thin: DIR, thick: DIR}``, see :func:`mpunet.data.layouts.find_cases`; thick slices
    that are not there are simulated. ``predict_dir`` is a folder of thick volumes, searched recursively.

    Args:
        n_thick: thick slices of a crop; the network's by default.
        ratio: thick spacing / thin spacing; the network's by default.
        split: fractions for training, validation and test (the paper: 600, 104 and 176 of 880 pairs), where ``data_dir`` has no
            split of its own.
        split_seed: seed of the split.
        patient_pattern: regular expression for the patient in a case's name, see :func:`find_cases`.
        crop: height and width of training crops in voxels (the paper: 256 x 256); multiples of the network's in-plane factor.
        crops_per_epoch: training crops in an epoch, over all ranks; at least a batch on each.
        batch_size: crops in a batch, per rank.
        max_thin_spacing: leave out training volumes whose slices stand further apart than this, in mm. A folder that mixes 1 mm
            and 2.5 mm series would otherwise teach two different tasks.
        in_plane_as_depth: share of the training crops that come from those left out, turned so that an axis in plane is depth, see
            :mod:`mpunet.slices.in_plane`; all crops, if every volume was left out.
        in_plane_spacing: slice spacing of the turned volumes in mm.
        lung_rate: share of the crops centred on a lung voxel (our choice).
        flip: random flips along the three axes, and transposition of square crops.
        augmentation: what else to vary in training crops: rotation, offset and scale of HU, noise.
        profile: slice profile of simulated thick slices; of several, each training crop draws one.
        fwhm: its full width at half maximum in thick spacings; 0.9 for the Gaussian by default. From a range (0.7, 1.1) each training
            crop draws one, so that the network learns to serve several scanners. Validation and test keep to the first kind and the
            middle of the range, so that their numbers compare.
        slice_axis: stored axis along which slices are stacked, where spacings do not tell.
        check_data: refuse cases for training, validation and test that ``mpunet check`` refuses, before they come into the cache.
        check_hu: refuse scans to predict whose intensities cannot be HU.
        intensity: what intensities within [0, 1] are: RPLHR-CT's where files lie in its folders ("auto"), or anywhere ("rplhr").
        lung_masks: where lung masks come from: files, "threshold", the package "lungmask", or files where there are any and else
            "threshold" ("auto").
        num_workers: processes that fill the cache and cut crops; by default one per core, up to 8, or none on a machine with two cores or fewer.
        cache_dir: where decompressed volumes are kept; ``$MPUNET_CACHE`` or ``~/.cache/mpunet`` by default.
        cache_limit: bytes that it may take, or a text like "200 GB": what was not used for longest goes first.
        seed: seed of the crops.
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
                "Expected in_plane_as_depth from 0 to 1, and above 0 with max_thin_spacing, beyond which volumes are turned; "
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
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        self.num_workers = (
            num_workers if num_workers is not None else 0 if cores <= 2 else min(8, cores)
        )
        self.lung_masks: LungMasks = lung_masks
        self.cache = Cache(cache_dir, limit=cache_limit)
        self.seed = seed
        self.cases: dict[str, list[CachedCase]] = {}
        self.turned: list[CachedCase] = []
        self.predict_scans: list[Scan] = []

    def prepare_data(self) -> None:
        """Build the cache, once per node."""
        if self._stage() != "predict":
            for name in self._parts():
                check_alignment(
                    self._wanted(name), ratio=self._geometry()[1], slice_axis=self.slice_axis
                )
                self._cached(name)
                if name == "train":
                    self._cached_turned()

    def setup(self, stage: str) -> None:
        """Open what the stage ("fit", "validate", "test" or "predict") needs; raise ValueError where its folder is not given."""
        if stage == "predict":
            if self.predict_dir is None:
                raise ValueError(
                    "Expected a folder of thick volumes: give predict_dir (--data.predict_dir SCANS)."
                )
            self.predict_scans = find_scans(self.predict_dir)
            self.allow_zero_length_dataloader_with_multiple_devices = (
                True  # fewer scans than devices
            )
            return
        for name in self._parts(stage):
            if name not in self.cases:
                self.cases[name] = self._cached(name)
                if name == "train":
                    self.turned = self._cached_turned()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Random crops as a :class:`CropBatch`; raise ValueError where an epoch has fewer than one batch takes, as none would be trained on."""
        n_thick, ratio = self._geometry()
        transforms = training_transforms(
            n_thick,
            ratio,
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
        sampler = CropSampler(crops, self.trainer, batch_size=self.batch_size)
        loader = CropLoader(
            crops,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        if len(loader) == 0:
            raise ValueError(
                f"Expected crops_per_epoch of at least batch_size x processes = {self.batch_size} x {sampler.num_replicas}, "
                f"got {self.crops_per_epoch}: an epoch would have no batch."
            )
        return loader

    def training_record(self) -> dict[str, Any]:
        """What is trained on, in plain values, for the checkpoint: ``cases``, the names of the first 100 of ``number``; ``pairs``, how
        many have genuine thick slices; ``turned``, how many lend an in-plane axis as depth; ranges of ``thin_spacing`` and
        ``thick_spacing`` in mm; slice profile of simulated ones; whether crops are flipped. Empty before ``setup("fit")``.
        """
        cases = [*self.cases.get("train", []), *self.turned]
        if not cases:
            return {}
        ratio = self._geometry()[1]
        spacings = [float(case.spacing[0]) for case in cases]
        low, high = min(spacings), max(spacings)
        return {
            "number": len(cases),
            "cases": [case.name for case in cases[:100]],
            "pairs": sum("thick" in case.layout for case in cases),
            "turned": len(self.turned),
            "ratio": ratio,
            "thin_spacing": [low, high],
            "thick_spacing": [low * ratio, high * ratio],
            "profile": list(self.profiles.kinds),
            "fwhm": None if self.profiles.fwhm is None else list(self.profiles.fwhm),
            "flips": self.flip,
        }

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
            shares = (
                share_out(scans, self.trainer.world_size) if self.trainer.is_global_zero else []
            )
            scans = self.trainer.strategy.broadcast(shares)[self.trainer.global_rank]
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
        """Which of train, val and test a stage has; by default the stage that the trainer is about to run."""
        return self.sources.parts(stage or self._stage() or "fit")

    def _wanted(self, part: Part) -> list[Case]:
        """A part's cases; those for training without the ones that :attr:`max_thin_spacing` leaves out."""
        return self._by_spacing()[0] if part == "train" else self.sources.cases(part)

    def _by_spacing(self) -> tuple[list[Case], list[Case]]:
        """The cases for training, and those that :attr:`max_thin_spacing` leaves out, by their headers."""
        cases, limit = self.sources.cases("train"), self.max_thin_spacing
        if limit is None:
            return cases, []
        spaced = list(zip(cases, thin_spacings(cases, slice_axis=self.slice_axis), strict=True))
        kept = [case for case, spacing in spaced if spacing <= limit]
        if not kept and not self.in_plane_as_depth:
            found = ", ".join(f"{case.name} {spacing:.2f} mm" for case, spacing in spaced)
            raise ValueError(
                f"No training volume has slices at most {limit} mm apart (max_thin_spacing): {found}. "
                "Raise it, or have them turned (in_plane_as_depth)."
            )
        return kept, [case for case, spacing in spaced if spacing > limit]

    def _cached(self, name: Part) -> list[CachedCase]:
        return self.cache.cases(self._wanted(name), self._preparation(), workers=self.num_workers)

    def _cached_turned(self) -> list[CachedCase]:
        """What :attr:`max_thin_spacing` leaves out, once with its height as depth and once with its width."""
        if not self.in_plane_as_depth:
            return []
        cases = [case._replace(thick=None) for case in self._by_spacing()[1]]
        plain = self._preparation()
        turned = (
            plain._replace(depth_axis=axis, turned_spacing=self.in_plane_spacing)
            for axis in DEPTH_AXES
        )
        return [
            case
            for preparation in turned
            for case in self.cache.cases(cases, preparation, workers=self.num_workers)
        ]

    def _preparation(self) -> Preparation:
        return Preparation(
            self._geometry()[1], self.slice_axis, self.lung_masks, examine=self.check_data
        )

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
