#!/usr/bin/env python3
"""Runs ComfyUI's own nodes that need no model on small pictures, masks, latents and texts, and keeps what they give.

    comfyui_nodes.py COMFYUI_FOLDER

Written to `tests/data/comfyui-nodes/`: `cases.json`, each case with its node, inputs and outputs, and
`tensors.safetensors`, the tensors that they name. ComfyUI 0.3.64 is what is matched; nothing of it is kept. Sizes are
awkward on purpose: single pixels, odd ones, batches that differ, masks of other sizes, places outside.

Pillow 13 scales columns before rows where that is faster; earlier ones, and these files, rows first.
"""

import asyncio
import importlib
import inspect
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "tests/data/comfyui-nodes"
MODULES = ["images", "mask", "post_processing", "latent", "compositing", "primitive", "string", "rebatch", "preview_any",
           "canny", "sd3"]
# What these do is copying, comparing or 8-bit arithmetic: not a bit may differ.
EXACT = {
    "EmptyImage", "ImageCrop", "ImageFlip", "ImageRotate", "ImageFromBatch", "RepeatImageBatch", "RebatchImages",
    "ImageQuantize", "ImageToMask", "ImageColorToMask", "MaskToImage", "SolidMask", "InvertMask", "ImageInvert",
    "CropMask", "GrowMask", "ThresholdMask", "SplitImageWithAlpha", "Canny", "EmptyLatentImage", "EmptySD3LatentImage",
    "LatentFromBatch", "RepeatLatentBatch", "LatentFlip", "LatentRotate", "LatentCrop", "LatentCut", "LatentConcat",
    "SetLatentNoiseMask", "RebatchLatents", "LatentBatchSeedBehavior",
}


def load(folder: str) -> dict:
    sys.path.insert(0, folder)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.install_util  # before anything else that is called utils  # noqa: F401
    import nodes

    classes = dict(nodes.NODE_CLASS_MAPPINGS)
    for name in MODULES:
        module = importlib.import_module(f"comfy_extras.nodes_{name}")
        classes.update(getattr(module, "NODE_CLASS_MAPPINGS", {}))
        if hasattr(module, "comfy_entrypoint"):
            extension = asyncio.run(module.comfy_entrypoint())
            for node in asyncio.run(extension.get_node_list()):
                classes[node.GET_SCHEMA().node_id] = node
    return classes


def rows_first() -> None:
    """Makes `Image.resize` take rows before columns, as Pillow before 13 does."""
    from PIL import Image

    original = Image.Image.resize

    def resize(image, size, resample=None, *rest, **more):
        if image.size == tuple(size):
            return image.copy()
        back = image.mode
        if back == "RGBA":
            image = image.convert("RGBa")
        image = original(image, (size[0], image.size[1]), resample, *rest, **more)
        return original(image, size, resample, *rest, **more).convert(back)

    Image.Image.resize = resize


def inputs() -> dict:
    draw = torch.Generator().manual_seed(64)
    rand = lambda *shape: torch.rand(shape, generator=draw)  # noqa: E731
    randn = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    x, y = torch.meshgrid(torch.arange(41), torch.arange(29), indexing="xy")
    scene = torch.stack([x / 40, y / 28, ((x - 20) ** 2 + (y - 14) ** 2 < 90).float() * 0.8], -1)[None].float()
    soft = (0.45 + 0.1 * rand(1, 9, 11)).clamp(0, 1)
    return {
        "dot": rand(1, 1, 1, 3),
        "small": rand(1, 7, 5, 3),
        "wide": rand(1, 4, 13, 3),
        "pair": rand(2, 6, 9, 3),
        "alpha": rand(1, 5, 8, 4),
        "scene": (scene + 0.05 * rand(1, 29, 41, 3)).clamp(0, 1),
        "colors": torch.tensor([0.0, 0.2, 1.0, 0.501, -0.3, 1.7, 0.2, 0.2, 0.2] * 2).reshape(1, 2, 3, 3),
        "mask": rand(1, 7, 5),
        "mask_dot": rand(1, 1, 1),
        "mask_wide": rand(1, 3, 12),
        "mask_pair": rand(2, 6, 9),
        "mask_soft": soft,
        "mask_hard": (rand(1, 15, 17) > 0.93).float(),
        "ones": torch.ones(1, 16, 24),
        "latent": randn(1, 4, 7, 5),
        "latent_dot": randn(1, 4, 1, 1),
        "latent_wide": randn(1, 4, 8, 10),
        "latent_pair": randn(2, 4, 7, 5),
        "latent_four": randn(4, 4, 3, 3),
        "latent_three": randn(3, 4, 7, 5),
        "latent_zeros": torch.zeros(1, 4, 5, 5),
        "latent_16": randn(1, 16, 4, 6),
        "noise_mask": rand(1, 1, 16, 24),
        "noise_mask_pair": rand(2, 1, 16, 24),
        "tiny": randn(1, 4, 2, 3),
        "tiny_pair": randn(2, 4, 2, 3),
        "tiny_three": randn(3, 4, 2, 3),
    }


def ramps() -> torch.Tensor:
    """More colors than Pillow's hash table takes; the test draws it by the same rule."""
    x, y = torch.meshgrid(torch.arange(300), torch.arange(280), indexing="xy")
    return torch.stack([x * 255 // 299, y * 255 // 279, (x * 7 + y * 13) % 256], -1)[None].float() / 255


class Image(str):
    """The name of an input that is a picture."""


class Mask(str):
    """The name of an input that is a mask."""


class Latent(dict):
    """A latent: names of tensors, and `batch_index`."""


def latent(samples: str, **more) -> Latent:
    return Latent(samples=samples, **more)


def cases():
    """(node, inputs) of every case; `every` keeps only one of so many rows of what comes out."""
    i, m = Image, Mask
    methods = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
    for method in methods:
        for image, width, height, crop in [
            ("small", 11, 4, "disabled"), ("small", 3, 9, "center"), ("pair", 5, 5, "center"), ("wide", 1, 1, "disabled"),
            ("wide", 6, 17, "center"), ("dot", 3, 2, "disabled"), ("alpha", 13, 3, "disabled"), ("alpha", 4, 9, "center"),
            ("small", 5, 7, "disabled"), ("alpha", 8, 5, "center"), ("small", 0, 20, "disabled"), ("pair", 3, 0, "center"),
            ("small", 0, 0, "center"), ("scene", 17, 23, "center"),
        ]:
            yield "ImageScale", dict(image=i(image), upscale_method=method, width=width, height=height, crop=crop)
        for image, by in [("small", 1.5), ("pair", 0.5), ("dot", 7.9), ("alpha", 0.33)]:
            yield "ImageScaleBy", dict(image=i(image), upscale_method=method, scale_by=by)
        yield "ImageScaleToMaxDimension", dict(image=i("small"), upscale_method=method, largest_size=10)
        yield "ImageScaleToMaxDimension", dict(image=i("wide"), upscale_method=method, largest_size=6)
        yield "ResizeAndPadImage", dict(image=i("wide"), target_width=9, target_height=8, padding_color="white", interpolation=method)
        yield "ResizeAndPadImage", dict(image=i("pair"), target_width=20, target_height=7, padding_color="black", interpolation=method)
    for image in ("small", "wide"):
        yield "ImageScaleToTotalPixels", dict(image=i(image), upscale_method="bilinear", megapixels=0.01, every=40)
    yield "EmptyImage", dict(width=3, height=2, batch_size=2, color=0x1280FF)
    for image in ("small", "alpha"):
        yield "ImageInvert", dict(image=i(image))
    for first, second in [("small", "pair"), ("pair", "small"), ("pair", "pair"), ("dot", "wide")]:
        yield "ImageBatch", dict(image1=i(first), image2=i(second))
        for mode in ("normal", "multiply", "screen", "overlay", "soft_light", "difference"):
            if (first, second) != ("pair", "small"):
                yield "ImageBlend", dict(image1=i(first), image2=i(second), blend_factor=0.7, blend_mode=mode)
    yield "ImageBlend", dict(image1=i("small"), image2=i("alpha"), blend_factor=0.5, blend_mode="normal")
    for left, top, right, bottom, feathering in [(2, 0, 3, 1, 2), (0, 0, 0, 8, 5), (0, 0, 0, 0, 1), (8, 8, 8, 8, 0), (1, 0, 0, 0, 40)]:
        for image in ("pair", "alpha") if left in (1, 8) or top == bottom == right else ("scene",):
            yield "ImagePadForOutpaint", dict(image=i(image), left=left, top=top, right=right, bottom=bottom, feathering=feathering)
    for x, y, width, height in [(0, 0, 3, 3), (4, 6, 9, 9), (99, 2, 2, 2), (1, 99, 100, 1)]:
        yield "ImageCrop", dict(image=i("small"), x=x, y=y, width=width, height=height)
        yield "ImageCrop", dict(image=i("pair"), x=x, y=y, width=width, height=height)
    for rotation in ("none", "90 degrees", "180 degrees", "270 degrees"):
        yield "ImageRotate", dict(image=i("pair"), rotation=rotation)
        yield "LatentRotate", dict(samples=latent("latent_pair", noise_mask="noise_mask"), rotation=rotation)
    for method in ("x-axis: vertically", "y-axis: horizontally"):
        yield "ImageFlip", dict(image=i("alpha"), flip_method=method)
        yield "LatentFlip", dict(samples=latent("latent_pair"), flip_method=method)
    for radius, sigma in [(1, 1.0), (3, 0.5), (5, 10.0)]:
        yield "ImageBlur", dict(image=i("pair"), blur_radius=radius, sigma=sigma)
        for alpha in (0.0, 0.5, 5.0):
            yield "ImageSharpen", dict(image=i("pair"), sharpen_radius=radius, sigma=sigma, alpha=alpha)
    yield "ImageBlur", dict(image=i("alpha"), blur_radius=2, sigma=1.0)
    yield "ImageBlur", dict(image=i("scene"), blur_radius=28, sigma=0.4)
    for dither in ("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"):
        for colors in (1, 2, 5, 16, 256):
            yield "ImageQuantize", dict(image=i("scene"), colors=colors, dither=dither)
        yield "ImageQuantize", dict(image=i("pair"), colors=4, dither=dither)
        yield "ImageQuantize", dict(image=i("dot"), colors=256, dither=dither)
    yield "ImageQuantize", dict(image=i("ramps"), colors=200, dither="none", every=19)
    yield "ImageQuantize", dict(image=i("ramps"), colors=9, dither="floyd-steinberg", every=19)
    for low, high in [(0.4, 0.8), (0.05, 0.1), (0.3, 0.3)]:
        yield "Canny", dict(image=i("scene"), low_threshold=low, high_threshold=high)
        yield "Canny", dict(image=i("pair"), low_threshold=low, high_threshold=high)
    for channel in ("red", "green", "blue", "alpha"):
        yield "ImageToMask", dict(image=i("alpha"), channel=channel)
    for color in (0x333333, 0x0033FF, 0x8000FF, 0):
        yield "ImageColorToMask", dict(image=i("colors"), color=color)
    for mask in ("mask", "mask_pair", "mask_dot"):
        yield "MaskToImage", dict(mask=m(mask))
        yield "InvertMask", dict(mask=m(mask))
        yield "ThresholdMask", dict(mask=m(mask), value=0.4)
        for place in [(0, 0, 3, 2), (0, 0, 100, 100)]:
            yield "CropMask", dict(mask=m(mask)) | dict(zip(("x", "y", "width", "height"), place))
        for sides in [(0, 0, 0, 0), (3, 0, 0, 0), (0, 0, 2, 0), (1, 2, 3, 4), (100, 100, 100, 100)]:
            yield "FeatherMask", dict(mask=m(mask)) | dict(zip(("left", "top", "right", "bottom"), sides))
    yield "SolidMask", dict(value=0.37, width=4, height=3)
    for expand in (-2, -1, 0, 1, 3, 40):
        for tapered in (True, False):
            for mask in ("mask_hard", "mask_pair"):
                yield "GrowMask", dict(mask=m(mask), expand=expand, tapered_corners=tapered)
    for operation in ("multiply", "add", "subtract", "and", "or", "xor"):
        for to, source, x, y in [("mask", "mask_wide", 1, 5), ("mask_pair", "mask", 4, 0), ("mask_pair", "mask_pair", 0, 2), ("mask", "mask", 5, 7)]:
            yield "MaskComposite", dict(destination=m(to), source=m(source), x=x, y=y, operation=operation)
    for image, alpha in [("small", "mask_wide"), ("pair", "mask_pair"), ("pair", "mask"), ("alpha", "mask_dot"), ("small", "mask_pair")]:
        yield "JoinImageWithAlpha", dict(image=i(image), alpha=m(alpha))
    for image in ("alpha", "pair"):
        yield "SplitImageWithAlpha", dict(image=i(image))
    for resize in (False, True):
        for to, source, x, y in [("pair", "small", 2, 1), ("small", "pair", 3, 6), ("pair", "pair", 0, 0), ("small", "wide", 5, 0), ("small", "wide", 99, 99), ("small", "alpha", 0, 3)]:
            yield "ImageCompositeMasked", dict(destination=i(to), source=i(source), x=x, y=y, resize_source=resize)
            for mask in ("mask", "mask_pair", "mask_dot"):
                yield "ImageCompositeMasked", dict(destination=i(to), source=i(source), x=x, y=y, resize_source=resize, mask=m(mask))
    for batch_index, length in [(0, 1), (1, 5), (9, 1)]:
        yield "ImageFromBatch", dict(image=i("pair"), batch_index=batch_index, length=length)
        for samples in [latent("latent_three"), latent("latent_three", noise_mask="noise_mask_pair", batch_index=[4, 0, 7]), latent("latent_pair", noise_mask="noise_mask")]:
            yield "LatentFromBatch", dict(samples=samples, batch_index=batch_index, length=length)
    yield "RepeatImageBatch", dict(image=i("pair"), amount=3)
    for samples in [latent("latent_pair"), latent("latent_pair", noise_mask="noise_mask_pair", batch_index=[5, 2]), latent("latent", noise_mask="noise_mask")]:
        yield "RepeatLatentBatch", dict(samples=samples, amount=3)
        for behavior in ("random", "fixed"):
            yield "LatentBatchSeedBehavior", dict(samples=samples, seed_behavior=behavior)
    yield "RebatchImages", dict(images=[i("pair"), i("pair"), i("pair")], batch_size=[4])
    yield "RebatchImages", dict(images=[i("small")], batch_size=[4])
    plain, masked = latent("tiny_three"), latent("tiny_pair", noise_mask="noise_mask_pair", batch_index=[9, 9])
    for size in (1, 2, 4):
        yield "RebatchLatents", dict(latents=[plain, masked], batch_size=[size])
        yield "RebatchLatents", dict(latents=[plain, latent("latent_wide"), latent("latent_dot"), plain], batch_size=[size])
        yield "RebatchLatents", dict(latents=[latent("tiny_three", noise_mask="noise_mask")], batch_size=[size])
    yield "RebatchLatents", dict(latents=[latent("tiny", noise_mask="ones_mask")], batch_size=[1])
    for image in ("pair", "dot"):
        yield "GetImageSize", dict(image=i(image))
    directions = ["right", "down", "left", "up"]
    for direction in directions:
        for color, match, spacing in [("white", True, 0), ("red", False, 3), ("white", False, 2), ("blue", True, 4)]:
            yield "ImageStitch", dict(image1=i("small"), image2=i("pair"), direction=direction, match_image_size=match, spacing_width=spacing, spacing_color=color)
        yield "ImageStitch", dict(image1=i("small"), image2=i("alpha"), direction=direction, match_image_size=True, spacing_width=2, spacing_color="green")
    yield "ImageStitch", dict(image1=i("small"), direction="up", match_image_size=True, spacing_width=2, spacing_color="green")

    yield "EmptyLatentImage", dict(width=64, height=40, batch_size=2)
    yield "EmptySD3LatentImage", dict(width=32, height=48, batch_size=1)
    for method in ("nearest-exact", "bilinear", "area", "bicubic", "bislerp"):
        for samples in ("latent", "latent_pair", "latent_wide", "latent_dot", "latent_zeros", "latent_16"):
            for by in (1.5, 0.5, 1.0) if samples != "latent_16" else (1.3,):
                if by > 0.6 or samples != "latent_dot":
                    yield "LatentUpscaleBy", dict(samples=latent(samples), upscale_method=method, scale_by=by)
            for width, height, crop in [(88, 72, "center"), (0, 80, "disabled"), (72, 0, "center"), (0, 0, "center"), (8, 136, "disabled")]:
                if samples in ("latent", "latent_wide"):
                    yield "LatentUpscale", dict(samples=latent(samples), upscale_method=method, width=width, height=height, crop=crop)
    for samples in ("latent_wide", "latent", "latent_pair"):
        for x, y, width, height in [(0, 0, 64, 64), (16, 0, 72, 64), (999, 999, 64, 64)]:
            yield "LatentCrop", dict(samples=latent(samples), x=x, y=y, width=width, height=height)
        for dim in ("x", "y", "t"):
            for index, amount in [(0, 1), (2, 99), (-2, 1), (-99, 2), (99, 1)]:
                yield "LatentCut", dict(samples=latent(samples), dim=dim, index=index, amount=amount)
    for first, second in [("latent", "latent"), ("latent_pair", "latent"), ("latent", "latent_three"), ("latent_pair", "latent_wide"), ("latent_four", "latent_four"), ("latent", "latent_dot")]:
        one, two = latent(first, noise_mask="noise_mask"), latent(second, batch_index=[3, 1, 2])
        single = first == "latent"
        yield "LatentBatch", dict(samples1=one, samples2=two)
        for node in ("LatentAdd", "LatentSubtract"):
            yield node, dict(samples1=one, samples2=two)
        if (first, second) != ("latent_pair", "latent_wide"):
            yield "LatentBlend", dict(samples1=one, samples2=two, blend_factor=0.3)
        if single or first == "latent_four":
            for ratio in (0.0, 0.4, 1.0):
                yield "LatentInterpolate", dict(samples1=one, samples2=two, ratio=ratio)
        for x, y, feather in [(0, 0, 0), (8, 16, 0), (16, 8, 16), (0, 8, 24), (8, 0, 96)]:
            if (first, second) != ("latent", "latent_three"):
                yield "LatentComposite", dict(samples_to=one, samples_from=two, x=x, y=y, feather=feather)
            for mask in ({}, {"mask": m("mask_pair")}) if x else ({}, {"mask": m("mask_wide")}):
                yield "LatentCompositeMasked", dict(destination=one, source=two, x=x, y=y, resize_source=feather == 24) | mask
    yield "LatentInterpolate", dict(samples1=latent("latent_zeros"), samples2=latent("latent_zeros"), ratio=0.5)
    yield "LatentMultiply", dict(samples=latent("latent_16"), multiplier=-1.7)
    for dim in ("x", "-x", "y", "-y", "t", "-t"):
        yield "LatentConcat", dict(samples1=latent("latent_pair"), samples2=latent("latent"), dim=dim)
    for mask in ("mask", "mask_pair"):
        yield "SetLatentNoiseMask", dict(samples=latent("latent_pair", batch_index=[1, 2]), mask=m(mask))

    for node, value in [("PrimitiveInt", -(2**62)), ("PrimitiveFloat", 0.1), ("PrimitiveString", "a\nb"), ("PrimitiveStringMultiline", ""), ("PrimitiveBoolean", True)]:
        yield node, dict(value=value)
    for value in ["text", "", 3, -0.0, 1e16, 1e-5, 2.0, 123456.789, True, False]:
        yield "PreviewAny", dict(source=value)
    yield from texts()


def texts():
    samples = ["", "Hello World", "  mixed\tCASE text\n ", "straße ΣΑΣ Σ ǆ ﬁn İ", "it's o'neill's 3rd-rate x2y", "\x1c a\u00a0\u3000", "日本語 テスト"]
    for text in samples:
        for mode in ("UPPERCASE", "lowercase", "Capitalize", "Title Case"):
            yield "CaseConverter", dict(string=text, mode=mode)
        for mode in ("Both", "Left", "Right"):
            yield "StringTrim", dict(string=text, mode=mode)
        for start, end in [(0, 3), (-4, -1), (2, 100), (5, 2), (-100, 100)]:
            yield "StringSubstring", dict(string=text, start=start, end=end)
        yield "StringLength", dict(string=text)
        for find, replace in [("", "-"), ("s", "zz"), ("o W", ""), ("Σ", "S")]:
            yield "StringReplace", dict(string=text, find=find, replace=replace)
        for part in ("", "WORLD", "σ", "text") if text else ("", "x"):
            for sensitive in (True, False):
                yield "StringContains", dict(string=text, substring=part, case_sensitive=sensitive)
                for mode in ("Starts With", "Ends With", "Equal"):
                    yield "StringCompare", dict(string_a=text, string_b=part, mode=mode, case_sensitive=sensitive)
    yield "StringConcatenate", dict(string_a="a", string_b="", delimiter=", ")
    text = "The cat sat on the mat.\nA cat's hat: 12,345.67 [x] {y} é É\n"
    patterns = [
        r"cat", r"(\w)at", r"^a", r"t\.$", r"\Z", r"\A\w", r"$", r"x*", r"(?P<first>[a-z]+) (?P=first)?", r"[[x\]]", r"\d{,2}", r"\d{2,3}",
        r"{y}", r"(?<=the )\w+", r"(?<!c)at\b", r"(c)(a)(t)", r"(a)|(t)", r"[^\W\d_]+", r".+", r"é", r"[&&~~]", r"(", r"\q", r"\x41", r"\u00e9",
        r"(?i)THE", r"a{2", r"[\d.,]+", r"\$", r"\<", r"[\b]", r"(?#note)cat", r"(c)?(?(1)at|mat)", r"hat: *",
    ]
    for pattern in patterns:
        for insensitive, multiline, dotall in [(True, False, False), (False, True, True)]:
            flags = dict(case_insensitive=insensitive, multiline=multiline, dotall=dotall)
            given = dict(string=text, regex_pattern=pattern) | flags
            yield "RegexMatch", given
            for mode in ("First Match", "All Groups") if dotall else ("First Match", "All Matches", "First Group", "All Groups"):
                if (pattern, mode) not in {(r"(a)|(t)", "First Group"), (r"(a)|(t)", "All Groups"), (r"(c)?(?(1)at|mat)", "First Group"), (r"(c)?(?(1)at|mat)", "All Groups")}:
                    yield "RegexExtract", given | dict(mode=mode, group_index=1)
            if pattern not in ("(", r"\q"):
                yield "RegexReplace", given | dict(replace=r"<\g<0>>", count=0)
            if pattern not in ("(", r"\q") and not dotall:
                yield "RegexReplace", given | dict(replace=r"\n", count=2)
    yield "RegexExtract", dict(string=text, regex_pattern=r"(c)(a)(t)", mode="All Groups", group_index=2, case_insensitive=True, multiline=False, dotall=False)
    yield "RegexExtract", dict(string=text, regex_pattern=r"(c)(a)(t)", mode="First Group", group_index=9, case_insensitive=True, multiline=False, dotall=False)
    yield "RegexExtract", dict(string=text, regex_pattern=r"(c)(a)(t)", mode="First Group", group_index=0, case_insensitive=True, multiline=False, dotall=False)
    for replace in (r"\1\2", r"\g<2>\g<1>", r"\g<b>0", r"\\1", r"\t|\x"[:3], "$1"):
        pattern = r"(c)(?P<b>a)"
        yield "RegexReplace", dict(string=text, regex_pattern=pattern, replace=replace, case_insensitive=True, multiline=False, dotall=False, count=0)


def main() -> None:
    torch.set_num_threads(1)
    classes = load(sys.argv[1])
    rows_first()
    pool = inputs()
    tensors: dict = dict(pool)
    pool["ramps"] = ramps()
    pool["ones_mask"] = tensors["ones_mask"] = pool.pop("ones")[:, None]
    del tensors["ones"]

    def keep(tensor: torch.Tensor, every: int) -> str:
        tensor = tensor.detach().contiguous().float()
        if every > 1:
            tensor = tensor[:, ::every].contiguous()
        # What is eight bits is kept as eight bits.
        bytes_of = (tensor * 255).round().clamp(0, 255).to(torch.uint8)
        if torch.equal(bytes_of.float() / 255, tensor):
            tensor = bytes_of
        for name, other in tensors.items():
            if other.shape == tensor.shape and other.dtype == tensor.dtype and torch.equal(other, tensor):
                return name
        name = f"out.{len(tensors)}"
        tensors[name] = tensor.clone()
        return name

    def given(value):
        if isinstance(value, (Image, Mask)):
            return pool[value].clone()
        if isinstance(value, Latent):
            return {k: pool[v].clone() if isinstance(v, str) else list(v) for k, v in value.items()}
        return [given(item) for item in value] if isinstance(value, list) else value

    def told(value):
        if isinstance(value, Image):
            return {"image": value}
        if isinstance(value, Mask):
            return {"mask": value}
        if isinstance(value, Latent):
            return {"latent": value}
        return {"list": [told(item) for item in value]} if isinstance(value, list) else value

    def found(value, every: int):
        if isinstance(value, dict):
            kept = {k: keep(v, every) if torch.is_tensor(v) else v for k, v in value.items()}
            return {"latent": kept}
        if torch.is_tensor(value):
            return {"image" if value.dim() == 4 else "mask": keep(value, every)}
        return {"list": [found(item, every) for item in value]} if isinstance(value, list) else value

    records = []
    for node, arguments in cases():
        every = arguments.pop("every", 1)
        cls = classes[node]
        call = {name: given(value) for name, value in arguments.items()}
        if hasattr(cls, "define_schema"):
            result = cls.execute(**call)
            out, ui = result.result, None
        else:
            out = getattr(cls(), cls.FUNCTION)(**call)
            ui = out["ui"] if isinstance(out, dict) else None
            out = () if isinstance(out, dict) else out
        record = {"node": node, "inputs": {name: told(value) for name, value in arguments.items()}}
        record["outputs"] = [found(value, every) for value in out]
        lanczos = "lanczos" in arguments.values()
        nearest = "nearest-exact" in arguments.values()
        if node in EXACT or lanczos or nearest:
            record["exact"] = True
        if every > 1:
            record["every"] = every
        if ui is not None:
            record["ui"] = ui
        records.append(record)

    OUT.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
    (OUT / "cases.json").write_text(f"[\n{lines}\n]\n")
    save_file(tensors, OUT / "tensors.safetensors")
    (OUT / "tensors.safetensors").chmod(0o644)
    nodes = {record["node"] for record in records}
    print(f"{len(records)} cases of {len(nodes)} nodes, {len(tensors)} tensors")


if __name__ == "__main__":
    main()
