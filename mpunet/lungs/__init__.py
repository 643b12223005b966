"""Lung masks: segmentation by thresholds, and masks packed into bits to save memory.

See :mod:`mpunet.lungs.threshold` and :mod:`mpunet.lungs.packed`.
"""

from mpunet.lungs.threshold import lung_mask

__all__ = ["lung_mask"]
