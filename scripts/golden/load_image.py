#!/usr/bin/env python3
"""Small pictures of every mode, and what Pillow makes of each by the steps of ComfyUI's LoadImage and LoadImageMask.

Writes the pictures and `expected.json` to tests/data/load_image: of each file the size, the bytes of all frames as RGB,
LoadImage's alpha (null: its mask is empty), and LoadImageMask's RGBA of the first frame.
"""

import io
import json
import pathlib

import numpy as np
from PIL import Image, ImageOps, ImageSequence

FOLDER = pathlib.Path(__file__).parents[2] / "tests/data/load_image"
HEIGHT, WIDTH = 4, 6


def pictures():
    draw = np.random.default_rng(7)
    rgb = draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    alpha = draw.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
    rgba = np.concatenate([rgb, alpha], -1)
    hard = np.concatenate([rgb, np.where(alpha > 127, 255, 0).astype(np.uint8)], -1)
    grey = draw.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    deep = draw.integers(0, 600, (HEIGHT, WIDTH), np.uint16)
    frames = [Image.fromarray(draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)) for _ in range(3)]
    clear = []
    for index in range(3):
        frame = draw.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
        frame[..., 3] = 255
        frame[index, index, 3] = 0
        clear.append(Image.fromarray(frame))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.fromarray(rgb).quantize(16)
    yield "rgb.png", Image.fromarray(rgb), {}
    yield "rgba.png", Image.fromarray(rgba), {}
    yield "grey.png", Image.fromarray(grey), {}
    yield "grey_alpha.png", Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha[..., 0])]), {}
    yield "bits.png", Image.fromarray(grey).convert("1"), {}
    yield "palette.png", palette, {}
    yield "palette_clear.png", palette, {"transparency": bytes([0, 128, 255, 40])}
    yield "rgb_key.png", Image.fromarray(rgb), {"transparency": tuple(int(value) for value in rgb[1, 2])}
    yield "grey_key.png", Image.fromarray(grey), {"transparency": int(grey[2, 3])}
    yield "grey_16.png", Image.fromarray(deep), {}
    yield "turned.png", Image.fromarray(rgba), {"exif": exif}
    yield "still.gif", Image.fromarray(rgb), {}
    yield "clear.gif", Image.fromarray(hard), {}
    yield "moving.gif", frames[0], {"save_all": True, "append_images": frames[1:]}
    yield "clear_moving.gif", clear[0], {"save_all": True, "append_images": clear[1:], "disposal": 2}
    yield "still.webp", Image.fromarray(rgb), {"lossless": True}
    yield "clear.webp", Image.fromarray(rgba), {"lossless": True, "exact": True}
    yield "turned.webp", Image.fromarray(rgb), {"lossless": True, "exif": exif}
    yield "moving.webp", frames[0], {"save_all": True, "append_images": frames[1:], "lossless": True}
    yield "clear_moving.webp", clear[0], {"save_all": True, "append_images": clear[1:], "lossless": True}
    yield "moving.png", frames[0], {"save_all": True, "append_images": frames[1:], "duration": 100}
    yield "rgb.bmp", Image.fromarray(rgb), {}
    yield "palette.bmp", palette, {}


def deep_png(color, channels):
    """16 bits a channel, which Pillow reads and does not write."""
    import struct
    import zlib

    values = np.random.default_rng(8).integers(0, 65536, (HEIGHT, WIDTH * channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def load_image(data):
    rgb, alpha = [], []
    for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data))):
        frame = ImageOps.exif_transpose(frame)
        rgb.append(np.array(frame.convert("RGB")))
        if "A" in frame.getbands():
            alpha.append(np.array(frame.getchannel("A")))
        elif frame.mode == "P" and "transparency" in frame.info:
            alpha.append(np.array(frame.convert("RGBA").getchannel("A")))
    assert len(alpha) in (0, len(rgb))
    return np.stack(rgb), np.stack(alpha) if alpha else None


def load_mask(data):
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA"))


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, picture, options in pictures():
        buffer = io.BytesIO()
        picture.save(buffer, name.rsplit(".", 1)[1].upper(), **options)
        files[name] = buffer.getvalue()
    files["rgb_16.png"] = deep_png(2, 3)
    files["rgba_16.png"] = deep_png(6, 4)
    files["grey_alpha_16.png"] = deep_png(4, 2)
    expected = {}
    for name, data in sorted(files.items()):
        (FOLDER / name).write_bytes(data)
        rgb, alpha = load_image(data)
        count, height, width, _ = rgb.shape
        expected[name] = {
            "count": count,
            "height": height,
            "width": width,
            "rgb": rgb.tobytes().hex(),
            "alpha": None if alpha is None else alpha.tobytes().hex(),
            "rgba": load_mask(data).tobytes().hex(),
        }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
