"""Runs a network of a Qwen-Image with diffusers or transformers on the CPU, as each line of its input says: the reference
side of `compare_qwen_image.py`. It answers in lines of JSON, as Darkroom's bench `qwen_image --driven` does.

`load d` makes the network of the first `d` layers, `run d` runs it, `save d FILE` keeps what comes out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class Transformer:
    """diffusers' `QwenImageTransformer2DModel`."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from diffusers import QwenImageTransformer2DModel

        self.network = QwenImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).eval()
        self.layers, self.dtype = list(self.network.transformer_blocks), dtype

    def run(self, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The velocity as a latent, `[1, 16, h, w]`."""
        self.network.transformer_blocks = torch.nn.ModuleList(self.layers[:depth])
        latent = inputs["latent"]
        rows, channels, height, width = latent.shape
        tokens = latent.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        out = self.network(
            hidden_states=tokens.reshape(rows, -1, 4 * channels).to(self.dtype),
            encoder_hidden_states=inputs["context"].to(self.dtype),
            timestep=inputs["timesteps"].to(self.dtype),
            img_shapes=[[(1, height // 2, width // 2)]] * rows,
            return_dict=False,
        )[0]
        cells = out.view(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(latent.shape)


class TextEncoder:
    """transformers' Qwen2.5-VL without its head and its vision tower."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        made = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=dtype).eval()
        self.network = made.model.language_model
        self.layers = list(self.network.layers)

    def run(self, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last hidden state, `[1, t, width]`."""
        self.network.layers = torch.nn.ModuleList(self.layers[:depth])
        self.network.config.num_hidden_layers = depth
        return self.network(input_ids=inputs["tokens"], use_cache=False).last_hidden_state


class Vae:
    """diffusers' `AutoencoderKLQwenImage`, decoding."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKLQwenImage

        self.network = AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=dtype).eval()
        self.dtype = dtype

    def run(self, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """`[1, 3, 8h, 8w]`"""
        return self.network.decode(inputs["latent"][:, :, None].to(self.dtype), return_dict=False)[0][:, :, 0]


PARTS: dict[str, Any] = {"transformer": Transformer, "text-encoder": TextEncoder, "vae": Vae}


@torch.inference_mode()
def obey(line: str, state: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a line says; gives the answer."""
    order, depth, *rest = line.split()
    started = time.perf_counter()
    if order == "load":
        # Deeper networks come first; others are a part of them.
        if "network" not in state:
            dtype = torch.bfloat16 if arguments.compute == "bf16" else torch.float32
            state["network"] = PARTS[arguments.part](arguments.folder, dtype)
        return {"seconds": time.perf_counter() - started}
    out = state["network"].run(int(depth), state["inputs"])
    seconds = time.perf_counter() - started
    if order == "save":
        save_file({"out": out.float().contiguous()}, rest[0])
    return {"seconds": seconds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder")
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="as compare_qwen_image.py writes them")
    parser.add_argument("--compute", choices=("f32", "bf16"), default="f32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    state: dict[str, Any] = {"inputs": load_file(arguments.inputs)}
    # Imported now, so that what imports take is not counted as the network's.
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    # A round-trip, after which the memory is what it is without a network.
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(line, state, arguments)), flush=True)


if __name__ == "__main__":
    main()
