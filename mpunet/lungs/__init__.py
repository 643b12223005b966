"""Lung masks: found by thresholds (:mod:`mpunet.lungs.threshold`), kept in little memory (:mod:`mpunet.lungs.packed`)."""

from mpunet.lungs.threshold import lung_mask

__all__ = ["lung_mask"]
