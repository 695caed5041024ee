"""Golden files of ControlNets: two for each of the UNets of unet.py, and what these make of their residuals.

The second ones are of the less common kinds: one without any attention, even in the middle; one with attention at
fewer levels than its UNet, and residuals that are averaged over the picture ("shuffle").
"""

import json

import torch
import unet
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import save_file
from single_file import UNET_RESNET, rename, same, unet_modules
from tiny import OUT, save_cases, seeded

FOLDER = "controlnet"
HINT_CHANNELS = (4, 6, 8, 10)
STRENGTHS = (0.8, 0.35)
CLDM = "control_model."


def controlnet(model, seed, **changes):
    """A ControlNet of the shape that `model` needs."""
    shared = (
        "block_out_channels", "down_block_types", "layers_per_block", "transformer_layers_per_block",
        "attention_head_dim", "cross_attention_dim", "norm_num_groups", "use_linear_projection",
        "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    config = {key: model.config[key] for key in shared} | {"conditioning_embedding_out_channels": HINT_CHANNELS}
    return seeded(ControlNetModel(**config | changes), seed)


def case(model, nets, seed, *args):
    """The UNet's inputs, a hint a row for each ControlNet, all residuals, and the UNet's output with both."""
    tensors = unet.case(model, seed, *args)
    del tensors["output"]
    generator = torch.Generator().manual_seed(seed + 1)
    batch, _, height, width = tensors["latent"].shape
    added = {"text_embeds": tensors["pooled"], "time_ids": tensors["size_ids"]} if "pooled" in tensors else None
    inputs = {
        "timestep": tensors["timesteps"],
        "encoder_hidden_states": tensors["context"],
        "added_cond_kwargs": added,
    }
    skips, middle = [], 0
    for name, net, strength in zip("ab", nets, STRENGTHS):
        hint = torch.randint(0, 256, (batch, 3, 8 * height, 8 * width), generator=generator, dtype=torch.uint8)
        with torch.no_grad():
            residuals = net(tensors["latent"], controlnet_cond=hint.float() / 255, **inputs)
        tensors[f"{name}.hint"] = hint
        for i, residual in enumerate(residuals.down_block_res_samples):
            tensors[f"{name}.skip.{i}"] = residual
            scaled = residual * strength
            skips[i : i + 1] = [skips[i] + scaled] if i < len(skips) else [scaled]
        tensors[f"{name}.middle"] = residuals.mid_block_res_sample
        middle = middle + residuals.mid_block_res_sample * strength
    with torch.no_grad():
        tensors["output"] = model(
            tensors["latent"], **inputs, down_block_additional_residuals=skips, mid_block_additional_residual=middle
        ).sample
    return tensors


def cldm_names(model, net):
    """cldm's name of every tensor of `net`, written out from that library's modules; checked by letting diffusers'
    converter bring them back."""
    modules = unet_modules(model.config) | {
        f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(len(net.controlnet_down_blocks))
    }
    hint = "controlnet_cond_embedding"
    blocks = len(net.controlnet_cond_embedding.blocks)
    modules |= {f"{hint}.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(blocks)}
    modules |= {
        f"{hint}.conv_in": "input_hint_block.0",
        f"{hint}.conv_out": f"input_hint_block.{2 * blocks + 2}",
        "controlnet_mid_block": "middle_block_out.0",
    }
    state = net.state_dict()
    renamed = {CLDM + name: tensor for name, tensor in rename(state, modules, UNET_RESNET).items()}
    # The converter knows no SDXL, whose second conditioning the UNet's test covers.
    added = {key: tensor for key, tensor in state.items() if key.startswith("add_embedding.")}
    same(convert_controlnet_checkpoint(renamed, net.config) | added, net)
    names = rename({name: name for name in state}, modules, UNET_RESNET)
    return {canonical: CLDM + name for name, canonical in names.items()}


if __name__ == "__main__":
    (OUT / FOLDER).mkdir(parents=True, exist_ok=True)
    names = {}
    sdxl, sd15 = unet.sdxl(), unet.sd15()
    small = {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"}
    shuffle = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "global_pool_conditions": True,
    }
    for name, model, second, changes in [
        ("sdxl", sdxl, "sdxl_small", small),
        ("sd15", sd15, "sd15_shuffle", shuffle),
    ]:
        nets = [controlnet(model, 40), controlnet(model, 41, **changes)]
        for stem, net in zip((name, second), nets):
            state = {key: tensor.half().contiguous() for key, tensor in net.state_dict().items()}
            save_file(state, OUT / FOLDER / f"{stem}.safetensors")
        named = {
            "even": case(model, nets, 50, 2, 8, 12, 7, [999.0, 421.0]),
            "odd": case(model, nets, 60, 2, 7, 5, 11, [250.0, 0.0]),
        }
        cases = {f"{case}.{key}": tensor for case, tensors in named.items() for key, tensor in tensors.items()}
        save_cases(cases, f"{FOLDER}/{name}_cases.safetensors")
        names[name] = cldm_names(model, nets[0])
    (OUT / FOLDER / "cldm_names.json").write_text(json.dumps(names, indent=0, sort_keys=True) + "\n")
