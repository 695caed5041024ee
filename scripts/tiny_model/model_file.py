"""The shipped file: one safetensors file with ldm/sgm keys, fp16, its token tables stored sparse, its configs inside.

Of the token tables' 49,408 rows a hundred are not zero: only those are stored (`scripts/sparse_table.py`).
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import networks
import sparse_table
from clip_tokens import tokenizer
from ldm_keys import PARTS, Part, state_dicts

TOKEN_TABLES = (
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "conditioner.embedders.1.model.token_embedding.weight",
)
Config = dict[str, Any]


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], sparse: Iterable[str] = ()) -> None:
    """Writes the tensors in fp16, those named in `sparse` as their non-zero rows."""
    stored = {name: tensor.half().contiguous().clone() for name, tensor in tensors.items()}
    stored, metadata = sparse_table.pack(stored, metadata, sparse)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, path, metadata)
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """The library writes metadata in random order; sorted, the same weights give the same bytes."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, sparse ones expanded, and the metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return sparse_table.unpack(tensors, metadata)


def configs(metadata: dict[str, str]) -> dict[Part, Config]:
    """The four parts' diffusers and transformers configs, from the metadata."""
    missing = [part for part in PARTS if f"{part}_config" not in metadata]
    if missing:
        raise ValueError(f"the metadata has no {missing[0]}_config: not a file that export.py wrote")
    return {part: json.loads(metadata[f"{part}_config"]) for part in PARTS}


def build(
    states: Mapping[Part, Mapping[str, torch.Tensor]], known: Mapping[Part, Config]
) -> dict[Part, torch.nn.Module]:
    """The four networks in f32, frozen, from their weights and configs."""
    modules = _untrained(known)
    for part, module in modules.items():
        module.load_state_dict(states[part])
        module.eval().requires_grad_(False)
    return modules


def _untrained(known: Mapping[Part, Config]) -> dict[Part, torch.nn.Module]:
    return {
        "unet": UNet2DConditionModel.from_config(known["unet"]),
        "vae": AutoencoderKL.from_config(known["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(known["text_encoder"])),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig.from_dict(known["text_encoder_2"])),
    }


def parts(path: Path) -> dict[Part, torch.nn.Module]:
    """The four networks, built from the file's own configs, with every tensor of the file used exactly once."""
    tensors, metadata = read(path)
    known = configs(metadata)
    keys = {part: list(module.state_dict()) for part, module in _untrained(known).items()}
    return build(state_dicts(tensors, keys), known)


def pipeline(path: Path, work: Path) -> StableDiffusionXLPipeline:
    """The file as a diffusers pipeline; tokenizer files are kept under `work`."""
    made = StableDiffusionXLPipeline(
        **parts(path),
        tokenizer=tokenizer(work, 1),
        tokenizer_2=tokenizer(work, 2),
        scheduler=networks.scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def write_configs(folder: Path, known: dict[Part, Config], work: Path) -> None:
    """A diffusers folder without weights: what `from_single_file(config=…)` wants."""
    for part in PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(known[part]))
    index: Config = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False}
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    index |= {part: ["diffusers", name] for part, name in classes.items()}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
    index |= {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    networks.scheduler().save_pretrained(folder / "scheduler")
    tokenizer(folder, 1)
    tokenizer(folder, 2)
