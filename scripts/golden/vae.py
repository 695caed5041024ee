"""Golden files of the autoencoders: two residual layers a level as in SDXL and SD 1.5, and one."""

import torch
from diffusers import AutoencoderKL
from tiny import save_cases, save_network, seeded


def vae(seed, layers, groups, scaling):
    return seeded(
        AutoencoderKL(
            block_out_channels=(8, 16, 16, 24),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=layers,
            norm_num_groups=groups,
            scaling_factor=scaling,
        ),
        seed,
    )


def sdxl():
    return vae(40, 2, 4, 0.13025)


def sd15():
    return vae(41, 1, 8, 0.18215)


def ramp(length, feather):
    """Blending weights along a tile's side: up over the first `feather` places, down over the last ones."""
    if feather >= length:
        return torch.ones(length)
    rise = (torch.arange(length) + 1).clamp(max=feather) / max(feather, 1)
    return rise * rise.flip(0)


def tiled(network, x, tiles, overlap, up, down):
    """ComfyUI's tiling (comfy/utils.py, tiled_scale): blended tiles of each size, then the mean of the sizes."""
    passes = []
    for tile in tiles:
        corners = [
            range(0, size - overlap, side - overlap) if size > side else [0]
            for size, side in zip(x.shape[2:], tile, strict=True)
        ]
        total, weights = 0, 0
        for top in corners[0]:
            for left in corners[1]:
                part = network(x[:, :, top : top + tile[0], left : left + tile[1]])
                feather = overlap * up // down
                # One tile for all is taken as it is, which a weighted mean of one does too.
                weight = ramp(part.shape[2], feather)[:, None] * ramp(part.shape[3], feather)
                place = (
                    left * up // down,
                    x.shape[3] * up // down - left * up // down - part.shape[3],
                    top * up // down,
                    x.shape[2] * up // down - top * up // down - part.shape[2],
                )
                total = total + torch.nn.functional.pad(part * weight, place)
                weights = weights + torch.nn.functional.pad(weight, place)
        passes.append(total / weights)
    return sum(passes) / len(passes)


def cases(model):
    generator = torch.Generator().manual_seed(50)
    latent = torch.randn((2, 4, 5, 6), generator=generator)
    image = torch.rand((2, 3, 24, 40), generator=generator) * 2 - 1
    uneven = torch.rand((1, 3, 29, 27), generator=generator) * 2 - 1
    wide = torch.randn((1, 4, 9, 13), generator=generator)
    tiles, overlap, cell = [(16, 4), (4, 16), (8, 8)], 2, 8
    with torch.no_grad():
        # The rule does not depend on the network, so the picture that is encoded is simply the decoded one.
        picture = tiled(lambda x: model.decode(x).sample, wide, tiles, overlap, cell, 1)
        pixels = [(height * cell, width * cell) for height, width in tiles]
        latent_again = tiled(
            lambda x: model.encode(x).latent_dist.mean, picture, pixels, overlap * cell, 1, cell
        )
        return {
            "tiled.latent": wide,
            "tiled.decoded": picture,
            "tiled.encoded": latent_again,
            "latent": latent,
            "decoded": model.decode(latent).sample,
            "image": image,
            "encoded": model.encode(image).latent_dist.mean,
            "uneven.image": uneven,
            "uneven.encoded": model.encode(uneven).latent_dist.mean,
        }


if __name__ == "__main__":
    for name, model in [("sdxl", sdxl()), ("sd15", sd15())]:
        save_cases(cases(model), f"vae_{name}.safetensors")
        save_network(model, f"{name}/vae")
