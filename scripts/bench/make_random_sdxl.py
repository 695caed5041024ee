"""Writes a full-size SDXL checkpoint (6.9 GB, fp16) with seeded random weights, to measure speed and memory with.

Speed and memory depend on shapes and types, not on what a model has learnt, so benchmarks need no download.
Weights are scaled to keep activations finite: fan-in scaled normal matrices, norms near one, a small output convolution.
Every tensor has its own generator (from the seed and its name), so both layouts hold the same numbers, and tensors are
written one at a time, so memory stays below 1 GB.

    python make_random_sdxl.py random_sdxl.safetensors
    python make_random_sdxl.py random_sdxl --layout diffusers
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import stream_safetensors
from clip_tokenizer import write_tokenizer
from ldm_keys import LOGIT_SCALE, PARTS, Part, clip_key, layout
from stream_safetensors import Entry

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    """
{
  "unet": {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "use_linear_projection": true, "norm_num_groups": 32,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816
  },
  "vae": {
    "_class_name": "AutoencoderKL",
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    "scaling_factor": 0.13025, "force_upcast": true
  },
  "text_encoder": {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1
  },
  "text_encoder_2": {
    "architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model",
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280,
    "num_hidden_layers": 32, "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu",
    "layer_norm_eps": 1e-05, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1
  },
  "scheduler": {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading"
  },
  "model_index": {
    "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": false,
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"]
  }
}
"""
)
"""SDXL base 1.0's published configs, as far as they differ from the classes' defaults or are worth seeing."""

CHUNK = 1 << 24
"""Elements drawn at a time: bounds the memory that the largest tensor needs."""


Configs = dict[str, dict[str, Any]]


def shapes(configs: Configs = CONFIGS) -> dict[Part, dict[str, tuple[int, ...]]]:
    """Names and shapes of every weight, from diffusers' and transformers' own classes on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def settings(part: str) -> dict[str, Any]:
        return {
            key: value
            for key, value in configs[part].items()
            if key not in ("_class_name", "architectures", "model_type")
        }

    with torch.device("meta"):
        models: dict[Part, torch.nn.Module] = {
            "unet": UNet2DConditionModel(**settings("unet")),
            "vae": AutoencoderKL(**settings("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**settings("text_encoder"))),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**settings("text_encoder_2"))),
        }
    return {
        part: {
            clip_key(name) if part.startswith("text") else name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
        }
        for part, model in models.items()
    }


def scale_of(part: Part, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values."""
    if "embedding" in name and part.startswith("text"):
        return 0.0, 0.02
    if len(shape) == 1:
        is_norm = "norm" in name.rsplit(".", 2)[-2]
        return (1.0 if is_norm and name.endswith("weight") else 0.0), 0.02
    fan_in = math.prod(shape[1:])
    gain = 0.1 if (part, name) == ("unet", "conv_out.weight") else 1.0
    return 0.0, gain / math.sqrt(fan_in)


def random_tensor(seed: int, part: Part, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fp16 weights of one diffusers tensor: always the same for one seed and name."""
    generator = torch.Generator().manual_seed(seed << 32 | zlib.crc32(f"{part}/{name}".encode()))
    mean, deviation = scale_of(part, name, shape)
    tensor = torch.empty(math.prod(shape), dtype=torch.float16)
    for start in range(0, tensor.numel(), CHUNK):
        piece = tensor[start : start + CHUNK]
        piece.copy_(torch.empty(piece.numel()).normal_(mean, deviation, generator=generator))
    return tensor.view(shape)


def write_safetensors(
    path: Path,
    entries: Iterable[tuple[str, tuple[int, ...], Callable[[], torch.Tensor]]],
    metadata: dict[str, str],
) -> None:
    """Writes fp16 tensors one after the other; each is made when its turn comes and dropped afterwards."""
    stream_safetensors.write(path, [Entry(name, torch.float16, shape, make) for name, shape, make in entries], metadata)


def write_configs(folder: Path) -> None:
    """Everything of a diffusers folder but the weights: enough for diffusers to load the single file offline."""
    for part in (*PARTS, "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(CONFIGS[part], indent=2) + "\n")
    (folder / "model_index.json").write_text(json.dumps(CONFIGS["model_index"], indent=2) + "\n")
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", "!")


def write_single_file(path: Path, seed: int, configs: Configs = CONFIGS) -> None:
    """The layout that people download: one file, ldm/sgm keys."""
    known = shapes(configs)

    def entry(tensor):
        part = known[tensor.part]
        shape = tensor.shape(part.__getitem__)
        return tensor.name, shape, lambda: tensor.build(lambda key: random_tensor(seed, tensor.part, key, part[key]))

    entries = [entry(tensor) for tensor in layout({part: list(tensors) for part, tensors in known.items()})]
    entries.append((LOGIT_SCALE, (), lambda: torch.tensor(4.6052, dtype=torch.float16)))
    write_safetensors(
        path,
        entries,
        {"modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.title": f"random SDXL, seed {seed}"},
    )


def write_diffusers_folder(folder: Path, seed: int) -> None:
    """The same weights as a diffusers folder."""
    write_configs(folder)
    for part, tensors in shapes().items():
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        entries = [
            (name, shape, lambda part=part, name=name, shape=shape: random_tensor(seed, part, name, shape))
            for name, shape in tensors.items()
        ]
        write_safetensors(folder / part / f"{stem}.safetensors", entries, {"format": "pt"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write (or folder, with --layout diffusers)")
    parser.add_argument(
        "--layout", choices=("single-file", "diffusers"), default="single-file", help="default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same weights in both layouts (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="write again even if it is there")
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.force:
        parser.error(f"{arguments.out} exists; --force writes it again")
    torch.set_num_threads(1)
    write = write_single_file if arguments.layout == "single-file" else write_diffusers_folder
    write(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
