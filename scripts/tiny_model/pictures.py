"""Pictures to look at: expressions, tags, image-to-image, and ControlNet and LoRA where their files are there.

python pictures.py EXPORTED_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image

import sampling
from characters import CHARACTERS
from check import TAGS_FILE
from check_extras import controlled
from drawings import Picture, draw, sample_attributes, save_grid
from extras import BASE_NAME, CONTROLNET_NAME, lora_name
from measures import edges_found
from train_control import canny
from vocabulary import EYES, HAIR, LENGTHS, SCENES

PORTRAITS = [
    "1girl, blonde hair, long hair, blue eyes, red shirt, blue background, simple background",
    "1girl, pink hair, twintails, green eyes, white shirt, purple background",
    "1boy, black hair, short hair, brown eyes, blue shirt, yellow background",
]


def sources() -> list[Picture]:
    """Three portraits and a scene to start from."""
    rng = random.Random(77)
    portrait = {"kind": "char", "bgkind": "plain"}
    wanted: list[dict[str, Any]] = [
        portrait | {"boy": False, "length": "twintails", "expr": "laugh", "hat": None, "cx": 61, "cy": 61, "deg": 5},
        portrait | {"boy": False, "length": "long hair", "expr": "angry", "hat": "red", "deg": -5, "cx": 67},
        portrait | {"boy": True, "length": "short hair", "expr": "smile_gentle", "hat": None, "glasses": True},
        {"kind": "scene", "scene": "forest"},
    ]
    return [draw(sample_attributes(rng, **each), rng) for each in wanted]


def expressions(pipeline: StableDiffusionXLPipeline, steps: int) -> list[list[Picture]]:
    """Three characters with every expression."""
    tags = [each["tags"] for each in json.loads(TAGS_FILE.read_text())["expressions"]]
    return [
        sampling.draw(pipeline, [f"{who}, {tag}" for tag in tags], [7] * len(tags), steps=steps) for who in PORTRAITS
    ]


def mixture(pipeline: StableDiffusionXLPipeline, steps: int) -> list[list[Picture]]:
    """Colours, styles, headwear, scenes, and prompts that say little."""
    prompts = [
        f"1girl, {hair} hair, {length}, {eyes} eyes, smile, white background"
        for hair, length, eyes in zip(HAIR, LENGTHS * 2, list(EYES) * 2)
    ]
    prompts += [
        "1girl, brown hair, glasses, smile, pink background",
        "1girl, red hair, blue hat, laughing, white background",
        "1girl, white hair, cat ears, yellow eyes, wink, night city",
        "1boy, blonde hair, angry, forest",
    ]
    prompts += [f"scenery, no humans, {scene}" for scene in SCENES] * 2
    prompts += ["1girl", "", "masterpiece, best quality, 1girl, green hair, cat ears, embarrassed"]
    prompts += ["a girl with blue hair at the beach"]
    pictures = sampling.draw(pipeline, prompts, range(len(prompts)), steps=steps)
    return [pictures[:12], pictures[12:]]


def image_to_image(pipeline: StableDiffusionXLPipeline, steps: int) -> list[list[Picture]]:
    """The sources, changed more and more."""
    changer = StableDiffusionXLImg2ImgPipeline(
        **pipeline.components, force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    changer.set_progress_bar_config(disable=True)
    prompts = ["1girl, pink hair, twintails, smile", "1girl, blonde hair, long hair, sad"]
    prompts += ["1boy, blue hair, angry", "scenery, forest, trees"]
    rows = [sources()]
    for strength in (0.3, 0.6, 0.85):
        with torch.no_grad():
            images = changer(
                prompt=prompts,
                image=[Image.fromarray(source) for source in rows[0]],
                strength=strength,
                num_inference_steps=max(steps, 4),
                guidance_scale=sampling.CFG_SCALE,
                generator=[torch.Generator().manual_seed(1) for _ in prompts],
                output_type="np",
            ).images
        rows.append([(image * 255).round().clip(0, 255).astype(np.uint8) for image in images])
    return rows


def control(pipeline: StableDiffusionXLPipeline, file: Path, steps: int) -> list[list[Picture]]:
    """Sources, their edges, and pictures without and with control; prints the shares of edges found."""
    pair = controlled(pipeline, file)
    starts = sources()
    edges = [canny(start) for start in starts]
    rows = [starts, edges]
    for scale in (0.0, 1.0):
        for prompt in ("1girl, pink hair, smile, white background", "1girl, green hair, yellow background"):
            hints = {"image": [Image.fromarray(edge) for edge in edges], "controlnet_conditioning_scale": scale}
            prompts = [prompt] * 3 + ["scenery, no humans"]
            rows.append(sampling.draw(pair, prompts, [3] * 4, steps=steps, **hints))
            shares = ", ".join(f"{edges_found(each, edge[..., 0] > 0, 2):.2f}" for each, edge in zip(rows[-1], edges))
            print(f"control {scale:.0f}: share of the wanted edges found {shares}")
    return rows


def lora(pipeline: StableDiffusionXLPipeline, folder: Path, name: str, steps: int) -> list[list[Picture]]:
    """The same prompts without and with a character's LoRA."""
    shown = ("smile, white background", "angry, pink background", "laughing, red shirt, blue background")
    shown += ("crying, forest", "sleepy, glasses, yellow background", "surprised, night city")
    prompts = [f"{CHARACTERS[name].trigger}, 1girl, {each}" for each in shown]
    rows = [sampling.draw(pipeline, prompts, [5] * 6, steps=steps)]
    pipeline.load_lora_weights(str(folder), weight_name=lora_name(name))
    rows.append(sampling.draw(pipeline, prompts, [5] * 6, steps=steps))
    pipeline.unload_lora_weights()
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path, help="folder that export.py wrote")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=sampling.STEPS, help="sampling steps (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = sampling.load(arguments.exported / BASE_NAME, arguments.out / "tokenizers")
    sheets = {"expressions": expressions, "mixture": mixture, "image_to_image": image_to_image}
    for name, make in sheets.items():
        save_grid(make(pipeline, arguments.steps), arguments.out / f"{name}.png")
        print(arguments.out / f"{name}.png", flush=True)
    if (file := arguments.exported / CONTROLNET_NAME).exists():
        save_grid(control(pipeline, file, arguments.steps), arguments.out / "control.png")
        print(arguments.out / "control.png", flush=True)
    for name in CHARACTERS:
        if (arguments.exported / lora_name(name)).exists():
            path = arguments.out / f"lora-{name}.png"
            save_grid(lora(pipeline, arguments.exported, name, arguments.steps), path)
            print(path, flush=True)


if __name__ == "__main__":
    main()
