"""Check whether a case can be used for training or evaluation; the core of ``mpunet check``.

Start reading at :mod:`mpunet.data.checks.case`.
"""

from mpunet.data.checks.case import check_mask, examine, examine_volumes, refuse, verdict
from mpunet.data.checks.volume import Finding

__all__ = ["Finding", "check_mask", "examine", "examine_volumes", "refuse", "verdict"]
