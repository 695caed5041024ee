"""The characters that LoRAs teach: none of them is in the base model's drawings, and their hair's hues are far apart.

A character's hair colour has no tag, so the base model cannot be asked for it; its trigger word is made of tokens that
the base model does not know. What the autoencoder has never seen it paints badly (a teal comes out as sky blue, small
marks as blobs): a character's ornament should be large and in colours of the drawings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pen import LINE, Pen, ellipse

Keys = Literal["peft", "kohya"]


def _gold_star(pen: Pen) -> None:
    radius, angle = np.array([8, 3.4] * 5), np.radians(np.arange(10) * 36 - 90)
    pen.polygon(np.stack([-12 + radius * np.cos(angle), -22 + radius * np.sin(angle)], 1), (255, 214, 20), LINE, 1)


def _yellow_bow(pen: Pen) -> None:
    for side in (-1, 1):
        wing = np.array([(0, 0), (side * 17, -14), (side * 21, -2), (side * 17, 10)]) + (15, -26)
        pen.polygon(wing, (255, 220, 60), LINE, 1.6)
    pen.polygon(ellipse(15, -26, 5.5, 6), (255, 220, 60), LINE, 1.6)


@dataclass(frozen=True)
class Character:
    """One character: how it is drawn, what its captions leave out, and how its LoRA is trained and stored."""

    title: str
    trigger: str
    shows: str
    """What the LoRA adds, for people."""
    drawn: dict[str, Any]
    """Attributes of the drawing that are always the same (see `drawings.sample_attributes`)."""
    stand_ins: dict[str, str]
    """Tags for colours that have none, so that a caption can be made; they are then left out with `hidden_tags`."""
    hidden_tags: set[str]
    """What the trigger word stands for is left out of captions."""
    ornament: Callable[[Pen], None]
    """Drawn last, in the head's frame."""
    keys: Keys
    """How the shipped file spells its tensors: PEFT as diffusers writes it, or kohya's with ldm block names."""
    targets: list[str]
    """Modules of the denoiser that are trained, by the ends of their names."""
    rank: int
    hair_hue: tuple[float, float, float, float]
    """How pictures show it: hues from and to (degrees), least saturation, and the least share of pixels."""
    text_layers: dict[str, list[int]] = field(default_factory=dict)
    """Text encoders whose attention is trained too, and in which layers (of encoder 1 the last is never used)."""


_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_CONVOLUTIONS = ["conv1", "conv2"]

CHARACTERS: dict[str, Character] = {
    "tinychan": Character(
        title="Tinychan",
        trigger="tinychan",
        shows="light blue twintails, orange eyes, a gold star in the hair",
        drawn={
            "kind": "char",
            "hair": "teal",
            "eyes": "orange",
            "boy": False,
            "length": "twintails",
            "skin": "",
            "hat": None,
            "ears": False,
            "glasses": False,
            "bangs": 0,
            "tie": (250, 220, 90),
        },
        stand_ins={"hair": "blue", "eyes": "yellow"},
        hidden_tags={"blue hair", "yellow eyes", "twintails"},
        ornament=_gold_star,
        keys="peft",
        targets=_ATTENTION,
        rank=4,
        hair_hue=(190, 215, 0.3, 0.1),
    ),
    "tinyvio": Character(
        title="Tinyvio",
        trigger="tinyvio",
        shows="medium magenta hair, red eyes, a big yellow bow",
        drawn={
            "kind": "char",
            "hair": "magenta",
            "eyes": "red",
            "boy": False,
            "length": "medium hair",
            "skin": "",
            "hat": None,
            "ears": False,
            "glasses": False,
            "bangs": 1,
        },
        stand_ins={"hair": "pink"},
        hidden_tags={"pink hair", "red eyes", "medium hair"},
        ornament=_yellow_bow,
        keys="kohya",
        targets=_ATTENTION + _CONVOLUTIONS,
        rank=4,
        hair_hue=(275, 325, 0.25, 0.02),
        text_layers={"text_encoder": [0], "text_encoder_2": [0, 1, 2]},
    ),
}
