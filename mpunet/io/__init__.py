"""Find scans on disk, read them slice by slice, and write new ones.

A file that is being written appears under its name only when it is complete. Start with
:mod:`mpunet.io.scan_file` for reading and :mod:`mpunet.io.thin_file` for writing.
"""

from mpunet.io.scan_file import ScanFile, open_scan, read_volume
from mpunet.io.scans import Scan, find_scans
from mpunet.io.thin_file import write_slices, write_volume
from mpunet.io.volume import Volume

__all__ = [
    "Scan",
    "ScanFile",
    "Volume",
    "find_scans",
    "open_scan",
    "read_volume",
    "write_slices",
    "write_volume",
]
