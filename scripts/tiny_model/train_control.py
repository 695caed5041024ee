"""Beside the chain: a Canny ControlNet. Starts from the denoiser's weights; only the ControlNet is trained.

The hint encoder's default initialisation lets sparse edges die out in seven convolutions, and its zero output layer
hides the rest: it did nothing for 700 steps. So it gets real gain, zero biases, a non-zero output, and with the zero
convolutions three times the learning rate. Writes `controlnet/`.
"""

from __future__ import annotations

import json
import random

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel

import diffusion
from drawings import Picture, caption
from networks import TrainedDenoiser, encode_prompts
from training import Budget, Ranks, Report, load_images, parser

LEARNING_RATE = 1e-3
HINT_RATE = 3.0
HELD_OUT = 256
AVERAGE_EVERY = 4


def canny(image: Picture, low: int = 100, high: int = 200) -> Picture:
    """Edges as a white-on-black RGB picture."""
    edges = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), low, high)
    return np.repeat(edges[..., None], 3, 2)


@torch.no_grad()
def initialise_hint_encoder(controlnet: ControlNetModel) -> None:
    """See the module's text."""
    for name, weight in controlnet.controlnet_cond_embedding.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        else:
            gain = 0.5 if "conv_out" in name else 1.0
            weight.copy_(torch.randn_like(weight) * (2.6 / weight[0].numel()) ** 0.5 * gain)


def noisy_timesteps(count: int) -> torch.Tensor:
    """More weight on the noisy end, where the composition is decided."""
    return (diffusion.STEPS * torch.rand(count) ** 0.6).long().clamp(0, diffusion.STEPS - 1)


def main() -> None:
    """Command line."""
    options = parser(__doc__, seconds=495)
    options.add_argument("--batch", type=int, default=16, help="drawings a step and rank (default: %(default)s)")
    options.add_argument("--resume", action="store_true", help="go on from controlnet/")
    arguments = options.parse_args()
    ranks = Ranks()
    torch.manual_seed(0)
    denoiser = TrainedDenoiser(arguments.work)
    denoiser.freeze()
    folder = arguments.work / "controlnet"
    if arguments.resume:
        controlnet = ControlNetModel.from_pretrained(folder)
    else:
        controlnet = ControlNetModel.from_unet(denoiser.unet, conditioning_embedding_out_channels=(16, 32, 64, 96))
        initialise_hint_encoder(controlnet)
    controlnet.requires_grad_(True).train()
    images = load_images(arguments.work)
    latents = torch.from_numpy(np.load(arguments.work / "latents.npy"))
    shown = json.loads((arguments.work / "attributes.json").read_text())
    alphas = diffusion.alphas_cumprod()

    parameters = list(controlnet.parameters())
    fast_names = ("controlnet_down", "controlnet_mid", "controlnet_cond")
    fast = [parameter for name, parameter in controlnet.named_parameters() if name.startswith(fast_names)]
    slow = [parameter for name, parameter in controlnet.named_parameters() if not name.startswith(fast_names)]
    groups = [{"params": slow, "share": 1.0}, {"params": fast, "share": HINT_RATE}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    rng = random.Random(ranks.rank)
    torch.manual_seed(ranks.rank)
    budget = Budget(arguments, ranks, AVERAGE_EVERY)
    report, step = Report(ranks, budget, 25), 0
    while (done := budget.fraction(step)) < 1:
        decay = 1 if done < 0.5 else 2 * (1 - done) + 0.02
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * LEARNING_RATE * min(1, (step + 1) / 40) * decay
        chosen = [rng.randrange(len(latents) - HELD_OUT) for _ in range(arguments.batch)]
        texts = ["" if rng.random() < 0.3 else caption(shown[index], rng) for index in chosen]
        ids = denoiser.vocabulary.batch([denoiser.vocabulary.encode(text) for text in texts])
        noised = diffusion.add_noise(latents[chosen].float(), alphas, noisy_timesteps)
        low = rng.choice([50, 100, 100, 150])
        edges = np.stack([canny(images[index], low, 2 * low) for index in chosen])
        hint = torch.from_numpy(edges).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states, pooled = encode_prompts(denoiser.text_1, denoiser.text_2, ids)
        added = {"text_embeds": pooled, "time_ids": diffusion.size_conditioning(arguments.batch, rng)}
        inputs = (noised.latents, noised.timesteps, states)
        with torch.autocast("cpu", torch.bfloat16):
            down, middle = controlnet(*inputs, controlnet_cond=hint, added_cond_kwargs=added, return_dict=False)
            predicted = denoiser.unet(
                *inputs,
                added_cond_kwargs=added,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        loss, error = noised.loss(predicted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % AVERAGE_EVERY == 0:
            ranks.average(parameters)
        report.add(step, loss=loss.item(), mse=error.item())
        if ranks.first and step % 100 == 0:
            controlnet.save_pretrained(folder)
    report.flush(step)
    if ranks.first:
        controlnet.save_pretrained(folder)
    ranks.close()


if __name__ == "__main__":
    main()
