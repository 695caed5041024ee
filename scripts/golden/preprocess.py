#!/usr/bin/env python3
"""Makes the golden files of `darkroom preprocess` in `pipelines/tests/golden`.

- `canny.safetensors`: edges of formula-made pictures (`PICTURES`, made again in `pipelines/tests/preprocess.rs`), one
  bit a pixel: `NAME.kornia`, what `kornia.filters.canny` finds, which is what ComfyUI's Canny node calls, and
  `NAME.cv2`, `NAME.cv2_l2`, what `cv2.Canny` finds. With `--recorded FOLDER`, also a recording of the node in ComfyUI
  0.3.64: `comfyui.image`, `comfyui.edges`.
- `openpose.safetensors`: skeletons as `controlnet_aux` draws them, one byte a pixel that counts colours in
  `NAME.palette`; `people` is of `openpose_people.json`, which is made too, `waving` of the preset.
- `resize.safetensors`: some of them scaled as ComfyUI's `common_upscale` does, 8 or 16 bits a value.

Wants the packages of requirements.txt and, without its dependencies, controlnet_aux, of which one file is used:
`pip install --no-deps controlnet_aux==0.0.10`.
"""

import argparse
import collections
import importlib.util
import json
import sys
import tomllib
import types
from pathlib import Path

import cv2
import kornia
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

OUT = Path(__file__).resolve().parents[2] / "pipelines" / "tests" / "golden"

# name, kind, width, height, seed; the same list is in pipelines/tests/preprocess.rs
PICTURES = [
    ("noise", "noise", 64, 48, 1),
    ("noise_8", "noise", 8, 8, 2),
    ("noise_odd", "noise", 37, 53, 3),
    ("noise_large", "noise", 160, 144, 4),
    ("ramp_x", "ramp_x", 96, 32, 0),
    ("ramp_y", "ramp_y", 31, 90, 0),
    ("ramp_colours", "ramp_colours", 77, 61, 0),
    ("flat", "flat", 40, 40, 5),
    ("flat_black", "flat", 16, 16, 0),
    ("shapes", "shapes", 128, 128, 6),
    ("shapes_odd", "shapes", 101, 75, 7),
    ("shapes_8", "shapes", 8, 8, 8),
    ("shapes_wide", "shapes", 400, 24, 9),
    ("shapes_tall", "shapes", 19, 260, 10),
    ("soft", "soft", 128, 128, 11),
    ("soft_odd", "soft", 99, 131, 12),
    ("soft_large", "soft", 256, 192, 13),
    ("photo", "photo", 128, 160, 14),
    ("photo_odd", "photo", 143, 89, 15),
    ("photo_large", "photo", 224, 256, 16),
    ("photo_wide", "photo", 512, 40, 17),
    ("stripes", "stripes", 60, 60, 3),
    ("stripes_thin", "stripes", 45, 47, 1),
    ("checks", "checks", 64, 64, 8),
    ("checks_small", "checks", 50, 41, 3),
    ("narrow", "noise", 3, 40, 18),
]
# low and high of each reference
KORNIA = (0.2, 0.5)
CV2 = (100, 200)


def noise(x, y, c, seed):
    """A hash of whole numbers, 0..255."""
    mask = 0xFFFFFFFF
    h = (x * 374761393 + y * 668265263 + c * 974634541 + seed * 1442695041) & mask
    h = ((h ^ (h >> 13)) * 1274126177) & mask
    h = ((h ^ (h >> 16)) * 2246822519) & mask
    return (h >> 15) & 255


def smooth_noise(x, y, c, seed, cell):
    """`noise` at the corners of cells, blended between them."""
    i, j, u, v = x // cell, y // cell, x % cell, y % cell
    top = noise(i, j, c, seed) * (cell - u) + noise(i + 1, j, c, seed) * u
    bottom = noise(i, j + 1, c, seed) * (cell - u) + noise(i + 1, j + 1, c, seed) * u
    return (top * (cell - v) + bottom * v) // (cell * cell)


def shapes(x, y, c, seed, w, h):
    """Discs, a box and a slanted band on a flat ground, in coordinates 16 times finer than pixels."""
    value = np.full(x.shape, 200 + 10 * c, dtype=np.int64)
    band = (x + 2 * y) % (16 * 50) < 16 * 9
    value = np.where(band, 150 - 40 * c, value)
    box = (x > w * 16 // 8) & (x < w * 16 // 3) & (y > h * 16 // 5) & (y < h * 16 * 4 // 5)
    value = np.where(box, 60 + 50 * c, value)
    for disc in range(4):
        cx = noise(disc, 0, 0, seed) * w * 16 // 256
        cy = noise(disc, 1, 0, seed) * h * 16 // 256
        r = 16 * min(w, h) // 8 + noise(disc, 2, 0, seed) * min(w, h) * 16 // 1024
        inside = (x - cx) * (x - cx) + (y - cy) * (y - cy) < r * r
        value = np.where(inside, noise(disc, 3, c, seed), value)
    return value


def picture(kind, w, h, seed):
    """`[h, w, 3]`, 8 bits."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    y, x, c = (a.astype(np.int64) for a in (y, x, c))
    if kind == "noise":
        value = noise(x, y, c, seed)
    elif kind == "ramp_x":
        value = x * 255 // (w - 1)
    elif kind == "ramp_y":
        value = y * 255 // (h - 1)
    elif kind == "ramp_colours":
        value = (x * 3 * (c + 1) + y * 2 * (3 - c)) % 256
    elif kind == "flat":
        value = np.full_like(x, seed * 37 % 256)
    elif kind == "shapes":
        value = shapes(x * 16 + 8, y * 16 + 8, c, seed, w, h)
    elif kind == "soft":
        offsets = [(i, j) for j in (2, 6, 10, 14) for i in (2, 6, 10, 14)]
        value = sum(shapes(x * 16 + i, y * 16 + j, c, seed, w, h) for i, j in offsets) // 16
    elif kind == "photo":
        value = smooth_noise(x, y, c, seed, 32) * 4 + smooth_noise(x, y, c, seed + 1, 12) * 3
        value = (value + smooth_noise(x, y, c, seed + 2, 5) * 2 + noise(x, y, c, seed + 3) // 4) // 10
        value = np.where((x * 3 + y * 5) % 301 < 60, 255 - value, value)
    elif kind == "stripes":
        value = (x // seed) % 2 * 255
    elif kind == "checks":
        value = (x // seed + y // seed) % 2 * (200 - 30 * c)
    return np.ascontiguousarray(value.astype(np.uint8))


def unit(rgb8):
    """As ComfyUI's LoadImage makes it, `[1, h, w, 3]`."""
    return torch.from_numpy(rgb8.astype(np.float32) / 255.0)[None]


def canny(recorded):
    out = {}
    for name, kind, w, h, seed in PICTURES:
        rgb = picture(kind, w, h, seed)
        _, edges = kornia.filters.canny(unit(rgb).movedim(-1, 1), *KORNIA)
        out[f"{name}.kornia"] = np.packbits(edges[0, 0].numpy() > 0.5)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        out[f"{name}.cv2"] = np.packbits(cv2.Canny(grey, *CV2) > 0)
        out[f"{name}.cv2_l2"] = np.packbits(cv2.Canny(grey, *CV2, L2gradient=True) > 0)
    if recorded:
        out["comfyui.image"] = np.array(Image.open(recorded / "input" / "test_256.png").convert("RGB"))
        edges = load_file(recorded / "e1_controlnet" / "e1_controlnet_canny.safetensors")["image"]
        out["comfyui.edges"] = np.packbits(edges[0, :, :, 0] > 0.5)
    elif (OUT / "canny.safetensors").exists():
        kept = load_file(OUT / "canny.safetensors")
        out |= {name: value for name, value in kept.items() if name.startswith("comfyui.")}
    save_file(out, OUT / "canny.safetensors")


def common_upscale(samples, width, height, method, crop):
    """ComfyUI's rule, on `[b, c, h, w]`."""
    if crop == "center":
        old_height, old_width = samples.shape[-2:]
        old, new = old_width / old_height, width / height
        x = y = 0
        if old > new:
            x = round((old_width - old_width * (new / old)) / 2)
        elif old < new:
            y = round((old_height - old_height * (old / new)) / 2)
        samples = samples.narrow(-2, y, old_height - y * 2).narrow(-1, x, old_width - x * 2)
    if method == "lanczos":
        rows = [np.clip(255.0 * s.movedim(0, -1).numpy(), 0, 255).astype(np.uint8) for s in samples]
        # Rows first, then columns: Pillow 13 sometimes turns them around to save time, earlier ones never do.
        for size in ((width, samples.shape[-2]), (width, height)):
            rows = [np.array(Image.fromarray(r).resize(size, Image.Resampling.LANCZOS)) for r in rows]
        return torch.stack([torch.from_numpy(r.astype(np.float32) / 255.0).movedim(-1, 0) for r in rows])
    return torch.nn.functional.interpolate(samples, size=(height, width), mode=method)


RESIZES = [
    ("photo_odd", 40, 40),
    ("noise_odd", 48, 32),
    ("noise", 16, 8),
    ("noise_8", 24, 20),
    ("shapes_wide", 64, 16),
]


def resize():
    out = {}
    pictures = {name: rest for name, *rest in PICTURES}
    for name, width, height in RESIZES:
        samples = unit(picture(*pictures[name])).movedim(-1, 1)
        for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos"):
            for crop in ("disabled", "center"):
                scaled = common_upscale(samples, width, height, method, crop)[0]
                scaled = np.ascontiguousarray(scaled.movedim(0, -1).numpy())
                key = f"{name}.{width}x{height}.{method}.{crop}"
                if method in ("nearest-exact", "lanczos"):
                    out[key] = np.round(scaled * 255).astype(np.uint8)
                else:
                    # Fixed point of -1..2, since bicubic overshoots.
                    out[key] = np.round((scaled + 1) / 3 * 65535).astype(np.uint16)
    save_file(out, OUT / "resize.safetensors")


def skeleton_drawing():
    """controlnet_aux's drawing functions alone: its package would import networks."""
    root = Path(importlib.util.find_spec("controlnet_aux").origin).parent / "open_pose"
    package = types.ModuleType("open_pose")
    package.__path__ = [str(root)]
    body = types.ModuleType("open_pose.body")
    body.Keypoint = collections.namedtuple("Keypoint", "x y")
    body.BodyResult = None
    sys.modules |= {"open_pose": package, "open_pose.body": body}
    spec = importlib.util.spec_from_file_location("open_pose.util", root / "util.py")
    util = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(util)
    return util


JOINTS = """nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee
right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear""".split()


def people(width, height):
    """OpenPose JSON of two people with hands and faces, in pixels; the second lacks some joints."""
    presets = tomllib.loads((OUT.parents[2] / "assets" / "poses.toml").read_text())
    out = []
    for n, preset in enumerate(("standing_hands_on_hips", "jumping")):
        joints = presets[preset]["joints"]

        def place(x, y, n=n):
            return [round((0.02 + 0.46 * n + 0.5 * x) * width, 2), round((0.02 + 0.95 * y) * height, 2), 1]

        body = [place(*joints[name]) for name in JOINTS]
        hands = []
        for wrist in (joints["left_wrist"], joints["right_wrist"]):
            hand = [place(*wrist)]
            for finger in range(5):
                for bone in range(4):
                    x = wrist[0] + (finger - 2) * 0.03 * (bone + 1) / 2
                    hand.append(place(x, wrist[1] + 0.02 * (bone + 1)))
            hands.append(hand)
        nose = joints["nose"]
        face = [place(nose[0] + 0.06 * np.cos(i * 0.37), nose[1] + 0.05 * np.sin(i * 0.37)) for i in range(70)]
        if n == 1:
            for missing in (4, 10, 14, 16):
                body[missing] = [0, 0, 0]
            hands[1] = None
        flat = [sum(points, []) if points else None for points in (body, *hands, face)]
        keys = ("pose_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d")
        out.append(dict(zip(keys, flat)))
    return {"canvas_width": width, "canvas_height": height, "people": out}


def openpose():
    util = skeleton_drawing()
    out = {}

    def store(name, canvas):
        colours, indices = np.unique(canvas.reshape(-1, 3), axis=0, return_inverse=True)
        out[f"{name}.palette"] = colours
        out[name] = indices.reshape(canvas.shape[:2]).astype(np.uint8)

    presets = tomllib.loads((OUT.parents[2] / "assets" / "poses.toml").read_text())
    joints = presets["waving"]["joints"]
    points = [util.Keypoint(*joints[name]) if name in joints else None for name in JOINTS]
    store("waving", util.draw_bodypose(np.zeros((384, 256, 3), np.uint8), points))

    width, height = 384, 256
    pose = people(width, height)
    (OUT / "openpose_people.json").write_text(json.dumps(pose))
    canvas = np.zeros((height, width, 3), np.uint8)
    for person in pose["people"]:

        def points(key, person=person):
            flat = person[key] or []
            triples = zip(flat[::3], flat[1::3], flat[2::3])
            return [util.Keypoint(x / width, y / height) if c else None for x, y, c in triples]

        canvas = util.draw_bodypose(canvas, points("pose_keypoints_2d"))
        canvas = util.draw_handpose(canvas, points("hand_left_keypoints_2d"))
        canvas = util.draw_handpose(canvas, points("hand_right_keypoints_2d"))
        canvas = util.draw_facepose(canvas, points("face_keypoints_2d"))
    store("people", canvas)
    save_file(out, OUT / "openpose.safetensors")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--recorded", type=Path, help="the folder of recorded ComfyUI runs")
    canny(arguments.parse_args().recorded)
    resize()
    openpose()
