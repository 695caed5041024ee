#!/usr/bin/env python3
"""Draws the pictures of docs/character-packs.md anew, with the real program and its built-in model.

Needs Pillow (`pip install pillow`).

    scripts/make_doc_pictures.py --binary target/release/darkroom
    scripts/make_doc_pictures.py --binary target/release/darkroom --only outfits --out /tmp/look

Starts the server on a free port with an empty data folder, asks over HTTP as the page says, and stops it when done. All
seeds are below, so the same program makes the same pictures.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60
TASK_SECONDS = 600
CELL = 168
"""Pixels a side of a picture on a sheet; they are drawn at 128."""
MARGIN, LABEL, HEAD = 6, 150, 26
LARGEST = 200_000
"""Bytes of one file."""
PAPER, INK, FAINT = (250, 249, 246), (40, 38, 36), (120, 116, 110)

EXPRESSIONS = ["neutral_resting", "smile_gentle", "laugh", "angry", "surprised", "wink"]
PACK_SEED = 11
WHO = "1girl, white shirt, white background"
TEMPLATED = "1girl, pink hair, white shirt, white background"
TEMPLATED_SEED = 11
OUTFIT_SEED = 5
OUTFITS = ["red shirt", "green shirt", "black shirt, glasses"]
STICKERS = ["smile_gentle", "angry", "surprised", "wink"]

Cell = Image.Image | None


class Server:
    """The running program."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def draw(self, route: str, **body: Any) -> list[Image.Image]:
        """Asks, waits, and brings the pictures in order."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + route, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                accepted = json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{route}: {error.read().decode()}") from None
        for warning in accepted.get("warnings", []):
            print(f"{route}: {warning}")
        until = time.monotonic() + TASK_SECONDS
        while time.monotonic() < until:
            task = json.loads(self.get(f"/v1/tasks/{accepted['task_id']}"))
            if task["status"] == "completed":
                images = sorted(task["images"], key=lambda image: image["index"])
                return [Image.open(io.BytesIO(self.get(image["url"]))) for image in images]
            if task["status"] in ("failed", "cancelled"):
                raise SystemExit(f"{route}: {task['error']}")
            time.sleep(0.2)
        raise SystemExit(f"{route}: not done after {TASK_SECONDS} s")


@contextmanager
def serving(binary: Path) -> Iterator[Server]:
    """The program on a port of its own choice, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(binary), "serve", "--port", "0", "--data-dir", f"{folder}/data"]
        # A file rather than a pipe: nobody reads on once the address is known.
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield Server(_address(process, Path(folder) / "log"))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise SystemExit(f"the server did not say where it listens:\n{log.read_text()}")


def sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> Image.Image:
    """Pictures in rows, each with its words at the left, under their column's name."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    width = LABEL + len(columns) * (CELL + MARGIN)
    made = Image.new("RGB", (width, HEAD + len(rows) * (CELL + MARGIN)), PAPER)
    pen = ImageDraw.Draw(made)
    for index, name in enumerate(columns):
        middle = LABEL + index * (CELL + MARGIN) + CELL // 2
        pen.text((middle, HEAD // 2), name, INK, font, anchor="mm")
    for row, (words, pictures) in enumerate(rows):
        top = HEAD + row * (CELL + MARGIN)
        for line, text in enumerate(words.split("\n")):
            of_line = (INK, font) if line == 0 else (FAINT, small)
            pen.text((10, top + CELL // 2 - 14 + line * 19), text, *of_line, anchor="lm")
        for column, picture in enumerate(pictures):
            if picture is not None:
                enlarged = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
                made.paste(enlarged, (LABEL + column * (CELL + MARGIN), top))
    return made


def save(made: Image.Image, file: Path) -> None:
    """As a WebP, small enough for a repository."""
    made.save(file, quality=90, method=6)
    size = file.stat().st_size
    print(f"{file}: {made.width}x{made.height}, {size} bytes")
    if size > LARGEST:
        raise SystemExit(f"{file} has {size} bytes; {LARGEST} is the most")


def on_checkerboard(picture: Image.Image, square: int = 8) -> Image.Image:
    """What is transparent shows a checkerboard."""
    board = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    pen = ImageDraw.Draw(board)
    for y in range(0, picture.height, square):
        for x in range((y // square % 2) * square, picture.width, 2 * square):
            pen.rectangle((x, y, x + square - 1, y + square - 1), (205, 205, 205))
    return Image.alpha_composite(board, picture.convert("RGBA"))


def expressions(server: Server, **body: Any) -> list[Image.Image]:
    """A pack of all columns."""
    return server.draw("/v1/character-packs/expressions", expression_tags=EXPRESSIONS, **body)


def loras(server: Server) -> Image.Image:
    """The same words and seed without a LoRA and with each."""
    rows = []
    for name in ("tinychan", "tinyvio"):
        said = {"character_prompt": f"{name}, {WHO}", "seed": PACK_SEED, "use_templates": False}
        if not rows:
            rows.append(("without LoRA", expressions(server, **said)))
        rows.append((f"{name}\nstrength 1", expressions(server, character_lora_id=name, **said)))
    return sheet(EXPRESSIONS, rows)


def templates(server: Server) -> Image.Image:
    """The same words and seed without templates and with two sets of them, and a LoRA's character with one."""
    said = {"character_prompt": TEMPLATED, "seed": TEMPLATED_SEED}
    rows: list[tuple[str, Sequence[Cell]]] = [("no templates", expressions(server, use_templates=False, **said))]
    for name in ("default", "short"):
        folder = ROOT / "assets/templates" / name
        rows.append((f"set '{name}'\nthe templates", [Image.open(folder / f"{each}.png") for each in EXPRESSIONS]))
        rows.append((f"set '{name}'\nstrength 0.8", expressions(server, template_set=name, **said)))
    character = {"character_lora_id": "tinyvio", "character_prompt": WHO, "seed": TEMPLATED_SEED}
    rows.append(("set 'short'\nwith tinyvio", expressions(server, template_set="short", **character)))
    return sheet(EXPRESSIONS, rows)


def outfits(server: Server) -> Image.Image:
    """One picture in three outfits: as usual, with more of it drawn anew, and then without its outlines."""
    who = {"character_lora_id": "tinyvio", "character_prompt": "1girl, gentle smile, white background"}
    [base] = server.draw(
        "/v1/character-packs/expressions",
        character_lora_id="tinyvio",
        character_prompt=WHO,
        expression_tags=["smile_gentle"],
        seed=OUTFIT_SEED,
        template_set="short",
    )
    written = io.BytesIO()
    base.save(written, "PNG")
    said = {"base_image_url": base64.b64encode(written.getvalue()).decode(), "seed": OUTFIT_SEED + 1, **who}
    rows = []
    for denoise, keep in ((0.4, True), (0.8, True), (0.8, False)):
        drawn = [
            server.draw(
                "/v1/character-packs/outfit-change",
                new_outfit_prompt=outfit,
                denoise_strength=denoise,
                preserve_pose=keep,
                **said,
            )[0]
            for outfit in OUTFITS
        ]
        words = f"denoise {denoise}\noutlines " + ("kept" if keep else "not kept")
        rows.append((words, [base, *drawn]))
    return sheet(["the picture", *OUTFITS], rows)


def stickers(server: Server) -> Image.Image:
    """Cut out, on a checkerboard."""
    rows = []
    for name in ("tinychan", "tinyvio"):
        drawn = server.draw(
            "/v1/character-packs/stickers",
            character_lora_id=name,
            character_prompt="1girl, white shirt",
            expression_tags=STICKERS,
            seed=PACK_SEED,
        )
        rows.append((name, [on_checkerboard(picture) for picture in drawn]))
    return sheet(STICKERS, rows)


SHEETS: dict[str, Callable[[Server], Image.Image]] = {
    "lora": loras,
    "templates": templates,
    "outfits": outfits,
    "stickers": stickers,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/debug/darkroom", help="the program")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images", help="folder of the pictures")
    parser.add_argument("--only", choices=SHEETS, action="append", help="draw this one; may be repeated")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with serving(arguments.binary.resolve()) as server:
        for name in arguments.only or SHEETS:
            save(SHEETS[name](server), arguments.out / f"pack-{name}.webp")


if __name__ == "__main__":
    main()
