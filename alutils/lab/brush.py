"""Label Studio's brush masks: the run-length code (thi.ng's rle-pack) of RGBA pixels, whose alpha is the mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SIZES = (3, 4, 8, 16)  # widths, in bits, of a run's length; two bits of each run say which of the four it has


def encode_brush(mask: np.ndarray) -> list[int]:
    """The bytes for a mask, bool (H, W); the same as those of ``label_studio_converter.brush.mask2rle``.

    >>> encode_brush(np.array([[False, True]]))
    [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    """
    pixels = mask.ravel()
    starts = np.flatnonzero(np.r_[True, pixels[1:] != pixels[:-1]])
    bits = [f"{4 * pixels.size:032b}", "00111", *(f"{size - 1:04b}" for size in _SIZES)]  # 00111: words of 8 bits
    for length, lesion in zip(4 * np.diff(np.r_[starts, pixels.size]), pixels[starts], strict=True):
        index, left = sum(int(length > 1 << size) for size in _SIZES[:3]), int(length)
        while left:
            n = min(left, 1 << _SIZES[index])
            bits.append(f"1{index:02b}{n - 1:0{_SIZES[index]}b}{255 * int(lesion):08b}")
            left -= n
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(code: Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask, bool (H, W): True where alpha is at least 128 (a brush has soft edges). ValueError for a damaged code.

    >>> decode_brush([0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128], 1, 2)
    array([[False,  True]])
    """
    text, at = "".join(f"{byte:08b}" for byte in bytes([*code])), 0

    def read(n: int) -> int:
        nonlocal at
        at += n
        return int(text[at - n : at], 2)

    n_values, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if (n_values, word) != (4 * height * width, 8):
        raise ValueError(f"a brush mask of {n_values // 4} pixels, not of {height} x {width}")
    values = bytearray()
    while len(values) < n_values and at < len(text):
        run, n = read(1), 1 + read(sizes[read(2)])
        values += bytes([read(8)]) * n if run else read(8 * n).to_bytes(n, "big")
    if len(values) != n_values or at > len(text):
        raise ValueError("a damaged brush mask")
    return np.frombuffer(values, np.uint8).reshape(height, width, 4)[..., 3] >= 128
