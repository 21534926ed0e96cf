"""Puts boxes of text into the order in which a person reads them."""

from collections.abc import Sequence
from statistics import median

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

TALL = 1.5
"""A box this many times as high as wide holds a column of vertical writing."""
X, Y = 0, 1


def order(boxes: Sequence[Box]) -> list[int]:
    """Indices of `boxes`: rows from top to bottom, each from left to right.

    Where most boxes are columns of vertical writing: columns from right to left, each from top to bottom.
    """
    tall = sum(bottom - top > TALL * (right - left) for left, top, right, bottom in boxes)
    if 2 * tall > len(boxes):
        groups = _groups(boxes, X, from_end=True)
        along = Y
    else:
        groups = _groups(boxes, Y, from_end=False)
        along = X
    return [index for group in groups for index in sorted(group, key=lambda index: boxes[index][along])]


def _groups(boxes: Sequence[Box], axis: int, *, from_end: bool) -> list[list[int]]:
    """Indices of boxes whose centres on `axis` lie within half a typical thickness of each other."""
    if not boxes:
        return []
    reach = median(box[axis + 2] - box[axis] for box in boxes) / 2
    centres = [(box[axis] + box[axis + 2]) / 2 for box in boxes]
    groups: list[list[int]] = []
    mean = 0.0
    for index in sorted(range(len(boxes)), key=centres.__getitem__, reverse=from_end):
        if groups and abs(centres[index] - mean) < reach:
            groups[-1].append(index)
            # The mean follows a row that climbs, as on a page that was scanned askew.
            mean += (centres[index] - mean) / len(groups[-1])
        else:
            groups.append([index])
            mean = centres[index]
    return groups
