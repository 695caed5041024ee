#!/usr/bin/env python3
"""Converts a YOLOv8 detector from the usual `.pt` to safetensors, which Darkroom's detail pass reads.

    python3 convert_yolo.py face_yolov8n.pt face_yolov8n.safetensors

Needs torch and safetensors only. A `.pt` is a pickle of the whole network object, and loading a pickle may run any
code. Here only tensors and plain containers are rebuilt; every other class becomes an empty shell whose attributes can
be looked at, and nothing of the file is executed.

Weights keep their names and type. Batch normalisation stays as it is: Darkroom folds it into the convolutions in
single precision when it loads the file. Only `num_batches_tracked`, which training counts with, is left out. The
metadata get `names` (JSON, class index to name) and `strides` ("8,16,32").
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import sys
import types
from collections import OrderedDict
from typing import Any

import torch
from safetensors.torch import save_file

# What tensors and plain containers are rebuilt with. Nothing here can touch files, processes or other modules.
ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
STORAGES = {
    f"{kind}Storage"
    for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
}


class Shell:
    """Stands for an object of any other class: keeps its state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class Unpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers, and shells for everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and (name in STORAGES or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        return type(name.rpartition(".")[2], (Shell,), {})


def read(path: pathlib.Path) -> Any:
    """The checkpoint as plain containers, tensors and shells."""

    def load(file: Any, **arguments: Any) -> Any:
        return Unpickler(file, **arguments).load()

    module = types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="shells")
    return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)


def tensors_of(module: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Parameters and buffers of a network's shell, under their names in its state dict."""
    found = {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, kind, {}).items():
            if isinstance(tensor, torch.Tensor):
                found[prefix + name] = tensor.detach()
    for name, child in getattr(module, "_modules", {}).items():
        found.update(tensors_of(child, f"{prefix}{name}."))
    return found


def convert(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the network in `source` to `target`."""
    checkpoint = read(source)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{source} is no training checkpoint")
    # The averaged weights, where there are any, are the ones to use.
    network = checkpoint.get("ema") or checkpoint.get("model")
    if not hasattr(network, "_modules"):
        raise ValueError(f"{source} holds no network under 'ema' or 'model'")
    tensors = {
        name: tensor.contiguous().clone()
        for name, tensor in tensors_of(network).items()
        if not name.endswith("num_batches_tracked") and tensor.is_floating_point()
    }
    if "model.22.cv2.0.0.conv.weight" not in tensors:
        raise ValueError(f"{source} is no YOLOv8 detector: layer 22 is no detection head")
    metadata = {"format": "pt"}
    names = getattr(network, "names", None)
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if isinstance(names, dict):
        metadata["names"] = json.dumps({str(int(index)): str(name) for index, name in names.items()})
    stride = getattr(network, "stride", None)
    if isinstance(stride, torch.Tensor):
        metadata["strides"] = ",".join(str(int(step)) for step in stride.tolist())
    save_file(tensors, target, metadata)


def main() -> int:
    parser = argparse.ArgumentParser(description="Converts a YOLOv8 detector from .pt to safetensors.")
    parser.add_argument("source", type=pathlib.Path, help="the .pt file")
    parser.add_argument("target", type=pathlib.Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.target)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, AttributeError, KeyError, TypeError, ValueError) as error:
        print(f"convert_yolo.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
