"""Sparse tables in safetensors files: token tables of small models are nearly all zeros, so only their other rows are kept.

A tensor `X` of shape [rows, width] becomes `X.sparse_rows` (int64 [n], the numbers of the rows that are not zero,
increasing) and `X.sparse_values` ([n, width], those rows), with a metadata entry `darkroom.sparse.X` = "rows,width".
Darkroom reads the three as the one tensor `X` (`models/src/weights/sparse.rs`). Works on torch and numpy arrays alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "darkroom.sparse."


def pack(
    tensors: Mapping[str, Any], metadata: Mapping[str, str], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors with those in `names` stored sparse, and the metadata that says so."""
    packed, described = dict(tensors), dict(metadata)
    for name in names:
        table = packed.pop(name)
        if table.ndim != 2:
            raise ValueError(f"{name} has {table.ndim} dimensions; only tables of two can be stored sparse")
        rows = (table != 0).any(1).nonzero()
        # numpy gives a tuple of index arrays, torch one array of indices as rows.
        rows = rows[0] if isinstance(rows, tuple) else rows[:, 0]
        packed[f"{name}.sparse_rows"] = rows
        packed[f"{name}.sparse_values"] = table[rows]
        described[PREFIX + name] = f"{table.shape[0]},{table.shape[1]}"
    return packed, described


def unpack(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The reverse of `pack`: all tensors whole, and the metadata without its entries."""
    whole, described = dict(tensors), dict(metadata)
    for key in [key for key in described if key.startswith(PREFIX)]:
        name = key.removeprefix(PREFIX)
        height, width = (int(size) for size in described.pop(key).split(","))
        rows, values = whole.pop(f"{name}.sparse_rows"), whole.pop(f"{name}.sparse_values")
        # A new array of the values' own library and type.
        table = values.new_zeros((height, width)) if hasattr(values, "new_zeros") else _zeros(values, height, width)
        table[rows] = values
        whole[name] = table
    return whole, described


def _zeros(values: Any, height: int, width: int) -> Any:
    import numpy

    return numpy.zeros((height, width), values.dtype)
