"""Tokens for training: the few that the captions use, numbered compactly.

The model has the standard CLIP vocabulary of 49,408 tokens, but its captions use about a hundred. Training works on a
small table of those; `export.py` puts the rows where the standard vocabulary has them. Any other token is "unknown":
one shared row that stays zero, so an unknown word adds nothing but its position.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from clip_tokenizer import BOS, EOS, write_tokenizer
from vocabulary import FILLER, trained_tags

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PADDING, UNKNOWN, START = 0, 1, 2
"""Compact ids of `!` (what tokenizer 2 pads with), of every unknown token, and of the start token."""
CONTEXT = 77


def tokenizer(work: Path, encoder: int) -> CLIPTokenizer:
    """The standard CLIP tokenizer of text encoder 1 or 2; its files are kept under `work`."""
    from transformers import CLIPTokenizer

    folder = work / ("tokenizer" if encoder == 1 else "tokenizer_2")
    if not (folder / "tokenizer_config.json").exists():
        write_tokenizer(folder, "<|endoftext|>" if encoder == 1 else "!")
    return CLIPTokenizer.from_pretrained(folder)


class CompactVocabulary:
    """Between standard ids and compact ones: 0 padding, 1 unknown, 2 start, then the trained tokens, last the end."""

    def __init__(self, work: Path) -> None:
        standard = tokenizer(work, 1)

        def ids(text: str) -> list[int]:
            return standard(text, add_special_tokens=False).input_ids

        used = {token for tag in trained_tags() for token in ids(tag)} | set(ids(","))
        self.standard_ids = [0, -1, BOS, *sorted(used - {0}), EOS]
        """Compact id to standard id; -1 for the unknown token."""
        compact = {token: index for index, token in enumerate(self.standard_ids) if token >= 0}
        self.size = len(self.standard_ids)
        self.end = self.size - 1
        self._comma = compact[ids(",")[0]]
        self._tags = {tag: [compact.get(token, UNKNOWN) for token in ids(tag)] for tag in trained_tags() + FILLER}

    def encode(self, caption: str, underscores: bool = False) -> list[int]:
        """Compact ids of a caption of known tags. `underscores` tokenizes as if tags were written `blonde_hair`."""
        tokens = [START]
        for index, tag in enumerate(caption.split(", ") if caption else []):
            if index:
                tokens.append(self._comma)
            pieces = self._tags[tag]
            if underscores and len(pieces) > 1 and not tag[0].isdigit():
                tokens += [token for piece in pieces for token in (UNKNOWN, piece)][1:]
            else:
                tokens += pieces
        return [*tokens[: CONTEXT - 1], self.end]

    def with_trigger(self, tokens: list[int], unknown_tokens: int) -> list[int]:
        """The same caption behind a trigger word of that many unknown tokens."""
        return [*tokens[:1], *[UNKNOWN] * unknown_tokens, self._comma, *tokens[1:]][:CONTEXT]

    def batch(self, captions: list[list[int]], length: int = CONTEXT) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids for both encoders, `[captions, length]`: encoder 1 is padded with the end token, encoder 2 with `!`."""
        first = torch.full((len(captions), length), self.end)
        second = torch.full((len(captions), length), PADDING)
        for row, tokens in enumerate(captions):
            first[row, : len(tokens)] = torch.tensor(tokens)
            second[row, : len(tokens)] = torch.tensor(tokens)
        return first, second
