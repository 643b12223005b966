"""Turn folders of volumes into batches: cases, pairs, checks, the cache and the data module.

Start reading at :mod:`mpunet.data.datamodule`, or at :mod:`mpunet.data.layouts` for the supported
folder layouts. The data module (:class:`mpunet.ThickThinDataModule`) and the MONAI transforms
(:mod:`mpunet.data.transforms`) are not imported here because Lightning and MONAI take seconds to
import.
"""

from mpunet.data.case import Case
from mpunet.data.layouts import find_cases
from mpunet.data.pairs import align_pair, split_by_patient

__all__ = ["Case", "align_pair", "find_cases", "split_by_patient"]
