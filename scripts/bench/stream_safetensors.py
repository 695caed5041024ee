"""Writes weight files whose tensors are made one at a time, so that memory holds no more than the largest of them."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

NAMES = {torch.float8_e4m3fn: "F8_E4M3", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
REPORT_SECONDS = 5


@dataclass
class Entry:
    """A tensor that is made when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        """In the file."""
        return self.dtype.itemsize * math.prod(self.shape)


def write(path: Path, entries: Iterable[Entry], metadata: dict[str, str]) -> None:
    """Writes all of them in this order. The file appears whole or not at all."""
    entries = list(entries)
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for entry in entries:
        end = offset + entry.bytes
        header[entry.name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, started, reported, written = path.with_name(path.name + ".part"), time.monotonic(), 0.0, 0
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            tensor = entry.make().contiguous()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                made, declared = (tensor.dtype, tuple(tensor.shape)), (entry.dtype, entry.shape)
                raise ValueError(f"{entry.name}: made {made}, declared {declared}")
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            written += entry.bytes
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                print(
                    f"{path.name}: {written / 1e9:.2f} of {offset / 1e9:.2f} GB, {reported - started:.0f} s", flush=True
                )
    partial.replace(path)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB in {time.monotonic() - started:.0f} s", flush=True)
