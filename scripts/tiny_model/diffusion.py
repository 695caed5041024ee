"""Noise-prediction training on SDXL's schedule: noising, size conditioning, the min-SNR loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

STEPS = 1000
MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"."""


def alphas_cumprod() -> torch.Tensor:
    """Share of the signal that is left at each of the 1000 timesteps (scaled_linear betas)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def size_conditioning(count: int, rng: random.Random) -> torch.Tensor:
    """SDXL's six size numbers, `[count, 6]`, at random: the model learns not to care, so that any default works."""
    rows = []
    for _ in range(count):
        original = rng.choice([128, 128, 128, 256, 512, 1024])
        target = rng.choice([original, original, 128])
        rows.append([original, original, 0, 0, target, target])
    return torch.tensor(rows, dtype=torch.float32)


@dataclass
class Noised:
    """Latents at random timesteps, and the noise that a network should find in them."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor
    alphas: torch.Tensor

    def loss(self, predicted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Min-SNR weighted loss, and the plain mean squared error for the log."""
        errors = ((predicted.float() - self.noise) ** 2).mean((1, 2, 3))
        snr = self.alphas / (1 - self.alphas)
        weights = torch.minimum(snr, torch.tensor(MIN_SNR_GAMMA)) / snr
        return (weights * errors).mean(), errors.mean()


def uniform_timesteps(count: int) -> torch.Tensor:
    """Every timestep equally often."""
    return torch.randint(0, STEPS, (count,))


def add_noise(
    clean: torch.Tensor, alphas: torch.Tensor, timesteps: Callable[[int], torch.Tensor] = uniform_timesteps
) -> Noised:
    """Noises each latent at its own random timestep."""
    t = timesteps(len(clean))
    noise = torch.randn_like(clean)
    alpha = alphas[t]
    share = alpha[:, None, None, None]
    return Noised(share.sqrt() * clean + (1 - share).sqrt() * noise, t, noise, alpha)
