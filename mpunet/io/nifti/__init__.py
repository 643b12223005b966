"""NIfTI files as scans, read slice by slice, and the slice thickness beside them.

Start with :mod:`mpunet.io.nifti.scan`.
"""

__all__: list[str] = []
