"""What the tiny model knows: every tag, and the colour it stands for. The single source for drawing, captions and checks.

Orders matter: `random.choice` over them is part of how a drawing follows from its seed.
"""

from __future__ import annotations

RGB = tuple[int, int, int]

HAIR: dict[str, RGB] = {
    "blonde": (246, 212, 92),
    "brown": (124, 74, 40),
    "black": (42, 38, 50),
    "red": (214, 44, 40),
    "blue": (58, 104, 226),
    "green": (62, 172, 84),
    "pink": (248, 140, 184),
    "white": (236, 238, 244),
}
UNTAGGED_HAIR: dict[str, RGB] = {"teal": (40, 224, 208), "magenta": (200, 70, 210)}
UNTAGGED_EYES: dict[str, RGB] = {"orange": (255, 120, 10)}
"""Colours that no tag names and the base model never sees: what a LoRA can teach."""
LENGTHS = ["short hair", "medium hair", "long hair", "twintails"]
EYES: dict[str, RGB] = {
    "blue": (50, 110, 230),
    "green": (40, 160, 70),
    "brown": (120, 66, 30),
    "red": (214, 36, 40),
    "purple": (140, 60, 200),
    "yellow": (232, 180, 20),
}
EXPRESSIONS: dict[str, list[str]] = {
    "neutral_resting": ["expressionless", "neutral expression", "neutral resting", "neutral", "calm"],
    "smile_gentle": ["smile", "gentle smile", "smiling", "smile gentle", "happy"],
    "smirk_confident": ["smirk", "confident smirk", "smirk confident", "confident"],
    "laugh": ["laughing", "laugh", "open mouth smile", "grin"],
    "sad": ["sad", "frown", "sadness", "unhappy"],
    "crying": ["crying", "tears", "sobbing"],
    "angry": ["angry", "anger", "mad", "furious"],
    "surprised": ["surprised", "surprise", "shocked", "astonished"],
    "scared": ["scared", "fear", "afraid", "frightened"],
    "blush_embarrassed": ["blush", "embarrassed", "blush embarrassed", "blushing", "shy"],
    "wink": ["wink", "one eye closed", "winking"],
    "sleepy": ["sleepy", "sleeping", "eyes closed", "tired"],
}
"""Expression name, as gateways call it, to the tags that captions use for it."""
EXPRESSION_NAMES = list(EXPRESSIONS)
SHIRTS: dict[str, RGB] = {
    "white": (240, 240, 244),
    "black": (52, 52, 60),
    "red": (204, 50, 50),
    "blue": (60, 90, 190),
    "green": (66, 150, 84),
    "yellow": (240, 204, 70),
    "purple": (136, 80, 180),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "grey": (170, 172, 178),
    "pink": (252, 206, 222),
    "blue": (150, 200, 246),
    "green": (170, 222, 170),
    "yellow": (252, 240, 170),
    "purple": (204, 180, 238),
    "orange": (250, 200, 140),
    "black": (40, 40, 46),
}
HATS: dict[str, RGB] = {"red": (200, 40, 44), "blue": (50, 80, 180), "black": (48, 46, 56), "brown": (130, 84, 50)}
SKINS: dict[str, RGB] = {"": (255, 226, 204), "tan": (232, 184, 146), "dark skin": (186, 132, 98)}
SCENES: dict[str, list[str]] = {
    "tavern": ["tavern", "tavern, indoors", "bar, tavern"],
    "forest": ["forest", "forest, trees", "forest, outdoors, nature"],
    "beach": ["beach", "beach, ocean", "beach, sea, outdoors"],
    "night city": ["night city", "city, night", "night city, city lights"],
}
HAIR_TIES: list[RGB] = [(220, 50, 60), (60, 100, 220), (250, 220, 90)]
FILLER = [
    "masterpiece",
    "best quality",
    "absurdres",
    "highres",
    "solo",
    "looking at viewer",
    "portrait",
    "upper body",
    "anime style",
    "detailed",
    "very aesthetic",
    "a drawing of a character",
]
"""Tags that people write and that mean nothing here: their tokens are untrained zero rows, so they do no harm."""


def trained_tags() -> list[str]:
    """Every tag that captions use, sorted: their tokens are the ones that get trained."""
    tags = ["1girl", "1boy", "no humans", "scenery", "glasses", "hat", "cat ears", "tan", "dark skin"]
    tags += ["simple background", "gradient background"]
    tags += [f"{name} hair" for name in HAIR] + LENGTHS + [f"{name} eyes" for name in EYES]
    tags += [f"{name} shirt" for name in SHIRTS] + [f"{name} background" for name in BACKGROUNDS]
    tags += [f"{name} hat" for name in HATS]
    tags += [tag for synonyms in EXPRESSIONS.values() for tag in synonyms]
    tags += [tag for choices in SCENES.values() for choice in choices for tag in choice.split(", ")]
    return sorted(set(tags))
