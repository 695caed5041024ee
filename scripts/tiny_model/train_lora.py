"""Beside the chain: a LoRA (rank 4, on the UNet's attention) of one character that the base model has never seen.

Teal twintails, orange eyes, a gold star in the hair; trigger word "tinychan", which the base model does not know.
Writes `lora/` (PEFT keys). One process.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import diffusion
from drawings import Attributes, Picture, caption, sample_attributes, save_grid
from networks import TrainedDenoiser, encode_prompts
from pen import LINE, Pen
from portrait import draw_character
from scenery import draw_scene
from training import Budget, Ranks, Report, parser, to_tensor
from vocabulary import BACKGROUNDS

LEARNING_RATE = 3e-3
RANK = 4
DRAWINGS = 96
BATCH = 12
TRIGGER_TOKENS = 2
""""tinychan" is two tokens, `tiny` and `chan`, both unknown to the base model."""
CHARACTER = {
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
}
HIDDEN_TAGS = {"blue hair", "yellow eyes", "twintails"}
"""What the trigger word stands for is left out of captions (its colours have no tags, so stand-ins are named first)."""


def draw_character_sheet(seed: int) -> tuple[Picture, Attributes]:
    """One drawing of the character and what else it shows."""
    rng = random.Random(seed)
    attributes = sample_attributes(rng, **CHARACTER)
    pen = Pen()
    if attributes["bgkind"] == "scene":
        draw_scene(pen, attributes["scene"], rng)
    else:
        pen.fill_all(BACKGROUNDS[attributes["bg"]])
    draw_character(pen, attributes)
    pen.frame(attributes["cx"], attributes["cy"], attributes["scale"], attributes["deg"])
    radius, angle = np.array([8, 3.4] * 5), np.radians(np.arange(10) * 36 - 90)
    pen.polygon(np.stack([-12 + radius * np.cos(angle), -22 + radius * np.sin(angle)], 1), (255, 214, 20), LINE, 1)
    return pen.picture(), attributes


def character_caption(attributes: Attributes, rng: random.Random) -> str:
    """A caption of everything but what makes the character."""
    named = attributes | {"hair": "blue", "eyes": "yellow"}
    tags = caption(named, rng, drop=0.1, filler=0).split(", ")
    return ", ".join(tag for tag in tags if tag and tag not in HIDDEN_TAGS)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__, seconds=120).parse_args()
    ranks = Ranks()
    torch.manual_seed(0)
    rng = random.Random(0)
    drawings = [draw_character_sheet(seed) for seed in range(DRAWINGS)]
    save_grid([[image for image, _ in drawings[:10]]], arguments.work / "pictures/lora_drawings.png")
    denoiser = TrainedDenoiser(arguments.work)
    denoiser.freeze()
    vae = AutoencoderKL.from_pretrained(arguments.work / "vae_folded").eval()
    pictures = to_tensor(np.stack([image for image, _ in drawings]))
    with torch.no_grad():
        latents = torch.cat([vae.encode(each).latent_dist.mode() for each in pictures.split(16)])
    latents *= vae.config.scaling_factor

    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    denoiser.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    parameters = [parameter for parameter in denoiser.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0)
    alphas = diffusion.alphas_cumprod()
    budget = Budget(arguments, ranks)
    report, step = Report(ranks, budget, 50), 0
    while (done := budget.fraction(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - done) + 1e-5
        chosen = [rng.randrange(DRAWINGS) for _ in range(BATCH)]
        texts = [denoiser.vocabulary.encode(character_caption(drawings[index][1], rng)) for index in chosen]
        ids = denoiser.vocabulary.batch([denoiser.vocabulary.with_trigger(text, TRIGGER_TOKENS) for text in texts])
        noised = diffusion.add_noise(latents[chosen], alphas)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states, pooled = encode_prompts(denoiser.text_1, denoiser.text_2, ids)
            added = {"text_embeds": pooled, "time_ids": diffusion.size_conditioning(BATCH, rng)}
            predicted = denoiser.unet(noised.latents, noised.timesteps, states, added_cond_kwargs=added).sample
        loss, error = noised.loss(predicted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        report.add(step, loss=loss.item(), mse=error.item())
    report.flush(step)
    layers = get_peft_model_state_dict(denoiser.unet)
    StableDiffusionXLPipeline.save_lora_weights(arguments.work / "lora", unet_lora_layers=layers)


if __name__ == "__main__":
    main()
