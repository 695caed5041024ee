"""What ships beside the model: its Canny ControlNet and the characters' LoRAs, fp16, described in their metadata.

Both say what they are in the modelspec's words; the ControlNet carries its config, a LoRA its rank and alpha in kohya's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

import model_file
import networks
from characters import CHARACTERS, Character
from ldm_keys import unet_layout

BASE_NAME = "tiny-sdxl.safetensors"
CONTROLNET_NAME = "tiny-canny.safetensors"
TRAINED_LORA = "pytorch_lora_weights.safetensors"
"""In `WORK/lora/CHARACTER/`: diffusers' name for it."""


def lora_name(character: str) -> str:
    """File name of a character's LoRA."""
    return f"lora-{character}.safetensors"


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config without what is private or unset."""
    return {key: value for key, value in config.items() if not key.startswith("_") and value is not None}


def described(kind: str, title: str, description: str, usage: str) -> dict[str, str]:
    """The modelspec's words that every file beside the model has; `kind` is what follows the base's architecture."""
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"stable-diffusion-xl-v1-base/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.author": "The Darkroom authors",
        "modelspec.license": "MIT OR Apache-2.0",
        "modelspec.description": description,
        "modelspec.resolution": "128x128",
        "modelspec.usage_hint": usage,
        "ss_sd_model_name": BASE_NAME,
    }


def write_controlnet(folder: Path, file: Path) -> None:
    """A diffusers folder as one file: diffusers' keys, its config as `controlnet_config`."""
    controlnet = ControlNetModel.from_pretrained(folder)
    config = {"_class_name": "ControlNetModel"} | public(controlnet.config)
    metadata = described(
        "controlnet",
        "Darkroom tiny Canny ControlNet",
        "Keeps pictures of the tiny SDXL model on the edges of a template: white Canny edges on black.",
        "Canny thresholds 50/100 to 150/300 were trained; strength 0.6 to 1.",
    )
    metadata["controlnet_config"] = json.dumps(config, sort_keys=True)
    model_file.write(file, controlnet.state_dict(), metadata)


def to_kohya(tensors: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """PEFT's keys as kohya's trainer for SDXL writes them: underscores, ldm names for the UNet, an alpha a module."""
    ldm = {
        entry.sources[0].removesuffix(".weight"): entry.name.removeprefix("model.diffusion_model.").removesuffix(
            ".weight"
        )
        for entry in unet_layout(networks.unet().state_dict())
    }
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        part, _, path = key.partition(".")
        module, _, leaf = path.rpartition(".lora_")
        if part == "unet":
            name = "lora_unet_" + ldm[module]
        else:
            prefix = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part]
            name = prefix + "text_model." + module.removeprefix("text_model.")
        name = name.replace(".", "_")
        renamed[f"{name}.{'lora_down' if leaf.startswith('A') else 'lora_up'}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(alpha)
    return renamed


def write_lora(trained: Path, name: str, character: Character, file: Path) -> None:
    """A trained LoRA (PEFT keys, alpha equal to the rank) in the keys that its character ships with."""
    tensors = load_file(trained)
    rank = next(tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key)
    kohya = character.keys == "kohya"
    metadata = described(
        "lora",
        character.title,
        f"A character for the tiny SDXL model: {character.shows}.",
        f"Trigger word {character.trigger!r}; strength 1, for network and text encoders alike.",
    )
    metadata |= {
        "modelspec.trigger_phrase": character.trigger,
        "modelspec.tags": "character",
        "ss_output_name": name,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }
    if kohya:
        metadata |= {"modelspec.implementation": "https://github.com/kohya-ss/sd-scripts"}
        metadata |= {"ss_network_module": "networks.lora"}
        tensors = to_kohya(tensors, rank)
    model_file.write(file, tensors, metadata)


def export(work: Path, out: Path) -> list[Path]:
    """Writes whatever of them was trained in `work`; answers the files."""
    written = []
    if (work / "controlnet").exists():
        written.append(out / CONTROLNET_NAME)
        write_controlnet(work / "controlnet", written[-1])
    for name, character in CHARACTERS.items():
        if (trained := work / "lora" / name / TRAINED_LORA).exists():
            written.append(out / lora_name(name))
            write_lora(trained, name, character, written[-1])
    return written
