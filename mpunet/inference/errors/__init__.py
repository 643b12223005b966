"""An error estimate for every voxel: its features, the model, and how it is fitted.

See docs/error_map.md.
"""

from mpunet.inference.errors.model import ErrorModel

__all__ = ["ErrorModel"]
