"""Writes a Qwen-Image of its real widths, few layers and seeded random weights in bfloat16, to measure speed and memory
with: as a diffusers folder, or as ComfyUI's three files with scaled weights of 8 bits.

Time and memory of a layer depend on shapes and types, not on what a model has learnt, so benchmarks need no download.
Weights keep activations at order one. Every tensor has its own generator (from the seed and its name), and tensors are
written one at a time, so memory stays below 1 GB.

    python make_random_qwen_image.py random_qwen_image
    python make_random_qwen_image.py random_qwen_image_fp8 --layout comfyui

The text encoder knows a few hundred tokens, those of the tests' tokenizer, and has a vision tower of one small layer.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "golden"))
import stream_safetensors
from stream_safetensors import Entry

CHUNK = 1 << 24
"""Elements drawn at a time: bounds the memory that the largest tensor needs."""
GOLDEN = HERE.parents[1] / "pipelines/tests/golden/qwen_image/diffusers"
MOST_CODE = 448.0
"""The largest number of e4m3."""

Shape = tuple[int, ...]


def text_config(layers: int) -> Any:
    """The 7B's language model, with fewer layers and tokens."""
    from transformers import Qwen2_5_VLConfig

    text = dict(
        vocab_size=512, hidden_size=3584, intermediate_size=18944, num_hidden_layers=layers, num_attention_heads=28,
        num_key_value_heads=4, hidden_act="silu", max_position_embeddings=128000, rms_norm_eps=1e-6,
        use_sliding_window=False, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=2, out_hidden_size=3584,
        fullatt_block_indexes=[0], window_size=8,
    )  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, dtype=torch.bfloat16)


def networks(blocks: int, text_layers: int) -> dict[str, torch.nn.Module]:
    """All parts, without memory for their weights. What is not said here is the published model's, and the default."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        return {
            "transformer": QwenImageTransformer2DModel(num_layers=blocks),
            "vae": AutoencoderKLQwenImage(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(text_config(text_layers)),
        }


def random_tensor(seed: int, name: str, shape: Shape) -> torch.Tensor:
    """The bfloat16 weights of one tensor: always the same for one seed and name."""
    generator = torch.Generator().manual_seed(seed << 32 | zlib.crc32(name.encode()))
    vector = math.prod(shape) == max(shape)
    if "embed_tokens" in name:
        mean, deviation = 0.0, 1.0
    elif vector and name.endswith((".weight", ".gamma")):
        mean, deviation = 1.0, 0.1
    elif vector:
        mean, deviation = 0.0, 0.1
    else:
        mean, deviation = 0.0, 1 / math.sqrt(math.prod(shape[1:]))
    tensor = torch.empty(math.prod(shape), dtype=torch.bfloat16)
    for start in range(0, tensor.numel(), CHUNK):
        piece = tensor[start : start + CHUNK]
        piece.copy_(torch.empty(piece.numel()).normal_(mean, deviation, generator=generator))
    return tensor.view(shape)


def plain(seed: int, part: str, stored: str, name: str, shape: Shape) -> list[Entry]:
    """In bfloat16. `name` is the tensor's own, `stored` the one in the file."""
    return [Entry(stored, torch.bfloat16, shape, lambda: random_tensor(seed, f"{part}/{name}", shape))]


def scaled(seed: int, part: str, stored: str, name: str, shape: Shape) -> list[Entry]:
    """A matrix as codes of 8 bits with one scale, as ComfyUI's files have them; anything else in bfloat16."""
    if len(shape) != 2 or "embed_tokens" in name or not name.endswith(".weight"):
        return plain(seed, part, stored, name, shape)

    def scale(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.abs().max().float() / MOST_CODE

    def codes() -> torch.Tensor:
        tensor = random_tensor(seed, f"{part}/{name}", shape)
        made, own = torch.empty(shape, dtype=torch.float8_e4m3fn), scale(tensor)
        for row in range(0, shape[0], 1024):
            made[row : row + 1024] = (tensor[row : row + 1024].float() / own).to(torch.float8_e4m3fn)
        return made

    return [
        Entry(stored, torch.float8_e4m3fn, shape, codes),
        Entry(
            stored.removesuffix("weight") + "scale_weight",
            torch.float32,
            (1,),
            lambda: scale(random_tensor(seed, f"{part}/{name}", shape)).reshape(1),
        ),
    ]


def shapes_of(network: torch.nn.Module) -> dict[str, Shape]:
    """Of all its weights."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def write_diffusers_folder(folder: Path, parts: dict[str, torch.nn.Module], seed: int) -> None:
    """What `QwenImagePipeline.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / "model_index.json", folder)
    for copied in ("scheduler", "tokenizer"):
        shutil.copytree(GOLDEN / copied, folder / copied, dirs_exist_ok=True)
    for part, network in parts.items():
        (folder / part).mkdir(exist_ok=True)
        if part == "text_encoder":
            network.config.save_pretrained(folder / part)
        else:
            network.save_config(folder / part)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        entries = [entry for name, shape in shapes_of(network).items() for entry in plain(seed, part, name, name, shape)]
        stream_safetensors.write(folder / part / f"{stem}.safetensors", entries, {"format": "pt"})


def write_comfyui_files(folder: Path, parts: dict[str, torch.nn.Module], seed: int) -> None:
    """The three files of ComfyUI's workflows, in its folders."""
    from vae_qwen import wan_names

    marker = Entry("scaled_fp8", torch.float8_e4m3fn, (0,), lambda: torch.empty(0, dtype=torch.float8_e4m3fn))
    entries = [marker]
    for name, shape in shapes_of(parts["transformer"]).items():
        entries += scaled(seed, "transformer", name, name, shape)
    config = {"transformer_config": json.dumps(dict(parts["transformer"].config))}
    stream_safetensors.write(
        folder / "diffusion_models/random_qwen_image_fp8_e4m3fn_scaled.safetensors", entries, config
    )
    entries = [marker]
    for name, shape in shapes_of(parts["text_encoder"]).items():
        if "visual" not in name:
            stored = name.replace("model.language_model.", "model.")
            entries += scaled(seed, "text_encoder", stored, name, shape)
    config = {"text_encoder_config": json.dumps(parts["text_encoder"].config.to_dict(), default=str)}
    stream_safetensors.write(folder / "text_encoders/random_qwen_vl_fp8_scaled.safetensors", entries, config)
    names, shapes = wan_names(parts["vae"]), shapes_of(parts["vae"])
    entries = [entry for name, shape in shapes.items() for entry in plain(seed, "vae", names[name], name, shape)]
    stream_safetensors.write(folder / "vae/random_qwen_image_vae.safetensors", entries, {})
    shutil.copy(GOLDEN / "tokenizer/tokenizer.json", folder / "text_encoders/tokenizer.json")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=("diffusers", "comfyui"), default="diffusers", help="default: %(default)s")
    parser.add_argument("--blocks", type=int, default=2, help="of the transformer, 0.7 GB each (default: %(default)s)")
    parser.add_argument(
        "--text-layers", type=int, default=2, help="of the text encoder, 0.5 GB each (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same weights before rounding (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="write again even if it is there")
    arguments = parser.parse_args()
    if arguments.out.exists() and not arguments.force:
        parser.error(f"{arguments.out} exists; --force writes it again")
    torch.set_num_threads(1)
    parts = networks(arguments.blocks, arguments.text_layers)
    write = write_diffusers_folder if arguments.layout == "diffusers" else write_comfyui_files
    write(arguments.out, parts, arguments.seed)


if __name__ == "__main__":
    main()
