"""DICOM series as scans: found in folders, put in order, checked, and read slice by slice.

Start with :mod:`mpunet.io.dicom.series`. Needs pydicom: ``pip install 'mpunet[dicom]'``.
"""

__all__: list[str] = []
