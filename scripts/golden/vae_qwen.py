"""Golden files of Qwen-Image's autoencoder: the published structure with few channels, under diffusers' and under Wan's
names, and another structure."""

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from tiny import OUT, save_cases, save_network, seeded
from vae import tiled


def vae(seed, **config):
    model = seeded(AutoencoderKLQwenImage(**config), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        # Two thirds of a kernel meet nothing but zeros; and some pixels are to be clamped.
        model.decoder.conv_out.weight.mul_(3**0.5 * 0.8)
    return model.half().float()


def published():
    return vae(60, base_dim=4)


def other():
    return vae(
        62,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, False],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 2.0, 2.5, 3.0],
    )


def decode(model, latent):
    """Not clamped. A first frame goes the same way with and without a cache of those before it."""
    return model.decoder(model.post_quant_conv(latent[:, :, None]))[:, :, 0]


def encode(model, image):
    return model.encode(image[:, :, None]).latent_dist.mean[:, :, 0]


def cases(model):
    generator = torch.Generator().manual_seed(64)
    cell = 2 ** (len(model.config.dim_mult) - 1)
    channels = model.config.z_dim
    latent = torch.randn((2, channels, 5, 7), generator=generator)
    image = torch.rand((2, 3, 40, 56), generator=generator) * 2 - 1
    uneven = torch.rand((1, 3, 29, 27), generator=generator) * 2 - 1
    large = torch.randn((1, channels, 9, 13), generator=generator)
    tile, overlap = 6, 2
    with torch.no_grad():
        decoded = model.decode(latent[:, :, None]).sample[:, :, 0]
        assert torch.equal(decoded, decode(model, latent).clamp(-1, 1))
        clamped = (decoded.abs() == 1).float().mean()
        assert 0.001 < clamped < 0.1, clamped
        # ComfyUI's rule for autoencoders of video: one pass, of square tiles.
        picture = tiled(lambda x: decode(model, x), large, [(tile, tile)], overlap, cell, 1)
        pixels = picture.clamp(-1, 1)
        sides = [(tile * cell, tile * cell)]
        latent_again = tiled(lambda x: encode(model, x), pixels, sides, overlap * cell, 1, cell)
        return {
            "tiled.latent": large,
            "tiled.decoded": pixels,
            "tiled.encoded": latent_again,
            "latent": latent,
            "decoded": decoded,
            "image": image,
            "encoded": encode(model, image),
            "uneven.image": uneven,
            "uneven.encoded": encode(model, uneven),
        }


def wan_prefixes(model):
    """Every module that Wan's network has too, with its name there: its lists are flat."""
    names = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for side, list_name in [("encoder", "downsamples"), ("decoder", "upsamples")]:
        names |= {
            f"{side}.conv_in": f"{side}.conv1",
            f"{side}.mid_block.resnets.0": f"{side}.middle.0",
            f"{side}.mid_block.attentions.0": f"{side}.middle.1",
            f"{side}.mid_block.resnets.1": f"{side}.middle.2",
            f"{side}.norm_out": f"{side}.head.0",
            f"{side}.conv_out": f"{side}.head.2",
        }
        flat = [f"encoder.down_blocks.{i}" for i in range(len(model.encoder.down_blocks))]
        if side == "decoder":
            flat = []
            for level, block in enumerate(model.decoder.up_blocks):
                flat += [f"decoder.up_blocks.{level}.resnets.{i}" for i in range(len(block.resnets))]
                flat += [f"decoder.up_blocks.{level}.upsamplers.0"] * (block.upsamplers is not None)
        names |= {name: f"{side}.{list_name}.{i}" for i, name in enumerate(flat)}
    return names


def wan_names(model):
    """Each weight's name there."""
    layers = {
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "conv_shortcut": "shortcut",
    }
    prefixes = wan_prefixes(model)
    names = {}
    for name in model.state_dict():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix + "."))
        layer, _, rest = name.removeprefix(prefix + ".").partition(".")
        inner = f"{layers[layer]}.{rest}" if layer in layers else name.removeprefix(prefix + ".")
        names[name] = f"{prefixes[prefix]}.{inner}"
    return names


def wan_tensors(model):
    """The weights under Wan's names."""
    names = wan_names(model)
    tensors = {names[name]: tensor for name, tensor in model.half().state_dict().items()}
    back = convert_wan_vae_to_diffusers(dict(tensors))
    assert back.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor), name
    model.float()
    return tensors


if __name__ == "__main__":
    for name, model in [("published", published()), ("other", other())]:
        save_cases(cases(model), f"vae_qwen_{name}.safetensors")
        save_network(model, f"qwen_image/vae_{name}")
    save_file(wan_tensors(published()), OUT / "vae_qwen_wan.safetensors")
