"""The character: hair, face, expression, clothes. Frame: the head's centre is the origin, y points down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pen import LINE, RGB, Pen, bezier, box, ellipse, mix, shade
from vocabulary import EYES, HAIR, HATS, SHIRTS, SKINS, UNTAGGED_EYES, UNTAGGED_HAIR

WHITE: RGB = (255, 255, 255)
MOUTH: RGB = (150, 50, 54)
INSIDE_OF_MOUTH: RGB = (150, 40, 48)
TONGUE: RGB = (244, 130, 130)
MOUTH_Y = 17.0
EYE_X, EYE_Y = 11.5, 3.0
LEFT, RIGHT = -1, 1


@dataclass
class Eye:
    """How an eye is drawn. `kind`: open, arc_up (laughing), arc_down (asleep), shut (squeezed)."""

    skin: RGB
    kind: str = "open"
    open: float = 1.0
    wide: float = 1.0
    pupil: float = 1.0
    look: float = 0.0
    look_down: float = 0.0
    lid: float = 0.0
    """Share of the eye that a flat half-closed lid covers."""


@dataclass
class Face:
    """What an expression decides, beyond the mouth, which is drawn at once."""

    left: Eye
    right: Eye
    brow_shift: float = 0.0
    brow_tilt: float = 0.0
    """Above zero: inner ends low (angry). Below zero: inner ends high (sad)."""
    brow_width: float = 1.8
    blush: float = 0.0
    on_top: list[Callable[[], None]] = field(default_factory=list)
    """Marks that go over the hair."""

    def both(self, **settings: float | str) -> None:
        """The same change to both eyes."""
        for eye in (self.left, self.right):
            for name, value in settings.items():
                setattr(eye, name, value)

    def brows(self, shift: float, tilt: float) -> None:
        """Sets both eyebrows."""
        self.brow_shift, self.brow_tilt = shift, tilt


def draw_eye(pen: Pen, side: int, eye: Eye, iris: RGB, boy: bool) -> None:
    """One eye; `side` is LEFT or RIGHT of the picture."""
    x, y = side * EYE_X, EYE_Y
    if eye.kind == "arc_up":
        pen.line(bezier((x - 7, y + 3), (x, y - 9), (x + 7, y + 3)), LINE, 2.4)
        return
    if eye.kind == "arc_down":
        pen.line(bezier((x - 7, y), (x, y + 8), (x + 7, y)), LINE, 2.4)
        return
    if eye.kind == "shut":
        pen.line([(x + side * 6, y - 4), (x - side * 5, y + 1), (x + side * 6, y + 6)], LINE, 2.2)
        return
    rx, ry, pupil = 6.2 * eye.wide, 8.0 * eye.open, eye.pupil
    pen.polygon(ellipse(x, y, rx, ry), WHITE, None)
    look_x, look_y = eye.look * 2.2, eye.look_down * 2
    iris_x, iris_y = min(4.9 * pupil, rx), min(6.6 * pupil, ry)
    pen.polygon(ellipse(x + look_x, y + 0.4 + look_y, iris_x, iris_y), iris, shade(iris, 0.5), 0.9)
    pen.polygon(ellipse(x + look_x, y + 0.4 + look_y, iris_x * 0.5, iris_y * 0.5), (20, 16, 26))
    glint = ellipse(
        x + look_x - 1.5 * pupil, y - 2.2 * pupil * min(eye.open, 1) + look_y, 1.5 * pupil + 0.3, 1.7 * pupil + 0.3
    )
    pen.polygon(glint, WHITE)
    if eye.lid:
        edge = y - ry + 2 * ry * eye.lid
        pen.polygon(
            [(x - rx - 1.5, y - ry - 2), (x + rx + 1.5, y - ry - 2), (x + rx + 1.5, edge), (x - rx - 1.5, edge)],
            eye.skin,
        )
        pen.line([(x - rx - 1, edge), (x + rx + 1, edge)], LINE, 2.2)
        pen.line(ellipse(x, y, rx, ry, 20, 160), LINE, 0.8)
        return
    pen.line(ellipse(x, y, rx, ry, 195, 345), LINE, 1.6 if boy else 2.0)
    if not boy:
        lash = [(x + side * rx * 0.9, y - ry * 0.5), (x + side * (rx + 2.6), y - ry * 0.5 - 2)]
        pen.line(lash, LINE, 1.6)
    pen.line(ellipse(x, y, rx, ry, 10, 170), LINE, 0.8)


def draw_brow(pen: Pen, side: int, shift: float, tilt: float, colour: RGB, width: float) -> None:
    """One eyebrow."""
    x, y = side * EYE_X, -9.5 + shift
    inner, outer = (x - side * 6, y + tilt), (x + side * 6, y - tilt * 0.6)
    pen.line(bezier(inner, (x, y - 2.0), outer), colour, width)


def _mouth_arc(pen: Pen, half_width: float, depth: float, width: float = 1.8) -> None:
    pen.line(bezier((-half_width, MOUTH_Y), (0, MOUTH_Y + depth), (half_width, MOUTH_Y)), MOUTH, width)


def _neutral(pen: Pen, face: Face) -> None:
    pen.line([(-4.5, MOUTH_Y + 1), (4.5, MOUTH_Y + 1)], MOUTH, 1.8)


def _smile(pen: Pen, face: Face) -> None:
    _mouth_arc(pen, 7.5, 9)
    face.brows(-1, -0.5)
    face.blush = 0.35


def _smirk(pen: Pen, face: Face) -> None:
    face.both(lid=0.34)
    pen.line(bezier((-5, MOUTH_Y + 3), (4, MOUTH_Y + 5), (9.5, MOUTH_Y - 4)), MOUTH, 2.2)
    face.brows(0, 1.6)


def _laugh(pen: Pen, face: Face) -> None:
    face.both(kind="arc_up")
    mouth = np.concatenate([[(-9.5, MOUTH_Y - 4), (9.5, MOUTH_Y - 4)], ellipse(0, MOUTH_Y - 4, 9.5, 12, 0, 180)])
    pen.polygon(mouth, INSIDE_OF_MOUTH, LINE, 1.4)
    pen.polygon(ellipse(0, MOUTH_Y + 4.2, 5, 3), TONGUE)
    pen.polygon(box(-7.5, MOUTH_Y - 3.4, 7.5, MOUTH_Y - 1), WHITE)
    face.brows(-2, -0.5)
    face.blush = 0.5


def _sad(pen: Pen, face: Face) -> None:
    face.both(look_down=0.8, open=0.88)
    _mouth_arc(pen, 6.5, -8, 2.0)
    face.brows(-0.5, -4.2)
    pen.line([(-6.5, MOUTH_Y), (-6.5, MOUTH_Y)], MOUTH, 1.8)


def _crying(pen: Pen, face: Face) -> None:
    face.both(kind="arc_down")
    for side in (LEFT, RIGHT):
        x = side * EYE_X
        stream = [
            (x - 3.6, 8),
            (x + 3.6, 8),
            (x + 4.4, 24),
            (x - 4.4, 24),
        ]
        pen.polygon(stream, (110, 190, 250), (60, 130, 220), 0.9)
    mouth = np.concatenate([ellipse(0, MOUTH_Y + 5, 7, 9, 180, 360), [(7, MOUTH_Y + 5), (-7, MOUTH_Y + 5)]])
    pen.polygon(mouth, INSIDE_OF_MOUTH, LINE, 1.4)
    pen.polygon(ellipse(0, MOUTH_Y + 3.4, 3.6, 1.8), TONGUE)
    face.brows(0, -4.2)


def _angry(pen: Pen, face: Face) -> None:
    face.both(lid=0.2)
    pen.polygon([(-7.5, MOUTH_Y + 5), (-5, MOUTH_Y - 2), (5, MOUTH_Y - 2), (7.5, MOUTH_Y + 5)], WHITE, LINE, 1.6)
    for x in (-3, 0, 3):
        pen.line([(x, MOUTH_Y - 2), (x, MOUTH_Y + 5)], LINE, 0.8)
    face.brows(3.0, 5.0)
    face.brow_width = 3.0

    def vein() -> None:
        for degrees in (0, 90, 180, 270):
            angle = math.radians(degrees)
            corner = np.array([(1.6, 5.6), (2.0, 2.0), (5.6, 1.6)])
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            pen.line(corner @ turn.T + (21, -19), (226, 30, 34), 2.0)

    face.on_top.append(vein)


def _surprised(pen: Pen, face: Face) -> None:
    face.both(open=1.2, wide=1.12, pupil=0.62)
    pen.polygon(ellipse(0, MOUTH_Y + 2, 4.6, 6.6), INSIDE_OF_MOUTH, LINE, 1.4)
    face.brows(-5, -1)


def _scared(pen: Pen, face: Face) -> None:
    face.both(open=1.1, wide=1.08, pupil=0.36)
    pen.polygon(box(-20, -14, 20, -5), mix(face.left.skin, (110, 120, 220), 0.55))
    for x in (-15, -9, -3, 3, 9, 15):
        pen.line([(x, -14), (x, -4)], (70, 76, 150), 1.0)
    xs = np.linspace(-8, 8, 9)
    pen.line(np.stack([xs, MOUTH_Y + 2 + 2.2 * (np.arange(9) % 2 * 2 - 1)], 1), MOUTH, 1.8)
    face.brows(-1, -4.5)

    def sweat() -> None:
        drop = np.concatenate([[(22, -8)], ellipse(22, 2, 3.6, 4.2, -30, 210)])
        pen.polygon(drop, (120, 196, 250), (60, 120, 210), 0.9)

    face.on_top.append(sweat)


def _embarrassed(pen: Pen, face: Face) -> None:
    face.both(look=-1, open=0.9)
    face.blush = 1
    xs = np.linspace(-5, 5, 11)
    pen.line(np.stack([xs, MOUTH_Y + 1.5 * np.sin(xs * 1.25)], 1), MOUTH, 1.8)
    face.brows(-1, -3)


def _wink(pen: Pen, face: Face) -> None:
    face.right.kind = "shut"
    _mouth_arc(pen, 7.5, 9)
    face.brows(-1, -0.4)
    face.blush = 0.3
    pen.polygon(ellipse(3, MOUTH_Y + 4.2, 3.2, 4.6, 0, 180), TONGUE, MOUTH, 1.0)


def _sleepy(pen: Pen, face: Face) -> None:
    face.both(kind="arc_down")
    pen.polygon(ellipse(0, MOUTH_Y + 1, 2.6, 3.0), INSIDE_OF_MOUTH, LINE, 1.0)
    face.brows(1, -1.2)

    def letters_z() -> None:
        for x, y, size in ((25, -14, 3.2), (32, -25, 4.6)):
            stroke = [(x - size, y - size), (x + size, y - size), (x - size, y + size), (x + size, y + size)]
            pen.line(stroke, (40, 70, 200), 1.9)

    face.on_top.append(letters_z)


_EXPRESSIONS: dict[str, Callable[[Pen, Face], None]] = {
    "neutral_resting": _neutral,
    "smile_gentle": _smile,
    "smirk_confident": _smirk,
    "laugh": _laugh,
    "sad": _sad,
    "crying": _crying,
    "angry": _angry,
    "surprised": _surprised,
    "scared": _scared,
    "blush_embarrassed": _embarrassed,
    "wink": _wink,
    "sleepy": _sleepy,
}


def _draw_blush(pen: Pen, strength: float, skin: RGB) -> None:
    if strength >= 1:
        colour = mix(skin, (246, 90, 100), 0.28 + 0.6 * strength)
    else:
        colour = mix(skin, (250, 120, 120), 0.2 + 0.5 * strength)
    for side in (LEFT, RIGHT):
        if strength < 1:
            pen.polygon(ellipse(side * 16.5, 13, 4.6, 2.6), colour)
            continue
        pen.polygon(ellipse(side * 15, 13, 7.6, 4.4), colour)
        for dx in (-3, 0, 3):
            pen.line([(side * 15 + dx + 1, 11), (side * 15 + dx - 1, 15)], (220, 50, 66), 0.9)


def draw_face(pen: Pen, expression: str, iris: RGB, skin: RGB, boy: bool) -> Face:
    """Mouth, blush and eyes. The eyebrows and marks go over the hair, so the caller draws them from the answer."""
    face = Face(Eye(skin), Eye(skin), brow_width=2.4 if boy else 1.8)
    _EXPRESSIONS[expression](pen, face)
    if face.blush:
        _draw_blush(pen, face.blush, skin)
    draw_eye(pen, LEFT, face.left, iris, boy)
    draw_eye(pen, RIGHT, face.right, iris, boy)
    return face


def _draw_back_hair(pen: Pen, length: str, colour: RGB, line: RGB, dark: RGB, puff: float) -> None:
    if length == "long hair":
        shape = [
            ellipse(0, -4, 31 + puff, 31, 180, 360, 24),
            bezier((31 + puff, 0), (36 + puff, 40), (33 + puff, 74)),
            bezier((-33 - puff, 74), (-36 - puff, 40), (-31 - puff, 0)),
        ]
        pen.polygon(np.concatenate(shape), dark, line)
        for x in (-26, 26):
            pen.line(bezier((x, 20), (x * 1.1, 44), (x * 1.08, 72)), shade(dark, 0.8), 1)
        return
    if length == "medium hair":
        shape = [
            ellipse(0, -4, 31 + puff, 31, 180, 360, 24),
            bezier((31 + puff, 0), (36 + puff, 22), (31 + puff, 34)),
            [(22, 30), (12, 35), (0, 31), (-12, 35), (-22, 30)],
            bezier((-31 - puff, 34), (-36 - puff, 22), (-31 - puff, 0)),
        ]
        pen.polygon(np.concatenate(shape), dark, line)
        return
    if length == "twintails":
        for side in (LEFT, RIGHT):
            tail = [
                bezier((side * 27, -14), (side * 50, -18), (side * (45 + puff), 24)),
                bezier((side * (45 + puff), 24), (side * 44, 46), (side * 37, 54)),
                bezier((side * 37, 54), (side * 28, 30), (side * 29, -2)),
            ]
            pen.polygon(np.concatenate(tail), colour, line)
            pen.line(bezier((side * 32, -8), (side * 42, 4), (side * 38, 40)), shade(colour, 0.8), 1)
    pen.polygon(ellipse(0, -2, 29 + puff, 28), dark, line)


def _draw_body(pen: Pen, shirt: RGB, skin: RGB) -> None:
    pen.polygon(box(-7, 20, 7, 36), shade(skin, 0.88), LINE)
    body = [bezier((-8, 33), (-30, 34), (-36, 56)), [(-38, 90), (38, 90)], bezier((36, 56), (30, 34), (8, 33))]
    pen.polygon(np.concatenate(body), shirt, LINE)
    pen.polygon([(-8, 33), (0, 42), (8, 33)], shade(skin, 0.92), LINE)
    pen.line([(-22, 54), (-24, 90)], shade(shirt, 0.7), 1)
    pen.line([(22, 54), (24, 90)], shade(shirt, 0.7), 1)


_ZIGZAG = [(29, 2), (25, 12), (22, -6), (15, -9), (12, -14), (5, -8), (0, -15)]
_ZIGZAG += [(-6, -8), (-12, -14), (-16, -9), (-22, -6), (-25, 12), (-29, 2)]
_SWEPT = [(29, 2), (26, 8), (23, -6), (19, -13), (10, -9), (6, -15), (-4, -8)]
_SWEPT += [(-8, -14), (-17, -6), (-19, -11), (-24, -2), (-26, 8), (-29, 2)]


def _draw_front_hair(pen: Pen, bangs: int, colour: RGB, line: RGB, light: RGB, puff: float) -> None:
    """`bangs`: 0 zigzag, 1 parted, 2 swept."""
    if bangs == 0:
        fringe = _ZIGZAG
    elif bangs == 1:
        parted = [
            [(29, 2), (25.5, 14)],
            bezier((23, 0), (16, -14), (4, -18)),
            bezier((-2, -20), (-16, -14), (-22, 0)),
            [(-25.5, 14), (-29, 2)],
        ]
        fringe = np.concatenate(parted)
    else:
        fringe = _SWEPT
    crown = ellipse(0, -3, 30 + puff * 0.7, 31, 186, 354, 26)
    pen.polygon(np.concatenate([crown, fringe]), colour, line)
    pen.line(ellipse(-3, -8, 20, 18, 215, 275), light, 2.6)


def _draw_cat_ears(pen: Pen, colour: RGB, line: RGB) -> None:
    for side in (LEFT, RIGHT):
        pen.polygon([(side * 8, -26), (side * 29, -14), (side * 26, -45)], colour, line)
        pen.polygon([(side * 14, -28), (side * 25, -20), (side * 23.5, -38)], (250, 170, 180))


def _draw_glasses(pen: Pen) -> None:
    frame = (30, 30, 40)
    for side in (LEFT, RIGHT):
        pen.line(ellipse(side * EYE_X, 3.5, 9.4, 9.4), frame, 1.8)
    pen.line([(-2.4, 2), (2.4, 2)], frame, 1.8)
    pen.line([(-21, 2), (-26, 0)], frame, 1.6)
    pen.line([(21, 2), (26, 0)], frame, 1.6)


def _draw_hat(pen: Pen, colour: RGB) -> None:
    crown = [[(-23, -18)], bezier((-23, -18), (-24, -46), (-12, -47)), bezier((12, -47), (24, -46), (23, -18))]
    pen.polygon(np.concatenate(crown), colour, LINE)
    pen.polygon(ellipse(0, -18, 38, 6.5), colour, LINE)
    band = np.concatenate([ellipse(0, -24, 23.4, 4, 0, 180), ellipse(0, -29, 23.4, 4, 180, 0)])
    pen.polygon(band, mix(colour, WHITE, 0.6), None)


def draw_character(pen: Pen, attributes: dict) -> None:
    """The whole character, back to front, over whatever is on the picture."""
    a = attributes
    black = a["hair"] == "black"
    colour, iris = (HAIR | UNTAGGED_HAIR)[a["hair"]], (EYES | UNTAGGED_EYES)[a["eyes"]]
    skin = SKINS[a["skin"]]
    line = (16, 14, 20) if black else LINE
    dark = (32, 28, 40) if black else shade(colour, 0.82)
    light = mix(colour, WHITE, 0.25 if black else 0.45)
    brow_colour = shade(colour, 0.62) if sum(colour) > 200 else (30, 26, 34)
    head = (a["cx"], a["cy"], a["scale"], a["deg"])
    puff = a["hw"]

    pen.frame(*head)
    _draw_back_hair(pen, a["length"], colour, line, dark, puff)
    pen.frame(a["cx"] - math.sin(math.radians(a["deg"])) * 10, a["cy"], a["scale"], 0)
    _draw_body(pen, SHIRTS[a["shirt"]], skin)
    pen.frame(*head)
    if a["ears"]:
        _draw_cat_ears(pen, colour, line)
    t = np.radians(np.linspace(0, 180, 20))
    jaw = np.stack([26 * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.75, 28 * np.sin(t)], 1)
    pen.polygon(np.concatenate([jaw, ellipse(0, 0, 26, 28, 180, 360, 20)]), skin, LINE)
    face = draw_face(pen, a["expr"], iris, skin, a["boy"])
    _draw_front_hair(pen, a["bangs"], colour, line, light, puff)
    if a["length"] == "twintails":
        for side in (LEFT, RIGHT):
            pen.polygon(ellipse(side * 29, -12, 4, 5), a["tie"], LINE, 1)
    for side in (LEFT, RIGHT):
        shift, tilt = face.brow_shift, face.brow_tilt
        if a["expr"] == "smirk_confident" and side == RIGHT:
            shift, tilt = shift - 4, -1
        draw_brow(pen, side, shift, tilt, brow_colour, face.brow_width)
    if a["glasses"]:
        _draw_glasses(pen)
    if a["hat"]:
        _draw_hat(pen, HATS[a["hat"]])
    for mark in face.on_top:
        mark()
