"""Golden files of the text encoders: one like CLIP-L (quick GELU), one like OpenCLIP bigG (GELU, projection)."""

import torch
from tiny import save_cases, save_network, seeded
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

VOCABULARY = 320
START, END = VOCABULARY - 2, VOCABULARY - 1


def tokens():
    """Prompt chunks: full, short and padded with end tokens, short and padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(1, START, (3, 77), generator=generator)
    words[:, 0] = START
    words[0, 76] = END
    words[1, 5:] = END
    words[2, 20] = END
    words[2, 21:] = 0
    return words


def cases(model, projected):
    ids = tokens()
    with torch.no_grad():
        full = model(ids, output_hidden_states=True)
        short = model(ids[1:2, :9], output_hidden_states=True)
        text_model = model.text_model if projected else model
        # The hidden states are those before the final norm; a library that ties the last one would break this.
        assert torch.equal(text_model.final_layer_norm(full.hidden_states[-1]), full.last_hidden_state)
    out = {"tokens": ids.int(), "final": full.last_hidden_state, "short.final": short.last_hidden_state}
    for skip in range(1, len(full.hidden_states)):
        out[f"skip.{skip}"] = full.hidden_states[-skip]
    if projected:
        out["pooled"] = full.text_embeds
        out["short.pooled"] = short.text_embeds
    return out


def config(width, layers, heads, activation, projection):
    return CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, projection_dim=projection,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=77,
        hidden_act=activation, bos_token_id=START, eos_token_id=END, pad_token_id=END,
    )


def clip_l():
    return seeded(CLIPTextModel(config(32, 3, 4, "quick_gelu", 32)), 10)


def clip_g():
    return seeded(CLIPTextModelWithProjection(config(48, 4, 3, "gelu", 40)), 11)


if __name__ == "__main__":
    l, g = clip_l(), clip_g()
    save_cases(cases(l, False), "clip_l.safetensors")
    save_cases(cases(g, True), "clip_g.safetensors")
    save_network(l, "sdxl/text_encoder")
    save_network(l, "sd15/text_encoder")
    save_network(g, "sdxl/text_encoder_2")
