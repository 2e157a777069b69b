"""JPEG streams of kinds that no library here writes: lossless with any predictor, and DCT of flat blocks.

After ITU-T T.81; they make what the readers are tested with.
"""

import numpy as np

# All symbols have codes of 5 bits, so the code of a symbol is the symbol itself.
_CODE_BITS = 5


def lossless_jpeg(pixels: np.ndarray, predictor: int, precision: int) -> bytes:
    """Process 14 (annex H) of integers (rows, columns); negative ones as their two's complement."""
    values = pixels.astype(np.int64) & ((1 << precision) - 1)
    left, above, corner = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]
    predicted = np.empty_like(values)
    predicted[0, 0] = 1 << (precision - 1)
    predicted[0, 1:], predicted[1:, 0] = values[0, :-1], values[:-1, 0]
    predicted[1:, 1:] = {
        1: left,
        2: above,
        3: corner,
        4: left + above - corner,
        5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[predictor]
    differences = (values - predicted + (1 << 15)) % (1 << 16) - (1 << 15)
    bits = "".join(_coded(-int(d) if d == -(1 << 15) else int(d)) for d in differences.ravel())
    return _stream(0xC3, precision, pixels.shape, [_table(0, 17)], bytes([predictor, 0, 0]), bits)


def flat_block_jpeg(blocks: np.ndarray, precision: int) -> bytes:
    """Baseline (8 bits) or extended (12 bits) DCT of an image whose blocks of 8 x 8 have one value each."""
    means = 8 * (blocks.astype(np.int64) - (1 << (precision - 1)))
    differences = np.diff(means.ravel(), prepend=0)
    bits = "".join(_coded(int(d)) + format(0, f"0{_CODE_BITS}b") for d in differences)
    quantisation = b"\xff\xdb" + (67).to_bytes(2, "big") + bytes([0]) + bytes([1] * 64)
    shape = (8 * blocks.shape[0], 8 * blocks.shape[1])
    marker = 0xC0 if precision == 8 else 0xC1
    return _stream(
        marker, precision, shape, [quantisation, _table(0, 16), _table(0x10, 16)], bytes([0, 63, 0]), bits
    )


def _coded(difference: int) -> str:
    size = abs(difference).bit_length()
    code = format(size, f"0{_CODE_BITS}b")
    if size in (0, 16):
        return code
    return code + format(difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b")


def _table(kind: int, num_symbols: int) -> bytes:
    counts = [num_symbols if length == _CODE_BITS else 0 for length in range(1, 17)]
    body = bytes([kind, *counts, *range(num_symbols)])
    return b"\xff\xc4" + (len(body) + 2).to_bytes(2, "big") + body


def _stream(
    marker: int, precision: int, shape: tuple[int, ...], tables: list[bytes], scan: bytes, bits: str
) -> bytes:
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    size = b"".join(length.to_bytes(2, "big") for length in shape)
    frame = bytes([0xFF, marker, 0, 11, precision]) + size + bytes([1, 1, 0x11, 0])
    start = bytes([0xFF, 0xDA, 0, 8, 1, 1, 0]) + scan
    return b"\xff\xd8" + b"".join(tables) + frame + start + data + b"\xff\xd9"
