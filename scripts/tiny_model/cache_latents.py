"""Stage 4: folds the latents to SDXL's scale, then encodes every drawing once.

A per-channel shift and scale goes into the VAE's 1×1 convolutions, so that latents have mean 0 and deviation 1/0.13025:
SDXL's own scaling factor then gives unit variance. Writes `vae_folded/` and `latents.npy` (scaled, fp16).
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

from networks import SCALING_FACTOR
from training import Ranks, load_images, parser, to_tensor

MEASURED = 512


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """The latents' modes, unscaled."""
    with torch.autocast("cpu", torch.bfloat16):
        return vae.encode(to_tensor(images)).latent_dist.mode().float()


@torch.no_grad()
def fold(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Changes the VAE's quantisation convolutions in place; what it reconstructs stays the same."""
    latents = torch.cat([encode(vae, images[first : first + 32]) for first in range(0, MEASURED, 32)])
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * SCALING_FACTOR
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= scale[None, :, None, None]
    channels = len(mean)
    into.bias[:channels] = (into.bias[:channels] - mean) / scale
    into.weight[:channels] /= scale[:, None, None, None]
    into.bias[channels:] -= 2 * scale.log()
    vae.register_to_config(scaling_factor=SCALING_FACTOR)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__).parse_args()
    ranks = Ranks()
    images = load_images(arguments.work)
    vae = AutoencoderKL.from_pretrained(arguments.work / "vae").eval()
    fold(vae, images)
    path = arguments.work / "latents.npy"
    if ranks.first:
        vae.save_pretrained(arguments.work / "vae_folded")
        np.lib.format.open_memmap(path, "w+", np.float16, (len(images), 4, 16, 16)).flush()
    ranks.wait()
    latents = np.lib.format.open_memmap(path, "r+")
    mine = ranks.share(len(images))
    for done, first in enumerate(range(mine.start, mine.stop, 16)):
        last = min(mine.stop, first + 16)
        latents[first:last] = (encode(vae, images[first:last]) * SCALING_FACTOR).half().numpy()
        if ranks.first and done % 100 == 0:
            print(f"{first} of {len(mine)} encoded by rank 0", flush=True)
    latents.flush()
    ranks.wait()
    if ranks.first:
        cached = np.load(path).astype(np.float32)
        print(f"latents: mean {cached.mean((0, 2, 3))}, deviation {cached.std((0, 2, 3))}")
    ranks.close()


if __name__ == "__main__":
    main()
