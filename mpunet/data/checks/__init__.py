"""Whether a case can be trained on or measured with: what ``mpunet check`` tells.

Begin with :mod:`mpunet.data.checks.case`.
"""

from mpunet.data.checks.case import examine, examine_volumes, refuse, verdict
from mpunet.data.checks.volume import Finding

__all__ = ["Finding", "examine", "examine_volumes", "refuse", "verdict"]
