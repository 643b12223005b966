"""Small volumes in any orientation, whose voxel values say where they stand."""

import importlib.util
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from mpunet.geometry import find_slice_axis
from mpunet.io.scan_file import open_scan
from mpunet.io.volume import volume_from_image


class OthersNetwork(torch.nn.Module):
    """A network that knows nothing of mpunet: the example of docs/tutorial_network.md."""

    n_thick, ratio = 8, 5

    def __init__(self, channels: int = 4):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv3d(1, channels, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv3d(channels, 1, 3, padding=1),
        )

    def forward(self, thick):
        thin = torch.nn.functional.interpolate(
            thick, size=(36, *thick.shape[3:]), mode="trilinear", align_corners=True
        )
        return thin + self.layers(thin)


def position_slab(shape):
    """(D, H, W) int16 HU that differ in each voxel and grow linearly along each axis.

    The value is -1000 + z + D * (y + H * x).
    """
    depth, height, width = shape
    if depth * height * width > 4000:
        raise ValueError(f"{shape} does not fit into the HU window")
    z, y, x = np.indices(shape)
    return (-1000 + z + depth * (y + height * x)).astype(np.int16)


def positions(slab_hu, shape):
    """(..., 3): the z, y and x that :func:`position_slab` of this shape wrote into voxels."""
    code = np.rint(np.asarray(slab_hu, dtype=np.float64)).astype(int) + 1000
    return np.stack(
        [code % shape[0], code // shape[0] % shape[1], code // (shape[0] * shape[1])], axis=-1
    )


def nifti(slab, *, spacing=(1.0, 0.7, 0.7), start=0.0, codes="LPS"):
    """NIfTI image of a slab, stored along ``codes``.

    Depth points towards S, height towards P and width towards L.

    Args:
        spacing: of depth, height and width in mm.
        start: position in mm of the first slice along S.
    """
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = 80.0, 60.0, start
    image = nib.Nifti1Image(np.asarray(slab).transpose(2, 1, 0), affine)
    return image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes)))


def tilted(image, degrees):
    """The same voxels on the grid of a tilted gantry.

    Slice planes stay parallel and equally far apart, and each slice is shifted in its plane.
    """
    affine = image.affine.copy()
    axis = find_slice_axis(affine)
    within = affine[:3, (axis + 1) % 3]
    shift = np.tan(np.radians(degrees)) * np.linalg.norm(affine[:3, axis])
    affine[:3, axis] += shift * within / np.linalg.norm(within)
    return nib.Nifti1Image(np.asarray(image.dataobj), affine)


def save(path, slab, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nifti(slab, **options), path)
    return path


def volume(slab, **options):
    return volume_from_image(nifti(slab, **options), path="scan.nii.gz")


def streamed(path, **options):
    """The slab of a file, put together from slices."""
    scan = open_scan(path, **options)
    slices = list(scan)
    for plane in slices:
        assert plane.shape == scan.shape[1:]
        assert plane.dtype == scan.dtype
        assert plane.flags.c_contiguous
        assert plane.flags.writeable
    return np.stack(slices[::-1] if scan.last_first else slices)


def peak(function):
    """Bytes that a call took at most, in Python and NumPy."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def example(name):
    """Import a script of examples/ as a module."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
