"""Stage 8: does the shipped file hold what it should, and does it draw what its prompts ask for?

1. The file is small enough, and every tensor is used exactly once by networks built from the configs in its metadata.
2. diffusers' own single-file loader reads the (expanded) file to the same weights. Text encoder 2 is left out: the
   pinned diffusers does not map its names to the pinned transformers'.
3. With --work: the weights are those that training left, within fp16.
4. `tiny-sdxl.tags.json` names only tags that were trained.
5. A small classifier names the expressions of generated pictures; the share that is right must reach --least.
6. Where the ControlNet and LoRAs are beside the file: control brings pictures to the templates' edges, LoRAs give their
   character's hair and leave expressions alone. With --least 0 these are reported only.

Exits with 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import check_extras
import expression_probe
import model_file
import sampling
from drawings import save_grid
from export import LARGEST, trained_parts
from ldm_keys import PARTS, single_file
from safetensors.torch import save_file
from vocabulary import BACKGROUNDS, EXPRESSION_NAMES, EYES, HAIR, LENGTHS, SHIRTS, trained_tags

TAGS_FILE = Path(__file__).resolve().parents[2] / "assets/tiny-sdxl.tags.json"
FP16_ROUNDING = 2**-11
"""Relative: half of fp16's spacing."""
FP16_TINY = 2**-24
"""Absolute: fp16's smallest step, where numbers are too small for the relative bound."""


class Findings:
    """Prints each check's outcome and remembers failures."""

    def __init__(self) -> None:
        self.failed = False

    def note(self, good: bool, text: str) -> None:
        """One check's outcome."""
        self.failed |= not good
        print(f"{'ok  ' if good else 'BAD '} {text}", flush=True)


def check_diffusers_loader(file: Path, modules: dict, findings: Findings) -> None:
    """diffusers' own key conversion against ours."""
    tensors, metadata = model_file.read(file)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_file.write_configs(folder, model_file.configs(metadata), folder)
        dense = folder / "dense.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, dense)
        for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
            loaded = kind.from_single_file(str(dense), config=str(folder), subfolder=part, torch_dtype=torch.float32)
            ours, theirs = modules[part].state_dict(), loaded.state_dict()
            same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
            findings.note(same, f"diffusers' from_single_file gives the same {part} ({len(ours)} tensors)")


def check_against_training(file: Path, work: Path, findings: Findings) -> None:
    """The exported tensors against the trained ones."""
    stored, _ = model_file.read(file)
    trained = single_file(trained_parts(work))
    worst, where = 0.0, "nowhere"
    for name, tensor in trained.items():
        if name not in stored:
            worst, where = float("inf"), name
            break
        excess = ((stored[name].float() - tensor).abs() - FP16_TINY).clamp(min=0) / tensor.abs().clamp(min=FP16_TINY)
        if excess.max().item() > worst:
            worst, where = excess.max().item(), name
    findings.note(
        worst <= FP16_ROUNDING, f"equal to the trained weights: worst relative difference {worst:.1e} ({where})"
    )


def check_tags(tags: dict, findings: Findings) -> None:
    """The tags file against what was trained."""
    known = set(trained_tags())
    expressions = {each["name"] for each in tags["expressions"]}
    findings.note(
        expressions == set(EXPRESSION_NAMES), f"{TAGS_FILE.name} names the {len(EXPRESSION_NAMES)} trained expressions"
    )
    used = {tag for each in tags["expressions"] for tag in each["tags"].split(", ")}
    for group in ("subjects", "hair_colours", "hair_styles", "eye_colours", "outfits", "skin", "backgrounds", "scenes"):
        used |= {tag for each in tags[group] for tag in each["tags"].split(", ")}
    findings.note(
        used <= known,
        f"{TAGS_FILE.name} uses trained tags only{''.join(f' - not {tag!r}' for tag in sorted(used - known))}",
    )


def check_expressions(file: Path, tags: dict, arguments: argparse.Namespace, findings: Findings) -> None:
    """Random characters with every expression in turn, judged by the probe."""
    pipeline = sampling.load(file, arguments.scratch)
    started = time.monotonic()
    probe, accuracy = expression_probe.train(pipeline.vae, arguments.drawings, arguments.epochs)
    print(f"     the probe is right on {accuracy:.1%} of held-out drawings, {time.monotonic() - started:.0f} s")
    rng = random.Random(9)
    prompt_tags = {each["name"]: each["tags"] for each in tags["expressions"]}
    wanted = [EXPRESSION_NAMES[index % len(EXPRESSION_NAMES)] for index in range(arguments.pictures)]
    prompts = [
        f"{rng.choice(['1girl', '1girl', '1boy'])}, {rng.choice(list(HAIR))} hair, {rng.choice(LENGTHS)}, "
        f"{rng.choice(list(EYES))} eyes, {prompt_tags[name]}, {rng.choice(list(SHIRTS))} shirt, "
        f"{rng.choice(list(BACKGROUNDS))} background"
        for name in wanted
    ]
    started = time.monotonic()
    pictures = sampling.draw(pipeline, prompts, range(2000, 2000 + len(prompts)), steps=arguments.steps)
    print(f"     {len(pictures)} pictures, {time.monotonic() - started:.0f} s")
    seen = probe.name(pictures)
    wrong = [f"{a} looks like {b}" for a, b in zip(wanted, seen) if a != b]
    share = 1 - len(wrong) / len(wanted)
    text = f"{len(wanted) - len(wrong)} of {len(wanted)} expressions recognised"
    findings.note(share >= arguments.least, "; ".join([text, *wrong[:8]]))
    if arguments.sheet:
        columns = len(EXPRESSION_NAMES)
        whole = len(pictures) - len(pictures) % columns
        save_grid([pictures[row : row + columns] for row in range(0, whole, columns)], arguments.sheet)
    note = findings.note if arguments.least else lambda good, text: print(f"     {text}", flush=True)
    expression_tags = [prompt_tags[name] for name in EXPRESSION_NAMES]
    check_extras.check(file.parent, pipeline, expression_tags, arguments.steps, probe.name, note)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="tiny-sdxl.safetensors")
    parser.add_argument("--work", type=Path, help="training run that it was exported from")
    parser.add_argument("--scratch", type=Path, help="folder for tokenizer files (default: a temporary one)")
    parser.add_argument("--pictures", type=int, default=60, help="pictures to judge (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=sampling.STEPS, help="sampling steps (default: %(default)s)")
    parser.add_argument("--drawings", type=int, default=1600, help="drawings for the probe (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="the probe's training (default: %(default)s)")
    parser.add_argument(
        "--least", type=float, default=0.95, help="share that must be recognised (default: %(default)s)"
    )
    parser.add_argument("--sheet", type=Path, help="write the judged pictures here (PNG)")
    arguments = parser.parse_args()
    if arguments.pictures < len(EXPRESSION_NAMES):
        parser.error(f"--pictures: at least {len(EXPRESSION_NAMES)}, one an expression")
    torch.set_num_threads(1)
    findings = Findings()
    size = arguments.file.stat().st_size
    findings.note(size <= LARGEST, f"{arguments.file}: {size / 1e6:.2f} MB of at most {LARGEST / 1e6:.0f}")
    modules = model_file.parts(arguments.file)
    parameters = {part: sum(parameter.numel() for parameter in modules[part].parameters()) for part in PARTS}
    findings.note(
        True,
        "every tensor has its place: " + ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parameters.items()),
    )
    check_diffusers_loader(arguments.file, modules, findings)
    if arguments.work:
        check_against_training(arguments.file, arguments.work, findings)
    tags = json.loads(TAGS_FILE.read_text())
    check_tags(tags, findings)
    with tempfile.TemporaryDirectory() as name:
        arguments.scratch = arguments.scratch or Path(name)
        check_expressions(arguments.file, tags, arguments, findings)
    sys.exit(findings.failed)


if __name__ == "__main__":
    main()
