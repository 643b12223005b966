"""Thick volume in, thin volume out: the one call for other people's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpunet.data.volume import Volume, check_voxels, thin_image, volume_from_image
from mpunet.geometry import thin_depth, window_starts
from mpunet.inference.engine import stream_thin
from mpunet.intensity import from_hu, round_hu, to_hu

__all__ = ["Precision", "Reconstructor", "autocast_dtype"]

Precision = Literal["auto", "float32", "bf16", "fp16"]
Image = TypeVar("Image", nib.Nifti1Image, npt.NDArray[Any], Tensor)


class Reconstructor:
    """Reconstructs thin slices of whole CT volumes with any network.

    Args:
        network: maps windows (B, 1, n_thick, H, W) to (B, 1, N, H, W), N = (n_thick - 1) * ratio + 1, intensity in [0, 1] for HU
            of [-1024, 3071]. A module is put into evaluation mode and moved to the device.
        n_thick: thick slices in a window.
        ratio: thick spacing / thin spacing.
        multiple: the network's in-plane sizes are multiples of this; other sizes are padded and cropped.
        stride: thick slices between windows. 1 is the paper's; larger is faster.
        batch_size: windows in one call of the network.
        device: where the network runs; "auto" is the first CUDA device, or else the CPU.
        precision: "auto" is what the device computes fastest without loss of range, see :func:`autocast_dtype`.
        check_hu: refuse images whose intensities cannot be HU.

    >>> def linear(windows):
    ...     return nn.functional.interpolate(windows, size=(36, *windows.shape[3:]), mode="trilinear", align_corners=True)
    >>> thick = np.linspace(-1000, 1000, 5).repeat(16).reshape(5, 4, 4)
    >>> Reconstructor(linear, n_thick=8, ratio=5, multiple=4)(thick)[:6, 0, 0].round()
    array([-1000.,  -900.,  -800.,  -700.,  -600.,  -500.], dtype=float32)
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        *,
        n_thick: int,
        ratio: int,
        multiple: int = 32,
        stride: int = 1,
        batch_size: int = 1,
        device: torch.device | str | None = "auto",
        precision: Precision = "auto",
        check_hu: bool = True,
    ) -> None:
        thin_depth(n_thick, ratio)
        window_starts(n_thick, n_thick, stride)  # raises here for a bad stride, not at the first volume
        if device in ("auto", None):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.network = network.eval().to(self.device) if isinstance(network, nn.Module) else network
        self.n_thick = n_thick
        self.ratio = ratio
        self.multiple = multiple
        self.stride = stride
        self.batch_size = batch_size
        self.autocast = autocast_dtype(self.device, precision)
        self.check_hu = check_hu

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None, **options: Any) -> Reconstructor:
        """Reconstructor with the network of a checkpoint (without a path, of the packaged weights) and options as above."""
        from mpunet.weights import load_network

        return cls.from_network(load_network(path), **options)

    @classmethod
    def from_network(cls, network: Any, **options: Any) -> Reconstructor:
        """Reconstructor with a network that states its own ``n_thick``, ``ratio`` and ``multiple``, as all of mpunet's do."""
        return cls(network, n_thick=network.n_thick, ratio=network.ratio, multiple=network.multiple, **options)

    def __call__(self, image: Image) -> Image:
        """Thin volume of a thick one, of the same kind as the thick one.

        Args:
            image: a nibabel NIfTI image in any orientation, or an array or tensor (D, H, W), depth first; in HU.

        Returns:
            (D - 1) * ratio + 1 slices in HU: a NIfTI image in int16 with the header of ``image`` and the affine of the thin
            slices; or an array, or a tensor on the device of ``image``, in float32.
        """
        if isinstance(image, Tensor):
            thin = self(image.detach().float().cpu().numpy())
            return torch.from_numpy(thin).to(image.device)
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or 0 in image.shape:
                raise ValueError(f"Expected a volume (D, H, W), got shape {image.shape}.")
            check_voxels(image, name="image", check_hu=self.check_hu)
            return self._reconstruct(image, "float32")
        volume = volume_from_image(image, check_hu=self.check_hu)
        return thin_image(self.reconstruct_volume(volume), volume, self.ratio)

    def reconstruct_volume(self, volume: Volume, *, dtype: Literal["int16", "float32"] = "int16") -> npt.NDArray[Any]:
        """Thin slab ((D - 1) * ratio + 1, H, W) of a volume, in HU; ``int16`` is rounded and clipped to [-1024, 3071]."""
        return self._reconstruct(volume.slab, dtype)

    def stream(self, slab: npt.NDArray[Any]) -> Iterator[Tensor]:
        """Thin slices of a slab (D, H, W), both in HU, as the engine finishes them: (k, H, W) float32 on the device."""
        chunks = stream_thin(
            lambda hu: self.network(from_hu(hu)),
            slab,
            n_thick=self.n_thick,
            ratio=self.ratio,
            stride=self.stride,
            batch_size=self.batch_size,
            multiple=self.multiple,
            device=self.device,
            autocast=self.autocast,
        )
        return map(to_hu, chunks)

    def _reconstruct(self, slab: npt.NDArray[Any], dtype: Literal["int16", "float32"]) -> npt.NDArray[Any]:
        depth, height, width = slab.shape
        thin = np.empty((thin_depth(depth, self.ratio), height, width), dtype)
        done = 0
        for chunk in self.stream(slab):
            hu = chunk.cpu().numpy()
            thin[done : done + len(hu)] = round_hu(hu) if dtype == "int16" else hu
            done += len(hu)
        return thin


def autocast_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype | None:
    """Type for automatic mixed precision on a device; None is plain float32.

    "auto" is bfloat16 where the processor has instructions for it, float16 on CUDA devices that do not, float32 otherwise.
    """
    if precision != "auto":
        return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else None


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX-512 BF16; processors with AMX have it too).

    ``torch.ops.mkldnn._is_mkldnn_bf16_supported`` is no answer: it says yes to any AVX-512, where bfloat16 is emulated.
    """
    # get_capabilities is public but recent; older releases have only the private function.
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
