"""Stage 5: the denoiser and both text encoders, jointly. Predicts noise on SDXL's schedule, min-SNR weighted.

Local SGD: ranks average their weights every 4 steps instead of their gradients every step. The text encoders learn at
0.3 of the rate. Writes the averaged weights to `unet.pt`.
"""

from __future__ import annotations

import json
import math
import random

import numpy as np
import torch

import diffusion
from clip_tokens import CompactVocabulary
from drawings import caption
from networks import encode_prompts, text_encoders, unet
from training import Budget, Ema, Ranks, Report, parser

LEARNING_RATE = 1e-3
TEXT_RATE = 0.3
EMPTY_CAPTIONS = 0.1
UNDERSCORES = 0.07
HELD_OUT = 256
AVERAGE_EVERY = 4
SHORT_CAPTION_DROPS = [0.1, 0.1, 0.4, 0.75]


def main() -> None:
    """Command line."""
    options = parser(__doc__, steps=4344)
    options.add_argument("--batch", type=int, default=16, help="drawings a step and rank (shipped: 16 on 2 ranks)")
    options.add_argument("--resume", action="store_true", help="go on from unet.pt, for a second stage")
    options.add_argument(
        "--short-captions", action="store_true", help="drop up to three quarters of the tags of some captions"
    )
    arguments = options.parse_args()
    ranks = Ranks()
    torch.manual_seed(0)
    vocabulary = CompactVocabulary(arguments.work)
    first, second = text_encoders(vocabulary)
    modules = {"unet": unet(), "text_1": first, "text_2": second}
    start = torch.load(arguments.work / ("unet.pt" if arguments.resume else "text_encoders.pt"), weights_only=True)
    for name, state in start.items():
        modules[name].load_state_dict(state)
    latents = torch.from_numpy(np.load(arguments.work / "latents.npy"))
    shown = json.loads((arguments.work / "attributes.json").read_text())
    alphas = diffusion.alphas_cumprod()

    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    text_parameters = [*first.parameters(), *second.parameters()]
    groups = [
        {"params": list(modules["unet"].parameters()), "share": 1.0},
        {"params": text_parameters, "share": TEXT_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = Ema(modules, 0.99, 50)
    rng = random.Random(100 + ranks.rank)
    torch.manual_seed(100 + ranks.rank)
    budget = Budget(arguments, ranks, AVERAGE_EVERY)
    report, step = Report(ranks, budget, 50), 0
    while (done := budget.fraction(step)) < 1:
        decay = 1 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6)) * 0.97 + 0.03
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 100) * decay * group["share"]
        chosen = [rng.randrange(len(latents) - HELD_OUT) for _ in range(arguments.batch)]
        captions = []
        for index in chosen:
            drop = rng.choice(SHORT_CAPTION_DROPS) if arguments.short_captions else 0.1
            text = "" if rng.random() < EMPTY_CAPTIONS else caption(shown[index], rng, drop=drop)
            captions.append(vocabulary.encode(text, underscores=rng.random() < UNDERSCORES))
        noised = diffusion.add_noise(latents[chosen].float(), alphas)
        sizes = diffusion.size_conditioning(arguments.batch, rng)
        with torch.autocast("cpu", torch.bfloat16):
            states, pooled = encode_prompts(first, second, vocabulary.batch(captions))
            added = {"text_embeds": pooled, "time_ids": sizes}
            predicted = modules["unet"](noised.latents, noised.timesteps, states, added_cond_kwargs=added).sample
        loss, error = noised.loss(predicted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % AVERAGE_EVERY == 0:
            ranks.average(parameters)
            if ranks.first:
                ema.update(step)
        report.add(step, loss=loss.item(), mse=error.item())
        if ranks.first and step % 250 == 0:
            torch.save(ema.states, arguments.work / "unet.pt")
    report.flush(step)
    if ranks.first:
        torch.save(ema.states, arguments.work / "unet.pt")
    ranks.close()


if __name__ == "__main__":
    main()
