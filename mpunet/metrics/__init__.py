"""Numbers that compare volumes: MAE, RMSE, PSNR and SSIM, and what they do not show.

Begin with :mod:`mpunet.metrics.quality`. Fidelity (bias, lung density), texture (noise, sharpness), consistency with the thick scan
and statistics over cases have a module each. No network and no file is needed.
"""

from mpunet.metrics.fidelity import hu_bias, lung_density
from mpunet.metrics.texture import noise, sharpness

__all__ = ["hu_bias", "lung_density", "noise", "sharpness"]
