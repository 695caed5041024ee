"""A whole Qwen-Image of a few small networks, in the layouts that people have: a diffusers folder, and the three files of
ComfyUI's workflows, plain and with scaled weights of eight bits. And what diffusers' pipeline draws with it."""

import json
import shutil

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from qwen_vl import SPECIALS, TEMPLATE, trained
from safetensors.torch import load_file, save_file
from tiny import OUT as NETWORKS
from tiny import seeded
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from vae_qwen import vae, wan_tensors

OUT = NETWORKS.parents[2] / "pipelines" / "tests" / "golden" / "qwen_image"
FOLDER, FILES = OUT / "diffusers", OUT / "models"
WIDTH = 32
PROMPTS = ["a photo of a cat", "一只猫 on the old town's table, \"Hello world\"", ""]
NEGATIVE = "blurry"


def transformer():
    """Two heads of 16, as wide as the text; latents of 16 channels, which ComfyUI's format of them has."""
    made = QwenImageTransformer2DModel(
        num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )
    return seeded(made, 80)


def text_encoder(vocabulary):
    """Two heads of 16, of which one has keys and values."""
    text = dict(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6, use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    )
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=2, out_hidden_size=WIDTH,
        fullatt_block_indexes=[0], window_size=8,
    )
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    made = seeded(Qwen2_5_VLForConditionalGeneration(config), 81)
    generator = torch.Generator().manual_seed(82)
    with torch.no_grad():
        table = made.get_input_embeddings().weight
        table.copy_(torch.randn(table.shape, generator=generator))
    return single(made.half())


def single(network):
    """In single precision, but for the weights' rounding: the frequencies of the language model's rotary embedding are made
    anew, since they are no weights."""
    network.float().eval()
    for module in network.modules():
        if hasattr(module, "rotary_emb") and hasattr(module.rotary_emb, "inv_freq"):
            module.rotary_emb = type(module.rotary_emb)(module.config)
    return network


def tokenizer():
    vocab, merges = trained()
    return Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=SPECIALS[1:])


def scaled(tensors):
    """Matrices as codes of eight bits and a scale beside each, as ComfyUI's files have them; the rest in bfloat16."""
    out = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.ndim == 2 and "embed_tokens" not in name:
            scale = tensor.float().abs().max() / 448
            out[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            out[name.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
        else:
            out[name] = tensor.bfloat16()
    return out


def widened(tensors):
    """What those codes stand for, in single precision."""
    wide = {}
    for name, tensor in tensors.items():
        if name == "scaled_fp8" or name.endswith(".scale_weight"):
            continue
        scale = tensors.get(name.removesuffix("weight") + "scale_weight") if name.endswith(".weight") else None
        wide[name] = tensor.float() if scale is None else tensor.float() * scale
    return wide


def save(path, tensors, metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def files(pipe):
    """ComfyUI's three files. What their tensors' shapes do not tell stands in the metadata."""
    transformer_config = {"transformer_config": json.dumps(dict(pipe.transformer.config))}
    text_config = {"text_encoder_config": json.dumps(pipe.text_encoder.config.to_dict())}
    network = pipe.transformer.half().state_dict()
    text = {
        name.removeprefix("model.language_model.").join(["model.", ""]) if "language_model" in name else name: tensor
        for name, tensor in pipe.text_encoder.half().state_dict().items()
        if "visual" not in name
    }
    save(FILES / "diffusion_models" / "tiny_qwen_image.safetensors", network, transformer_config)
    save(FILES / "diffusion_models" / "tiny_qwen_image_fp8_e4m3fn_scaled.safetensors", scaled(network), transformer_config)
    save(FILES / "text_encoders" / "tiny_qwen_vl.safetensors", text, text_config)
    save(FILES / "text_encoders" / "tiny_qwen_vl_fp8_scaled.safetensors", scaled(text), text_config)
    save(FILES / "vae" / "tiny_qwen_image_vae.safetensors", wan_tensors(pipe.vae), {})
    shutil.copy(FOLDER / "tokenizer" / "tokenizer.json", FILES / "text_encoders" / "tokenizer.json")
    single(pipe.transformer), single(pipe.text_encoder)


def lora():
    """A LoRA in the keys that few-step LoRAs of Qwen-Image come in."""
    generator = torch.Generator().manual_seed(83)
    tensors = {}
    layers = [("attn.to_q", 32, 32), ("attn.add_k_proj", 32, 32), ("attn.to_out.0", 32, 32), ("img_mlp.net.0.proj", 128, 32),
              ("txt_mlp.net.2", 32, 128), ("img_mod.1", 192, 32)]
    for block in range(3):
        for layer, outputs, inputs in layers:
            name = f"transformer_blocks.{block}.{layer}"
            tensors[f"{name}.lora_down.weight"] = (torch.randn(4, inputs, generator=generator) / inputs**0.5).bfloat16()
            tensors[f"{name}.lora_up.weight"] = (torch.randn(outputs, 4, generator=generator) / 4).bfloat16()
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


def with_lora(state, lora, strength):
    """The weights with the LoRA in them."""
    state = dict(state)
    for key in [name for name in lora if name.endswith(".lora_down.weight")]:
        layer = key.removesuffix(".lora_down.weight")
        down, up, alpha = (lora[f"{layer}.{end}"].float() for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        state[f"{layer}.weight"] = state[f"{layer}.weight"] + strength * alpha / down.shape[0] * (up @ down)
    return state


def noise(pipe, seed, height, width):
    """Noise as ComfyUI draws it, packed as diffusers takes it."""
    latent = torch.randn((1, 16, height // 8, width // 8), generator=torch.manual_seed(seed))
    return pipe._pack_latents(latent, 1, 16, height // 8, width // 8)


def latent_of(pipe, packed, height, width):
    return pipe._unpack_latents(packed, height, width, pipe.vae_scale_factor)[0, :, 0]


def draw(pipe, prompt, seed, height, width, steps, scale, **more):
    """The latent, in the network's units, and the picture."""
    drawn = pipe(
        prompt=prompt, negative_prompt=NEGATIVE if scale > 1 else None, true_cfg_scale=scale, height=height, width=width,
        num_inference_steps=steps, latents=noise(pipe, seed, height, width), output_type="latent", **more,
    ).images
    latent = latent_of(pipe, drawn, height, width)
    config = pipe.vae.config
    mean, std = (torch.tensor(values).view(16, 1, 1) for values in (config.latents_mean, config.latents_std))
    picture = pipe.vae.decode((latent * std + mean)[None, :, None]).sample[0, :, 0]
    return latent, picture


def cases(pipe):
    out = {}
    for index, (prompt, (height, width), scale) in enumerate([
        (PROMPTS[0], (64, 96), 1.0),
        (PROMPTS[1], (96, 64), 4.0),
        (PROMPTS[2], (64, 64), 2.5),
    ]):
        latent, picture = draw(pipe, prompt, 10 + index, height, width, 4, scale)
        out |= {f"{index}.latent": latent, f"{index}.picture": picture}
        embeds, mask = pipe.encode_prompt(prompt)
        assert mask is None
        out[f"{index}.context"] = embeds[0]
    # Six of ten steps, from a picture. diffusers would draw its latent from the distribution; the mean is taken here.
    img2img = QwenImageImg2ImgPipeline(**pipe.components)
    img2img.set_progress_bar_config(disable=True)
    img2img.prompt_template_encode_start_idx = pipe.prompt_template_encode_start_idx
    source = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(84))
    encoded = pipe.vae.encode((source * 2 - 1)[:, :, None]).latent_dist.mode()
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))
    img2img._encode_vae_image = lambda image, generator: (encoded - mean) / std
    drawn = img2img(
        prompt=PROMPTS[0], image=source, strength=0.6, true_cfg_scale=1.0, height=64, width=64, num_inference_steps=10,
        generator=torch.manual_seed(30), output_type="latent",
    ).images
    out |= {"source": source[0], "source.encoded": encoded[0, :, 0], "img2img.latent": latent_of(pipe, drawn, 64, 64)}
    return out


def lightning(pipe):
    """The fixed shift of 3 that few-step LoRAs want, no guidance, with the LoRA."""
    base = pipe.transformer.state_dict()
    pipe.transformer.load_state_dict(with_lora(base, lora(), 0.75))
    scheduler = pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False)
    # ComfyUI's `simple` scheduler on 1000 levels.
    levels = [1 - index / 4 for index in range(4)]
    latent, picture = draw(pipe, PROMPTS[0], 20, 64, 64, 4, 1.0, sigmas=levels)
    pipe.scheduler = scheduler
    pipe.transformer.load_state_dict(base)
    return {"lightning.latent": latent, "lightning.picture": picture}


def eight_bits(pipe):
    """The same picture with what the weights of eight bits stand for."""
    load = lambda path: widened(load_file(FILES / path))
    text = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: tensor
        for name, tensor in load("text_encoders/tiny_qwen_vl_fp8_scaled.safetensors").items()
    }
    missing, unexpected = pipe.text_encoder.load_state_dict(text, strict=False)
    assert not unexpected and all("visual" in name for name in missing), (missing, unexpected)
    pipe.transformer.load_state_dict(load("diffusion_models/tiny_qwen_image_fp8_e4m3fn_scaled.safetensors"))
    latent, _ = draw(pipe, PROMPTS[0], 10, 64, 96, 4, 1.0)
    return {"eight_bits.latent": latent}


@torch.no_grad()
def main():
    made = tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, shift=1.0, shift_terminal=0.02,
        time_shift_type="exponential", use_dynamic_shifting=True,
    )
    pipe = QwenImagePipeline(
        scheduler=scheduler, vae=vae(60, base_dim=4), text_encoder=text_encoder(len(made)), tokenizer=made,
        transformer=transformer(),
    )
    # The template's beginning has more tokens in so small a vocabulary.
    pipe.prompt_template_encode_start_idx = len(made(TEMPLATE.split("{}")[0])["input_ids"])
    pipe.set_progress_bar_config(disable=True)
    shutil.rmtree(OUT, ignore_errors=True)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        part.half()
    pipe.save_pretrained(FOLDER, max_shard_size="150KB")
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        single(part)
    for extra in [path for path in FOLDER.rglob("*") if path.name in ("chat_template.jinja", "generation_config.json")]:
        extra.unlink()
    files(pipe)
    save(FILES / "loras" / "tiny_qwen_image_lightning_4steps.safetensors", lora(), {})
    out = cases(pipe) | lightning(pipe)
    out |= eight_bits(pipe)
    save(OUT / "cases.safetensors", {name: tensor.float() for name, tensor in out.items()}, {})
    (OUT / "prompts.json").write_text(json.dumps({"prompts": PROMPTS, "negative": NEGATIVE}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
