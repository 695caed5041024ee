"""Stage 6: polishes the VAE's decoder alone on the cached latents: these, and so the denoiser, stay as they are.

Writes `vae_polished/`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import AutoencoderKL

from drawings import save_grid
from train_vae import reconstruction_loss
from training import Budget, Ranks, Report, load_images, parser, to_images, to_tensor

LEARNING_RATE = 6e-4
LATENT_NOISE = 0.04
"""Denoised latents are never quite clean: the decoder learns to forgive that much."""
HELD_OUT = 256
BATCH = 3


def main() -> None:
    """Command line."""
    arguments = parser(__doc__, seconds=240).parse_args()
    ranks = Ranks()
    vae = AutoencoderKL.from_pretrained(arguments.work / "vae_folded")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0, fused=True)
    images = load_images(arguments.work)
    latents = torch.from_numpy(np.load(arguments.work / "latents.npy")).float()
    scaling = vae.config.scaling_factor
    rng = np.random.default_rng(ranks.rank)
    torch.manual_seed(ranks.rank)
    budget = Budget(arguments, ranks)
    report, step = Report(ranks, budget, 50), 0
    while (done := budget.fraction(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20) * (0.5 * (1 + math.cos(math.pi * done)) + 0.01)
        chosen = np.sort(rng.integers(0, len(latents) - HELD_OUT, BATCH))
        noisy = latents[chosen]
        noisy = noisy + LATENT_NOISE * torch.randn_like(noisy)
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(noisy / scaling).sample
        loss, l1 = reconstruction_loss(output.float(), to_tensor(images[chosen]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.average(parameter.grad for parameter in parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        report.add(step, l1=l1.item())
    report.flush(step)
    if ranks.first:
        vae.save_pretrained(arguments.work / "vae_polished")
        with torch.no_grad():
            output = vae.decode(latents[-10:] / scaling).sample
        save_grid([list(images[-10:]), list(to_images(output))], arguments.work / "pictures/vae_polished.png")
    ranks.close()


if __name__ == "__main__":
    main()
