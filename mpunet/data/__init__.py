"""From folders of volumes to batches: cases, pairs, checks, the cache, and the data module built on them.

Begin with :mod:`mpunet.data.datamodule`, or with :mod:`mpunet.data.layouts` for how folders are read. The data module and the MONAI
transforms are not imported here, as Lightning and MONAI take seconds: :class:`mpunet.ThickThinDataModule`,
:mod:`mpunet.data.transforms`.
"""

from mpunet.data.case import Case
from mpunet.data.layouts import find_cases
from mpunet.data.pairs import align_pair, split_by_patient

__all__ = ["Case", "align_pair", "find_cases", "split_by_patient"]
