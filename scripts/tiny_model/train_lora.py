"""Beside the chain: a LoRA of one character of `characters.py`, which the base model has never seen.

    python train_lora.py WORK --character tinyvio                    beside the denoiser of a training run
    python train_lora.py WORK --character tinyvio --base tiny-sdxl.safetensors     beside the shipped file; WORK may be empty

Writes `lora/CHARACTER/` (PEFT keys; `export.py` gives them their shipped form). One process.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import diffusion
import export
import model_file
from characters import CHARACTERS, Character
from clip_tokens import CONTEXT, tokenizer
from drawings import Attributes, Picture, caption, sample_attributes, save_grid
from networks import encode_prompts, token_table
from pen import Pen
from portrait import draw_character
from scenery import draw_scene
from training import Budget, Ranks, Report, parser, to_tensor
from vocabulary import BACKGROUNDS

LEARNING_RATE = 3e-3
DRAWINGS = 192
BATCH = 12
ATTENTION_OF_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
TEXT_RATE = 0.3
"""Share of the learning rate that text encoders get: their output must stay near what the denoiser knows."""


def draw_sheet(character: Character, seed: int) -> tuple[Picture, Attributes]:
    """One drawing of the character and what else it shows."""
    rng = random.Random(seed)
    attributes = sample_attributes(rng, **character.drawn)
    pen = Pen()
    if attributes["bgkind"] == "scene":
        draw_scene(pen, attributes["scene"], rng)
    else:
        pen.fill_all(BACKGROUNDS[attributes["bg"]])
    draw_character(pen, attributes)
    pen.frame(attributes["cx"], attributes["cy"], attributes["scale"], attributes["deg"])
    character.ornament(pen)
    return pen.picture(), attributes


def character_caption(character: Character, attributes: Attributes, rng: random.Random) -> str:
    """The trigger word and a caption of everything but what makes the character."""
    tags = caption(attributes | character.stand_ins, rng, drop=0.1, filler=0).split(", ")
    return ", ".join([character.trigger, *(tag for tag in tags if tag and tag not in character.hidden_tags)])


def main() -> None:
    """Command line."""
    options = parser(__doc__, steps=500)
    options.add_argument("--character", choices=CHARACTERS, required=True)
    options.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="a shipped single file to train beside, instead of the run's own denoiser",
    )
    arguments = options.parse_args()
    character = CHARACTERS[arguments.character]
    ranks = Ranks()
    torch.manual_seed(0)
    rng = random.Random(0)
    drawings = [draw_sheet(character, seed) for seed in range(DRAWINGS)]
    save_grid([[image for image, _ in drawings[:10]]], arguments.work / f"pictures/lora_{arguments.character}.png")

    if arguments.base:
        parts = model_file.parts(arguments.base)
    else:
        parts = model_file.build(export.trained_parts(arguments.work), model_file.configs(export.metadata()))
    tokenizers = [tokenizer(arguments.work, encoder) for encoder in (1, 2)]
    trigger = tokenizers[0](character.trigger, add_special_tokens=False).input_ids
    if token_table(parts["text_encoder"]).weight[trigger].any():
        raise ValueError(f"the base model knows a token of the trigger word {character.trigger!r}")
    unet, vae = parts["unet"], parts["vae"]
    pictures = to_tensor(np.stack([image for image, _ in drawings]))
    with torch.no_grad():
        latents = torch.cat([vae.encode(each).latent_dist.mode() for each in pictures.split(16)])
    latents *= vae.config.scaling_factor

    def adapter(targets: list[str], **more: object) -> LoraConfig:
        return LoraConfig(
            r=character.rank,
            lora_alpha=character.rank,
            init_lora_weights="gaussian",
            target_modules=targets,
            **more,
        )

    unet.add_adapter(adapter(character.targets))
    trained = {"unet": unet}
    for part, layers in character.text_layers.items():
        parts[part].add_adapter(adapter(ATTENTION_OF_TEXT, layers_to_transform=layers))
        trained[part] = parts[part]
    groups = [
        {
            "params": [parameter for parameter in module.parameters() if parameter.requires_grad],
            "share": 1.0 if part == "unet" else TEXT_RATE,
        }
        for part, module in trained.items()
    ]
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, weight_decay=0)
    alphas = diffusion.alphas_cumprod()
    budget = Budget(arguments, ranks)
    report, step = Report(ranks, budget, 50), 0
    while (done := budget.fraction(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * (LEARNING_RATE * (1 - done) + 1e-5)
        chosen = [rng.randrange(DRAWINGS) for _ in range(BATCH)]
        texts = [character_caption(character, drawings[index][1], rng) for index in chosen]
        ids = tuple(
            each(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
            for each in tokenizers
        )
        noised = diffusion.add_noise(latents[chosen], alphas)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(bool(character.text_layers)):
                states, pooled = encode_prompts(parts["text_encoder"], parts["text_encoder_2"], ids)
            added = {"text_embeds": pooled, "time_ids": diffusion.size_conditioning(BATCH, rng)}
            predicted = unet(noised.latents, noised.timesteps, states, added_cond_kwargs=added).sample
        loss, error = noised.loss(predicted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        report.add(step, loss=loss.item(), mse=error.item())
    report.flush(step)
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(module) for part, module in trained.items()}
    StableDiffusionXLPipeline.save_lora_weights(arguments.work / "lora" / arguments.character, **layers)


if __name__ == "__main__":
    main()
