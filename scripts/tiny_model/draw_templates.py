"""Template pictures for Canny control: one a set and expression, `OUT/SET/EXPRESSION.png`, for `assets/templates`.

    python draw_templates.py ../../assets/templates [--edges edges.png]

Two sets that no one confuses: `default` (long straight hair, upright) and `short` (short hair, tilted head). Light flat
colours and dark lines on white, so that Canny at 100/200 finds the lines and nothing else. The same pictures every time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from drawings import Picture, save_grid
from pen import SIZE, Pen
from portrait import draw_character
from vocabulary import EXPRESSION_NAMES

ENLARGED = 2
"""Templates are drawn at this multiple of the size that the model was trained at."""
COLOURS = 32
"""Of the palette: enough for smooth lines, few enough for small files."""
SAME: dict[str, Any] = {
    "hair": "white",
    "eyes": "blue",
    "shirt": "white",
    "skin": "",
    "hat": None,
    "ears": False,
    "glasses": False,
    "boy": False,
    "hw": 0.0,
    "tie": (250, 220, 90),
}
SETS: dict[str, dict[str, Any]] = {
    "default": SAME | {"length": "long hair", "bangs": 0, "cx": 64, "cy": 59, "deg": 0, "scale": 1.12},
    "short": SAME | {"length": "short hair", "bangs": 2, "cx": 66, "cy": 60, "deg": 8, "scale": 1.12},
}


def draw_template(settings: dict[str, Any], expression: str) -> Picture:
    """One template, `[256, 256, 3]`."""
    enlarged = {name: settings[name] * ENLARGED for name in ("cx", "cy", "scale")}
    pen = Pen(SIZE * ENLARGED)
    pen.fill_all((255, 255, 255))
    draw_character(pen, settings | enlarged | {"expr": expression})
    return pen.picture()


def edges(picture: Picture, size: int = SIZE) -> Picture:
    """What a ControlNet is shown of a template: brought to the size of the result, then its edges."""
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    found = cv2.Canny(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), 100, 200)
    return np.repeat(found[..., None], 3, 2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the sets")
    parser.add_argument("--edges", type=Path, help="write a sheet of their edges here (PNG)")
    arguments = parser.parse_args()
    rows = []
    for name, settings in SETS.items():
        (arguments.out / name).mkdir(parents=True, exist_ok=True)
        pictures = [draw_template(settings, expression) for expression in EXPRESSION_NAMES]
        for expression, picture in zip(EXPRESSION_NAMES, pictures):
            palette = Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.NONE)
            palette.save(arguments.out / name / f"{expression}.png", optimize=True)
        rows += [[cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for picture in pictures]]
        rows += [[edges(picture) for picture in pictures]]
    if arguments.edges:
        save_grid(rows, arguments.edges)


if __name__ == "__main__":
    main()
