"""The workflows of Qwen-Image that `comfyui_server.py` records: the one that everybody has, and what people change in it.

The networks are those of `qwen_image_pipeline.py`. Biases of files in eight bits: ComfyUI keeps them in eight bits too,
Darkroom as they are; `rounded` makes files with biases that eight bits hold, so that both read the same.
"""

import sys
from pathlib import Path

from comfyui_workflows import Graph

PROMPT = "a photo of a cat"
WORDS = "一只猫 on the old town's table, \"Hello world\""
BAD = "blurry"
# Parentheses are no weights here, and a backslash before one goes.
MARKS = r"a (red:1.3) cube \(on\) a ((table)), [BREAK] and \\x"
MODEL, TEXT, VAE = "tiny_qwen_image.safetensors", "tiny_qwen_vl.safetensors", "tiny_qwen_image_vae.safetensors"
LORA = "tiny_qwen_image_lightning_4steps.safetensors"


class Qwen(Graph):
    """A workflow of Qwen-Image."""

    def files(self, model=MODEL, text=TEXT, weight_dtype="default"):
        """The three networks."""
        return (
            self("UNETLoader", unet_name=model, weight_dtype=weight_dtype)[0],
            self("CLIPLoader", clip_name=text, type="qwen_image", device="default")[0],
            self("VAELoader", vae_name=VAE)[0],
        )

    def shift(self, model, shift=3.1, kind="ModelSamplingAuraFlow"):
        return self(kind, model=model, shift=shift)[0]

    def lora(self, model, strength=1.0):
        return self("LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=strength)[0]

    def empty(self, width=64, height=64, batch=1):
        return self("EmptySD3LatentImage", width=width, height=height, batch_size=batch)[0]

    def sample(self, model, positive, negative, latent, seed=7, steps=4, cfg=1.0, sampler="euler", scheduler="simple", denoise=1.0):
        return super().sample(model, positive, negative, latent, seed, steps, cfg, sampler, scheduler, denoise)


def start(name, shift=3.1, negative=BAD):
    """A graph with the model, shifted if so, and both prompts."""
    g = Qwen(name)
    model, clip, vae = g.files()
    model = g.shift(model, shift) if shift else model
    return g, model, clip, vae, g.text(clip, PROMPT), g.text(clip, negative)


def drawing():
    g = Qwen("lightning")
    model, clip, vae = g.files()
    model = g.shift(g.lora(model), 3.0)
    g.finish(g.sample(model, g.text(clip, PROMPT), g.text(clip, ""), g.empty(96, 64)), vae)
    yield g

    g = Qwen("lora_strengths")
    model, clip, vae = g.files()
    pos, neg = g.text(clip, PROMPT), g.text(clip, "")
    for strength in (0.5, -0.75):
        g.save_latent(g.sample(g.shift(g.lora(model, strength), 3.0), pos, neg, g.empty()), str(strength))
    yield g

    g, model, clip, vae, pos, neg = start("guided")
    model = g("CFGNorm", model=model, strength=1.0)[0]
    g.finish(g.sample(model, pos, neg, g.empty(64, 96), cfg=2.5), vae)
    yield g

    g, model, clip, vae, pos, neg = start("plain_guidance")
    g.finish(g.sample(model, pos, neg, g.empty(), cfg=4.0, seed=2**64 - 1), vae)
    yield g

    g, model, clip, vae, pos, neg = start("own_shift", shift=None)
    g.finish(g.sample(model, pos, neg, g.empty(), cfg=2.5), vae)
    yield g

    g, model, clip, vae, pos, neg = start("shifts", shift=None)
    for kind, shift in (("ModelSamplingAuraFlow", 1.0), ("ModelSamplingSD3", 3.0)):
        g.save_latent(g.sample(g.shift(model, shift, kind), pos, neg, g.empty()), kind)
    yield g

    g, model, clip, vae, pos, neg = start("batch")
    g.finish(g.sample(model, pos, neg, g.empty(64, 64, 2), cfg=2.5), vae)
    yield g

    # Cells that make no whole patches of two.
    g, model, clip, vae, pos, neg = start("odd_sizes")
    for width, height in ((72, 88), (104, 40)):
        g.finish(g.sample(model, pos, neg, g.empty(width, height), cfg=2.5), vae, f"{width}x{height}")
    yield g

    g, model, clip, vae, _, neg = start("prompts")
    for name, text in {"words": WORDS, "marks": MARKS, "empty": "", "lines": "one\ntwo\n\n three ", "long": f"{WORDS}. " * 12}.items():
        g.save_latent(g.sample(model, g.text(clip, text), neg, g.empty(), cfg=2.5, steps=2), name)
    yield g


def eight_bits():
    g = Qwen("eight_bits")
    model, clip, vae = g.files("tiny_qwen_image_fp8_rounded.safetensors", "tiny_qwen_vl_fp8_rounded.safetensors")
    g.finish(g.sample(g.shift(model), g.text(clip, PROMPT), g.text(clip, BAD), g.empty(96, 64), cfg=2.5), vae)
    yield g

    # No picture: ComfyUI adds the LoRA to the weights and rounds these to eight bits again, by chance up or down.
    g = Qwen("eight_bits_lightning")
    model, clip, vae = g.files("tiny_qwen_image_fp8_rounded.safetensors", "tiny_qwen_vl_fp8_rounded.safetensors")
    g.save_latent(g.sample(g.shift(g.lora(model), 3.0), g.text(clip, PROMPT), g.text(clip, ""), g.empty()))
    yield g


def samplers():
    for name, kinds in {
        "samplers": ["euler", "dpmpp_2m", "res_multistep", "uni_pc", "heun", "deis", "lcm", "ddim", "gradient_estimation"],
        "samplers_noise": ["er_sde", "euler_ancestral", "dpmpp_2s_ancestral", "res_multistep_ancestral", "dpmpp_sde", "dpmpp_2m_sde"],
    }.items():
        g, model, clip, vae, pos, neg = start(name)
        for kind in kinds:
            g.save_latent(g.sample(model, pos, neg, g.empty(64, 64, 2), sampler=kind, cfg=2.5), kind)
        yield g

    g, model, clip, vae, pos, neg = start("schedulers")
    for kind in ("simple", "beta", "sgm_uniform", "normal", "ddim_uniform", "linear_quadratic", "kl_optimal", "karras", "exponential"):
        g.save_latent(g.sample(model, pos, neg, g.empty(), scheduler=kind), kind)
    yield g

    g, model, clip, vae, pos, neg = start("custom_sampler")
    sigmas = g("BasicScheduler", model=model, scheduler="simple", steps=5, denoise=0.8)[0]
    guider = g("CFGGuider", model=model, positive=pos, negative=neg, cfg=2.5)[0]
    drawn = g("SamplerCustomAdvanced", noise=g("RandomNoise", noise_seed=5)[0], guider=guider,
              sampler=g("KSamplerSelect", sampler_name="euler")[0], sigmas=sigmas, latent_image=g.empty())
    g.save_latent(drawn[0])
    g.save_latent(drawn[1], "denoised")
    yield g

    g, model, clip, vae, pos, neg = start("two_stages")
    advanced = dict(model=model, noise_seed=9, steps=4, cfg=2.5, sampler_name="euler", scheduler="simple", positive=pos, negative=neg)
    first = g("KSamplerAdvanced", add_noise="enable", latent_image=g.empty(), start_at_step=0, end_at_step=2,
              return_with_leftover_noise="enable", **advanced)[0]
    second = g("KSamplerAdvanced", add_noise="disable", latent_image=first, start_at_step=2, end_at_step=10000,
               return_with_leftover_noise="disable", **advanced)[0]
    g.save_latent(first, "first")
    g.finish(second, vae)
    yield g


def pictures():
    g, model, clip, vae, pos, neg = start("img2img")
    encoded = g("VAEEncode", pixels=g.load()[0], vae=vae)[0]
    g.save_latent(encoded, "encoded")
    g.finish(g.sample(model, pos, neg, encoded, cfg=2.5, denoise=0.6), vae)
    yield g

    # 37 x 53: cut to whole cells first.
    g, model, clip, vae, pos, neg = start("img2img_odd_size")
    encoded = g("VAEEncode", pixels=g.load("odd.png")[0], vae=vae)[0]
    g.save_latent(encoded, "encoded")
    g.finish(g.sample(model, pos, neg, encoded, denoise=0.6), vae)
    yield g

    g, model, clip, vae, pos, neg = start("inpaint")
    image, mask = g.load("shape.png")
    latent = g("SetLatentNoiseMask", samples=g("VAEEncode", pixels=image, vae=vae)[0], mask=mask)[0]
    g.finish(g.sample(model, pos, neg, latent, cfg=2.5, denoise=0.8), vae)
    yield g

    g, model, clip, vae, pos, neg = start("differential")
    image, mask = g.load("shape.png")
    latent = g("SetLatentNoiseMask", samples=g("VAEEncode", pixels=image, vae=vae)[0], mask=mask)[0]
    g.finish(g.sample(g("DifferentialDiffusion", model=model)[0], pos, neg, latent), vae)
    yield g

    g, model, clip, vae, pos, neg = start("hires")
    first = g.sample(model, pos, neg, g.empty())
    larger = g("LatentUpscaleBy", samples=first, upscale_method="nearest-exact", scale_by=1.5)[0]
    g.finish(g.sample(model, pos, neg, larger, denoise=0.6), vae)
    yield g

    g, model, clip, vae, pos, neg = start("tiles")
    drawn = g.sample(model, pos, neg, g.empty(160, 96), steps=2)
    g.save(g("VAEDecodeTiled", samples=drawn, vae=vae, tile_size=64, overlap=32, temporal_size=64, temporal_overlap=8), "decoded")
    g.save_latent(g("VAEEncodeTiled", pixels=g.load()[0], vae=vae, tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8)[0], "encoded")
    yield g

    g, model, clip, vae, pos, neg = start("areas")
    other = g("ConditioningSetArea", conditioning=g.text(clip, WORDS), width=64, height=64, x=32, y=0, strength=1.0)[0]
    both = g("ConditioningCombine", conditioning_1=pos, conditioning_2=other)[0]
    g.save_latent(g.sample(model, both, neg, g.empty(96, 64), cfg=2.5), "set_area")
    joined = g("ConditioningConcat", conditioning_to=pos, conditioning_from=g.text(clip, WORDS))[0]
    g.save_latent(g.sample(model, joined, g("ConditioningZeroOut", conditioning=pos)[0], g.empty(64, 64), cfg=2.5), "joined")
    early = g("ConditioningSetTimestepRange", conditioning=pos, start=0.0, end=0.5)[0]
    late = g("ConditioningSetTimestepRange", conditioning=g.text(clip, WORDS), start=0.5, end=1.0)[0]
    g.save_latent(g.sample(model, g("ConditioningCombine", conditioning_1=early, conditioning_2=late)[0], neg, g.empty(64, 64), cfg=2.5), "ranges")
    yield g

    # Two families in one workflow: what one draws, the other draws over.
    g, model, clip, vae, pos, neg = start("after_sdxl")
    sdxl, sdxl_clip, sdxl_vae = g.model()
    first = Graph.sample(g, sdxl, g.text(sdxl_clip, "a photo of a red cube on a table"), g.text(sdxl_clip, "blurry, low quality"), Graph.empty(g, 64, 64))
    image = g.decode(first, sdxl_vae)
    g.save(image, "sdxl")
    g.finish(g.sample(model, pos, neg, g("VAEEncode", pixels=image, vae=vae)[0], denoise=0.6), vae)
    yield g


SECTIONS = (drawing, eight_bits, samplers, pictures)


def all_workflows():
    """Every workflow, by sections."""
    for section in SECTIONS:
        yield from section()


def rounded(models: Path) -> None:
    """Makes the files in eight bits whose biases eight bits hold."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in ("diffusion_models/tiny_qwen_image_fp8_e4m3fn_scaled", "text_encoders/tiny_qwen_vl_fp8_scaled"):
        tensors = load_file(models / f"{file}.safetensors")
        for name in tensors:
            if name.endswith(".bias"):
                tensors[name] = tensors[name].to(torch.float8_e4m3fn).to(tensors[name].dtype)
        save_file(tensors, models / f"{file.split('_fp8')[0]}_fp8_rounded.safetensors")


if __name__ == "__main__":
    rounded(Path(sys.argv[1]))
