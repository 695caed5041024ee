"""Writes the standard CLIP BPE tokenizer as files that transformers loads, without a download.

The vocabulary of 49,408 entries is determined by one list of merges, which the package `clip-anytorch` carries as data.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from pathlib import Path

VOCABULARY_SIZE = 49_408
BOS, EOS = 49_406, 49_407
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _merge_list() -> list[str]:
    # Asked for by the distribution's name: a module called `clip` may be anything.
    try:
        path = Path(str(importlib.metadata.distribution("clip-anytorch").locate_file("clip/bpe_simple_vocab_16e6.txt.gz")))
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise FileNotFoundError("the CLIP merge list is missing: pip install clip-anytorch") from error
    return lines[1 : VOCABULARY_SIZE - 2 - 2 * 256 + 1]


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in vocabulary order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Every entry's id, and the merges (`"left right"`) in order of rank."""
    merges, letters = _merge_list(), _byte_alphabet()
    entries = letters + [letter + "</w>" for letter in letters] + ["".join(pair.split()) for pair in merges] + [_START, _END]
    if len(entries) != VOCABULARY_SIZE:
        raise ValueError(f"the merge list gives {len(entries)} entries, not {VOCABULARY_SIZE}: wrong clip-anytorch version?")
    return {entry: index for index, entry in enumerate(entries)}, merges


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """Writes `vocab.json`, `merges.txt` and the configs. SDXL's encoder 1 pads with `<|endoftext|>`, encoder 2 with `!`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, merges = vocabulary()
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad_token}
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "vocab.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
