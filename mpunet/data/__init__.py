"""Volumes, pairs, lung masks, simulated thick slices, phantoms; and the data module built on them.

The data module and the MONAI transforms are not imported here, as Lightning and MONAI take seconds:
:class:`mpunet.ThickThinDataModule`, :mod:`mpunet.data.transforms`.
"""

from mpunet.data.case import Case
from mpunet.data.layouts import find_cases
from mpunet.data.lung_mask import lung_mask
from mpunet.data.pairs import align_pair, split_by_patient
from mpunet.data.phantom import ChestPhantom, chest_phantom, phantom_image
from mpunet.data.scan_file import ScanFile, open_scan, read_volume
from mpunet.data.scans import Scan, find_scans
from mpunet.data.simulate import profile_weights, thicken
from mpunet.data.thin_file import write_slices, write_volume
from mpunet.data.volume import Volume

__all__ = [
    "Case",
    "ChestPhantom",
    "Scan",
    "ScanFile",
    "Volume",
    "align_pair",
    "chest_phantom",
    "find_cases",
    "find_scans",
    "lung_mask",
    "open_scan",
    "phantom_image",
    "profile_weights",
    "read_volume",
    "split_by_patient",
    "thicken",
    "write_slices",
    "write_volume",
]
