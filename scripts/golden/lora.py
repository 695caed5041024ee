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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, help="folder of recorded ComfyUI runs")
    args = parser.parse_args()
    LORA.mkdir(parents=True, exist_ok=True)
    if args.recorded:
        recorded(args.recorded)


if __name__ == "__main__":
    main()
