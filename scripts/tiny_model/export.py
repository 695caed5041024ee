"""Stage 7: writes what ships: `tiny-sdxl.safetensors`, and the ControlNet and the LoRAs if they were trained.

python export.py OUT --work WORK       from the trained parts
python export.py OUT --extras WORK     only what was trained beside the model
python export.py OUT --from FILE       from an existing single file with the same architecture
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import extras
import model_file
import networks
from clip_tokenizer import BOS, EOS, VOCABULARY_SIZE
from ldm_keys import PARTS, Part, single_file
from vocabulary import trained_tags

LARGEST = 25_000_000
"""Bytes that the model may add to the program."""


def metadata() -> dict[str, str]:
    """The four configs, what the model is, and which tags it knows."""
    ids = {"vocab_size": VOCABULARY_SIZE, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 1}
    vae = networks.vae()
    vae.register_to_config(scaling_factor=networks.SCALING_FACTOR)
    configs: dict[Part, dict[str, Any]] = {
        "unet": {"_class_name": "UNet2DConditionModel"} | extras.public(networks.unet().config),
        "vae": {"_class_name": "AutoencoderKL"} | extras.public(vae.config),
        "text_encoder": {"architectures": ["CLIPTextModel"]} | networks.text_config(1, **ids).to_diff_dict(),
        "text_encoder_2": {"architectures": ["CLIPTextModelWithProjection"]}
        | networks.text_config(2, **ids).to_diff_dict(),
    }
    for encoder, part in ((1, "text_encoder"), (2, "text_encoder_2")):
        # Said outright although some are the class's defaults: readers other than transformers do not know those.
        full = networks.text_config(encoder, **ids).to_dict()
        names = ("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings")
        names += ("num_attention_heads", "num_hidden_layers", "projection_dim", *ids)
        configs[part] |= {name: full[name] for name in names}
        configs[part].pop("transformers_version", None)
    described = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Darkroom tiny SDXL",
        "modelspec.author": "The Darkroom authors",
        "modelspec.license": "MIT OR Apache-2.0",
        "modelspec.description": "A tiny SDXL-shaped model, trained from scratch on drawings made by a program: "
        "portraits of simple characters with 12 expressions, and four scenes.",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "epsilon",
        "modelspec.usage_hint": "Comma-separated tags; unknown words do nothing. 128x128, 20 steps, CFG 5.",
        "modelspec.tags": "tiny, cartoon, character, expressions",
        "darkroom.known_tags": json.dumps(trained_tags()),
    }
    return described | {f"{part}_config": json.dumps(configs[part], sort_keys=True) for part in PARTS}


def standard_vocabulary(encoder: torch.nn.Module, standard_ids: list[int]) -> dict[str, torch.Tensor]:
    """A text encoder's state with its compact token table spread over the standard vocabulary; other rows are zero."""
    state = dict(encoder.state_dict())
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    table = torch.zeros(VOCABULARY_SIZE, state[name].shape[1])
    for row, token in zip(state[name], standard_ids):
        if token >= 0:
            table[token] = row
    return state | {name: table}


def trained_parts(work: Path) -> dict[Part, dict[str, torch.Tensor]]:
    """State dicts of the four parts as training left them (the decoder polished if that stage ran)."""
    denoiser = networks.TrainedDenoiser(work)
    polished = work / "vae_polished"
    vae = AutoencoderKL.from_pretrained(polished if polished.exists() else work / "vae_folded")
    ids = denoiser.vocabulary.standard_ids
    return {
        "unet": denoiser.unet.state_dict(),
        "vae": vae.state_dict(),
        "text_encoder": standard_vocabulary(denoiser.text_1, ids),
        "text_encoder_2": standard_vocabulary(denoiser.text_2, ids),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--work", type=Path, help="folder of a training run")
    source.add_argument("--extras", type=Path, metavar="WORK", help="the same, without the model itself")
    source.add_argument("--from", type=Path, dest="existing", metavar="FILE", help="an existing single file")
    arguments = parser.parse_args()
    if work := arguments.work or arguments.extras:
        for path in extras.export(work, arguments.out):
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    if arguments.extras:
        return
    if arguments.work:
        tensors = single_file(trained_parts(arguments.work))
    else:
        tensors, _ = model_file.read(arguments.existing)
    path = arguments.out / extras.BASE_NAME
    model_file.write(path, tensors, metadata(), sparse=model_file.TOKEN_TABLES)
    size = path.stat().st_size
    print(f"{path}: {len(tensors)} tensors, {size / 1e6:.2f} MB")
    if size > LARGEST:
        sys.exit(f"that is more than the {LARGEST / 1e6:.0f} MB that the program may carry")


if __name__ == "__main__":
    main()
