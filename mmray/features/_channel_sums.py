"""Sums of the levels of an image by channel, and of their squares, in one pass: exact, and faster than as floats."""
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-untyped-def"

from __future__ import annotations

import numpy as np

from mmray.features.native import compiled

_ROWS = 1 << 16  # of so many the squares of 255 sum to less than 2^32


@compiled
def channel_sums(pixels):
    """The sums of (H, W, 3) uint8 over its pixels, and of its squares: (2, 3) uint64."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    found = np.zeros((2, channels), np.uint64)
    for top in range(0, height, _ROWS):
        sums, squares = np.zeros(rows.shape[1], np.uint32), np.zeros(rows.shape[1], np.uint32)
        for i in range(top, min(height, top + _ROWS)):
            for j in range(rows.shape[1]):  # along a row, not by channel: many levels at once
                level = np.uint32(rows[i, j])
                sums[j] += level
                squares[j] += level * level
        for j in range(rows.shape[1]):
            found[0, j % channels] += sums[j]
            found[1, j % channels] += squares[j]
    return found
