"""Golden files of Qwen-Image's denoiser: the network, and forward passes of it by diffusers.

Tokens stand where ComfyUI puts them. diffusers puts them there too where grids are even and references are no larger than
the latent (which is checked here); elsewhere ComfyUI's places are set in its stead.
"""

import torch
from diffusers import QwenImageTransformer2DModel
from tiny import save_cases, save_network, seeded

PATCH, CHANNELS, CONTEXT = 2, 4, 24


def network(seed, layers):
    """Two heads of 16 whose axes differ in width."""
    return seeded(
        QwenImageTransformer2DModel(
            patch_size=PATCH,
            in_channels=CHANNELS * PATCH * PATCH,
            out_channels=CHANNELS,
            num_layers=layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=CONTEXT,
            axes_dims_rope=(4, 6, 6),
        ),
        seed,
    )


def angles(places, axes):
    """Complex turns, `[tokens, head / 2]`, of places on each axis, `[tokens, axes]`."""
    turns = []
    for place, width in zip(places.T, axes, strict=True):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        turn = torch.outer(place.double(), frequencies)
        turns.append(torch.polar(torch.ones_like(turn), turn))
    return torch.cat(turns, dim=1).to(torch.complex64)


class Places(torch.nn.Module):
    """ComfyUI's places of tokens: middles at 0, text from half of the latent's longer side on."""

    def __init__(self, axes):
        super().__init__()
        self.axes = axes

    def forward(self, shapes, device=None, max_txt_seq_len=None):
        pictures = []
        for index, (_, rows, columns) in enumerate(shapes[0]):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            number = torch.full_like(row, index)
            pictures.append(torch.stack([number, row - rows // 2, column - columns // 2], -1).reshape(-1, 3))
        _, rows, columns = shapes[0][0]
        first = max(rows // 2, columns // 2)
        text = torch.arange(first, first + max_txt_seq_len)[:, None].expand(-1, 3)
        return angles(torch.cat(pictures), self.axes), angles(text, self.axes)


def pack(latent):
    """Pads odd sides with what the other end begins with, and makes a token of each patch."""
    height, width = latent.shape[2:]
    latent = torch.nn.functional.pad(latent, (0, -width % PATCH, 0, -height % PATCH), mode="circular")
    batch, channels, height, width = latent.shape
    rows, columns = height // PATCH, width // PATCH
    tokens = latent.view(batch, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, rows * columns, -1), (1, rows, columns)


def unpack(tokens, height, width):
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    tokens = tokens[:, : rows * columns].reshape(-1, rows, columns, CHANNELS, PATCH, PATCH)
    latent = tokens.permute(0, 3, 1, 4, 2, 5).reshape(-1, CHANNELS, rows * PATCH, columns * PATCH)
    return latent[:, :, :height, :width]


def run(model, latent, sigmas, context, lengths, references):
    parts = [pack(picture) for picture in [latent, *references]]
    shapes = [[shape for _, shape in parts]] * len(latent)
    mask = None
    if lengths is not None:
        mask = torch.arange(context.shape[1])[None] < lengths[:, None]
    places = model.pos_embed
    even = all(side % 2 == 0 for _, shape in parts for side in shape[1:])
    largest = max(max(shape[1:]) for _, shape in parts) == max(parts[0][1][1:])
    outputs = []
    with torch.no_grad():
        for positions in [places, Places(model.config.axes_dims_rope)]:
            model.pos_embed = positions
            output = model(
                torch.cat([tokens for tokens, _ in parts], dim=1),
                encoder_hidden_states=context,
                encoder_hidden_states_mask=mask,
                timestep=sigmas,
                img_shapes=shapes,
            ).sample
            outputs.append(unpack(output, *latent.shape[2:]))
    model.pos_embed = places
    theirs, ours = outputs
    agree = (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert agree == (even and largest), (agree, even, largest)
    return ours


def case(model, seed, sides, tokens, sigmas, lengths=None, references=()):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    batch = len(sigmas)
    inputs = {
        "latent": normal(batch, CHANNELS, *sides),
        "timesteps": torch.tensor(sigmas),
        "context": 3 * normal(batch, tokens, CONTEXT),
    }
    pictures = [normal(batch, CHANNELS, *sides) for sides in references]
    inputs |= {f"references.{index}": picture for index, picture in enumerate(pictures)}
    if lengths is not None:
        inputs["lengths"] = torch.tensor(lengths)
    latent, timesteps, context = inputs["latent"], inputs["timesteps"], inputs["context"]
    return inputs | {"output": run(model, latent, timesteps, context, inputs.get("lengths"), pictures)}


def cases(model):
    named = {
        "square": case(model, 70, (8, 8), 7, [1.0]),
        "oblong": case(model, 71, (4, 12), 5, [0.75, 0.0213]),
        # Grids of 3 × 5 and, with a padded row and a padded column, of 4 × 3.
        "odd_grid": case(model, 72, (6, 10), 5, [0.5]),
        "odd_sides": case(model, 73, (7, 5), 6, [0.3333]),
        "lengths": case(model, 74, (4, 8), 9, [0.9, 0.0, 0.41], lengths=[9, 3, 1]),
        "edit": case(model, 75, (8, 4), 6, [0.62, 0.1], lengths=[4, 6], references=[(4, 8), (4, 4)]),
        # Larger than the latent and of odd grids.
        "edit_large": case(model, 76, (4, 4), 4, [0.8], references=[(5, 14)]),
    }
    return {f"{name}.{key}": tensor for name, tensors in named.items() for key, tensor in tensors.items()}


if __name__ == "__main__":
    for layers in (1, 3):
        model = network(60 + layers, layers)
        save_cases(cases(model), f"qwen_image/cases_{layers}.safetensors")
        save_network(model, f"qwen_image/transformer_{layers}")
