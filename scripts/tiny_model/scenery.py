"""The four scenes: tavern, forest, beach, night city. Random details come from the given generator."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from pen import LINE, Pen, bezier, box, ellipse


def tavern(pen: Pen, rng: random.Random) -> None:
    """Shelves of bottles over a counter with a mug."""
    uniform = rng.uniform
    pen.gradient((120, 74, 42), (92, 54, 30))
    for x in range(0, 129, 16):
        pen.line([(x, 0), (x, 92)], (84, 48, 26), 1)
    for y in (26, 52):
        pen.polygon(box(0, y, 128, y + 5), (164, 108, 62), LINE, 1)
        x = uniform(4, 10)
        while x < 122:
            glass = rng.choice([(60, 140, 80), (180, 50, 50), (220, 170, 60), (70, 110, 180)])
            pen.polygon(box(x, y - 13, x + 7, y), glass, LINE, 0.8)
            pen.polygon(box(x + 2, y - 19, x + 5, y - 13), glass, LINE, 0.8)
            x += uniform(11, 20)
    pen.polygon(box(0, 92, 128, 128), (150, 96, 54), LINE, 1.2)
    pen.line([(0, 104), (128, 104)], (110, 66, 36), 1)
    pen.line([(0, 116), (128, 116)], (110, 66, 36), 1)
    x = uniform(20, 100)
    pen.polygon(box(x - 8, 78, x + 8, 98), (244, 196, 70), LINE, 1)
    pen.polygon(ellipse(x, 78, 10, 5), (252, 250, 240), LINE, 1)
    pen.line(ellipse(x + 9, 88, 6, 6, -80, 80), LINE, 2)


def forest(pen: Pen, rng: random.Random) -> None:
    """Five firs on a meadow."""
    uniform = rng.uniform
    pen.gradient((170, 222, 246), (214, 242, 220))
    pen.polygon(box(0, 88, 128, 128), (96, 172, 84), None)
    trees = [uniform(-4, 14), uniform(24, 42), uniform(52, 72), uniform(84, 102), uniform(114, 130)]
    for x in sorted(trees, key=lambda _: rng.random()):
        y, height = uniform(90, 104), uniform(50, 74)
        pen.polygon(box(x - 4, y - 18, x + 4, y), (116, 76, 44), LINE, 1)
        for tier in range(3):
            half = 20 - 4 * tier
            base = y - 14 - tier * height * 0.26
            green = (40 + 12 * tier, 120 + 14 * tier, 60)
            pen.polygon([(x - half, base), (x + half, base), (x, base - height * 0.42)], green, LINE, 1)


def beach(pen: Pen, rng: random.Random) -> None:
    """Sun, sea, sand and a palm."""
    uniform = rng.uniform
    pen.gradient((116, 196, 250), (206, 238, 252))
    pen.polygon(ellipse(uniform(20, 108), 22, 11, 11), (254, 226, 90), None)
    pen.polygon(box(0, 60, 128, 100), (40, 130, 210), None)
    for y in (70, 80):
        shift = uniform(0, 20)
        for index in range(-1, 6):
            x = index * 26 + shift
            pen.line(bezier((x, y), (x + 7, y - 4), (x + 14, y)), (200, 232, 250), 1)
    shore = bezier((0, 98), (60, uniform(84, 94)), (128, 98))
    pen.polygon(np.concatenate([shore, [(128, 128), (0, 128)]]), (246, 222, 160), None)
    x = rng.choice([uniform(12, 30), uniform(98, 116)])
    pen.polygon([(x - 3, 112), (x + 4, 112), (x + 8, 62), (x + 4, 62)], (150, 100, 56), LINE, 1)
    for angle in (-160, -120, -60, -20, 20, 160):
        tip = (x + 6 + 26 * math.cos(math.radians(angle)), 62 + 18 * math.sin(math.radians(angle)) + 6)
        bend = ((x + 6 + tip[0]) / 2, min(62, tip[1]) - 8)
        out, back = bezier((x + 6, 62), bend, tip), bezier(tip, (bend[0], bend[1] + 7), (x + 6, 63))
        pen.polygon(np.concatenate([out, back]), (50, 150, 70), LINE, 0.8)


def night_city(pen: Pen, rng: random.Random) -> None:
    """Lit windows under moon and stars."""
    uniform = rng.uniform
    pen.gradient((16, 18, 52), (58, 46, 104))
    for _ in range(14):
        x, y = uniform(0, 128), uniform(0, 50)
        pen.polygon(ellipse(x, y, 0.9, 0.9, count=8), (250, 250, 220))
    pen.polygon(ellipse(uniform(18, 110), uniform(14, 26), 9, 9), (250, 240, 190))
    x = -4.0
    while x < 128:
        width, height = uniform(16, 26), uniform(40, 84)
        wall = rng.choice([(36, 38, 70), (46, 44, 84), (30, 34, 58)])
        pen.polygon(box(x, 116 - height, x + width, 128), wall, (16, 16, 34), 1)
        for window_y in np.arange(116 - height + 5, 112, 9):
            for window_x in np.arange(x + 3, x + width - 4, 6.5):
                if rng.random() < 0.6:
                    pen.polygon(box(window_x, window_y, window_x + 3.2, window_y + 4.6), (252, 220, 110))
        x += width + uniform(0, 2)
    pen.polygon(box(0, 116, 128, 128), (40, 40, 52))


_SCENES: dict[str, Callable[[Pen, random.Random], None]] = {
    "tavern": tavern,
    "forest": forest,
    "beach": beach,
    "night city": night_city,
}


def draw_scene(pen: Pen, name: str, rng: random.Random) -> None:
    """Paints the scene over the whole picture."""
    pen.frame(0, 0)
    _SCENES[name](pen, rng)
