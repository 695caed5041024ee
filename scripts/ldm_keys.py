"""Names of an SDXL-shaped model's tensors in single-file checkpoints (ldm/sgm keys), from diffusers' names.

Single-file checkpoints keep the names of the original research code; diffusers and transformers renamed everything.
`layout` says, for each tensor of the single file, which tensors of the diffusers parts it is made of and how.
Works for any SDXL-shaped model: depths and widths are read off the keys, nothing is tabulated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "vae", "text_encoder", "text_encoder_2")
Transform = Literal["same", "concat", "transpose", "conv1x1"]

LOGIT_SCALE = "conditioner.embedders.1.model.logit_scale"
"""A leftover of contrastive training that checkpoints carry and no pipeline reads."""


@dataclass(frozen=True)
class LdmTensor:
    """One tensor of the single file: `transform` applied to `sources` (names within `part`, diffusers' spelling)."""

    name: str
    part: Part
    sources: tuple[str, ...]
    transform: Transform = "same"

    def shape(self, shape_of: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        """The shape in the single file, given the shapes of the sources."""
        first = shape_of(self.sources[0])
        if self.transform == "concat":
            return (sum(shape_of(source)[0] for source in self.sources), *first[1:])
        if self.transform == "transpose":
            return (first[1], first[0])
        if self.transform == "conv1x1":
            return (*first, 1, 1)
        return first

    def build(self, tensor_of: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor as the single file stores it, given the sources."""
        tensors = [tensor_of(source) for source in self.sources]
        if self.transform == "concat":
            return torch.cat(tensors)
        if self.transform == "transpose":
            return tensors[0].T.contiguous()
        if self.transform == "conv1x1":
            return tensors[0][:, :, None, None]
        return tensors[0]

    def undo(self, stored: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sources, given the tensor as the single file stores it."""
        if self.transform == "concat":
            return dict(zip(self.sources, stored.chunk(len(self.sources))))
        if self.transform == "transpose":
            stored = stored.T.contiguous()
        elif self.transform == "conv1x1":
            stored = stored[:, :, 0, 0]
        return {self.sources[0]: stored}


def _rename(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        key = key.replace(old, new)
    return key


_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("time_emb_proj.", "emb_layers.1."),
    ("conv_shortcut.", "skip_connection."),
)
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_layout(keys: Iterable[str]) -> list[LdmTensor]:
    """UNet: blocks are numbered through, a resnet is slot 0 of its block, an attention slot 1, samplers come last."""
    keys = list(keys)
    found = [re.match(r"down_blocks\.0\.resnets\.(\d+)\.", key) for key in keys]
    per_level = 2 + max(int(match[1]) for match in found if match)  # resnets of a level, and its sampler
    with_attention = {match[1] for key in keys if (match := re.match(r"up_blocks\.(\d+)\.attentions\.", key))}

    def name(key: str) -> str:
        top, _, leaf = key.rpartition(".")
        if top in _UNET_TOP:
            return f"{_UNET_TOP[top]}.{leaf}"
        if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
            kind, index, rest = match[1], int(match[2]), match[3]
            return (
                f"middle_block.1.{rest}"
                if kind == "attentions"
                else f"middle_block.{2 * index}.{_rename(rest, _RESNET)}"
            )
        match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
        if not match:
            raise ValueError(f"UNet tensor {key!r} has no place in a single-file checkpoint")
        way, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        first = per_level * level
        if kind == "downsamplers":
            return f"input_blocks.{first + per_level}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + per_level - 1}.{2 if match[2] in with_attention else 1}.{rest}"
        slot = 1 if kind == "attentions" else 0
        block = f"input_blocks.{first + index + 1}" if way == "down" else f"output_blocks.{first + index}"
        return f"{block}.{slot}.{rest if slot else _rename(rest, _RESNET)}"

    return [LdmTensor(f"model.diffusion_model.{name(key)}", "unet", (key,)) for key in keys]


_VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)


def vae_layout(keys: Iterable[str]) -> list[LdmTensor]:
    """AutoencoderKL: the decoder's levels are numbered from the small end, its attention is made of 1×1 convolutions."""
    keys = list(keys)
    levels = 1 + max(int(match[1]) for key in keys if (match := re.search(r"up_blocks\.(\d+)\.", key)))
    entries = []
    for key in keys:
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        transform: Transform = "same"
        if "mid.attn_1" in name:
            name = _rename(name, _VAE_ATTENTION)
            if name.endswith(".weight") and ".norm." not in name:
                transform = "conv1x1"
        entries.append(LdmTensor(f"first_stage_model.{name}", "vae", (key,), transform))
    return entries


def clip_l_layout(keys: Iterable[str]) -> list[LdmTensor]:
    """Text encoder 1 keeps transformers' names."""
    prefix = "conditioner.embedders.0.transformer."
    return [LdmTensor(prefix + key, "text_encoder", (key,)) for key in keys]


_CLIP_G_LAYER = (
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


def clip_g_layout(keys: Iterable[str]) -> list[LdmTensor]:
    """Text encoder 2 has OpenCLIP's names: q, k and v are one matrix, the projection is transposed."""
    prefix, part = "conditioner.embedders.1.model.", "text_encoder_2"
    layers = 1 + max(int(match[1]) for key in keys if (match := re.search(r"encoder\.layers\.(\d+)\.", key)))
    text = "text_model."
    entries = [
        LdmTensor(f"{prefix}token_embedding.weight", part, (f"{text}embeddings.token_embedding.weight",)),
        LdmTensor(f"{prefix}positional_embedding", part, (f"{text}embeddings.position_embedding.weight",)),
        LdmTensor(f"{prefix}text_projection", part, ("text_projection.weight",), "transpose"),
    ]
    for leaf in ("weight", "bias"):
        entries.append(LdmTensor(f"{prefix}ln_final.{leaf}", part, (f"{text}final_layer_norm.{leaf}",)))
        for index in range(layers):
            source, target = f"{text}encoder.layers.{index}.", f"{prefix}transformer.resblocks.{index}."
            qkv = tuple(f"{source}self_attn.{letter}_proj.{leaf}" for letter in "qkv")
            entries.append(LdmTensor(f"{target}attn.in_proj_{leaf}", part, qkv, "concat"))
            for old, new in _CLIP_G_LAYER:
                entries.append(LdmTensor(f"{target}{new}.{leaf}", part, (f"{source}{old}.{leaf}",)))
    return entries


def clip_key(key: str) -> str:
    """A text encoder's state-dict key as published files spell it (newer transformers drop the `text_model.`)."""
    if key.startswith(("text_model.", "text_projection.")):
        return key
    return f"text_model.{key}"


def layout(keys: Mapping[Part, Iterable[str]]) -> list[LdmTensor]:
    """Every tensor of the single file except `LOGIT_SCALE`, from the state-dict keys of the four parts.

    Text encoder keys may come with or without `text_model.`; sources are spelled with it (see `clip_key`).
    """
    clip = {part: [clip_key(key) for key in keys[part] if "position_ids" not in key] for part in PARTS[2:]}
    entries = [
        *unet_layout(keys["unet"]),
        *vae_layout(keys["vae"]),
        *clip_l_layout(clip["text_encoder"]),
        *clip_g_layout(clip["text_encoder_2"]),
    ]
    missed = set(clip["text_encoder_2"]) - {source for entry in entries for source in entry.sources}
    if missed:
        raise ValueError(f"text_encoder_2 tensors have no place in a single-file checkpoint: {sorted(missed)[:3]}")
    return entries


def single_file(parts: Mapping[Part, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The single file's tensors from the four state dicts."""
    spelled = {
        part: {clip_key(key) if part.startswith("text") else key: tensor for key, tensor in parts[part].items()}
        for part in PARTS
    }
    entries = layout({part: list(tensors) for part, tensors in parts.items()})
    built = {entry.name: entry.build(spelled[entry.part].__getitem__) for entry in entries}
    built[LOGIT_SCALE] = torch.tensor(4.6052)
    return built


def state_dicts(
    tensors: Mapping[str, torch.Tensor], keys: Mapping[Part, Iterable[str]]
) -> dict[Part, dict[str, torch.Tensor]]:
    """The reverse of `single_file`: four state dicts with exactly the given keys.

    Tensors that are missing or left over are an error.
    """
    keys = {part: list(names) for part, names in keys.items()}
    entries = layout(keys)
    wanted = {entry.name for entry in entries}
    missing, extra = wanted - set(tensors), set(tensors) - wanted - {LOGIT_SCALE}
    if missing or extra:
        raise ValueError(
            f"missing: {sorted(missing)[:3]} ({len(missing)}), fits nowhere: {sorted(extra)[:3]} ({len(extra)})"
        )
    found: dict[Part, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
    for entry in entries:
        found[entry.part].update(entry.undo(tensors[entry.name]))
    return {
        part: {key: found[part][clip_key(key) if part.startswith("text") else key] for key in keys[part]}
        for part in PARTS
    }
