"""Files that the recorded workflows read: pictures of every kind, latents, small upscalers, an embedding, and the tiny
checkpoint in parts. All of them are drawn from fixed numbers."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file


def photo(width: int, height: int, phase: float = 0.0) -> np.ndarray:
    """A smooth picture with a few hard edges, `[height, width, 3]` bytes."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [
        127 + 120 * np.sin(x / 17 + phase) * np.cos(y / 13),
        255 * x / max(width - 1, 1) * (0.6 + 0.4 * np.cos(y / 9 + phase)),
        127 + 100 * np.cos((x + y) / 21 - phase),
    ]
    picture = np.stack(channels, -1).clip(0, 255)
    inside = ((x - 0.6 * width) ** 2 + (y - 0.45 * height) ** 2) < (0.25 * height) ** 2
    picture[inside] = (230, 40, 60)
    picture[(x < 0.3 * width) & (y > 0.7 * height)] = (20, 160, 90)
    return picture.astype(np.uint8)


def alpha(width: int, height: int) -> np.ndarray:
    """A soft ellipse that is see-through in the middle."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    distance = np.hypot((x - 0.45 * width) / (0.4 * width), (y - 0.5 * height) / (0.4 * height))
    return (255 * ((distance - 0.6) / 0.4).clip(0, 1)).astype(np.uint8)


def bytes_of(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_rgb16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def inputs() -> dict[str, bytes]:
    """What lies in the input folder, by path."""
    rgb = Image.fromarray(photo(96, 64))
    shaped = rgb.copy()
    shaped.putalpha(Image.fromarray(alpha(96, 64)))
    grey = rgb.convert("L")
    odd = Image.fromarray(photo(37, 53, 2.0))
    grey_alpha = Image.merge("LA", (grey.crop((0, 0, 40, 30)), Image.fromarray(alpha(40, 30))))
    palette = odd.quantize(16)
    deep = (np.outer(np.arange(24), np.ones(40)) * 2700 + np.outer(np.ones(24), np.arange(40)) * 31).astype(np.uint16)
    frames = [Image.fromarray(photo(32, 24, phase)) for phase in (0.0, 1.0, 2.0)]
    turned = Image.Exif()
    turned[0x0112] = 6
    moving = {"save_all": True, "append_images": frames[1:], "duration": 100}
    latent = (np.arange(4 * 8 * 12) % 37 - 18).reshape(1, 4, 8, 12).astype(np.float32) / 9
    format_0 = {"latent_tensor": latent, "latent_format_version_0": np.zeros(0, np.float32)}
    return {
        "photo.png": bytes_of(rgb, "PNG"),
        "shape.png": bytes_of(shaped, "PNG"),
        "odd.png": bytes_of(odd, "PNG"),
        "grey.png": bytes_of(grey, "PNG"),
        "grey_alpha.png": bytes_of(grey_alpha, "PNG"),
        "palette.png": bytes_of(palette, "PNG"),
        "palette_clear.png": bytes_of(palette, "PNG", transparency=3),
        "deep.png": bytes_of(Image.fromarray(deep), "PNG"),
        "deep_rgb.png": png_rgb16(photo(20, 14).astype(np.uint16) * 257 + 13),
        "bits.png": bytes_of(odd.convert("1"), "PNG"),
        "turned.jpg": bytes_of(odd, "JPEG", quality=95, exif=turned),
        "cmyk.jpg": bytes_of(odd.convert("CMYK"), "JPEG", quality=95),
        "photo.webp": bytes_of(odd, "WEBP", lossless=True),
        "photo.bmp": bytes_of(odd, "BMP"),
        "one.png": bytes_of(Image.new("RGB", (1, 1), (1, 128, 254)), "PNG"),
        "moving.gif": bytes_of(frames[0].quantize(32), "GIF", **moving | {"append_images": [f.quantize(32) for f in frames[1:]]}),
        "moving.webp": bytes_of(frames[0], "WEBP", lossless=True, **moving),
        "moving.png": bytes_of(frames[0], "PNG", **moving),
        "sub/inner.png": bytes_of(Image.fromarray(photo(16, 12, 1.0)), "PNG"),
        "saved.latent": save(format_0, {"prompt": "{}"}),
        "old.latent": save({"latent_tensor": latent}),
    }


def upscaler(scale: int, old_names: bool) -> dict[str, np.ndarray]:
    """An RRDBNet of 4 features and 1 block, with random weights (32 growth channels are the only number there is)."""
    random = np.random.default_rng(scale)
    weights = {}

    def conv(name: str, out: int, into: int, gain: float = 0.6) -> None:
        weights[name + ".weight"] = (random.standard_normal((out, into, 3, 3)) * gain / np.sqrt(9 * into)).astype(np.float16)
        weights[name + ".bias"] = (random.standard_normal(out) * 0.02).astype(np.float16)

    into = 3 if scale == 4 else 12
    first, block, body = ("model.0", "model.1.sub.0.RDB{}.conv{}.0", "model.1.sub.1") if old_names else ("conv_first", "body.0.rdb{}.conv{}", "conv_body")
    ups = ("model.3", "model.6", "model.8", "model.10") if old_names else ("conv_up1", "conv_up2", "conv_hr", "conv_last")
    conv(first, 4, into, 1.2)
    for dense in (1, 2, 3):
        for index in range(5):
            conv(block.format(dense, index + 1), 32 if index < 4 else 4, 4 + 32 * index)
    conv(body, 4, 4)
    for name in ups[:3]:
        conv(name, 4, 4, 1.2)
    conv(ups[3], 3, 4, 1.2)
    weights[ups[3] + ".bias"] += np.float16(0.5)
    return weights


def small_models() -> dict[str, bytes]:
    """Models small enough to be kept beside the recordings, by path below the models folder."""
    random = np.random.default_rng(5)
    embedding = {key: (random.standard_normal((2, 64)) * 0.3).astype(np.float32) for key in ("clip_l", "clip_g")}
    return {
        "upscale_models/tiny_x4.safetensors": save(upscaler(4, True)),
        "upscale_models/tiny_x2.safetensors": save(upscaler(2, False)),
        "embeddings/tiny.safetensors": save(embedding),
    }


PARTS = {
    "diffusion_models/unet_tiny.safetensors": "model.diffusion_model.",
    "text_encoders/clip_l_tiny.safetensors": "conditioner.embedders.0.transformer.",
    "text_encoders/clip_g_tiny.safetensors": "conditioner.embedders.1.model.",
    "vae/vae_tiny.safetensors": "first_stage_model.",
}


def split(checkpoint: Path, models: Path) -> None:
    """Writes a checkpoint's parts as files of their own."""
    tensors = load_file(checkpoint)
    for path, prefix in PARTS.items():
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name.removeprefix(prefix): np.ascontiguousarray(tensor) for name, tensor in tensors.items() if name.startswith(prefix)}, models / path)
