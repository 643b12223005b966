"""A small encoder of lossless JPEG, to test decoders of DICOM files (ISO/IEC 10918-1, Annex H)."""

import struct

import numpy as np


def jpeg_lossless(plane, bits):
    """Encode unsigned integers (rows, columns): process 14, predictor 1, the left neighbour."""
    rows, columns = plane.shape
    stored = plane.astype(np.int32)
    predicted = np.roll(stored, 1, axis=1)
    predicted[1:, 0] = stored[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    # Differences are modulo 2^16: as their number of bits, in a Huffman code of 5 bits, then bits.
    code = ""
    for difference in (stored - predicted).ravel():
        signed = (int(difference) + 32767) % 65536 - 32767
        size = abs(signed).bit_length()
        code += f"{size:05b}"
        if 0 < size < 16:
            code += f"{signed if signed > 0 else signed + (1 << size) - 1:0{size}b}"
    code += "1" * (-len(code) % 8)
    data = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\x00")
    frame = struct.pack(">BHHB3B", bits, rows, columns, 1, 1, 0x11, 0)
    lengths = bytes(17 if length == 5 else 0 for length in range(1, 17))
    segments = {0xC3: frame, 0xC4: b"\0" + lengths + bytes(range(17)), 0xDA: b"\1\1\0\1\0\0"}
    written = [
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        for marker, content in segments.items()
    ]
    return b"\xff\xd8" + b"".join(written) + data + b"\xff\xd9"
