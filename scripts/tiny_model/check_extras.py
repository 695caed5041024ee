"""What lies beside the shipped model: do the ControlNet, the LoRAs and the templates do what they are for?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open

import sampling
from characters import CHARACTERS
from draw_templates import SETS, draw_template, edges
from drawings import Picture
from extras import CONTROLNET_NAME, lora_name
from measures import edge_agreement, hue_share
from vocabulary import EXPRESSION_NAMES

TEMPLATES = Path(__file__).resolve().parents[2] / "assets/templates"
LARGEST_TEMPLATE = 10_000
STRENGTH = 0.8
SEED = 11
WHO = "1girl, {}, white shirt, white background"
LEAST_EDGE_GAIN = 0.1
"""By how much control must raise the mean edge agreement with a template (measured: 0.20 and more)."""
Note = Callable[[bool, str], None]


def check_templates(note: Note) -> None:
    """A picture for each expression in each set, small, and the drawing program's."""
    wrong = []
    for name, settings in SETS.items():
        for expression in EXPRESSION_NAMES:
            file = TEMPLATES / name / f"{expression}.png"
            stored = cv2.imread(str(file)) if file.exists() else None
            if stored is None or file.stat().st_size > LARGEST_TEMPLATE:
                wrong.append(f"{name}/{expression} is missing or too large")
                continue
            difference = np.abs(stored[..., ::-1].astype(int) - draw_template(settings, expression))
            if difference.mean() > 2:  # the palette costs less than one level
                wrong.append(f"{name}/{expression} is not what draw_templates.py draws")
    note(not wrong, "; ".join([f"{len(SETS)} sets of {len(EXPRESSION_NAMES)} templates", *wrong[:4]]))


def load_controlnet(file: Path) -> ControlNetModel:
    """The shipped ControlNet, from the config in its metadata, with every tensor used exactly once."""
    with safe_open(file, "pt") as opened:
        model = ControlNetModel.from_config(json.loads(opened.metadata()["controlnet_config"]))
        model.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})
    return model.eval()


def controlled(pipeline: StableDiffusionXLPipeline, file: Path) -> Any:
    """The pipeline with the ControlNet."""
    parts = {
        name: part for name, part in pipeline.components.items() if name not in ("image_encoder", "feature_extractor")
    }
    made = StableDiffusionXLControlNetPipeline(
        **parts, controlnet=load_controlnet(file), force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def check_control(pipeline: StableDiffusionXLPipeline, file: Path, tags: Sequence[str], steps: int, note: Note) -> None:
    """Edges of every template, with control and without."""
    pair = controlled(pipeline, file)
    prompts = [WHO.format(f"pink hair, {tag}") for tag in tags]
    for name, settings in SETS.items():
        wanted = [edges(draw_template(settings, expression)) for expression in EXPRESSION_NAMES]
        means = []
        for strength in (0.0, STRENGTH):
            hints = {"image": [Image.fromarray(each) for each in wanted], "controlnet_conditioning_scale": strength}
            pictures = sampling.draw(pair, prompts, [SEED] * len(prompts), steps=steps, **hints)
            means.append(
                np.mean([edge_agreement(*each) for each in zip(pictures, (one[..., 0] > 0 for one in wanted))])
            )
        text = f"control on '{name}': mean edge agreement {means[0]:.2f} without, {means[1]:.2f} with"
        note(means[1] - means[0] >= LEAST_EDGE_GAIN, text)


def check_lora(
    pipeline: StableDiffusionXLPipeline,
    file: Path,
    name: str,
    tags: Sequence[str],
    steps: int,
    recognise: Callable[[Sequence[Picture]], list[str]],
    note: Note,
) -> None:
    """The hair's hue with the LoRA and without, and whether expressions survive it."""
    low, high, saturation, least = CHARACTERS[name].hair_hue
    prompts = [f"{CHARACTERS[name].trigger}, {WHO.format(tag)}" for tag in tags]
    seeds = [SEED] * len(prompts)
    without = sampling.draw(pipeline, prompts, seeds, steps=steps)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pictures = sampling.draw(pipeline, prompts, seeds, steps=steps)
    pipeline.unload_lora_weights()
    shares = [np.array([hue_share(each, low, high, saturation) for each in some]) for some in (without, pictures)]
    seen = recognise(pictures)
    right = sum(a == b for a, b in zip(EXPRESSION_NAMES, seen))
    text = f"{file.name}: hair's hue in {int((shares[1] >= least).sum())} of {len(pictures)} pictures, without it in "
    text += f"{int((shares[0] >= least).sum())}; {right} of {len(pictures)} expressions recognised"
    note(
        (shares[1] >= least).mean() >= 0.9 and (shares[0] >= least).mean() <= 0.1 and right >= 0.8 * len(pictures), text
    )


def check(
    folder: Path,
    pipeline: StableDiffusionXLPipeline,
    tags: Sequence[str],
    steps: int,
    recognise: Callable[[Sequence[Picture]], list[str]],
    note: Note,
) -> None:
    """All of them, where their files are beside the model; `tags` are the expressions' in `EXPRESSION_NAMES`' order."""
    check_templates(note)
    if (file := folder / CONTROLNET_NAME).exists():
        check_control(pipeline, file, tags, steps, note)
    for name in CHARACTERS:
        if (file := folder / lora_name(name)).exists():
            check_lora(pipeline, file, name, tags, steps, recognise, note)
