"""A wider network that starts as the function of a narrower one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpunet.models.backbone import ProgressiveBackbone, ProgressiveUp
from mpunet.models.mpunet import MPUNet

__all__ = ["widened"]


def widened(narrow: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network that fit another; a wider MPU-Net then computes the same.

    Tensors of the same shape fit any network. Those with fewer channels fit an MPU-Net with the
    progressive decoder. The channels of the narrower network come first. New channels have the
    values of ``net``, such as random ones, and the weights by which old channels would read them
    are zero. So training starts from the narrower network's result and can use the new channels
    from the first step (our choice, after Chen et al. 2016, "Net2Net").

    Args:
        narrow: ``state_dict`` of a network.
        net: network that is to start from it. With group normalisation a wider one does not compute
            quite the same, as its groups are others.

    Returns:
        The tensors of ``net`` that ``narrow`` has values for. Those that are wider in ``narrow``,
        or have another kernel (as for another ratio), are left out.
    """
    transposed, shortcuts = set(), {}
    for path, module in net.named_modules():
        if isinstance(module, nn.ConvTranspose3d):
            transposed.add(f"{path}.weight")
        elif isinstance(module, ProgressiveUp):
            # The second deconvolution reads the shortcut's channels, then the others.
            shortcuts[f"{path}.up.deconv.weight"] = f"{path}.shortcut.deconv.weight"
    grows = isinstance(net, MPUNet) and isinstance(net.backbone, ProgressiveBackbone)
    wide, tensors = net.state_dict(), {}
    for name in wide.keys() & narrow.keys():
        old, new = narrow[name], wide[name].clone()
        if old.shape == new.shape:
            tensors[name] = old
        elif grows and _has_room(new, old):
            if old.ndim == 1:
                new[: len(old)] = old
            else:
                # Views of (C_out, C_in, ...).
                source, target = (
                    x.transpose(0, 1) if name in transposed else x for x in (old, new)
                )
                columns = torch.arange(source.shape[1])
                if shortcut := shortcuts.get(name):
                    columns[len(narrow[shortcut]) :] += len(wide[shortcut]) - len(narrow[shortcut])
                target[: len(source)] = 0
                target[: len(source), columns] = source.to(target.dtype)
            tensors[name] = new
    return tensors


def _has_room(new: Tensor, old: Tensor) -> bool:
    """Return whether the channels of ``old`` fit into ``new``, with kernels of the same size."""
    return (
        new.ndim == old.ndim
        and new.shape[2:] == old.shape[2:]
        and all(a <= b for a, b in zip(old.shape, new.shape, strict=True))
    )
