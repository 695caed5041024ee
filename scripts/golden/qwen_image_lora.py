"""Golden files of LoRAs of Qwen-Image: files in the spellings that they come in, and what `qwen_image.py`'s network of three
layers predicts with them in its weights.

Weights are merged in torch, from each file's own tensors. What diffusers makes of the same files is checked against that.
"""

import torch
from diffusers.loaders import QwenImageLoraLoaderMixin
from qwen_image import network, run
from safetensors.torch import load_file, save_file
from tiny import OUT, save_cases

FOLDER = OUT / "qwen_image" / "lora"
RANK = 4
LAYERS = 3
CASES = ("lengths", "edit")

ATTENTION = [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")]
MLPS = [f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")]
MODULATIONS = ["img_mod.1", "txt_mod.1"]
OUTER = ["img_in", "txt_in", "proj_out", "norm_out.linear", *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2))]


def modules(*inner):
    return [f"transformer_blocks.{block}.{layer}" for block in range(LAYERS) for layer in inner]


# Name of the file, its modules, what is before them, what is between their parts, the factors' names, alpha, type.
FILES = {
    # Few-step LoRAs.
    "bare": (modules(*ATTENTION, *MLPS, *MODULATIONS), "", ".", ("lora_up", "lora_down"), 2.0, torch.bfloat16),
    # diffusers' and PEFT's.
    "peft": (modules(*ATTENTION[:4]), "transformer.", ".", ("lora_B", "lora_A"), None, torch.float32),
    # Trainers that write what ComfyUI calls the model.
    "comfyui": (modules(*ATTENTION, *MLPS) + OUTER, "diffusion_model.", ".", ("lora_B", "lora_A"), None, torch.float16),
    # kohya's.
    "kohya": (modules(*ATTENTION, *MLPS, *MODULATIONS) + OUTER, "lora_unet_", "_", ("lora_up", "lora_down"), 3.0, torch.float16),
    # LyCORIS' plain ones.
    "lycoris": (modules(*ATTENTION[4:], *MODULATIONS), "lycoris_", "_", ("lora_up", "lora_down"), 1.0, torch.bfloat16),
}
# The files that are in the weights together, and how strongly.
STACKS = {
    **{name: [(name, 0.8)] for name in FILES},
    "bare_and_peft": [("bare", 0.75), ("peft", -0.5)],
    "comfyui_and_kohya": [("comfyui", 1.0), ("kohya", 0.6)],
}


def stored(name, weights, generator):
    """Writes a file."""
    layers, before, between, (up, down), alpha, dtype = FILES[name]
    tensors = {}
    for layer in layers:
        outputs, inputs = weights[f"{layer}.weight"].shape
        module = before + layer.replace(".", between)
        tensors[f"{module}.{down}.weight"] = (torch.randn(RANK, inputs, generator=generator) / inputs**0.5).to(dtype)
        tensors[f"{module}.{up}.weight"] = (torch.randn(outputs, RANK, generator=generator) / RANK).to(dtype)
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=dtype)
    save_file(tensors, FOLDER / f"{name}.safetensors")


def merged(weights, stack):
    """The weights with a stack in them."""
    weights = dict(weights)
    for name, strength in stack:
        layers, before, between, (up, down), alpha, _ = FILES[name]
        tensors = {key: tensor.float() for key, tensor in load_file(FOLDER / f"{name}.safetensors").items()}
        for layer in layers:
            module = before + layer.replace(".", between)
            change = tensors[f"{module}.{up}.weight"] @ tensors[f"{module}.{down}.weight"]
            scale = 1.0 if alpha is None else tensors[f"{module}.alpha"].item() / RANK
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + strength * scale * change
    return weights


def predict(model, inputs, case):
    find = lambda key: inputs.get(f"{case}.{key}")  # noqa: E731
    references = [inputs[key] for key in sorted(inputs) if key.startswith(f"{case}.references.")]
    return run(model, find("latent"), find("timesteps"), find("context"), find("lengths"), references)


def loaded(stack):
    """The network with diffusers' adapters."""
    model = network(60 + LAYERS, LAYERS)
    for name, _ in stack:
        tensors = {key: tensor.float() for key, tensor in load_file(FOLDER / f"{name}.safetensors").items()}
        tensors = QwenImageLoraLoaderMixin.lora_state_dict(tensors)
        QwenImageLoraLoaderMixin.load_lora_into_transformer(tensors, model, adapter_name=name)
    model.set_adapters([name for name, _ in stack], [strength for _, strength in stack])
    return model


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(90)
    base = network(60 + LAYERS, LAYERS).state_dict()
    for name in FILES:
        stored(name, base, generator)
    inputs = load_file(OUT / "qwen_image" / f"cases_{LAYERS}.safetensors")
    outputs = {}
    for name, stack in STACKS.items():
        model = network(60 + LAYERS, LAYERS)
        model.load_state_dict(merged(base, stack))
        for case in CASES:
            output = predict(model, inputs, case)
            assert (output - inputs[f"{case}.output"]).abs().max() > 1e-2 * output.abs().max(), name
            outputs[f"{name}.{case}"] = output
        # It reads no LyCORIS files.
        if name != "lycoris":
            theirs, ours = predict(loaded(stack), inputs, CASES[-1]), outputs[f"{name}.{CASES[-1]}"]
            difference = (theirs - ours).abs().max() / ours.abs().max()
            assert difference < 1e-5, (name, difference)
    save_cases(outputs, "qwen_image/lora/outputs.safetensors")
