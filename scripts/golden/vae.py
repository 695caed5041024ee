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


def cases(model):
    generator = torch.Generator().manual_seed(50)
    latent = torch.randn((2, 4, 5, 6), generator=generator)
    image = torch.rand((2, 3, 24, 40), generator=generator) * 2 - 1
    uneven = torch.rand((1, 3, 29, 27), generator=generator) * 2 - 1
    with torch.no_grad():
        return {
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
