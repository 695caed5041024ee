"""The tiny model's networks: SDXL's architecture, small. Their configs here are the ones that ship."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from clip_tokens import CONTEXT, START, UNKNOWN, CompactVocabulary

SCALING_FACTOR = 0.13025
"""SDXL's own: latents are folded to it (`cache_latents.py`), so programs that assume it are right."""

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "projection_dim": 64,
}


def text_config(encoder: int, **vocabulary: int) -> CLIPTextConfig:
    """Config of text encoder 1 or 2, with the given vocabulary size and special ids."""
    if encoder == 1:
        return CLIPTextConfig(num_hidden_layers=2, hidden_act="quick_gelu", **_TEXT, **vocabulary)
    return CLIPTextConfig(num_hidden_layers=3, hidden_act="gelu", **_TEXT, **vocabulary)


def token_table(encoder: torch.nn.Module) -> torch.nn.Embedding:
    """The token embedding of a text encoder."""
    return next(module for name, module in encoder.named_modules() if name.endswith("token_embedding"))


def _keep_unknown_zero(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.clone()
    gradient[UNKNOWN] = 0
    return gradient


def _sinusoids(count: int, width: int) -> torch.Tensor:
    angles = torch.arange(count)[:, None] * torch.exp(-torch.arange(0, width, 2) / width * 7)[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


def text_encoders(vocabulary: CompactVocabulary) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders, untrained, on the compact vocabulary."""
    ids = {"vocab_size": vocabulary.size, "bos_token_id": START, "eos_token_id": vocabulary.end, "pad_token_id": 0}
    encoders = CLIPTextModel(text_config(1, **ids)), CLIPTextModelWithProjection(text_config(2, **ids))
    for encoder in encoders:
        table = token_table(encoder)
        positions = next(module for name, module in encoder.named_modules() if name.endswith("position_embedding"))
        with torch.no_grad():
            table.weight.normal_(0, 0.15)
            table.weight[UNKNOWN] = 0
            positions.weight.copy_(0.1 * _sinusoids(CONTEXT, _TEXT["hidden_size"]))
        table.weight.register_hook(_keep_unknown_zero)
    return encoders


def encode_prompts(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, ids: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What SDXL conditions on: penultimate states `[batch, tokens, 128]` and the pooled projection `[batch, 64]`."""
    states = first(ids[0], output_hidden_states=True).hidden_states[-2]
    output = second(ids[1], output_hidden_states=True)
    return torch.cat([states, output.hidden_states[-2]], -1), output.text_embeds


def unet() -> UNet2DConditionModel:
    """The denoiser, untrained: 8.4 M parameters, heads of width 32, 8 norm groups."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=2 * _TEXT["hidden_size"],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + _TEXT["projection_dim"],
        norm_num_groups=8,
    )


def vae() -> AutoencoderKL:
    """The autoencoder, untrained: 2.7 M parameters, 4 norm groups (fewer channels a group cannot paint flat colours)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=128,
    )


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


class TrainedDenoiser:
    """UNet and text encoders on the compact vocabulary, as `train_unet.py` left them."""

    def __init__(self, work: Path, checkpoint: str = "unet.pt") -> None:
        self.vocabulary = CompactVocabulary(work)
        self.text_1, self.text_2 = text_encoders(self.vocabulary)
        self.unet = unet()
        states = torch.load(work / checkpoint, weights_only=True)
        for name, module in self.modules().items():
            module.load_state_dict(states[name])

    def modules(self) -> dict[str, torch.nn.Module]:
        """By the names that checkpoints use."""
        return {"unet": self.unet, "text_1": self.text_1, "text_2": self.text_2}

    def freeze(self) -> None:
        """For training something beside it."""
        for module in self.modules().values():
            module.requires_grad_(False)
