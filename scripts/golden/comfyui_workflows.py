"""The workflows that `comfyui_server.py` records: every node that makes sense with the tiny models, alone and as people
combine them. Small on purpose: latents of 8 to 16 cells, two to four steps.

Prompts use only words of the recorded runs, because the tests' checkpoint keeps only these rows of its token tables.
"""

CUBE = "a photo of a red cube on a table"
BAD = "blurry, low quality"
CLIFF = "a red lighthouse on the (cliff:1.2), distant thunderstorm"
CAT = "a cat on a barrel watching the crowd, ((warm)) lamps"
LONG = ", ".join([CAT, CLIFF, "baskets of fish, crates of oranges, tall ships with torn sails"] * 3)

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
LATENT_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]


class Graph:
    """A workflow in API format; nodes are numbered as they are added."""

    def __init__(self, name: str, workflow: dict | None = None):
        self.name = name
        self.nodes: dict[str, dict] = {}
        self.extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}

    def __call__(self, kind: str, **inputs):
        key = str(len(self.nodes) + 1)
        linked = {name: value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
                  for name, value in inputs.items()}
        self.nodes[key] = {"class_type": kind, "inputs": linked}
        return [[key, slot] for slot in range(4)]

    def save(self, images, name=""):
        self("SaveImage", images=images, filename_prefix="_".join(filter(None, [self.name, name])))

    def save_mask(self, mask, name=""):
        self.save(self("MaskToImage", mask=mask), name)

    def save_latent(self, samples, name=""):
        self("SaveLatent", samples=samples, filename_prefix="latents/" + "_".join(filter(None, [self.name, name])))

    def model(self):
        """The checkpoint's model, CLIP and VAE, as single outputs."""
        loaded = self("CheckpointLoaderSimple", ckpt_name="sdxl_tiny.safetensors")
        return loaded[0], loaded[1], loaded[2]

    def text(self, clip, text):
        return self("CLIPTextEncode", clip=clip, text=text)[0]

    def empty(self, width=64, height=64, batch=1):
        return self("EmptyLatentImage", width=width, height=height, batch_size=batch)[0]

    def load(self, image="photo.png"):
        loaded = self("LoadImage", image=image)
        return loaded[0], loaded[1]

    def sample(self, model, positive, negative, latent, seed=7, steps=3, cfg=4.0, sampler="euler", scheduler="normal",
               denoise=1.0):
        return self("KSampler", model=model, seed=seed, steps=steps, cfg=cfg, sampler_name=sampler,
                    scheduler=scheduler, positive=positive, negative=negative, latent_image=latent, denoise=denoise)[0]

    def decode(self, samples, vae):
        return self("VAEDecode", samples=samples, vae=vae)[0]

    def finish(self, samples, vae, name=""):
        """Saves what was sampled, as latent and as picture."""
        self.save_latent(samples, name)
        self.save(self.decode(samples, vae), name)


def start(name):
    """A graph with the model and both prompts."""
    g = Graph(name)
    model, clip, vae = g.model()
    return g, model, clip, vae, g.text(clip, CUBE), g.text(clip, BAD)


def sampling():
    g, model, clip, vae, pos, neg = start("txt2img")
    g.finish(g.sample(model, pos, neg, g.empty(96, 64, 2), sampler="dpmpp_2m", scheduler="karras"), vae)
    yield g

    g, model, clip, vae, pos, neg = start("seed_and_scale_limits")
    g.finish(g.sample(model, pos, neg, g.empty(), seed=2**64 - 1, steps=1, cfg=1.0), vae, "cfg1")
    g.finish(g.sample(model, pos, neg, g.empty(), seed=0, steps=2, cfg=0.0), vae, "cfg0")
    g.finish(g.sample(model, pos, neg, g.empty(72, 40), seed=2**32, steps=2, cfg=30.0, scheduler="exponential"), vae, "odd")
    yield g

    for name, samplers in {
        "samplers_noise": ["euler_ancestral", "dpmpp_2s_ancestral", "lcm", "ddpm", "er_sde"],
        "samplers_brownian": ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"],
        "samplers_plain": ["heun", "dpm_2", "lms", "ddim", "uni_pc", "deis", "res_multistep", "ipndm"],
    }.items():
        g, model, clip, vae, pos, neg = start(name)
        for sampler in samplers:
            g.save_latent(g.sample(model, pos, neg, g.empty(64, 64, 2), steps=4, sampler=sampler, scheduler="karras"), sampler)
        yield g

    g, model, clip, vae, pos, neg = start("schedulers")
    for scheduler in ["normal", "sgm_uniform", "simple", "ddim_uniform", "beta", "linear_quadratic", "kl_optimal"]:
        g.save_latent(g.sample(model, pos, neg, g.empty(), scheduler=scheduler, denoise=0.8), scheduler)
    yield g

    g, model, clip, vae, pos, neg = start("img2img")
    image, _ = g.load()
    g.finish(g.sample(model, pos, neg, g("VAEEncode", pixels=image, vae=vae), denoise=0.6, sampler="dpmpp_2m"), vae)
    yield g

    g, model, clip, vae, pos, neg = start("img2img_odd_size")
    image, _ = g.load("odd.png")
    encoded = g("VAEEncode", pixels=image, vae=vae)
    g.save_latent(encoded, "encoded")
    g.finish(g.sample(model, pos, neg, encoded, denoise=0.5), vae)
    yield g

    g, model, clip, vae, pos, neg = start("inpaint_noise_mask")
    image, mask = g.load("shape.png")
    masked = g("SetLatentNoiseMask", samples=g("VAEEncode", pixels=image, vae=vae), mask=mask)
    g.finish(g.sample(model, pos, neg, masked, denoise=0.8), vae)
    yield g

    g, model, clip, vae, pos, neg = start("inpaint_encode")
    image, mask = g.load("shape.png")
    filled = g("VAEEncodeForInpaint", pixels=image, vae=vae, mask=mask, grow_mask_by=6)
    g.finish(g.sample(model, pos, neg, filled), vae)
    yield g

    g, model, clip, vae, pos, neg = start("inpaint_conditioning")
    image, mask = g.load("shape.png")
    for noise_mask in (True, False):
        made = g("InpaintModelConditioning", positive=pos, negative=neg, vae=vae, pixels=image, mask=mask, noise_mask=noise_mask)
        g.finish(g.sample(model, made[0], made[1], made[2], denoise=0.7), vae, "mask" if noise_mask else "no_mask")
    yield g

    g, model, clip, vae, pos, neg = start("inpaint_soft_batch")
    image, mask = g.load("shape.png")
    soft = g("FeatherMask", mask=g("GrowMask", mask=mask, expand=5, tapered_corners=True), left=11, top=3, right=7, bottom=0)
    latent = g("RepeatLatentBatch", samples=g("VAEEncode", pixels=image, vae=vae), amount=2)
    for sampler in ("ddim", "euler_ancestral", "dpmpp_2m"):
        g.save_latent(g.sample(model, pos, neg, g("SetLatentNoiseMask", samples=latent, mask=soft), denoise=0.9, sampler=sampler), sampler)
    yield g

    g, model, clip, vae, pos, neg = start("outpaint")
    image, _ = g.load()
    padded = g("ImagePadForOutpaint", image=image, left=16, top=0, right=8, bottom=24, feathering=12)
    filled = g("VAEEncodeForInpaint", pixels=padded[0], vae=vae, mask=padded[1], grow_mask_by=8)
    g.finish(g.sample(model, pos, neg, filled), vae)
    yield g

    g, model, clip, vae, pos, neg = start("hires_latent")
    low = g.sample(model, pos, neg, g.empty(), steps=2)
    high = g("LatentUpscale", samples=low, upscale_method="bislerp", width=96, height=112, crop="disabled")
    g.finish(g.sample(model, pos, neg, high, denoise=0.55, seed=8, sampler="dpmpp_2m", scheduler="karras"), vae)
    yield g

    g, model, clip, vae, pos, neg = start("hires_image")
    low = g.decode(g.sample(model, pos, neg, g.empty(), steps=2), vae)
    high = g("ImageScale", image=low, upscale_method="lanczos", width=104, height=88, crop="center")
    g.finish(g.sample(model, pos, neg, g("VAEEncode", pixels=high, vae=vae), denoise=0.4, seed=8), vae)
    yield g

    g, model, clip, vae, pos, neg = start("hires_model")
    low = g.decode(g.sample(model, pos, neg, g.empty(), steps=2), vae)
    big = g("ImageUpscaleWithModel", upscale_model=g("UpscaleModelLoader", model_name="tiny_x4.safetensors"), image=low)
    half = g("ImageScaleBy", image=big, upscale_method="area", scale_by=0.375)
    g.finish(g.sample(model, pos, neg, g("VAEEncode", pixels=half, vae=vae), denoise=0.4), vae)
    yield g

    def advanced(g, model, pos, neg, latent, add, seed, steps, first, last, leftover, cfg=4.0, sampler="euler"):
        return g("KSamplerAdvanced", model=model, add_noise=add, noise_seed=seed, steps=steps, cfg=cfg, sampler_name=sampler,
                 scheduler="karras", positive=pos, negative=neg, latent_image=latent, start_at_step=first,
                 end_at_step=last, return_with_leftover_noise=leftover)[0]

    g, model, clip, vae, pos, neg = start("advanced_two_stages")
    first = advanced(g, model, pos, neg, g.empty(), "enable", 3, 5, 0, 3, "enable")
    g.save_latent(first, "leftover")
    g.finish(advanced(g, model, g.text(clip, CLIFF), neg, first, "disable", 99, 5, 3, 10000, "disable", 6.0, "dpmpp_2m"), vae)
    yield g

    g, model, clip, vae, pos, neg = start("advanced_late_and_early")
    image, _ = g.load()
    encoded = g("VAEEncode", pixels=image, vae=vae)
    g.finish(advanced(g, model, pos, neg, encoded, "enable", 3, 5, 2, 4, "disable"), vae, "late")
    g.save_latent(advanced(g, model, pos, neg, g.empty(), "enable", 3, 5, 0, 2, "disable"), "early")
    g.save_latent(advanced(g, model, pos, neg, encoded, "disable", 3, 4, 1, 4, "enable"), "no_noise")
    yield g

    g, model, clip, vae, pos, neg = start("sampler_custom")
    sigmas = g("BasicScheduler", model=model, scheduler="karras", steps=4, denoise=1.0)
    made = g("SamplerCustom", model=model, add_noise=True, noise_seed=5, cfg=5.5, positive=pos, negative=neg,
             sampler=g("KSamplerSelect", sampler_name="dpmpp_2m"), sigmas=g("SplitSigmas", sigmas=sigmas, step=2)[:1],
             latent_image=g.empty(64, 64, 2))
    g.save_latent(made[:1], "noisy")
    g.finish(made[1:], vae, "denoised")
    yield g

    g, model, clip, vae, pos, neg = start("custom_advanced_split")
    sigmas = g("BasicScheduler", model=model, scheduler="normal", steps=5, denoise=0.9)
    split = g("SplitSigmas", sigmas=sigmas, step=2)
    euler = g("KSamplerSelect", sampler_name="euler")
    first = g("SamplerCustomAdvanced", noise=g("RandomNoise", noise_seed=11), sampler=euler, sigmas=split[0],
              guider=g("CFGGuider", model=model, positive=pos, negative=neg, cfg=6.0), latent_image=g.empty())
    second = g("SamplerCustomAdvanced", noise=g("DisableNoise"), sampler=euler, sigmas=split[1],
               guider=g("BasicGuider", model=model, conditioning=g.text(clip, CAT)), latent_image=first[0])
    for result, name in ((first, "first"), (second, "second")):
        g.save_latent(result[:1], name + "_noisy")
        g.save_latent(result[1:], name + "_denoised")
    g.save(g.decode(second[0], vae))
    yield g

    g, model, clip, vae, pos, neg = start("custom_schedulers")
    sampler = g("KSamplerSelect", sampler_name="dpmpp_2m")
    for name, sigmas in {
        "karras": g("KarrasScheduler", steps=3, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0),
        "exponential": g("ExponentialScheduler", steps=3, sigma_max=9.0, sigma_min=0.1),
        "basic": g("BasicScheduler", model=model, scheduler="sgm_uniform", steps=3, denoise=0.5),
    }.items():
        made = g("SamplerCustomAdvanced", noise=g("RandomNoise", noise_seed=1), sampler=sampler, sigmas=sigmas,
                 guider=g("CFGGuider", model=model, positive=pos, negative=neg, cfg=3.0), latent_image=g.empty())
        g.save_latent(made[:1], name)
    yield g

    g, model, clip, vae, pos, neg = start("flipped_sigmas")
    image, _ = g.load()
    sigmas = g("KarrasScheduler", steps=3, sigma_max=5.0, sigma_min=0.2, rho=7.0)
    made = g("SamplerCustom", model=model, add_noise=False, noise_seed=0, cfg=1.0, positive=pos, negative=neg,
             sampler=g("KSamplerSelect", sampler_name="euler"), sigmas=g("FlipSigmas", sigmas=sigmas),
             latent_image=g("VAEEncode", pixels=image, vae=vae))
    g.save_latent(made)
    yield g


def conditioning():
    g, model, clip, vae, pos, neg = start("areas")
    left = g("ConditioningSetArea", conditioning=g.text(clip, CLIFF), width=64, height=128, x=0, y=0, strength=1.0)
    right = g("ConditioningSetAreaPercentage", conditioning=g.text(clip, CAT), width=0.6, height=0.7, x=0.4, y=0.3, strength=0.8)
    both = g("ConditioningCombine", conditioning_1=left, conditioning_2=right)
    g.finish(g.sample(model, g("ConditioningCombine", conditioning_1=both, conditioning_2=pos), neg, g.empty(128, 128)), vae)
    g.save_latent(g.sample(model, both, neg, g.empty(128, 96, 2)), "uncovered")
    yield g

    g, model, clip, vae, pos, neg = start("areas_of_the_negative")
    part = g("ConditioningSetArea", conditioning=g.text(clip, CAT), width=72, height=64, x=56, y=24, strength=1.5)
    g.save_latent(g.sample(model, pos, g("ConditioningCombine", conditioning_1=neg, conditioning_2=part), g.empty(128, 128)))
    yield g

    g, model, clip, vae, pos, neg = start("masked_conditions")
    image, mask = g.load("shape.png")
    for bounds in ("default", "mask bounds"):
        one = g("ConditioningSetMask", conditioning=pos, mask=mask, strength=1.0, set_cond_area=bounds)
        other = g("ConditioningSetMask", conditioning=g.text(clip, CLIFF), mask=g("InvertMask", mask=mask), strength=0.7, set_cond_area=bounds)
        both = g("ConditioningCombine", conditioning_1=one, conditioning_2=other)
        g.save_latent(g.sample(model, both, neg, g.empty(96, 64)), bounds.replace(" ", "_"))
    yield g

    g, model, clip, vae, pos, neg = start("masked_conditions_elsewhere_shaped")
    square = g("MaskComposite", destination=g("SolidMask", value=0.0, width=50, height=70), x=10, y=20, operation="add",
               source=g("SolidMask", value=0.9, width=20, height=30))
    part = g("ConditioningSetMask", conditioning=g.text(clip, CAT), mask=square, strength=1.0, set_cond_area="mask bounds")
    g.save_latent(g.sample(model, g("ConditioningCombine", conditioning_1=pos, conditioning_2=part), neg, g.empty(128, 128)))
    yield g

    g, model, clip, vae, pos, neg = start("concat_and_average")
    long = g.text(clip, LONG)
    g.save_latent(g.sample(model, g("ConditioningConcat", conditioning_to=pos, conditioning_from=g.text(clip, CAT)), neg, g.empty()), "concat")
    g.save_latent(g.sample(model, g("ConditioningAverage", conditioning_to=pos, conditioning_from=g.text(clip, CLIFF),
                                    conditioning_to_strength=0.3), neg, g.empty()), "average")
    g.save_latent(g.sample(model, g("ConditioningAverage", conditioning_to=pos, conditioning_from=long,
                                    conditioning_to_strength=0.6), neg, g.empty()), "average_long")
    g.save_latent(g.sample(model, g("ConditioningAverage", conditioning_to=long, conditioning_from=pos,
                                    conditioning_to_strength=0.6), neg, g.empty()), "average_short")
    yield g

    g, model, clip, vae, pos, neg = start("combine_of_lengths")
    both = g("ConditioningCombine", conditioning_1=g.text(clip, LONG), conditioning_2=pos)
    g.finish(g.sample(model, both, neg, g.empty()), vae)
    g.save_latent(g.sample(model, pos, g.text(clip, LONG), g.empty(64, 64, 2)), "long_negative")
    yield g

    g, model, clip, vae, pos, neg = start("zeroed_out")
    g.finish(g.sample(model, pos, g("ConditioningZeroOut", conditioning=pos), g.empty()), vae)
    yield g

    g, model, clip, vae, pos, neg = start("timestep_ranges")
    early = g("ConditioningSetTimestepRange", conditioning=pos, start=0.0, end=0.4)
    late = g("ConditioningSetTimestepRange", conditioning=g.text(clip, CLIFF), start=0.4, end=1.0)
    g.finish(g.sample(model, g("ConditioningCombine", conditioning_1=early, conditioning_2=late), neg, g.empty(), steps=4), vae)
    yield g

    g, model, clip, vae, pos, neg = start("text_encode_sdxl")
    def sdxl(text_g, text_l, **more):
        sizes = dict(width=1024, height=1024, crop_w=0, crop_h=0, target_width=1024, target_height=1024) | more
        return g("CLIPTextEncodeSDXL", clip=clip, text_g=text_g, text_l=text_l, **sizes)
    g.finish(g.sample(model, sdxl(CUBE, CAT), sdxl(BAD, BAD), g.empty()), vae, "default")
    g.save_latent(g.sample(model, sdxl(LONG, CUBE, width=512, height=768, crop_w=16, crop_h=32, target_width=640, target_height=896),
                           sdxl("", BAD, width=64, height=64), g.empty()), "sizes")
    yield g

    g, model, clip, vae, pos, neg = start("clip_skip")
    for layer in (-1, -2, -3):
        skipped = g("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer)
        g.save_latent(g.sample(model, g.text(skipped, CAT), g.text(skipped, BAD), g.empty(), steps=2), f"{-layer}")
    yield g

    g = Graph("long_weighted_prompts")
    model, clip, vae = g.model()
    g.finish(g.sample(model, g.text(clip, "(" + LONG + ":0.8), (wet)"), g.text(clip, "(worst quality:1.4), jpeg"), g.empty(64, 64, 2)), vae)
    g.save_latent(g.sample(model, g.text(clip, ""), g.text(clip, ""), g.empty(), steps=2), "empty")
    yield g

    g = Graph("embedding")
    model, clip, vae = g.model()
    g.save_latent(g.sample(model, g.text(clip, "a photo, embedding:tiny on a (table:1.3)"), g.text(clip, "(embedding:tiny:0.7)"), g.empty()))
    yield g

    g = Graph("same_conditions_twice")
    model, clip, vae = g.model()
    pos = g.text(clip, CUBE)
    g.save_latent(g.sample(model, pos, pos, g.empty()))
    yield g


def models():
    g, model, clip, vae, pos, neg = start("lora_stack")
    one = g("LoraLoader", model=model, clip=clip, lora_name="lora_tiny.safetensors", strength_model=0.8, strength_clip=0.5)
    two = g("LoraLoader", model=one[0], clip=one[1], lora_name="lora_tiny_diffusers.safetensors", strength_model=-0.4, strength_clip=1.2)
    three = g("LoraLoaderModelOnly", model=two[0], lora_name="lora_tiny.safetensors", strength_model=0.3)
    g.finish(g.sample(three, g.text(two[1], CUBE), g.text(two[1], BAD), g.empty()), vae)
    yield g

    g, model, clip, vae, pos, neg = start("lora_of_one_side")
    text = g("LoraLoader", model=model, clip=clip, lora_name="lora_tiny.safetensors", strength_model=0.0, strength_clip=1.0)
    g.save_latent(g.sample(text[0], g.text(text[1], CUBE), neg, g.empty()), "text")
    only = g("LoraLoaderModelOnly", model=model, lora_name="lora_tiny_diffusers.safetensors", strength_model=1.5)
    g.save_latent(g.sample(only, pos, neg, g.empty()), "model")
    yield g

    g, model, clip, vae, pos, neg = start("controlnet_apply")
    image, _ = g.load()
    edges = g("Canny", image=image, low_threshold=0.1, high_threshold=0.3)
    g.save(edges, "edges")
    net = g("ControlNetLoader", control_net_name="controlnet_tiny.safetensors")
    g.finish(g.sample(model, g("ControlNetApply", conditioning=pos, control_net=net, image=edges, strength=0.7), neg, g.empty()), vae)
    yield g

    g, model, clip, vae, pos, neg = start("controlnet_two")
    image, _ = g.load()
    other, _ = g.load("odd.png")
    net = g("ControlNetLoader", control_net_name="controlnet_tiny.safetensors")
    def control(conds, net, image, strength, first, last):
        return g("ControlNetApplyAdvanced", positive=conds[0], negative=conds[1], control_net=net, image=image,
                 strength=strength, start_percent=first, end_percent=last)
    one = control((pos, neg), net, g("Canny", image=image, low_threshold=0.2, high_threshold=0.5), 0.9, 0.0, 0.6)
    two = control(one, g("SetUnionControlNetType", control_net=net, type="auto"), other, 0.4, 0.3, 1.0)
    none = control(two, net, image, 0.0, 0.0, 1.0)
    g.finish(g.sample(model, none[0], none[1], g.empty(96, 64, 2), steps=4), vae)
    yield g

    g, model, clip, vae, pos, neg = start("controlnet_with_a_batch_of_hints")
    image, _ = g.load()
    net = g("ControlNetLoader", control_net_name="controlnet_tiny.safetensors")
    hints = g("ImageBatch", image1=image, image2=g("ImageInvert", image=image))
    made = g("ControlNetApplyAdvanced", positive=pos, negative=neg, control_net=net, image=hints, strength=1.0, start_percent=0.0, end_percent=1.0)
    g.save_latent(g.sample(model, made[0], made[1], g.empty(64, 64, 3)))
    yield g

    g, model, clip, vae, pos, neg = start("rescale_cfg")
    g.finish(g.sample(g("RescaleCFG", model=model, multiplier=0.7), pos, neg, g.empty(64, 64, 2), cfg=9.0), vae)
    yield g

    g, model, clip, vae, pos, neg = start("free_u")
    g.finish(g.sample(g("FreeU_V2", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2), pos, neg, g.empty(64, 64, 2)), vae)
    yield g

    g, model, clip, vae, pos, neg = start("cfg_norm")
    g.save_latent(g.sample(g("CFGNorm", model=model, strength=0.9), pos, neg, g.empty(), cfg=9.0))
    yield g

    for sampling in ("eps", "v_prediction", "lcm", "x0"):
        g, model, clip, vae, pos, neg = start("sampling_" + sampling)
        for zsnr in (False, True):
            patched = g("ModelSamplingDiscrete", model=model, sampling=sampling, zsnr=zsnr)
            g.save_latent(g.sample(patched, pos, neg, g.empty(), steps=4, sampler="lcm" if sampling == "lcm" else "euler"), "zsnr" if zsnr else "")
        yield g

    for kind, shift in (("ModelSamplingSD3", 3.0), ("ModelSamplingAuraFlow", 1.73)):
        g, model, clip, vae, pos, neg = start(kind.replace("ModelSampling", "sampling_").lower())
        g.save_latent(g.sample(g(kind, model=model, shift=shift), pos, neg, g.empty(), scheduler="simple"))
        yield g

    g, model, clip, vae, pos, neg = start("everything_at_once")
    lora = g("LoraLoader", model=model, clip=clip, lora_name="lora_tiny.safetensors", strength_model=0.6, strength_clip=0.6)
    patched = g("RescaleCFG", model=g("FreeU_V2", model=lora[0], b1=1.1, b2=1.2, s1=0.9, s2=0.4), multiplier=0.5)
    image, mask = g.load("shape.png")
    net = g("ControlNetLoader", control_net_name="controlnet_tiny.safetensors")
    regional = g("ConditioningCombine", conditioning_1=g.text(lora[1], CUBE), conditioning_2=g(
        "ConditioningSetMask", conditioning=g.text(lora[1], CAT), mask=mask, strength=0.9, set_cond_area="default"))
    conds = g("ControlNetApplyAdvanced", positive=regional, negative=g.text(lora[1], BAD), control_net=net, image=image,
              strength=0.5, start_percent=0.0, end_percent=0.8)
    low = g.sample(patched, conds[0], conds[1], g.empty(96, 64), sampler="dpmpp_2m", scheduler="karras")
    high = g("LatentUpscaleBy", samples=low, upscale_method="bicubic", scale_by=1.25)
    g.finish(g.sample(patched, conds[0], conds[1], high, sampler="euler_ancestral", denoise=0.6), vae)
    yield g

    g = Graph("split_files")
    model = g("UNETLoader", unet_name="unet_tiny.safetensors", weight_dtype="default")
    clip = g("DualCLIPLoader", clip_name1="clip_l_tiny.safetensors", clip_name2="clip_g_tiny.safetensors", type="sdxl")
    vae = g("VAELoader", vae_name="vae_tiny.safetensors")
    g.finish(g.sample(model, g.text(clip, CAT), g.text(clip, BAD), g.empty()), vae)
    yield g

    g = Graph("upscale_models")
    image, _ = g.load()
    for name in ("tiny_x4", "tiny_x2"):
        model = g("UpscaleModelLoader", model_name=name + ".safetensors")
        g.save(g("ImageUpscaleWithModel", upscale_model=model, image=image), name)
        pair = g("ImageBatch", image1=g("ImageCrop", image=image, width=33, height=21, x=5, y=3),
                 image2=g("ImageCrop", image=image, width=33, height=21, x=20, y=30))
        g.save(g("ImageUpscaleWithModel", upscale_model=model, image=pair), name + "_odd")
    yield g

    g = Graph("upscale_model_in_tiles")
    image, _ = g.load()
    wide = g("ImageScale", image=image, upscale_method="bilinear", width=600, height=24, crop="disabled")
    big = g("ImageUpscaleWithModel", upscale_model=g("UpscaleModelLoader", model_name="tiny_x2.safetensors"), image=wide)
    g.save(g("ImageScale", image=big, upscale_method="area", width=600, height=24, crop="disabled"))
    yield g

    g = Graph("vae_tiled")
    _, _, vae = g.model()
    image, _ = g.load()
    big = g("ImageScale", image=image, upscale_method="bicubic", width=152, height=104, crop="disabled")
    encoded = g("VAEEncodeTiled", pixels=big, vae=vae, tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8)
    g.save_latent(encoded)
    g.save(g("VAEDecodeTiled", samples=encoded, vae=vae, tile_size=64, overlap=32, temporal_size=64, temporal_overlap=8))
    g.save_latent(g("VAEEncodeTiled", pixels=big, vae=vae, tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8), "one_tile")
    yield g


def latents():
    g = Graph("latent_scaling")
    _, _, vae = g.model()
    image, _ = g.load()
    latent = g("VAEEncode", pixels=image, vae=vae)
    for method in LATENT_METHODS:
        for size, (width, height, crop) in {"up": (136, 104, "disabled"), "down": (56, 40, "center"), "wide": (0, 120, "disabled")}.items():
            g.save_latent(g("LatentUpscale", samples=latent, upscale_method=method, width=width, height=height, crop=crop), f"{method}_{size}")
        g.save_latent(g("LatentUpscaleBy", samples=latent, upscale_method=method, scale_by=1.3), f"{method}_by")
    yield g

    g = Graph("latent_shapes")
    _, _, vae = g.model()
    image, _ = g.load()
    big = g("ImageScale", image=image, upscale_method="bilinear", width=128, height=104, crop="disabled")
    latent = g("VAEEncode", pixels=big, vae=vae)
    for method in ("x-axis: vertically", "y-axis: horizontally"):
        g.save_latent(g("LatentFlip", samples=latent, flip_method=method), "flip_" + method[0])
    for rotation in ("none", "90 degrees", "180 degrees", "270 degrees"):
        g.save_latent(g("LatentRotate", samples=latent, rotation=rotation), "rotate_" + rotation.split()[0])
    g.save_latent(g("LatentCrop", samples=latent, width=72, height=64, x=16, y=8), "crop")
    g.save_latent(g("LatentCrop", samples=latent, width=64, height=64, x=1000, y=1000), "crop_beyond")
    flipped = g("LatentFlip", samples=latent, flip_method="x-axis: vertically")
    small = g("LatentCrop", samples=flipped, width=80, height=64, x=0, y=0)
    for feather in (0, 16):
        g.save_latent(g("LatentComposite", samples_to=latent, samples_from=small, x=64, y=48, feather=feather), f"composite_{feather}")
    g.save_latent(g("LatentBatch", samples1=latent, samples2=small), "batch")
    yield g

    g, model, clip, vae, pos, neg = start("latent_batches")
    latent = g.empty(64, 64, 4)
    part = g("LatentFromBatch", samples=latent, batch_index=1, length=2)
    g.save_latent(g.sample(model, pos, neg, part, steps=2), "part")
    again = g("RepeatLatentBatch", samples=part, amount=2)
    g.save_latent(g.sample(model, pos, neg, again, steps=2), "repeated")
    both = g("LatentBatch", samples1=part, samples2=g.empty(64, 64, 1))
    g.save_latent(g.sample(model, pos, neg, both, steps=2), "batch")
    yield g

    g, model, clip, vae, pos, neg = start("rebatched_latents")
    listed = g("RebatchLatents", latents=g.empty(64, 64, 3), batch_size=2)
    sampled = g.sample(model, pos, neg, listed, steps=2)
    g.save(g.decode(sampled, vae))
    g.save_latent(sampled)
    g.save_latent(g("RebatchLatents", latents=sampled, batch_size=3), "together")
    yield g

    g = Graph("load_latent")
    _, _, vae = g.model()
    loaded = g("LoadLatent", latent="saved.latent")
    g.save_latent(loaded)
    g.save(g.decode(loaded, vae))
    g.save_latent(g("LoadLatent", latent="old.latent"), "old")
    yield g

    g = Graph("empty_latents")
    g.save_latent(g.empty(72, 40, 2))
    g.save_latent(g("EmptySD3LatentImage", width=64, height=48, batch_size=1), "sd3")
    yield g


def images():
    for method in METHODS:
        g = Graph("image_scale_" + method.replace("-", "_"))
        image, _ = g.load()
        for size, (width, height, crop) in {
            "up": (131, 97, "disabled"), "down": (41, 23, "disabled"), "crop": (50, 90, "center"), "crop_wide": (120, 31, "center"),
            "keep": (0, 50, "disabled"), "same": (96, 64, "disabled"), "one": (1, 1, "disabled"),
        }.items():
            g.save(g("ImageScale", image=image, upscale_method=method, width=width, height=height, crop=crop), size)
        g.save(g("ImageScaleBy", image=image, upscale_method=method, scale_by=0.731), "by")
        g.save(g("ImageScaleToTotalPixels", image=image, upscale_method=method, megapixels=0.01), "pixels")
        yield g

    g = Graph("image_invert_flip_rotate")
    image, _ = g.load("odd.png")
    g.save(g("ImageInvert", image=image), "invert")
    for method in ("x-axis: vertically", "y-axis: horizontally"):
        g.save(g("ImageFlip", image=image, flip_method=method), "flip_" + method[0])
    for rotation in ("none", "90 degrees", "180 degrees", "270 degrees"):
        g.save(g("ImageRotate", image=image, rotation=rotation), "rotate_" + rotation.split()[0])
    yield g

    g = Graph("image_crop")
    image, _ = g.load("odd.png")
    for name, (width, height, x, y) in {"inside": (20, 11, 5, 7), "beyond": (100, 100, 30, 40), "outside": (8, 8, 1000, 1000), "one": (1, 1, 0, 0)}.items():
        g.save(g("ImageCrop", image=image, width=width, height=height, x=x, y=y), name)
    yield g

    g = Graph("image_pad")
    image, _ = g.load("odd.png")
    for name, (left, top, right, bottom, feathering) in {"plain": (8, 16, 0, 24, 0), "feathered": (8, 0, 16, 8, 9), "wide": (0, 8, 0, 0, 40), "none": (0, 0, 0, 0, 10)}.items():
        padded = g("ImagePadForOutpaint", image=image, left=left, top=top, right=right, bottom=bottom, feathering=feathering)
        g.save(padded[:1], name)
        g.save_mask(padded[1:], name + "_mask")
    yield g

    g = Graph("image_blend")
    image, _ = g.load()
    other, _ = g.load("odd.png")
    for mode in ("normal", "multiply", "screen", "overlay", "soft_light", "difference"):
        g.save(g("ImageBlend", image1=image, image2=other, blend_factor=0.7, blend_mode=mode), mode)
    yield g

    g = Graph("image_blur_sharpen")
    image, _ = g.load("odd.png")
    for radius, sigma in ((1, 1.0), (5, 0.3), (15, 9.5)):
        g.save(g("ImageBlur", image=image, blur_radius=radius, sigma=sigma), f"blur_{radius}")
    for radius, sigma, alpha in ((1, 1.0, 1.0), (3, 0.5, 0.0), (9, 4.0, 4.2)):
        g.save(g("ImageSharpen", image=image, sharpen_radius=radius, sigma=sigma, alpha=alpha), f"sharpen_{radius}")
    yield g

    g = Graph("image_quantize")
    image, _ = g.load("odd.png")
    for colors, dither in ((256, "none"), (5, "none"), (2, "none"), (8, "floyd-steinberg"), (6, "bayer-2"), (6, "bayer-4"), (7, "bayer-8"), (16, "bayer-16")):
        g.save(g("ImageQuantize", image=image, colors=colors, dither=dither), f"{dither}_{colors}")
    yield g

    g = Graph("image_batches")
    image, _ = g.load()
    other, _ = g.load("odd.png")
    three = g("ImageBatch", image1=g("ImageBatch", image1=image, image2=other), image2=g("EmptyImage", width=64, height=64, batch_size=1, color=0x3366CC))
    g.save(three)
    listed = g("RebatchImages", images=three, batch_size=2)
    g.save(g("ImageScaleBy", image=listed, upscale_method="area", scale_by=0.5), "listed")
    g.save(g("RebatchImages", images=listed, batch_size=8), "together")
    yield g

    g = Graph("lists_of_different_lengths")
    image, _ = g.load()
    other, _ = g.load("odd.png")
    pair = g("RebatchImages", images=g("ImageBatch", image1=image, image2=other), batch_size=1)
    three = g("RebatchImages", images=g("EmptyImage", width=48, height=32, batch_size=3, color=0x804020), batch_size=1)
    g.save(g("ImageBlend", image1=three, image2=pair, blend_factor=0.5, blend_mode="screen"))
    yield g

    g = Graph("empty_images")
    for color in (0, 0xFFFFFF, 0x12AB7F):
        g.save(g("EmptyImage", width=13, height=7, batch_size=1, color=color), f"{color:06x}")
    yield g

    g = Graph("image_masks")
    image, mask = g.load("shape.png")
    for channel in ("red", "green", "blue", "alpha"):
        g.save_mask(g("ImageToMask", image=g("JoinImageWithAlpha", image=image, alpha=mask), channel=channel), channel)
    flat = g("ImageQuantize", image=image, colors=4, dither="none")
    g.save_mask(g("ImageColorToMask", image=flat, color=0), "black")
    g.save_mask(g("ImageColorToMask", image=g("EmptyImage", width=9, height=5, batch_size=1, color=0x12AB7F), color=0x12AB7F), "colour")
    yield g

    g = Graph("alpha")
    image, mask = g.load("shape.png")
    joined = g("JoinImageWithAlpha", image=image, alpha=mask)
    g.save(joined, "joined")
    split = g("SplitImageWithAlpha", image=joined)
    g.save(split[:1], "split")
    g.save_mask(split[1:], "split_mask")
    other, small = g.load("odd.png")
    g.save(g("JoinImageWithAlpha", image=other, alpha=mask), "elsewhere_shaped")
    opaque = g("SplitImageWithAlpha", image=other)
    g.save_mask(opaque[1:], "opaque_mask")
    yield g

    g = Graph("composites")
    image, _ = g.load()
    other, _ = g.load("odd.png")
    _, mask = g.load("shape.png")
    for name, (x, y, resize, masked) in {
        "plain": (10, 5, False, False), "masked": (10, 5, False, True), "beyond": (80, 50, False, True), "resized": (0, 0, True, True),
        "outside": (500, 0, False, False),
    }.items():
        more = {"mask": mask} if masked else {}
        g.save(g("ImageCompositeMasked", destination=image, source=other, x=x, y=y, resize_source=resize, **more), name)
    yield g

    g = Graph("canny")
    image, _ = g.load()
    for low, high in ((0.01, 0.05), (0.4, 0.8), (0.1, 0.99)):
        g.save(g("Canny", image=image, low_threshold=low, high_threshold=high), f"{low}_{high}")
    yield g


def masks():
    g = Graph("mask_shapes")
    _, mask = g.load("shape.png")
    g.save_mask(mask, "alpha")
    g.save_mask(g("SolidMask", value=0.37, width=21, height=9), "solid")
    g.save_mask(g("InvertMask", mask=mask), "inverted")
    for name, (x, y, width, height) in {"inside": (7, 9, 31, 17), "beyond": (80, 50, 40, 40)}.items():
        g.save_mask(g("CropMask", mask=mask, x=x, y=y, width=width, height=height), "crop_" + name)
    for name, (left, top, right, bottom) in {"all": (9, 5, 13, 7), "wide": (200, 0, 200, 0), "none": (0, 0, 0, 0)}.items():
        g.save_mask(g("FeatherMask", mask=g("SolidMask", value=1.0, width=61, height=37), left=left, top=top, right=right, bottom=bottom), "feather_" + name)
    for expand in (4, -4):
        for tapered in (True, False):
            g.save_mask(g("GrowMask", mask=mask, expand=expand, tapered_corners=tapered), f"grow_{expand}_{tapered}")
    for value in (0.0, 0.5, 1.0):
        g.save_mask(g("ThresholdMask", mask=mask, value=value), f"threshold_{value}")
    yield g

    g = Graph("mask_composites")
    _, mask = g.load("shape.png")
    other = g("FeatherMask", mask=g("SolidMask", value=0.8, width=40, height=30), left=10, top=10, right=10, bottom=10)
    for operation in ("multiply", "add", "subtract", "and", "or", "xor"):
        g.save_mask(g("MaskComposite", destination=mask, source=other, x=30, y=20, operation=operation), operation)
    g.save_mask(g("MaskComposite", destination=mask, source=other, x=80, y=50, operation="add"), "beyond")
    yield g


def files():
    g = Graph("load_images")
    for name in ("photo.png", "shape.png", "grey.png", "grey_alpha.png", "palette.png", "palette_clear.png", "deep.png",
                 "deep_rgb.png", "bits.png", "turned.jpg", "cmyk.jpg", "photo.webp", "photo.bmp", "one.png"):
        image, mask = g.load(name)
        g.save(image, name.replace(".", "_"))
        g.save_mask(mask, name.replace(".", "_") + "_mask")
    yield g

    g = Graph("load_animated_images")
    for name in ("moving.gif", "moving.webp", "moving.png"):
        image, mask = g.load(name)
        g.save(image, name.replace(".", "_"))
    yield g

    g = Graph("load_image_masks")
    for name in ("shape.png", "grey.png", "palette_clear.png", "odd.png", "deep.png"):
        for channel in ("alpha", "red", "green", "blue"):
            g.save_mask(g("LoadImageMask", image=name, channel=channel), f"{name.split('.')[0]}_{channel}")
    yield g

    g = Graph("load_from_elsewhere")
    image, mask = g.load("sub/inner.png")
    g.save(image, "subfolder")
    image, mask = g.load("photo.png [input]")
    g.save(image, "annotated")
    yield g

    g = Graph("file_names")
    g.nodes["9"] = {"class_type": "EmptyImage", "inputs": {"width": 12, "height": 10, "batch_size": 2, "color": 255}}
    for key, prefix in {"20": "file_names/deeper/%width%x%height%", "21": "file_names_%batch_num%_x", "22": "file_names_ ünï"}.items():
        g.nodes[key] = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": prefix}, "_meta": {"title": "Save"}}
    yield g

    g = Graph("metadata", {"nodes": [{"id": 1, "title": "näme \"quoted\" \\ </script>"}], "version": 0.4, "number": 1e-7, "none": None})
    g.extra["extra_pnginfo"]["second"] = [1, 2.50, True]
    g.save(g("EmptyImage", width=8, height=8, batch_size=1, color=0x808080))
    yield g

    g = Graph("animated")
    image, _ = g.load()
    frames = g("ImageBatch", image1=g("ImageBatch", image1=image, image2=g("ImageInvert", image=image)), image2=g("ImageFlip", image=image, flip_method="x-axis: vertically"))
    for name, (lossless, quality, method, fps) in {"lossless": (True, 80, "default", 6.0), "lossy": (False, 90, "slowest", 0.5)}.items():
        g("SaveAnimatedWEBP", images=frames, filename_prefix="animated_" + name, fps=fps, lossless=lossless, quality=quality, method=method)
    yield g

    g = Graph("previews")
    image, _ = g.load()
    g("PreviewImage", images=g("ImageBatch", image1=image, image2=image))
    size = g("GetImageSize", image=image)
    for slot in range(3):
        g("PreviewAny", source=size[slot:])
    yield g

    g = Graph("primitives")
    text = g("StringConcatenate", string_a=g("PrimitiveString", value="one"), string_b=g("PrimitiveStringMultiline", value="two\nthree"), delimiter=", ")
    for source in (text, g("PrimitiveInt", value=-(2**53)), g("PrimitiveFloat", value=0.1), g("PrimitiveFloat", value=3.0),
                   g("PrimitiveFloat", value=1e17), g("PrimitiveFloat", value=1.5e-7), g("PrimitiveBoolean", value=True)):
        g("PreviewAny", source=source)
    width = g("PrimitiveInt", value=24)
    g.save(g("EmptyImage", width=width, height=g("PrimitiveInt", value=16), batch_size=1, color=g("PrimitiveInt", value=0x336699)))
    yield g

    g = Graph("numbers_as_text")
    g.save(g("EmptyImage", width="16", height=8.9, batch_size=True, color="0"))
    g.save(g("ImageScaleBy", image=g("EmptyImage", width=16, height=8, batch_size=1, color=99), upscale_method="area", scale_by="1.5"), "scaled")
    yield g


SECTIONS = (sampling, conditioning, models, latents, images, masks, files)


def all_workflows():
    """Every workflow, by sections."""
    for section in SECTIONS:
        yield from section()
