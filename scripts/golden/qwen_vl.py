"""Golden files of Qwen-Image's text encoder: Qwen2.5-VL with a small language model and a smaller vision tower, and a
tokenizer of a few hundred byte-level tokens, with texts and their ids."""

import json

import torch
from tiny import OUT, save_cases, save_network, seeded
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

FOLDER = OUT / "qwen_image"
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]
PLAIN = ["<tool_call>", "</tool_call>"]
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
# What the tiny vocabulary is learnt from.
CORPUS = [
    TEMPLATE.format("a photo of a cat on the table").replace("<|im_start|>", "").replace("<|im_end|>", ""),
    "user\nuser\nassistant\nsystem\n",
    "a painting of the sea, the sky and the old town in the evening light",
    "It's a sign that says \"Hello world\"; they're here, we've seen it, I'm sure he'll say he'd go, isn't it?",
    "Der Himmel über der Straße, eine schöne grüne Wiese",
    "Un café près de la forêt, où l'été commence",
    "красная площадь в солнечный день",
    "one\n\ntwo\n\nthree\n\nfour",
    "一只猫坐在桌子上，看着窗外的雪山",
    "日本の古い街並みと桜の花",
]
TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\t", " \n ", "a", " a", "a ", "  a  ", "a\n", "\na", "\r\n", "a\r\nb", " \n\n  x",
    "a photo of a cat", "A PHOTO OF A CAT", "a  photo   of    a     cat", "trailing   ", "   leading",
    "line one\nline two\n\n\nline three", "tab\tseparated\t\tvalues", "x \n y", "x\u00a0y\u3000z\u2028w\u0085v\u200bu",
    "It's they're we've I'm he'll he'd isn't", "IT'S THEY'RE WE'VE I'M HE'LL HE'D ISN'T", "'s't're've'm'll'd", "rock 'n' roll",
    "it’s not a straight apostrophe", "'\u017f kelvin \u212a",
    "0123456789", "3.14159 and 2,718,281", "1328x1328", "²³¹ ½ Ⅷ ٣ 五 ①", "50% off! $9.99 (or €8,50) #1 @home",
    "!!!???...", "... \n...", "a,b;c:d", "-->", "/* code */ fn main() { println!(\"{}\", 1); }", "if x:\n    return  y\n",
    "Der Himmel über Köln", "café", "cafe\u0301", "A\u030a \u212b \u1e9b\u0323", "e\u0301\u0323 versus e\u0323\u0301", "ﬁ ligature ① ｆｕｌｌ",
    "\u0915\u094d\u0937 हिन्दी में", "ภาษาไทย", "한국어 문장입니다", "\u1112\u1161\u11ab", "العربية من اليمين", "עִבְרִית", "Ελληνικά", "Українська мова",
    "一只猫坐在桌子上", "日本語のテキスト、句読点。", "混合 mixed 文字 text", "Tiếng Việt có dấu",
    "🙂", "👩‍👩‍👧‍👦 family", "🇩🇪🇯🇵", "👍🏽 thumbs", "a🙂b", "☃️ snow", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\U0010ffff", "\u0000 zero", "\ufeffbom", "\ufffd",
    "<|im_start|>", "<|im_end|>", "a<|im_start|>b", " <|endoftext|> ", "<|im_start|>user\nhi<|im_end|>\n", "<|IM_START|>", "<|im_start|",
    "<|vision_start|><|image_pad|><|vision_end|>", "<tool_call>{}</tool_call>", "<|unknown|>",
    "word " * 40, "nospace" * 40, " " * 300, "\n" * 50, " \n" * 20, "a" * 200, "'" * 30,
]
PROMPTS = [
    "", "a photo of a cat", "  a cat  ", "\na cat", "a cat\n", " \n a cat", "a sign that says \"user\"", "a <|im_start|>user\nb",
    "<|im_start|>", "<|im_start|>user\n", "<|im_start|>user\nx", "<|im_start|>user\n\nx", "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na cat<|im_end|>\n",
    "<|im_start|>assistant\nno user", " <|im_start|>user\nindented", "一只猫 🙂", "the old town " * 30,
]


def trained():
    """Merges of the corpus over the 256 bytes; numbered as Qwen's: bytes, merges, then added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def tokenizer():
    """Qwen's, saved as `tokenizer.json` and once more as the files of older folders."""
    vocab, merges = trained()
    made = Qwen2Tokenizer(vocab=vocab, merges=merges, additional_special_tokens=SPECIALS[1:])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in PLAIN])
    made.save_pretrained(FOLDER / "tokenizer")
    # The template of conversations, which transformers may add, is not needed.
    for extra in FOLDER.glob("tokenizer/*"):
        if extra.name not in ("tokenizer.json", "tokenizer_config.json"):
            extra.unlink()
    old = OUT / "qwen_tokenizer_files"
    old.mkdir(parents=True, exist_ok=True)
    (old / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, sort_keys=True))
    (old / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    decoder = {
        str(made.convert_tokens_to_ids(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token in SPECIALS,
        }
        for token in SPECIALS + PLAIN
    }
    (old / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}, indent=1) + "\n")
    return made


def ids(made, text):
    return made(text)["input_ids"]


def prompt(made, text):
    """The ids of a prompt, how many ComfyUI drops, and how many diffusers does: what stands before an empty prompt."""
    whole = ids(made, text if text.startswith("<|im_start|>") else TEMPLATE.format(text))
    turn, user = made.convert_tokens_to_ids("<|im_start|>"), ids(made, "user\n")
    assert len(user) == 2, "the tiny vocabulary has 'user' as one token, as Qwen's has"
    turns = [place for place, token in enumerate(whole) if token == turn]
    drop = turns[:2][-1]
    if len(whole) > drop + 3 and whole[drop + 1:drop + 3] == user:
        drop += 3
    return {"text": text, "ids": whole, "drop": drop, "diffusers_drop": len(ids(made, TEMPLATE.split("{}")[0]))}


def model(vocabulary):
    text = dict(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6, use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    )
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=2, out_hidden_size=32, fullatt_block_indexes=[0],
        window_size=8,
    )
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    made = seeded(Qwen2_5_VLForConditionalGeneration(config), 70)
    generator = torch.Generator().manual_seed(71)
    with torch.no_grad():
        table = made.get_input_embeddings().weight
        table.copy_(torch.randn(table.shape, generator=generator))
    made = made.half().float().eval()
    # Rounding to half precision is for weights; the rotary embedding's frequencies went with them.
    text = made.model.language_model
    text.rotary_emb = type(text.rotary_emb)(config.text_config)
    return made


def cases(made, model):
    """Rows of different lengths, padded behind and masked, as diffusers' pipeline encodes a batch."""
    pad = made.convert_tokens_to_ids("<|endoftext|>")
    generator = torch.Generator().manual_seed(72)
    rows = [
        ids(made, TEMPLATE.format("a photo of a cat on the table")),
        torch.randint(0, pad, (330,), generator=generator).tolist(),
        [pad + 1],
        torch.randint(0, pad, (17,), generator=generator).tolist(),
    ]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        padded = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        alone = [model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0] for row in rows]
        text = model.model.language_model
        assert torch.equal(text(input_ids=tokens, attention_mask=mask).last_hidden_state, padded[-1])
    hidden = padded[-1]
    for row, (own, masked) in enumerate(zip(alone, hidden)):
        assert torch.allclose(own, masked[: len(own)], atol=1e-5), f"row {row} sees its padding"
    return {
        "tokens": tokens.int(), "lengths": torch.tensor([len(row) for row in rows]).int(),
        "hidden": hidden * mask[..., None],
    }


if __name__ == "__main__":
    made = tokenizer()
    golden = {
        "vocab_size": len(made),
        "specials": {token: made.convert_tokens_to_ids(token) for token in SPECIALS + PLAIN},
        "texts": [{"text": text, "ids": ids(made, text)} for text in TEXTS],
        "prompts": [prompt(made, text) for text in PROMPTS],
    }
    (OUT / "qwen_tokens.json").write_text(json.dumps(golden, indent=None, sort_keys=True) + "\n")
    network = model(len(made) + 6)
    save_cases(cases(made, network), "qwen_vl.safetensors")
    save_network(network, "qwen_image/text_encoder")
