"""Numbers for what a picture shows: how much of it has a hue, and how well its edges are those of a template.

Plain on purpose: other programs' tests compute the same from a finished picture.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from drawings import Picture
from train_control import canny


def hue_share(picture: Picture, low: float, high: float, saturation: float) -> float:
    """Share of pixels with a hue of `low`..`high` degrees that are at least that saturated, and not dark (HSV, 0..1)."""
    hue, found_saturation, value = cv2.split(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
    return float(((hue >= low) & (hue <= high) & (found_saturation >= saturation) & (value >= 0.3)).mean())


def edge_mask(picture: Picture) -> NDArray[np.bool_]:
    """Canny 100/200 of the grey picture."""
    return canny(picture)[..., 0] > 0


def edges_found(picture: Picture, wanted: NDArray[np.bool_], reach: int) -> float:
    """Share of the wanted edges that have an edge of the picture within `reach` pixels (square neighbourhood)."""
    near = cv2.dilate(edge_mask(picture).astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1))) > 0
    return float(near[wanted].mean())


def edge_agreement(picture: Picture, wanted: NDArray[np.bool_]) -> float:
    """F1 of the picture's edge pixels against the wanted ones, exactly in place: 2·|A∩B| / (|A|+|B|).

    Every portrait has some edge near every edge of a template, so a tolerance of a pixel or two hides the difference.
    """
    found = edge_mask(picture)
    return float(2 * (found & wanted).sum() / max(1, found.sum() + wanted.sum()))
