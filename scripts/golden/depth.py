"""Golden files of Depth Anything V2: a tiny random network under its authors' names and under transformers'."""

import pathlib
import tempfile
import types

import safetensors.torch
import torch
from tiny import OUT, save_cases, seeded
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config


def network():
    """Four layers of two heads; every resize of the neck; the trained size is 5 × 5 patches."""
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    model = seeded(DepthAnythingForDepthEstimation(config), 60)
    with torch.no_grad():
        # Depths on both sides of zero, so that the last ReLU is seen, and positions that matter.
        model.head.conv3.bias.fill_(-0.25)
        model.backbone.embeddings.position_embeddings.mul_(8).copy_(
            model.backbone.embeddings.position_embeddings.half().float()
        )
    return model.eval()


def authors_positions(self, embeddings, height, width):
    """The positions as the network was trained with them: scaled by a factor that an offset keeps from rounding
    down. transformers scales to the size instead, which shifts the samples by up to a tenth of a patch."""
    table = self.position_embeddings
    side = int((table.shape[1] - 1) ** 0.5)
    rows, columns = height // self.patch_size, width // self.patch_size
    if rows == columns == side:
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat((table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), 1)


def authors_names(state):
    """The same tensors as the authors' files name and pack them."""
    renamed = {}
    for name, tensor in state.items():
        for old, new in [
            ("backbone.embeddings.position_embeddings", "pretrained.pos_embed"),
            ("backbone.embeddings.patch_embeddings.projection", "pretrained.patch_embed.proj"),
            ("backbone.embeddings.", "pretrained."),
            ("backbone.encoder.layer.", "pretrained.blocks."),
            ("backbone.layernorm", "pretrained.norm"),
            ("attention.output.dense", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("neck.fusion_stage.layers.0", "depth_head.scratch.refinenet4"),
            ("neck.fusion_stage.layers.1", "depth_head.scratch.refinenet3"),
            ("neck.fusion_stage.layers.2", "depth_head.scratch.refinenet2"),
            ("neck.fusion_stage.layers.3", "depth_head.scratch.refinenet1"),
            ("residual_layer", "resConfUnit"),
            ("convolution", "conv"),
            ("head.conv1", "depth_head.scratch.output_conv1"),
            ("head.conv2", "depth_head.scratch.output_conv2.0"),
            ("head.conv3", "depth_head.scratch.output_conv2.2"),
        ]:
            name = name.replace(old, new)
        name = name.replace(".projection.", ".out_conv.") if "refinenet" in name else name
        if name.startswith("neck.reassemble_stage.layers."):
            _, _, _, level, kind, part = name.split(".")
            name = f"depth_head.{'projects' if kind == 'projection' else 'resize_layers'}.{level}.{part}"
        if name.startswith("neck.convs."):
            name = f"depth_head.scratch.layer{int(name.split('.')[2]) + 1}_rn.weight"
        renamed[name] = tensor
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return renamed


def cases(model):
    """The trained size, a wide picture and a tall batch; pixels are already normalised."""
    result = {}
    for seed, (name, shape) in enumerate(
        {"trained": (1, 3, 70, 70), "wide": (1, 3, 56, 98), "batch": (2, 3, 84, 42)}.items()
    ):
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(61 + seed))
        with torch.no_grad():
            result |= {f"{name}.pixels": pixels, f"{name}.depth": model(pixels).predicted_depth}
        assert (result[f"{name}.depth"] > 0).float().mean() > 0.5
    return result


def picture(model):
    """A whole picture: scaled so that its shorter side is 518, normalised, its depth scaled back, 0 to 1."""
    generator = torch.Generator().manual_seed(65)
    # Smooth, with sharp values in between, as pictures are.
    pixels = torch.rand(1, 3, 8, 11, generator=generator)
    pixels = torch.nn.functional.interpolate(pixels, size=(40, 56), mode="bilinear")
    pixels = (pixels + 0.2 * torch.rand(pixels.shape, generator=generator)).clamp(0, 1)
    seen = torch.nn.functional.interpolate(pixels, size=(518, 728), mode="bicubic")
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    with torch.no_grad():
        depth = model((seen - mean) / deviation).predicted_depth
    depth = torch.nn.functional.interpolate(depth[None], size=(40, 56), mode="bilinear", align_corners=True)[0, 0]
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    return {"picture.pixels": pixels[0].permute(1, 2, 0), "picture.depth": depth}


if __name__ == "__main__":
    model = network()
    embeddings = model.backbone.embeddings
    pixels = torch.randn(1, 3, 56, 98, generator=torch.Generator().manual_seed(62))
    with torch.no_grad():
        theirs = model(pixels).predicted_depth
        embeddings.interpolate_pos_encoding = types.MethodType(authors_positions, embeddings)
        ours = model(pixels).predicted_depth
    print("positions: authors' against transformers', relative", ((theirs - ours).norm() / ours.norm()).item())
    save_cases(cases(model) | picture(model), "depth_cases.safetensors")
    # Saved by transformers, since it gives its modules other names than its files.
    with tempfile.TemporaryDirectory() as folder:
        model.half().save_pretrained(folder)
        state = safetensors.torch.load_file(pathlib.Path(folder) / "model.safetensors")
    safetensors.torch.save_file(state, OUT / "depth_transformers.safetensors")
    safetensors.torch.save_file(authors_names(state), OUT / "depth_authors.safetensors")
