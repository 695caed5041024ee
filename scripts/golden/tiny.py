"""Small random networks whose outputs mean something: seeded weights of order-1 gain, rounded to half precision."""

import json
import pathlib

import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "models" / "tests" / "golden"


def seeded(module, seed):
    """Fills `module` with weights that keep activations at order 1, exactly representable in half precision."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter):
        return torch.randn(parameter.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if "embedding.weight" in name:
                value = 0.5 * normal(parameter)
            elif parameter.ndim >= 2:
                value = normal(parameter) / parameter[0].numel() ** 0.5
            elif name.endswith("weight"):
                value = 1 + 0.1 * normal(parameter)
            else:
                value = 0.1 * normal(parameter)
            parameter.copy_(value)
    return module.half().float().eval()


def save_network(module, folder):
    """Writes weights (half precision, which loses nothing) and config as the reference library does."""
    (OUT / folder).mkdir(parents=True, exist_ok=True)
    module.half().save_pretrained(OUT / folder)
    module.float()


def save_cases(tensors, path):
    """Writes named inputs and outputs in single precision."""
    OUT.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().float().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in tensors.items()
    }
    save_file(tensors, OUT / path)


def save_index(folder, **components):
    """Writes the `model_index.json` that makes a folder of networks a diffusers pipeline."""
    (OUT / folder / "model_index.json").write_text(json.dumps(components, indent=2, sort_keys=True) + "\n")
