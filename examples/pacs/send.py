"""Send DICOM series to an archive with pynetdicom, where dcmtk's ``storescu`` is missing.

The exit status is 0 only if the archive has taken every file. That of ``python -m pynetdicom
storescu`` is 0 even if it has refused them all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aet", default="MPUNET", help="AE title of this machine")
    parser.add_argument("--pacs-aet", default="ANY-SCP", help="AE title of the archive")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path, nargs="+", help="folder of .dcm files by mpunet")
    args = parser.parse_args(words)
    files = [path for folder in args.folder for path in sorted(folder.glob("*.dcm"))]
    node = AE(args.aet)
    node.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)  # what mpunet writes
    association = node.associate(args.host, args.port, ae_title=args.pacs_aet)
    if not association.is_established:
        print(f"no association with {args.pacs_aet} at {args.host}:{args.port}", file=sys.stderr)
        return 1
    try:
        for path in files:
            status = association.send_c_store(path).get("Status")
            # B000, B006, B007: taken, with a warning (PS3.4, table B.2-1)
            if status not in (0x0000, 0xB000, 0xB006, 0xB007):
                code = "no answer" if status is None else f"status {status:04X}"
                print(f"{path}: not taken, {code}", file=sys.stderr)
                return 1
    except (RuntimeError, ValueError) as error:  # the archive ended, or does not take CT images
        print(f"not sent: {error}", file=sys.stderr)
        return 1
    finally:
        association.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
