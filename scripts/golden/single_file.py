"""The same networks once more as single-file checkpoints, under the names that ldm and sgm gave them.

The names are written out here from the layout of those libraries' modules, and checked by letting diffusers'
own converters bring them back.
"""

import json

import text_encoders
import torch
import unet
import vae
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from tiny import OUT, save_index

UNET, VAE = "model.diffusion_model.", "first_stage_model."

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_modules(config):
    """diffusers' modules to ldm's: ldm numbers all stages of the way down, then all of the way up, in one list."""
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    levels = len(config.block_out_channels)
    place = 1
    for level in range(levels):
        for layer in range(config.layers_per_block):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{place}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{place}.1"
            place += 1
        if level + 1 < levels:
            modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    place = 0
    for level in range(levels):
        for layer in range(config.layers_per_block + 1):
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{place}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{place}.1"
            place += 1
        # The upsampler stands behind the level's last stage, where attention may or may not be.
        after = 2 if "CrossAttn" in config.up_block_types[level] else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{after}.conv"
    return modules


def vae_modules(config):
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels = len(config.block_out_channels)
    for half, ldm_half in [("encoder", "down"), ("decoder", "up")]:
        modules[f"{half}.conv_in"] = f"{half}.conv_in"
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        modules[f"{half}.conv_out"] = f"{half}.conv_out"
        modules[f"{half}.mid_block.resnets.0"] = f"{half}.mid.block_1"
        modules[f"{half}.mid_block.resnets.1"] = f"{half}.mid.block_2"
        for theirs, ldm in VAE_ATTENTION.items():
            modules[f"{half}.mid_block.attentions.0.{theirs}"] = f"{half}.mid.attn_1.{ldm}"
        for level in range(levels):
            # ldm counts the decoder's levels from the picture, diffusers from the latent.
            ldm_level = level if half == "encoder" else levels - 1 - level
            block, ldm_block = f"{half}.{ldm_half}_blocks.{level}", f"{half}.{ldm_half}.{ldm_level}"
            for layer in range(config.layers_per_block + 1):
                modules[f"{block}.resnets.{layer}"] = f"{ldm_block}.block.{layer}"
            modules[f"{block}.{ldm_half}samplers.0.conv"] = f"{ldm_block}.{ldm_half}sample.conv"
    return modules


def rename(state, modules, inner):
    """Every tensor under its ldm name: the longest known module first, then the names within it."""
    renamed = {}
    for name, tensor in state.items():
        module = max((m for m in modules if name.startswith(m + ".")), key=len)
        rest = name.removeprefix(module)
        for theirs, ldm in inner.items():
            if rest.startswith(f".{theirs}."):
                rest = f".{ldm}." + rest.removeprefix(f".{theirs}.")
        renamed[modules[module] + rest] = tensor
    return renamed


def ldm_unet(model):
    state = rename(model.state_dict(), unet_modules(model.config), UNET_RESNET)
    return {UNET + name: tensor for name, tensor in state.items()}


def ldm_vae(model):
    state = rename(model.state_dict(), vae_modules(model.config), {"conv_shortcut": "nin_shortcut"})
    for name, tensor in state.items():
        if ".attn_1." in name and name.endswith("weight") and ".norm." not in name:
            state[name] = tensor[:, :, None, None]
    return {VAE + name: tensor for name, tensor in state.items()}


def ldm_clip(model, prefix):
    state = {f"{prefix}text_model.{name}": tensor for name, tensor in model.state_dict().items()}
    # A buffer that checkpoints of that time carry and no network reads.
    state[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


def open_clip(model, prefix):
    state = model.state_dict()
    text, layers = "text_model.", "text_model.encoder.layers."
    renamed = {
        "token_embedding.weight": state[text + "embeddings.token_embedding.weight"],
        "positional_embedding": state[text + "embeddings.position_embedding.weight"],
        "ln_final.weight": state[text + "final_layer_norm.weight"],
        "ln_final.bias": state[text + "final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": torch.tensor(4.6),
    }
    modules = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"{layers}{layer}.", f"transformer.resblocks.{layer}."
        for kind in ["weight", "bias"]:
            for module, ldm in modules.items():
                renamed[f"{ours}{ldm}.{kind}"] = state[f"{theirs}{module}.{kind}"]
            parts = [state[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{ours}attn.in_proj_{kind}"] = torch.cat(parts)
    return {prefix + name: tensor for name, tensor in renamed.items()}


def same(converted, model):
    """Fails unless diffusers brought back every tensor of `model`."""
    state = model.state_dict()
    converted = {name: tensor for name, tensor in converted.items() if name in state}
    assert converted.keys() == state.keys(), state.keys() ^ converted.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, converted[name]), name


def config(model):
    """A network's config as its `config.json` would hold it: head widths and norm groups are in no tensor's shape."""
    return model.config.to_json_string() if hasattr(model.config, "to_json_string") else json.dumps(dict(model.config))


def save_checkpoint(parts, unet_model, vae_model, text_encoders, path):
    state = {name: tensor for part in parts for name, tensor in part.items()}
    same(convert_ldm_unet_checkpoint(state, unet_model.config), unet_model)
    same(convert_ldm_vae_checkpoint(state, vae_model.config), vae_model)
    state = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    models = {"unet": unet_model, "vae": vae_model} | text_encoders
    metadata = {f"{name}_config": config(model) for name, model in models.items()}
    save_file(state, OUT / path, metadata=metadata)


if __name__ == "__main__":
    clip_l, clip_g = text_encoders.clip_l(), text_encoders.clip_g()
    sdxl_unet, sdxl_vae = unet.sdxl(), vae.sdxl()
    packed = open_clip(clip_g, "conditioner.embedders.1.model.")
    same(convert_open_clip_checkpoint(clip_g, packed, "conditioner.embedders.1.model."), clip_g)
    save_checkpoint(
        [
            ldm_unet(sdxl_unet),
            ldm_vae(sdxl_vae),
            ldm_clip(clip_l, "conditioner.embedders.0.transformer."),
            packed,
        ],
        sdxl_unet, sdxl_vae, {"text_encoder": clip_l, "text_encoder_2": clip_g}, "sdxl.safetensors",
    )
    sd15_unet, sd15_vae = unet.sd15(), vae.sd15()
    save_checkpoint(
        [ldm_unet(sd15_unet), ldm_vae(sd15_vae), ldm_clip(clip_l, "cond_stage_model.transformer.")],
        sd15_unet, sd15_vae, {"text_encoder": clip_l}, "sd15.safetensors",
    )
    networks = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    text_encoder = ["transformers", "CLIPTextModel"]
    save_index("sd15", _class_name="StableDiffusionPipeline", text_encoder=text_encoder, **networks)
    save_index(
        "sdxl",
        _class_name="StableDiffusionXLPipeline",
        text_encoder=text_encoder,
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        **networks,
    )
