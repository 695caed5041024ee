"""Stage 2: the autoencoder (factor 8, 4 latent channels): pixels, gradients, a coarser scale, SSIM, and a small KL.

Most of the time goes to 64-pixel crops, which are cheap; the rest to whole drawings. Writes `vae/`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

import networks
from drawings import save_grid
from training import Budget, Ema, Ranks, Report, load_images, parser, to_images, to_tensor

LEARNING_RATE = 1e-3
CROP_SHARE = 0.72
CROP = 64
HELD_OUT, VALIDATED = 512, 256


def initialise(model: AutoencoderKL) -> AutoencoderKL:
    """Starts as a near-linear autoencoder: residual branches nearly closed, the straight path near identity."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("conv2.weight", "to_out.0.weight")):
                weight.mul_(0.05)
            elif "samplers" in name and weight.dim() == 4:
                torch.nn.init.dirac_(weight)
                if "down" in name:  # average the 2×2 pixels that become one
                    weight.zero_()
                    for channel in range(weight.shape[0]):
                        weight[channel, channel, :2, :2].fill_(0.25)
                weight.add_(torch.randn_like(weight) * 0.3 / weight[0].numel() ** 0.5)
            elif "shortcut.weight" in name:
                torch.nn.init.orthogonal_(weight.view(weight.shape[0], -1))
            elif weight.dim() == 4 and any(part in name for part in ("conv_in", "conv_out", "quant")):
                weight.mul_(3**0.5)
    return model


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity over 7×7 boxes, for values in -1..1."""

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 7, 3)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a * mean_a, blur(b * b) - mean_b * mean_b
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 4e-4) / (mean_a * mean_a + mean_b * mean_b + 4e-4)
    return (luminance * (2 * covariance + 3.6e-3) / (var_a + var_b + 3.6e-3)).mean()


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the picture losses, and the plain L1 for the log."""
    difference = output - target
    l1 = difference.abs().mean()
    gradients = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    gradients = gradients + (difference[:, :, 1:] - difference[:, :, :-1]).abs().mean()
    coarse = F.avg_pool2d(difference, 4).abs().mean()
    return l1 + 0.5 * gradients + 0.5 * coarse + 0.15 * (1 - ssim(output, target)), l1


def kl_loss(posterior: DiagonalGaussianDistribution) -> torch.Tensor:
    """Distance of the latents from a unit Gaussian."""
    return 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()


def batch(images: np.ndarray, count: int, rng: np.random.Generator, crops: bool) -> torch.Tensor:
    """Five crops (half of them on latent-pixel borders, half around the face) or two whole drawings."""
    if not crops:
        return to_tensor(images[np.sort(rng.integers(0, count, 2))])
    pieces = []
    for index in rng.integers(0, count, 5):
        aligned = rng.random() < 0.5
        y, x = rng.integers(0, 9, 2) * 8 if aligned else (rng.integers(12, 50), rng.integers(12, 52))
        pieces.append(images[index, y : y + CROP, x : x + CROP])
    return to_tensor(np.stack(pieces))


def train(model: AutoencoderKL, images: np.ndarray, budget: Budget, ranks: Ranks) -> None:
    """Trains in place; the averaged weights are left in `model`."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0, fused=True)
    ema, report = Ema({"vae": model}, 0.98, 30), Report(ranks, budget, 50)
    rng = np.random.default_rng(ranks.rank)
    torch.manual_seed(ranks.rank)
    step = 0
    while (done := budget.fraction(step)) < 1:
        warm = min(1.0, (step + 1) / 100)
        decay = 1 if done < 0.35 else 0.5 * (1 + math.cos(math.pi * (done - 0.35) / 0.65)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm * decay
        target = batch(images, len(images) - HELD_OUT, rng, done < CROP_SHARE)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(target).latent_dist
            noise = torch.exp(0.5 * posterior.logvar) * torch.randn_like(posterior.mean)
            output = model.decode(posterior.mean + noise).sample
        loss, l1 = reconstruction_loss(output.float(), target)
        kl = kl_loss(posterior)
        optimizer.zero_grad(set_to_none=True)
        (loss + 5e-4 * kl).backward()
        ranks.average(parameter.grad for parameter in parameters if parameter.grad is not None)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if ranks.first and step % 5 == 0:
            ema.update(step)
        report.add(step, loss=loss.item(), l1=l1.item(), kl=kl.item())
    report.flush(step)
    model.load_state_dict(ema.states["vae"])


@torch.no_grad()
def validate(model: AutoencoderKL, images: np.ndarray, picture: Path) -> float:
    """Prints the error on held-out drawings, writes some pairs as a picture, answers the latents' standard deviation."""
    model.eval()
    latents, errors, rows = [], [], []
    start = len(images) - HELD_OUT
    for first in range(start, start + VALIDATED, 32):
        target = to_tensor(images[first : first + 32])
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encode(target).latent_dist.mode()
            output = model.decode(z).sample.float()
        latents.append(z.float())
        errors.append((output.clamp(-1, 1) - target).abs().mean().item())
        if first == start:
            rows = [list(to_images(side)[row : row + 10]) for row in (0, 10, 20) for side in (target, output)]
    save_grid(rows, picture)
    z = torch.cat(latents)
    print(f"held-out L1 {np.mean(errors):.4f}, latents: mean {z.mean((0, 2, 3))}, deviation {z.std((0, 2, 3))}")
    return z.std().item()


def main() -> None:
    """Command line."""
    arguments = parser(__doc__, seconds=792).parse_args()
    ranks = Ranks()
    torch.manual_seed(0)
    images = load_images(arguments.work)
    model = initialise(networks.vae())
    train(model, images, Budget(arguments, ranks), ranks)
    if ranks.first:
        deviation = validate(model, images, arguments.work / "pictures/vae.png")
        model.register_to_config(scaling_factor=round(1 / deviation, 5))
        model.save_pretrained(arguments.work / "vae")
    ranks.close()


if __name__ == "__main__":
    main()
