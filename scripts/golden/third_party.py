"""Golden files of extensions' arithmetic: where Impact Pack cuts out what a detector found and at which size it is drawn
anew, and how Ultimate SD Upscale takes pictures apart and puts them together again. Wants the extensions themselves:

    third_party.py IMPACT_PACK IMPACT_SUBPACK ULTIMATE_UPSCALE SCRIPT

folders of the first three, and the script of the fourth (ultimate-upscale.py), which is a repository of its own. Of
Impact Pack single functions are run; nothing of any of them is kept."""

import ast
import enum
import importlib.util
import json
import logging
import math
import pathlib
import random
import sys
import types

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "third_party"


def functions(path, names, scope):
    """Functions of a file, without the file's own imports."""
    tree = ast.parse(path.read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in wanted} == set(names), names
    exec(compile(ast.Module(wanted, []), str(path), "exec"), scope)


def sizing(path):
    """The part of `enhance_detail` that works out sizes, as a function of its own."""
    tree = ast.parse(path.read_text())
    whole = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "enhance_detail")

    def is_assignment(node, name):
        return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name

    first = next(i for i, node in enumerate(whole.body) if is_assignment(node, "h"))
    last = next(i for i, node in enumerate(whole.body) if is_assignment(node, "upscaled_image"))
    names = "image, model, guide_size, guide_size_for_bbox, max_size, bbox, force_inpaint, detailer_hook"
    module = ast.parse(f"def sizes({names}):\n    return new_w, new_h")
    module.body[0].body[:0] = whole.body[first:last]
    scope = {"print": lambda *_: None}
    exec(compile(module, str(path), "exec"), scope)
    return scope["sizes"]


def impact(pack, subpack):
    utils = {"np": np, "cv2": cv2, "torch": torch, "use_gpu_opencv": lambda: False}
    names = ["make_crop_region", "normalize_region", "dilate_masks", "crop_ndarray2"]
    functions(pack / "modules/impact/utils.py", names, utils)
    sizes = sizing(pack / "modules/impact/core.py")
    scope = {"np": np, "cv2": cv2, "Image": Image}
    functions(subpack / "modules/subcore.py", ["inference_bbox", "create_segmasks"], scope)
    rng = random.Random(90)
    cases = []
    for i in range(240):
        width, height = rng.randrange(48, 400), rng.randrange(48, 400)
        # Whole numbers too, where edges meet.
        edge = (lambda high: float(rng.randrange(high))) if i % 3 == 0 else (lambda high: rng.uniform(0, high))
        x, y = sorted(edge(width) for _ in range(2)), sorted(edge(height) for _ in range(2))
        box = np.array([x[0], y[0], x[1], y[1]], np.float32)
        found = types.SimpleNamespace(
            boxes=type(
                "Boxes",
                (),
                {
                    "xyxy": torch.from_numpy(box[None]),
                    "__getitem__": lambda self, _: types.SimpleNamespace(cls=torch.tensor(0.0), conf=torch.tensor(0.9)),
                },
            )(),
            names={0: "face"},
        )
        results = scope["inference_bbox"](lambda *_, **__: [found], Image.new("RGB", (width, height)), 0.5)
        masks = scope["create_segmasks"](results)
        dilation = rng.choice([0, 10, 10, 7, 30, 1, -5])
        if dilation > 0:
            masks = utils["dilate_masks"](masks, dilation)
        case = {
            "width": width,
            "height": height,
            "box": [float(value) for value in box],
            "dilation": dilation,
            "factor": rng.choice([1.0, 1.5, 2.3, 3.0, 3.0, 7.1]),
            "drop_size": rng.choice([1, 10, 10, 40]),
            "guide_size": rng.choice([64.0, 256.0, 512.0, 512.0, 768.0, 100.5]),
            "for_box": rng.random() < 0.6,
            "max_size": rng.choice([256.0, 768.0, 1024.0, 1024.0]),
            "force_inpaint": rng.random() < 0.6,
            "region": None,
            "painted": 0,
            "first": None,
            "size": None,
        }
        cases.append(case)
        item_box, mask, _ = masks[0]
        a, b, c, d = item_box
        if not (d - b > case["drop_size"] and c - a > case["drop_size"]):
            continue
        region = utils["make_crop_region"](width, height, item_box, case["factor"])
        cropped = utils["crop_ndarray2"](mask, region)
        if cropped.size == 0:
            continue
        painted = np.flatnonzero(cropped)
        image = types.SimpleNamespace(shape=(1, region[3] - region[1], region[2] - region[0], 3))
        model = types.SimpleNamespace(model_options={})
        size = sizes(
            image, model, case["guide_size"], case["for_box"], case["max_size"], item_box, case["force_inpaint"], None
        )
        case |= {
            "region": [int(value) for value in region],
            "painted": int(painted.size),
            "first": int(painted[0]) if painted.size else None,
            "size": None if size[0] is None else [int(value) for value in size],
        }
    assert sum(case["region"] is not None for case in cases) > 120
    assert sum(case["size"] is None and case["region"] is not None for case in cases) > 5
    (OUT / "impact.json").write_text(json.dumps({"segments": cases}) + "\n")


def ultimate(folder, script):
    """The extension with ComfyUI replaced: what is encoded has sides that are multiples of eight, what is sampled is
    inverted, and decoding does nothing."""

    def encode(_, vae, pixels):
        height, width = (side // 8 * 8 for side in pixels.shape[1:3])
        top, left = ((side - side // 8 * 8) // 2 for side in pixels.shape[1:3])
        return (pixels[:, top : top + height, left : left + width],)

    counts = {"steps": 0}

    def sampled(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=1.0):
        counts["steps"] += 1
        # Between two levels, so that cutting to eight bits gives the level itself.
        return ((((1 - latent) * 255).round() + 0.25) / 255,)

    def stub(name, **members):
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
        return module

    class Models(enum.Enum):
        pass

    coder = lambda method: type("Coder", (), {method: encode if method == "encode" else lambda _, vae, x, *__: (x,)})
    stub("nodes", common_ksampler=sampled, VAEEncode=coder("encode"), VAEDecode=coder("decode"), VAEDecodeTiled=coder("decode"))
    stub("comfy", utils=stub("comfy.utils", PROGRESS_BAR_ENABLED=False))
    sys.modules["comfy"].samplers = types.SimpleNamespace(KSampler=types.SimpleNamespace(SAMPLERS=[], SCHEDULERS=[]))
    stub("comfy_extras")
    stub("comfy_extras.nodes_custom_sampler", SamplerCustom=object)
    stub("comfy_extras.nodes_upscale_model", ImageUpscaleWithModel=object)
    import contextlib

    stub("crop_model_patch", crop_model_cond=lambda model, *_: contextlib.nullcontext(model))
    stub("gradio")
    sys.path.insert(0, str(folder))
    import modules.devices
    import modules.images
    import modules.processing
    import modules.scripts
    import modules.shared as shared
    import modules.upscaler

    sys.modules["modules"].__dict__.update(shared=shared)
    shared.opts, shared.state = shared.Options(), shared.State()
    spec = importlib.util.spec_from_file_location("ultimate_upscale", script)
    upscale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upscale)
    stub("repositories", ultimate_upscale=upscale)
    import usdu_nodes

    logging.disable(logging.CRITICAL)
    upscale.print = lambda *_: None
    # Sides of pictures are multiples of eight already, so that they are only taken apart and put together.
    cases = {
        "linear": dict(size=(104, 88), tile=(64, 64), padding=32, mask_blur=8),
        "chess": dict(size=(136, 88), tile=(64, 72), padding=16, mask_blur=4, mode=1),
        "own_sizes": dict(size=(96, 104), tile=(64, 64), padding=24, mask_blur=3, uniform=False),
        "hard": dict(size=(128, 72), tile=(64, 64), padding=0, mask_blur=0),
        "batch": dict(size=(88, 80), tile=(64, 64), padding=16, mask_blur=5, batch=2, count=2),
        "batch_chess": dict(size=(136, 80), tile=(64, 64), padding=16, mask_blur=5, batch=3, mode=1),
        "bands": dict(size=(104, 88), tile=(64, 64), mode=2, seam_fix=1, seam_width=32, seam_padding=16),
        "half_tiles": dict(size=(104, 120), tile=(64, 64), mode=2, seam_fix=2, seam_blur=6, seam_padding=16),
        "corners": dict(size=(104, 112), tile=(64, 72), mode=2, seam_fix=3, seam_blur=2, seam_padding=8),
        "all": dict(size=(120, 104), tile=(80, 64), padding=32, mask_blur=8, seam_fix=3, seam_blur=8, seam_padding=16),
    }
    generator = torch.Generator().manual_seed(91)
    settings, tensors = {}, {}
    for name, case in cases.items():
        case = dict(mode=0, padding=0, mask_blur=0, seam_fix=0, seam_width=0, seam_blur=0, seam_padding=0) | case
        case = dict(uniform=True, batch=1, count=1) | case
        width, height = case.pop("size")
        small = torch.rand((case.pop("count"), 3, height // 16 + 2, width // 16 + 2), generator=generator)
        pictures = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
        pictures = (pictures.permute(0, 2, 3, 1) * 255).floor() / 255
        tile_width, tile_height = case.pop("tile")
        counts["steps"] = 0
        result = usdu_nodes.UltimateSDUpscaleNoUpscale().upscale(
            (pictures * 255 + 0.25) / 255, None, [], [], None, 0, 1, 1.0, "euler", "normal", 0.2,
            list(usdu_nodes.MODES)[case["mode"]], tile_width, tile_height, case["mask_blur"], case["padding"],
            list(usdu_nodes.SEAM_FIX_MODES)[case["seam_fix"]], 1.0, case["seam_blur"], case["seam_width"],
            case["seam_padding"], case["uniform"], False, case["batch"],
        )[0]
        settings[name] = case | {"tile_width": tile_width, "tile_height": tile_height, "steps": counts["steps"]}
        tensors[f"{name}.input"] = (pictures * 255).round().to(torch.uint8).contiguous()
        tensors[f"{name}.result"] = (result * 255).round().to(torch.uint8)
        assert (tensors[f"{name}.input"] != tensors[f"{name}.result"]).float().mean() > 0.1, name
    (OUT / "ultimate.json").write_text(json.dumps(settings) + "\n")
    save_file(tensors, OUT / "ultimate.safetensors")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    pack, subpack, folder, script = (pathlib.Path(path).resolve() for path in sys.argv[1:])
    impact(pack, subpack)
    ultimate(folder, script)
