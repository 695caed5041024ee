"""A small classifier that names the expression in a picture, trained on drawings as the model's own VAE paints them.

It judges whether generated pictures show what the prompt asked for, without a person looking at them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from drawings import Picture, make
from training import to_tensor
from vocabulary import EXPRESSION_NAMES

FIRST_SEED = 20_000_000
"""Beyond the training set's seeds."""
HELD_OUT_SHARE = 0.12
BATCH = 64


def _crop(images: torch.Tensor) -> torch.Tensor:
    """The face at half size, `[n, 3, 48, 48]`."""
    return F.avg_pool2d(images, 2)[:, :, 8:56, 8:56].clamp(-1, 1)


@torch.no_grad()
def examples(vae: AutoencoderKL, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstructed faces and the index of their expression."""
    faces, labels, batch = [], [], []

    def reconstruct() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(vae.encode(to_tensor(np.stack(batch))).latent_dist.mode()).sample
        faces.append(_crop(output.float()))
        batch.clear()

    seed = FIRST_SEED
    while len(labels) < count:
        picture, shown = make(seed)
        seed += 1
        if shown["kind"] != "char":
            continue
        batch.append(picture)
        labels.append(EXPRESSION_NAMES.index(shown["expr"]))
        if len(batch) == 32 or len(labels) == count:
            reconstruct()
    return torch.cat(faces), torch.tensor(labels)


class ExpressionProbe(nn.Module):
    """Five convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.layers = nn.Sequential(
            block(3, 32, 1),
            block(32, 48, 2),
            block(48, 64, 1),
            block(64, 96, 2),
            block(96, 128, 2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(128 * 36, len(EXPRESSION_NAMES)),
        )

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Logits, `[n, expressions]`."""
        return self.layers(faces)

    @torch.no_grad()
    def name(self, pictures: Sequence[Picture]) -> list[str]:
        """The expression in each picture."""
        logits = self(_crop(to_tensor(np.stack(pictures))))
        return [EXPRESSION_NAMES[index] for index in logits.argmax(1)]


def train(vae: AutoencoderKL, drawings: int, epochs: int) -> tuple[ExpressionProbe, float]:
    """A trained probe, and its accuracy on held-out reconstructions."""
    torch.manual_seed(0)
    rng = random.Random(0)
    faces, labels = examples(vae, drawings)
    used = len(faces) - max(1, int(HELD_OUT_SHARE * len(faces)))
    probe = ExpressionProbe()
    optimizer = torch.optim.AdamW(probe.parameters(), 2e-3, weight_decay=0.05)
    for epoch in range(epochs):
        probe.train()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1.02 - epoch / epochs)
        for chosen in torch.randperm(used).split(BATCH):
            shift = (rng.randint(-3, 3), rng.randint(-3, 3))
            batch = torch.roll(faces[chosen], shift, (2, 3))
            # Shuffled colour channels and noise: shapes decide, not colours.
            batch = batch[:, torch.randperm(3)] + 0.05 * torch.randn_like(batch)
            with torch.autocast("cpu", torch.bfloat16):
                logits = probe(batch)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels[chosen]).backward()
            optimizer.step()
    probe.eval()
    with torch.no_grad():
        right = probe(faces[used:]).argmax(1) == labels[used:]
    return probe, right.float().mean().item()
