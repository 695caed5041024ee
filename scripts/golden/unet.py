"""Golden files of the UNets: one shaped like SDXL's, one like SD 1.5's."""

import torch
from diffusers import UNet2DConditionModel
from tiny import save_cases, save_network, seeded


def sdxl():
    """Uneven transformer depths, linear projections, pooled prompt and sizes; context as wide as both encoders."""
    return seeded(
        UNet2DConditionModel(
            block_out_channels=(8, 16, 24),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 4, 3],
            cross_attention_dim=80,
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=88,
        ),
        20,
    )


def sd15():
    """Convolutional projections, the same number of heads everywhere, no attention at the lowest level."""
    return seeded(
        UNet2DConditionModel(
            block_out_channels=(8, 16, 24),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=2,
            attention_head_dim=4,
            cross_attention_dim=32,
            norm_num_groups=4,
        ),
        21,
    )


def case(model, seed, batch, height, width, tokens, timesteps):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    inputs = {
        "latent": normal(batch, 4, height, width),
        "timesteps": torch.tensor(timesteps, dtype=torch.float32),
        "context": normal(batch, tokens, model.config.cross_attention_dim),
    }
    added = None
    if model.config.addition_embed_type == "text_time":
        sizes = torch.tensor([[1024, 768, 0, 0, 1024, 768], [512, 640, 8, 16, 1536, 640], [128, 96, 0, 4, 128, 96]])
        pooled = model.config.projection_class_embeddings_input_dim - 6 * model.config.addition_time_embed_dim
        inputs["pooled"] = normal(batch, pooled)
        inputs["size_ids"] = sizes[:batch].float()
        added = {"text_embeds": inputs["pooled"], "time_ids": inputs["size_ids"]}
    with torch.no_grad():
        output = model(
            inputs["latent"], inputs["timesteps"], inputs["context"], added_cond_kwargs=added
        ).sample
    return inputs | {"output": output}


def cases(model):
    """A batch of three noise levels, and sizes that do not halve evenly (odd at the first and second level)."""
    named = {
        "batch": case(model, 30, 3, 16, 12, 7, [999.0, 421.0, 1.0]),
        "odd": case(model, 31, 2, 13, 10, 11, [250.0, 0.0]),
    }
    return {f"{name}.{key}": tensor for name, tensors in named.items() for key, tensor in tensors.items()}


if __name__ == "__main__":
    for name, model in [("sdxl", sdxl()), ("sd15", sd15())]:
        save_cases(cases(model), f"unet_{name}.safetensors")
        save_network(model, f"{name}/unet")
