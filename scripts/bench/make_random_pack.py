"""Writes what `benches/packs` draws with: an SDXL-shaped model, a Canny ControlNet, LoRAs and templates, all random.

Speed and memory depend on shapes and types, not on what a model has learnt. The model is SDXL at half its width, with
fewer transformer layers and small text encoders: a step of a picture is long beside everything around it, and a whole
comparison on two cores takes minutes. The folder is laid out as ComfyUI's, so a server takes it as it is.

    python make_random_pack.py /data/random_pack
"""

from __future__ import annotations

import argparse
import copy
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from make_random_sdxl import CONFIGS, Configs, random_tensor, shapes, write_safetensors, write_single_file

from ldm_keys import unet_layout

CHECKPOINT = "checkpoints/pack_sdxl.safetensors"
CONTROL_NET = "controlnet/pack_canny.safetensors"
LORAS = ("pack_a", "pack_b", "pack_c")
TEMPLATES = 20
TEMPLATE_SIDE = 256

RANK = 16
ADAPTED = re.compile(r"(proj_in|proj_out|attn[12]\.to_[qkv]|attn[12]\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2)\.weight$")
"""What kohya's trainer changes in a UNet unless it is told otherwise: every linear layer of the transformers."""

CHANNELS = [160, 320, 640]
DEPTHS = [1, 1, 2]  # the first level has no attention
CONTEXT = {"text_encoder": 192, "text_encoder_2": 320}
TEXT_LAYERS = 3
SIZE_ID_WIDTH = 256


def model_configs() -> Configs:
    """SDXL's configs at half the width. Heads are 64 wide and norms have 32 groups, as in every SDXL."""
    configs = copy.deepcopy(CONFIGS)
    pooled = CONTEXT["text_encoder_2"]
    configs["unet"] |= {
        "block_out_channels": CHANNELS,
        "transformer_layers_per_block": DEPTHS,
        "attention_head_dim": [max(1, width // 64) for width in CHANNELS],
        "cross_attention_dim": sum(CONTEXT.values()),
        "projection_class_embeddings_input_dim": 6 * SIZE_ID_WIDTH + pooled,
        "sample_size": 32,
    }
    configs["vae"] |= {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 1, "sample_size": TEMPLATE_SIDE}
    for part, width in CONTEXT.items():
        configs[part] |= {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "projection_dim": width,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": width // 64,
        }
    return configs


def control_config() -> dict[str, Any]:
    """The ControlNet that fits the model, as diffusers makes one of it."""
    unet = model_configs()["unet"]
    shared = (
        "block_out_channels", "layers_per_block", "down_block_types", "transformer_layers_per_block",
        "attention_head_dim", "cross_attention_dim", "use_linear_projection", "norm_num_groups", "addition_embed_type",
        "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    return {name: unet[name] for name in shared} | {"conditioning_embedding_out_channels": [16, 32, 96, 256]}


Entry = tuple[str, tuple[int, ...], Callable[[], torch.Tensor]]


def write_control_net(path: Path, seed: int) -> None:
    """Its projections, which begin at zero in training, are as random as the rest: it does something."""
    from diffusers import ControlNetModel

    with torch.device("meta"):
        network = ControlNetModel(**control_config())

    def entry(name: str, shape: tuple[int, ...]) -> Entry:
        # Other numbers than the UNet's, whose names it shares.
        return name, shape, lambda: random_tensor(seed + 1, "unet", f"control/{name}", shape)

    entries = [entry(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]
    write_safetensors(path, entries, {"format": "pt"})


def adapted_layers() -> dict[str, tuple[str, tuple[int, ...]]]:
    """By diffusers' name: kohya's name for SDXL (as in single-file checkpoints, with underscores), and the shape."""
    unet = shapes(model_configs())["unet"]
    names = {entry.sources[0]: entry.name.removeprefix("model.diffusion_model.") for entry in unet_layout(unet)}
    return {
        key.removesuffix(".weight"): ("lora_unet_" + names[key].removesuffix(".weight").replace(".", "_"), shape)
        for key, shape in unet.items()
        if ADAPTED.search(key)
    }


def write_lora(path: Path, seed: int) -> None:
    """Rank 16 on every linear layer of the UNet's transformers, about a tenth as strong as the layer itself."""

    def factor(name: str, shape: tuple[int, ...], gain: float) -> Entry:
        return name, shape, lambda: random_tensor(seed, "unet", name, shape) * gain

    entries: list[Entry] = []
    for name, (outputs, inputs) in adapted_layers().values():
        entries.append(factor(f"{name}.lora_down.weight", (RANK, inputs), 1.0))
        entries.append(factor(f"{name}.lora_up.weight", (outputs, RANK), 0.1))
        entries.append((f"{name}.alpha", (), lambda: torch.tensor(float(RANK), dtype=torch.float16)))
    write_safetensors(path, entries, {"ss_network_dim": str(RANK), "ss_network_alpha": str(RANK)})


def write_templates(folder: Path, seed: int) -> None:
    """A face of lines each, which differ as expressions do: eyes, brows and mouth."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    side, draw_seed = TEMPLATE_SIDE, random.Random(seed)
    for index in range(TEMPLATES):
        picture = Image.new("RGB", (side, side), "white")
        pen = ImageDraw.Draw(picture)
        pen.ellipse((56, 40, 200, 216), outline="black", width=4)
        for left in (84, 140):
            height = draw_seed.randint(6, 22)
            pen.ellipse((left, 112 - height, left + 32, 112 + height), outline="black", width=3)
            tilt = draw_seed.randint(-12, 12)
            pen.line((left - 2, 84 + tilt, left + 34, 84 - tilt), fill="black", width=4)
        corner, open_by = draw_seed.randint(-16, 16), draw_seed.randint(4, 24)
        pen.polygon([(100, 172 + corner), (128, 172), (156, 172 + corner), (128, 172 + open_by)], outline="black", width=3)
        picture.save(folder / f"expression_{index:02}.png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="models folder to write")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write again what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out, seed = arguments.out, arguments.seed
    work: dict[Path, Callable[[Path], None]] = {
        out / CHECKPOINT: lambda path: write_single_file(path, seed, model_configs()),
        out / CONTROL_NET: lambda path: write_control_net(path, seed),
        out / "templates/bench": lambda path: write_templates(path, seed),
    }
    for index, name in enumerate(LORAS):
        work[out / f"loras/{name}.safetensors"] = lambda path, index=index: write_lora(path, seed + 10 + index)
    for path, write in work.items():
        if arguments.force or not path.exists():
            write(path)


if __name__ == "__main__":
    main()
