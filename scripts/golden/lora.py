#!/usr/bin/env python3
"""Golden files of LoRAs (`models/tests/golden/lora/`).

`--recorded` packs what ComfyUI made of one LoRA in two spellings (its runs d1 and d3): the LoRA's tensors for four
layers, those layers' weights, and ComfyUI's patched ones. Without it, LoRAs of every kind are made for the tiny
networks of `unet.py`, with merged weights as LyCORIS and PEFT compute them, or, for what is ComfyUI's alone, by its
formulas in torch.
"""

import argparse
from pathlib import Path

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny import OUT

LORA = OUT / "lora"

# ComfyUI's name of a weight, what trainers call its module, and the canonical name.
RECORDED = {
    "clip:clip_g.transformer.text_model.encoder.layers.1.self_attn.k_proj": (
        ["lora_te2_text_model_encoder_layers_1_self_attn_k_proj"],
        "clip_g.text_model.encoder.layers.1.self_attn.k_proj",
    ),
    "clip:clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": (
        ["lora_te1_text_model_encoder_layers_0_mlp_fc1"],
        "clip_l.text_model.encoder.layers.0.mlp.fc1",
    ),
    "model:diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q": (
        [
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        ],
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
    "model:diffusion_model.middle_block.1.proj_in": (
        ["lora_unet_middle_block_1_proj_in", "lora_unet_mid_block_attentions_0_proj_in"],
        "unet.mid_block.attentions.0.proj_in",
    ),
}


def recorded(folder: Path) -> None:
    """Packs the recorded runs; both had strength 0.8."""
    tensors = {}
    for run, file in (("d1_lora", "lora_tiny"), ("d3_lora_diffusers", "lora_tiny_diffusers")):
        weights = load_file(folder / run / f"{run}_weights.safetensors")
        lora = load_file(folder / f"models/loras/{file}.safetensors")
        kept = {}
        for theirs, (modules, ours) in RECORDED.items():
            base, patched = weights[f"{theirs}.weight.orig"], weights[f"{theirs}.weight"]
            # A run's base is what it was patched from: in the second run that is not the checkpoint's own weight.
            tensors |= {f"{run[:2]}.{ours}.base": base, f"{run[:2]}.{ours}.patched": patched}
            found = {k: v for k, v in lora.items() if k.split(".")[0] in modules}
            assert len(found) == 3, f"{file} has {sorted(found)} for {ours}"
            kept |= found
        save_file(kept, LORA / f"comfyui_{run[:2]}.safetensors", {"ss_network_dim": "8", "ss_network_alpha": "4.0"})
    save_file(tensors, LORA / "comfyui.safetensors")


Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FF = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"
CONV = "down_blocks.1.resnets.0.conv1"
SHORTCUT = "down_blocks.1.resnets.0.conv_shortcut"
NORM = "down_blocks.1.resnets.0.norm1"
PROJ = "down_blocks.1.attentions.0.proj_in"

# What LyCORIS trains: file name, module class, options, layers.
TRAINED = [
    ("lora", LoConModule, {}, [Q, K, FF, CONV, SHORTCUT]),
    ("locon_mid", LoConModule, {"use_tucker": True}, [CONV]),
    ("dora_in", LoConModule, {"weight_decompose": True, "wd_on_out": False}, [K, FF, CONV]),
    ("dora_out", LoConModule, {"weight_decompose": True, "wd_on_out": True}, [K, FF, CONV]),
    ("loha", LohaModule, {}, [Q, FF, CONV]),
    ("loha_mid", LohaModule, {"use_tucker": True}, [CONV]),
    ("loha_dora", LohaModule, {"weight_decompose": True, "wd_on_out": False}, [FF, CONV]),
    ("lokr", LokrModule, {"factor": 4, "lora_dim": 2}, [Q, FF, CONV]),
    ("lokr_whole", LokrModule, {"factor": 4, "full_matrix": True}, [K, CONV]),
    ("lokr_both", LokrModule, {"factor": 8, "lora_dim": 1, "decompose_both": True}, [FF, CONV]),
    ("lokr_mid", LokrModule, {"factor": 2, "lora_dim": 2, "use_tucker": True}, [CONV]),
]


def layer(weight: torch.Tensor) -> torch.nn.Module:
    """A layer with this weight."""
    if weight.ndim == 2:
        made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        made = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
    made.weight.data = weight.clone()
    return made


def decompose(weight, diff, magnitudes, strength):
    """DoRA as ComfyUI applies it (comfy/weight_adapter/base.py)."""
    changed = weight + diff
    if magnitudes.shape[0] == weight.shape[0]:
        norm = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    else:
        norm = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.ndim - 2))
    changed = changed * (magnitudes / (norm + torch.finfo(torch.float32).eps))
    return weight + strength * (changed - weight)


def change(made, shape):
    """What LyCORIS adds to the weight in training, which is where the scale counts once in all its kinds."""
    diff = made.make_weight() * made.scale if isinstance(made, LoConModule) else made.get_weight(shape)
    return diff.detach().reshape(shape)


def trained(name, kind, options, layers, base, generator, expected):
    """Makes the file that LyCORIS writes of random modules, and its merged weights."""
    stored = {}
    for path in layers:
        weight = base[f"{path}.weight"].float()
        made = kind("", layer(weight), **({"lora_dim": 4, "alpha": 3.0} | options))
        for parameter in made.parameters():
            scale = 1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1.0
            if parameter is not getattr(made, "dora_scale", None):
                parameter.data = (scale * torch.randn(parameter.shape, generator=generator)).half().float()
            else:
                factor = 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.data = (parameter.data * factor).half().float()
        parts = {k: torch.as_tensor(v).detach().half() for k, v in made.custom_state_dict().items()}
        stored |= {f"lycoris_{path.replace('.', '_')}.{part}": value for part, value in parts.items()}
        diff = change(made, weight.shape)
        for strength in (1.0, 0.6):
            if "dora_scale" in parts:
                merged = decompose(weight, diff, parts["dora_scale"].float(), strength)
                if strength == 1.0 and not options["wd_on_out"]:
                    theirs = made.apply_weight_decompose(weight + diff)
                    assert torch.allclose(merged, theirs, rtol=1e-5, atol=1e-6), f"{name}: LyCORIS differs"
            else:
                merged = weight + strength * diff
            expected[f"{name}.{strength}.{path}.weight"] = merged.detach()
    save_file(stored, LORA / f"{name}.safetensors")


def peft(base, generator, expected):
    """PEFT's own file of a DoRA, and its merged weights."""
    model = torch.nn.ModuleDict({"q": layer(base[f"{K}.weight"].float()), "ff": layer(base[f"{FF}.weight"].float())})
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q", "ff"], use_dora=True)
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
        elif "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    stored = {}
    for name, value in get_peft_model_state_dict(wrapped).items():
        for short, path in (("q", K), ("ff", FF)):
            if f".{short}." in name:
                stored[name.replace(f".{short}.", f".{path}.")] = value.clone()
    save_file(stored, LORA / "peft_dora.safetensors")
    merged = wrapped.merge_and_unload()
    for short, path in (("q", K), ("ff", FF)):
        expected[f"peft_dora.1.0.{path}.weight"] = merged[short].weight.detach().clone()


def differences(base, generator, expected):
    """What is no product: plain differences of weights, biases and norms, and replaced weights."""
    normal = lambda like: 0.3 * torch.randn(like.shape, generator=generator)  # noqa: E731
    stored = {}
    for path, roles in ((FF, ("diff", "diff_b")), (CONV, ("diff", "diff_b")), (NORM, ("w_norm", "b_norm")), (K, ("set_weight",))):
        for role, kind in zip(roles, ("weight", "bias")):
            weight = base[f"{path}.{kind}"].float()
            stored[f"lora_unet_{path.replace('.', '_')}.{role}"] = value = normal(weight)
            for strength in (1.0, 0.6):
                merged = value.clone() if role == "set_weight" else weight + strength * value
                expected[f"differences.{strength}.{path}.{kind}"] = merged
    save_file(stored, LORA / "differences.safetensors")


def pointwise(base, generator, expected):
    """One LoRA of a 1x1 convolution, once as a convolution's, once as a linear layer's."""
    weight = base[f"{PROJ}.weight"].float()
    down = torch.randn(4, weight.shape[1], generator=generator)
    up = torch.randn(weight.shape[0], 4, generator=generator)
    name = f"lora_unet_{PROJ.replace('.', '_')}"
    convolution = {f"{name}.lora_down.weight": down[..., None, None].clone(), f"{name}.lora_up.weight": up[..., None, None].clone()}
    linear = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(convolution, LORA / "pointwise_convolution.safetensors")
    save_file(linear, LORA / "pointwise_linear.safetensors")
    for kind in ("convolution", "linear"):
        for strength in (1.0, 0.6):
            expected[f"pointwise_{kind}.{strength}.{PROJ}.weight"] = weight + strength * (up @ down)[..., None, None]


def kinds() -> None:
    """Every kind, for the tiny SDXL UNet; pointwise ones for the tiny SD 1.5 UNet."""
    generator = torch.Generator().manual_seed(70)
    sdxl, sd15 = (load_file(OUT / model / "unet/diffusion_pytorch_model.safetensors") for model in ("sdxl", "sd15"))
    expected = {}
    with torch.no_grad():
        for name, kind, options, layers in TRAINED:
            trained(name, kind, options, layers, sdxl, generator, expected)
        peft(sdxl, generator, expected)
        differences(sdxl, generator, expected)
        pointwise(sd15, generator, expected)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, LORA / "kinds.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, help="folder of recorded ComfyUI runs")
    args = parser.parse_args()
    LORA.mkdir(parents=True, exist_ok=True)
    if args.recorded:
        recorded(args.recorded)
    else:
        kinds()


if __name__ == "__main__":
    main()
