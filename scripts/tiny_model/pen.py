"""A small anti-aliased drawing surface: polygons and polylines in a moved, scaled and turned frame.

Coordinates are pixels of the finished picture; everything is painted at twice the size and averaged down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vocabulary import RGB

cv2.setNumThreads(1)  # drawing runs in one process a core

SIZE = 128
OVERSAMPLING = 2
LINE: RGB = (50, 36, 44)
_FRACTION_BITS = 4  # OpenCV takes fixed-point coordinates: sixteenths of a pixel

Points = NDArray[np.float64] | Sequence[tuple[float, float]]


class Pen:
    """Paints on a square RGB picture."""

    def __init__(self, size: int = SIZE) -> None:
        self.image = np.zeros((size * OVERSAMPLING, size * OVERSAMPLING, 3), np.uint8)
        self.matrix = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
        self.scale = 1.0

    def frame(self, x: float, y: float, scale: float = 1.0, degrees: float = 0.0) -> None:
        """From now on the origin is at (x, y), scaled and turned."""
        angle = math.radians(degrees)
        cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
        self.matrix = np.array([[cosine, -sine, x], [sine, cosine, y]])
        self.scale = scale

    def fill_all(self, colour: RGB) -> None:
        """Paints the whole picture in one colour."""
        self.image[:] = colour

    def gradient(self, top: RGB, bottom: RGB) -> None:
        """Paints the whole picture with a vertical gradient."""
        share = np.linspace(0, 1, self.image.shape[0])[:, None, None]
        self.image[:] = (np.array(top) * (1 - share) + np.array(bottom) * share).astype(np.uint8)

    def polygon(self, points: Points, fill: RGB | None = None, line: RGB | None = None, width: float = 1.2) -> None:
        """A closed shape, filled, outlined or both."""
        placed = self._place(points)
        if fill is not None:
            cv2.fillPoly(self.image, placed, fill, cv2.LINE_AA, _FRACTION_BITS)
        if line is not None:
            cv2.polylines(self.image, placed, True, line, self._thickness(width), cv2.LINE_AA, _FRACTION_BITS)

    def line(self, points: Points, colour: RGB, width: float = 1.2) -> None:
        """An open line through the points."""
        cv2.polylines(
            self.image, self._place(points), False, colour, self._thickness(width), cv2.LINE_AA, _FRACTION_BITS
        )

    def picture(self) -> NDArray[np.uint8]:
        """The finished picture, `[size, size, 3]`."""
        height, width = self.image.shape[:2]
        return cv2.resize(self.image, (width // OVERSAMPLING, height // OVERSAMPLING), interpolation=cv2.INTER_AREA)

    def _place(self, points: Points) -> NDArray[np.int32]:
        there = np.asarray(points, np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.round(there * OVERSAMPLING * 2**_FRACTION_BITS).astype(np.int32)[None]

    def _thickness(self, width: float) -> int:
        return max(1, round(width * OVERSAMPLING * self.scale))


def shade(colour: RGB, factor: float) -> RGB:
    """Darker (factor below 1) or lighter."""
    return tuple(int(max(0, min(255, value * factor))) for value in colour)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """From `a` (share 0) to `b` (share 1)."""
    return tuple(int(x + (y - x) * share) for x, y in zip(a, b))


def ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, count: int = 36, turn: float = 0
) -> NDArray[np.float64]:
    """Points of an elliptic arc, angles in degrees, clockwise from the right."""
    t = np.radians(np.linspace(start, end, count))
    u, v = rx * np.cos(t), ry * np.sin(t)
    r = math.radians(turn)
    return np.stack([x + u * math.cos(r) - v * math.sin(r), y + u * math.sin(r) + v * math.cos(r)], 1)


def bezier(start: ArrayLike, control: ArrayLike, end: ArrayLike, count: int = 14) -> NDArray[np.float64]:
    """Points of a quadratic Bézier curve."""
    t = np.linspace(0, 1, count)[:, None]
    p0, p1, p2 = (np.asarray(point, float) for point in (start, control, end))
    return (1 - t) ** 2 * p0 + 2 * t * (1 - t) * p1 + t * t * p2


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Corners of a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
