"""Writes the golden files of tokenizer and prompt tests.

    python scripts/golden/tokens.py [--comfyui tokens.json]

- models/tests/data/clip_tokens.json: texts and their ids by transformers' CLIPTokenizer, built from OpenAI's
  list of merges (package clip-anytorch).
- pipelines/tests/data/python_floats.json: texts and what Python's float() makes of them.
- pipelines/tests/data/comfyui_prompts.json: only with --comfyui, a recording of ComfyUI's segments and tokens.

Versions: transformers 5.23.0, tokenizers 0.23.3, clip-anytorch 2.6.0, Python 3.11.
"""

import argparse
import json
import random
import sys
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken
from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from clip_tokenizer import vocabulary  # noqa: E402

START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer():
    tokens, merges = vocabulary()
    special = {"special": True, "lstrip": False, "rstrip": False, "single_word": False}
    return CLIPTokenizer(
        vocab=tokens,
        merges=[tuple(merge.split()) for merge in merges],
        # As the tokenizer_config.json that ComfyUI carries is understood.
        bos_token=AddedToken(START, normalized=True, **special),
        eos_token=AddedToken(END, normalized=False, **special),
    )


AWKWARD = [
    "", " ", "\t\n", "a", "A Cat, SITTING.", "I'VE don'T we'Ll 'S 'tis rock'n'roll ''s", "a'sb's",
    "<|endoftext|>", "<|ENDOFTEXT|> x", "<|startoftext|>a", "<|STARTOFTEXT|>a", "a<|endoftext|>b", "<|endoftext|",
    "<|endoftext|><|endoftext|>", "<start_of_text>x<end_of_text>", "</w>", "a</w>b", "!</w>",
    "3.14 1000 42nd ½ ² Ⅷ ৪ १२३", "naïve café Ünïcödé Straße ﬁ Å Å Å", "e\u0301 n\u0303 \u0301\u0301 q\u0307\u0323",
    "Σας ΟΔΟΣ İstanbul ıI ǅ ẞ", "日本語 テスト 한국어 각 中文。", "ไทย हिन्दी العربية עברית",
    "😀 emoji 👩\u200d👩\u200d👧 🏳️‍🌈 👍🏽", "zero\u200bwidth\ufeffbom\u00adsoft", "a\x00b\x01\x1b[0m\x7f\x80\x9f",
    "\x1ca\x1db\x1ec\x1fd\x85e\u2028f\u2029g\u3000h\u00a0i\u1680j\u205fk", "\ufffd \ufffe \uffff \U0010ffff",
    "\ue000\U000f0000", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚", "\u202eright\u202c \u2066x\u2069", "!!!...???", "&amp; &lt;b&gt;", "((a:1.2)) \\(b\\)",
    "a" * 300, "1" * 80, "." * 90, "😀" * 40, "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
]

POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", " \t\n\r\x0b\x0c", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "'s't're've'm'll'd", "".join(map(chr, range(0x00, 0x20))), "".join(map(chr, range(0x7F, 0x180))),
    "".join(map(chr, range(0x300, 0x330))), "".join(map(chr, range(0x391, 0x3CA))), "".join(map(chr, range(0x400, 0x460))),
    "".join(map(chr, range(0x5D0, 0x5EA))), "".join(map(chr, range(0x621, 0x660))), "".join(map(chr, range(0x905, 0x950))),
    "".join(map(chr, range(0xE01, 0xE3A))), "".join(map(chr, range(0x1100, 0x1200))), "".join(map(chr, range(0x2000, 0x2070))),
    "".join(map(chr, range(0x2190, 0x2200))), "".join(map(chr, range(0x3040, 0x3100))), "".join(map(chr, range(0x4E00, 0x4F00))),
    "".join(map(chr, range(0xAC00, 0xAC80))), "".join(map(chr, range(0xFF01, 0xFF60))), "".join(map(chr, range(0x1F300, 0x1F650))),
    "\u200d\ufe0f\u20e3", "".join(map(chr, range(0x1D400, 0x1D500))),
]


def random_texts(rng, count):
    for _ in range(count):
        pools = rng.sample(POOLS, rng.randint(1, 4)) + [" "]
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40)))


def clip_tokens():
    tokenizer = clip_tokenizer()
    texts = AWKWARD + list(random_texts(random.Random(2), 400))
    return {
        "transformers": "5.23.0",
        "merges_fnv1a": merges_checksum(tokenizer),
        "texts": [[t, tokenizer(t)["input_ids"][1:-1]] for t in texts],
    }


def merges_checksum(tokenizer):
    """64-bit FNV-1a over the ids of all merges, two little-endian u16 each, in rank order."""
    ids, value = tokenizer.get_vocab(), 0xCBF29CE484222325
    for pair in tokenizer._merges:
        for byte in b"".join(ids[part].to_bytes(2, "little") for part in pair):
            value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


FLOATS = [
    "", " ", ".", "1", " 1.5", "1.5 ", "\t1\n", "1.5\x0b\x0c\r", "1e-1", "1E+2", "+1", "-0.5", "--1", "+-1", "+ 1", "1 2", ".5", "5.", "1.e3",
    ".e3", "e3", "1e", "1e+", "inf", "-Infinity", "+iNf", "nan", "-nAn", "infinit", "in_f", "1_0", "_1", "1_", "1__0", "1_.5", "1._5",
    "1_000.5_0", "1e5_0", "1_e5", "1e_5", "1e999", "-1e999", "1e-999", "1e99999999999999999999", "0x10", "1f", "1d5", "1,5", "1\x00", "\x001",
    "\x1c1", "1\x1f", "\x851", "\u20031", "1\u3000", "\u00a01", "\u200b1", "\ufeff1", "١", "١٫٥", "१.५", "１.５", "𝟙.𝟝", "²", "½", "∞", "−1",
    "\x7f1", "é1", "0.1", "1.1", "1.2100000000000002", "123456789012345678901234567890", "4.9e-324", "2.2250738585072014e-308",
    "1" * 400, "0." + "3" * 400, "1e0000000000001", "00001.5", "True", "None", "1.5:2", "1j", "NaN(1)", "infinity_", "_inf", "1e١", "１_０", "1\u00b7",
]  # fmt: skip


def floats():
    def value(text):
        try:
            return repr(float(text))
        except ValueError:
            return None

    return [[text, value(text)] for text in FLOATS]


def comfyui_prompts(path):
    """ComfyUI's recording with runs of equal weights and without the second copy of the weights."""
    recorded = json.loads(path.read_text())
    prompts = []
    for prompt in recorded["prompts"]:
        weights = [[w for _, w in chunk] for chunk in prompt["l"]]
        assert weights == [[w for _, w in chunk] for chunk in prompt["g"]]
        ids = {encoder: [[i for i, _ in chunk] for chunk in prompt[encoder]] for encoder in "lg"}
        runs = [[[w, len(list(run))] for w, run in groupby(chunk)] for chunk in weights]
        prompts.append({"text": prompt["text"], "parsed": prompt["parsed"], **ids, "weights": runs})
    return {"comfyui": recorded["comfyui"], "transformers": recorded["transformers"], "prompts": prompts}


def write(path, data):
    path = ROOT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, metavar="tokens.json", help="a recording made with ComfyUI")
    arguments = parser.parse_args()
    write("models/tests/data/clip_tokens.json", clip_tokens())
    write("pipelines/tests/data/python_floats.json", floats())
    if arguments.comfyui:
        write("pipelines/tests/data/comfyui_prompts.json", comfyui_prompts(arguments.comfyui))
