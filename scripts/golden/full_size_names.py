"""Names and shapes of every tensor of full-size SDXL and SD 1.5, by the reference's own classes and in single files.

Writes `models/tests/golden/full_size_names.json`: for each model the single file's tensors (`ldm`) and each part's
(`unet`, …), name to shape. Networks are built on the meta device, so this takes no memory and no weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from ldm_keys import clip_g_layout, clip_key, clip_l_layout, unet_layout, vae_layout  # noqa: E402
from make_random_sdxl import CONFIGS  # noqa: E402

SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
"""Stable Diffusion 1.5 is diffusers' default but for these."""

Shapes = dict[str, list[int]]


def shapes(module: torch.nn.Module, text: bool = False) -> Shapes:
    """The state dict's shapes, under the names that published files use."""
    return {clip_key(key) if text else key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def single_file(parts: dict[str, Shapes], rename: tuple[str, str] = ("", "")) -> Shapes:
    """The single file's tensors, from the parts'."""
    layouts = {"unet": unet_layout, "vae": vae_layout, "text_encoder": clip_l_layout, "text_encoder_2": clip_g_layout}
    found = {}
    for part, own in parts.items():
        for entry in layouts[part](own):
            shape = list(entry.shape(lambda source: tuple(own[source])))
            # SD 1.5's attention projections are convolutions in both spellings, so only whole names change.
            found[entry.name.replace(*rename)] = shape
    return found


def main() -> None:
    def plain(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if not key.startswith("_")}

    with torch.device("meta"):
        vae = shapes(AutoencoderKL(**plain(CONFIGS["vae"])))
        clip_l = shapes(CLIPTextModel(CLIPTextConfig(**CONFIGS["text_encoder"])), text=True)
        clip_g = shapes(CLIPTextModelWithProjection(CLIPTextConfig(**CONFIGS["text_encoder_2"])), text=True)
        sdxl = {
            "unet": shapes(UNet2DConditionModel(**plain(CONFIGS["unet"]))),
            "vae": vae,
            "text_encoder": clip_l,
            "text_encoder_2": clip_g,
        }
        sd15 = {"unet": shapes(UNet2DConditionModel(**SD15_UNET)), "vae": vae, "text_encoder": clip_l}
    rename = ("conditioner.embedders.0.", "cond_stage_model.")
    models = {"sdxl": {"ldm": single_file(sdxl)} | sdxl, "sd15": {"ldm": single_file(sd15, rename)} | sd15}
    path = ROOT / "models" / "tests" / "golden" / "full_size_names.json"
    path.write_text(json.dumps(models, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
