"""Training crops per second from the cache, from `.nii.gz` files, and from MONAI's CacheDataset.

CacheDataset keeps every volume in memory. About five minutes and 8 GB of disk:

    python tests/benchmarks/crops.py            # --volumes 4 4 for a shorter run

A crop is 8 x 256 x 256 thick voxels (genuine or simulated) with the 36 x 256 x 256 thin voxels and
their lung mask, flipped and scaled. The methods alternate in this process, one crop at a time,
without workers; the best of several rounds counts, because the machine may be shared. Resident
memory is read from /proc/self/smaps_rollup in a new process after 400 crops. Anonymous pages belong
to the process; file pages are in the page cache, which the system frees when memory is short.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import machine, run_child
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    MapTransform,
    Randomizable,
    RandSpatialCropd,
    ScaleIntensityRanged,
)

from mpunet.data.cache.cache import CachedCase
from mpunet.data.crops import Crops
from mpunet.data.datamodule import ThickThinDataModule
from mpunet.data.transforms import ScaleHUd, SimulateThickd, training_transforms
from mpunet.geometry import thin_depth
from mpunet.intensity import HU_MAX, HU_MIN
from mpunet.memory import keep_freed_memory
from mpunet.phantom.chest import phantom_image
from mpunet.slices.simulate import thicken

N_THICK, RATIO, IN_PLANE = 8, 5, (256, 256)
KINDS = ("simulated", "genuine")


def save_volumes(root: Path, shape: tuple[int, int, int]) -> None:
    """Save a noisy thin volume with its lung mask, and a folder of pairs with thick slices."""
    depth, size = shape[0], shape[1]
    coarse = np.asarray(phantom_image(0, shape=(75, 64, 64), spacing=(4.0, 5.6, 5.6)).dataobj)
    thin = (
        coarse.repeat(-(-size // 64), 0)
        .repeat(-(-size // 64), 1)
        .repeat(-(-depth // 75), 2)[:size, :size, :depth]
    )
    rng = np.random.default_rng(0)
    for k in range(depth):
        noisy = thin[..., k] + 20 * rng.standard_normal((size, size), np.float32)
        thin[..., k] = noisy.clip(-1024, 3071)
    lung = ((thin < -600) & (thin > -950)).astype(np.uint8)
    thick = thicken(thin.transpose(2, 1, 0), RATIO).round().astype(np.int16).transpose(2, 1, 0)
    for name, voxels, spacing in (("thin", thin, 1.0), ("lung", lung, 1.0), ("thick", thick, 5.0)):
        for kind in KINDS:
            (root / kind / name).mkdir(parents=True)
        file = root / "genuine" / name / "case.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.diag([-0.7, -0.7, spacing, 1])), file)
        if name != "thick":
            os.link(file, root / "simulated" / name / "case.nii.gz")
    (root / "simulated" / "thick").rmdir()


def dataset(root: Path, kind: str, volumes: int) -> Crops:
    """The data module's dataset; volumes beyond the first are copies of its entry."""
    folders = {"train_dir": str(root / kind), "cache_dir": str(root / "cache")}
    data = ThickThinDataModule(
        **folders, num_workers=0, check_data=False
    )  # an enlarged phantom has steps between slices
    data.prepare_data()
    data.setup("fit")
    crops: Any = data.train_dataloader().dataset
    first: CachedCase = crops.cases[0]
    paths = [root / "cache" / f"{kind}{i}.copy" for i in range(volumes)]
    for path in paths:
        if not path.exists():
            shutil.copy(first.path, path)
    crops.cases = [first._replace(path=path) for path in paths]
    return Crops(crops.cases, crops.transforms, length=1, seed=0)


class ReadVolumes(MapTransform):  # type: ignore[misc]
    """Files to arrays (depth, height, width), as nibabel reads them."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            voxels = np.asarray(nib.load(out[key]).dataobj).transpose(2, 1, 0)
            out[key] = voxels > 0 if key == "lung" else np.ascontiguousarray(voxels)
        return out


class ToDepthFirst(MapTransform):  # type: ignore[misc]
    """(1, width, height, depth), as MONAI loads volumes, to (1, depth, height, width)."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return dict(data) | {
            key: data[key].permute(0, 3, 2, 1).contiguous() for key in self.key_iterator(data)
        }


class ToNumpyWithMargin(MapTransform):  # type: ignore[misc]
    """What :class:`SimulateThickd` takes."""

    def __init__(self, keys: Any, margin: int) -> None:
        super().__init__(keys)
        self.margin = margin

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        arrays = {key: data[key].numpy().astype(np.float32) for key in self.key_iterator(data)}
        return dict(data) | arrays | {"before": self.margin}


class Read(Randomizable):  # type: ignore[misc]
    """The same crops with every file read for each."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.item = item
        self.transforms = Compose(
            [ReadVolumes(("thin", "lung", "thick"), allow_missing_keys=True), *ours()]
        )

    def __call__(self, i: int) -> Any:
        self.transforms.set_random_state(seed=i)
        return self.transforms(self.item)


class InMemory:
    """Crops of a CacheDataset, whose volumes are read before the clock starts."""

    def __init__(self, items: list[dict[str, Any]], transforms: Compose) -> None:
        self.transforms = transforms
        self.data = CacheDataset(items, transforms, num_workers=1, progress=False, copy_cache=False)

    def __call__(self, i: int) -> Any:
        self.transforms.set_random_state(seed=i)
        return self.data[i % len(self.data)]


def ours() -> list[Any]:
    """The training transforms one by one."""
    return list(training_transforms(N_THICK, RATIO, IN_PLANE).transforms)


def monai_words() -> Compose:
    """Load, crop, flip, turn and scale with MONAI's transforms; only thick slices are ours."""
    simulate = SimulateThickd(N_THICK, RATIO)
    size = (thin_depth(N_THICK, RATIO) + 2 * simulate.margin, *IN_PLANE)
    keys = ("thin", "lung")
    load = [
        LoadImaged(keys, dtype=np.int16, image_only=True),
        EnsureChannelFirstd(keys, channel_dim="no_channel"),
        ToDepthFirst(keys),
    ]
    crop = [
        RandSpatialCropd(keys, roi_size=size, random_size=False),
        ToNumpyWithMargin(keys, simulate.margin),
        simulate,
    ]
    scale = ScaleIntensityRanged(
        ("thick", "thin"), a_min=HU_MIN, a_max=HU_MAX, b_min=0.0, b_max=1.0, clip=True
    )
    return Compose(
        [*load, *crop, *(scale if isinstance(step, ScaleHUd) else step for step in ours()[2:])]
    )


def item_of(root: Path, kind: str) -> dict[str, Any]:
    """Files of the one case, and what the cache knows of its lungs."""
    files = {name: root / kind / name / "case.nii.gz" for name in ("thin", "lung", "thick")}
    return {name: path for name, path in files.items() if path.exists()}


def ways(root: Path, kind: str, volumes: int) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Each way to a crop, and how many crops a round takes."""
    crops = dataset(root, kind, volumes)
    item = item_of(root, kind) | {"lung_box": crops.cases[0].lung_box}
    read = ReadVolumes(("thin", "lung", "thick"), allow_missing_keys=True)
    found: dict[str, tuple[Callable[[int], Any], int]] = {
        "mpunet's cache": (crops.__getitem__, 40),
        ".nii.gz for each crop": (Read(item), 1),
        "CacheDataset, our transforms": (InMemory([item] * volumes, Compose([read, *ours()])), 40),
    }
    if kind == "simulated":
        found["CacheDataset, MONAI's crop"] = (InMemory([item] * volumes, monai_words()), 40)
    return found


def resident() -> dict[str, float]:
    """MB of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {
        name: int(rest.split()[0]) * 1024 / 1e6
        for name, _, rest in (line.partition(":") for line in lines)
    }
    return {"Rss": found["Rss"], "Pss": found["Pss"], "anonymous": found["Anonymous"]}


def memory(root: Path, volumes: int) -> None:
    """Print the resident memory after 400 crops, for the parent."""
    crops = dataset(root, "simulated", volumes)
    for i in range(400):
        crops[i]
    print("  ".join(f"{name} {mb:.0f} MB" for name, mb in resident().items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512])
    parser.add_argument("--volumes", type=int, nargs=2, default=[4, 40])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--root", type=Path, help="folder for the volumes, kept; a temporary one by default"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    if args.memory:
        return memory(args.root, args.memory)

    with tempfile.TemporaryDirectory() as temporary:
        root = args.root or Path(temporary)
        if not (root / "genuine").exists():
            save_volumes(root, tuple(args.shape))
        print(
            f"{' x '.join(map(str, args.shape))}, {args.volumes[0]} volumes; "
            f"{machine(torch.device('cpu'))}"
        )
        for kind in KINDS:
            found = ways(root, kind, args.volumes[0])
            best = dict.fromkeys(found, np.inf)
            for start in range(args.rounds):
                for name, (crop, count) in found.items():
                    began = time.perf_counter()
                    for i in range(count):
                        crop(start * count + i)
                    best[name] = min(best[name], (time.perf_counter() - began) / count)
            for name, seconds in best.items():
                ratio = seconds / best["mpunet's cache"]
                print(
                    f"{kind:10s} {name:30s} {1 / seconds:8.2f} crops/s   "
                    f"{1e3 * seconds:8.1f} ms   {ratio:6.2f} x",
                    flush=True,
                )
        for volumes in args.volumes:
            child = run_child(__file__, "--memory", str(volumes), "--root", str(root))
            print(f"{volumes} volumes: {child.output.strip()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
