"""Metrics that compare volumes: MAE, RMSE, PSNR and SSIM, and measures of what these do not show.

Start with :mod:`mpunet.metrics.quality`. Other modules measure fidelity (bias, lung density),
texture (noise, sharpness), perceptual distance and consistency with the thick scan, and compute
statistics and agreement over cases.
They need neither a network nor files.
"""

from mpunet.metrics.fidelity import hu_bias, lung_density
from mpunet.metrics.texture import noise, sharpness

__all__ = ["hu_bias", "lung_density", "noise", "sharpness"]
