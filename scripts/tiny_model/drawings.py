"""Drawings with tags: what the tiny model learns from. Simple anime-like portraits and scenes, 128×128, drawn by program.

No outside data. A drawing follows from its seed; captions are drawn afresh every time they are needed.

    python drawings.py sheet.png     a sheet of examples
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pen import Pen, mix, shade
from portrait import draw_character
from scenery import draw_scene
from vocabulary import (
    BACKGROUNDS,
    EXPRESSION_NAMES,
    EXPRESSIONS,
    EYES,
    FILLER,
    HAIR,
    HAIR_TIES,
    HATS,
    LENGTHS,
    SCENES,
    SHIRTS,
    SKINS,
)

Attributes = dict[str, Any]
Picture = NDArray[np.uint8]


def sample_attributes(rng: random.Random, **fixed: Any) -> Attributes:
    """What a drawing shows, at random but for `fixed`."""
    chance = rng.random
    boy = chance() < 0.25
    attributes: Attributes = {
        "kind": "char",
        "boy": boy,
        "hair": rng.choice(list(HAIR)),
        "eyes": rng.choice(list(EYES)),
        "expr": rng.choice(EXPRESSION_NAMES),
        "length": "short hair" if boy and chance() < 0.85 else rng.choice(LENGTHS),
        "shirt": rng.choice(list(SHIRTS)),
        "skin": rng.choices(list(SKINS), [0.8, 0.1, 0.1])[0],
        "ears": False,
        "glasses": chance() < 0.18,
        "hat": None,
        "bg": rng.choice(list(BACKGROUNDS)),
        "bgkind": rng.choices(["plain", "gradient", "scene"], [0.58, 0.20, 0.22])[0],
        "bangs": 2 if boy and chance() < 0.7 else rng.choice([0, 1]),
        "tie": rng.choice(HAIR_TIES),
        "cx": 64 + rng.uniform(-3, 3),
        "cy": 59 + rng.uniform(-2, 2),
        "scale": rng.uniform(1.06, 1.16),
        "deg": rng.uniform(-5, 5),
        "hw": rng.uniform(-1, 1),
        "scene": rng.choice(list(SCENES)),
    }
    headwear = chance()
    if headwear < 0.16:
        attributes["hat"] = rng.choice(list(HATS))
    elif headwear < 0.28:
        attributes["ears"] = True
    if chance() < 0.08:
        attributes["kind"] = "scene"
    return attributes | fixed


def draw(attributes: Attributes, rng: random.Random) -> Picture:
    """The drawing, `[128, 128, 3]`; `rng` decides the details of a scene."""
    pen = Pen()
    if attributes["kind"] == "scene":
        draw_scene(pen, attributes["scene"], rng)
        return pen.picture()
    if attributes["bgkind"] == "plain":
        pen.fill_all(BACKGROUNDS[attributes["bg"]])
    elif attributes["bgkind"] == "gradient":
        colour = BACKGROUNDS[attributes["bg"]]
        pen.gradient(mix(colour, (255, 255, 255), 0.75), shade(colour, 0.92))
    else:
        draw_scene(pen, attributes["scene"], rng)
    draw_character(pen, attributes)
    return pen.picture()


def caption(attributes: Attributes, rng: random.Random, drop: float = 0.1, filler: float = 0.3) -> str:
    """Tags for a drawing, each left out with probability `drop`, in random order, with meaningless filler between.

    Expression tags are dropped less often while `drop` is small: they matter most and are one tag of many.
    """
    a = attributes
    if a["kind"] == "scene":
        tags = ["no humans", "scenery"] if rng.random() < 0.8 else ["scenery"]
        tags += rng.choice(SCENES[a["scene"]]).split(", ")
    else:
        tags = ["1boy" if a["boy"] else "1girl", f"{a['hair']} hair", a["length"], f"{a['eyes']} eyes"]
        tags += [rng.choice(EXPRESSIONS[a["expr"]]), f"{a['shirt']} shirt"]
        if a["skin"]:
            tags.append(a["skin"])
        if a["glasses"]:
            tags.append("glasses")
        if a["hat"]:
            tags.append(rng.choice(["hat", f"{a['hat']} hat"]))
        if a["ears"]:
            tags.append("cat ears")
        if a["bgkind"] == "scene":
            tags += rng.choice(SCENES[a["scene"]]).split(", ")
        else:
            tags.append(f"{a['bg']} background")
            if a["bgkind"] == "gradient":
                tags.append("gradient background")
            elif rng.random() < 0.3:
                tags.append("simple background")
    expression = set(EXPRESSIONS[a["expr"]]) if a["kind"] == "char" else set()
    expression_drop = drop * 0.3 if drop < 0.3 else drop
    tags = [tag for tag in tags if rng.random() > (expression_drop if tag in expression else drop)]
    while rng.random() < filler:
        tags.append(rng.choice(FILLER))
    if rng.random() < 0.5:
        rest = tags[1:]
        rng.shuffle(rest)
        tags = tags[:1] + rest
    else:
        rng.shuffle(tags)
    return ", ".join(tags)


def make(seed: int) -> tuple[Picture, Attributes]:
    """One drawing and what it shows."""
    rng = random.Random(seed)
    attributes = sample_attributes(rng)
    return draw(attributes, rng), attributes


def save_grid(rows: list[list[Picture]], path: Path) -> None:
    """Writes rows of pictures of one size as one image file."""
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])


def example_sheet() -> list[list[Picture]]:
    """All expressions in four hair styles, three rows of random drawings, one of scenes."""

    def portrait(row: int, column: int) -> Picture:
        fixed = {"kind": "char", "expr": EXPRESSION_NAMES[column], "hair": list(HAIR)[row], "bgkind": "plain"}
        attributes = sample_attributes(random.Random(100 * row + column), length=LENGTHS[row % 4], **fixed)
        return draw(attributes, random.Random(column))

    def scene(column: int) -> Picture:
        attributes = sample_attributes(random.Random(column), kind="scene", scene=list(SCENES)[column % 4])
        return draw(attributes, random.Random(column))

    rows = [[portrait(row, column) for column in range(12)] for row in range(4)]
    rows += [[make(1000 + 12 * row + column)[0] for column in range(12)] for row in range(3)]
    return [*rows, [scene(column) for column in range(12)]]


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: python {Path(__file__).name} sheet.png")
    save_grid(example_sheet(), Path(sys.argv[1]))
