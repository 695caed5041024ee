#!/usr/bin/env python3
"""Packs recorded ComfyUI runs into the golden files of `pipelines/tests/golden/comfyui/`.

ComfyUI itself is not run here. Its answers (0.3.64, CPU, float32, a tiny SDXL-shaped checkpoint with random
weights) were recorded once: one folder a workflow with `workflow.json`, the tensors as safetensors and the
pictures as PNG. This script reads such a folder and keeps what the tests need:

- `sdxl-tiny.safetensors`: the checkpoint, its two token tables reduced to the rows that the prompts use;
- `recorded.safetensors`: inputs, latents, conditioning and pictures, by `CASE.what`;
- `cases.json`: each workflow as the plain request it amounts to;
- `controlnet-tiny.safetensors`: the ControlNet as it is (random weights do not pack), and `controlnet.safetensors`:
  its hint, the first network call's inputs and residuals for one unconditional and one conditional sample, these
  at 8×8 positions spread over the picture, and the workflow's final latents;
- `guided.json` and `guided.safetensors`: the same of the runs with LoRAs and with the ControlNet, and of their pictures
  also the fraction of a level that 8 bits cut off (in 1/256);
- `lora-kohya.safetensors` and `lora-diffusers.safetensors`: these runs' LoRAs as they are.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import CLIPTokenizer

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "tiny_model")]
import model_file  # noqa: E402
from clip_tokenizer import write_tokenizer  # noqa: E402

TOKEN_TABLES = [
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "conditioner.embedders.1.model.token_embedding.weight",
]
LORA_RUNS = ["d1_lora", "d3_lora_diffusers"]
LORA_FILES = {"lora_tiny.safetensors": "lora-kohya", "lora_tiny_diffusers.safetensors": "lora-diffusers"}
CONTROL_RUN = "e1_controlnet"


def node_of(workflow: dict, kind: str) -> dict | None:
    """The inputs of the workflow's only node of this class, if it has one."""
    found = [node["inputs"] for node in workflow.values() if node["class_type"] == kind]
    return found[0] if found else None


def case_of(name: str, workflow: dict) -> dict | None:
    """A workflow as a flat request; None for one that does not sample."""
    sampler = node_of(workflow, "KSampler")
    if sampler is None:
        return None

    def text(key: str) -> str:
        node = workflow[sampler[key][0]]["inputs"]
        return node["text"] if "text" in node else workflow[node[key][0]]["inputs"]["text"]

    case = {key: sampler[key] for key in ("seed", "steps", "cfg", "scheduler", "denoise")}
    case |= {"name": name, "sampler": sampler["sampler_name"], "prompt": text("positive"), "negative": text("negative")}
    if skip := node_of(workflow, "CLIPSetLastLayer"):
        case["clip_skip"] = -skip["stop_at_clip_layer"]
    empty = node_of(workflow, "EmptyLatentImage")
    if empty:
        case |= {"width": empty["width"], "height": empty["height"], "batch": empty["batch_size"]}
        if part := node_of(workflow, "LatentFromBatch"):
            case |= {"first": part["batch_index"], "length": part["length"]}
    else:
        case["image"] = Path(node_of(workflow, "LoadImage")["image"]).stem
        if fill := node_of(workflow, "VAEEncodeForInpaint"):
            case["fill_grow"] = fill["grow_mask_by"]
        case["noise_mask"] = node_of(workflow, "SetLatentNoiseMask") is not None
    return case


def guided_cases(recorded: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The runs with LoRAs and the ControlNet: each as a flat request, and what came out."""
    cases, tensors = [], {}
    for name in (*LORA_RUNS, CONTROL_RUN):
        folder = recorded / name
        workflow = json.loads((folder / "workflow.json").read_text())
        case = case_of(name, workflow)
        stored = lambda what: load_file(folder / f"{name}_{what}.safetensors")  # noqa: B023, E731
        if name == CONTROL_RUN:
            apply, canny = node_of(workflow, "ControlNetApplyAdvanced"), node_of(workflow, "Canny")
            case["control"] = {
                "image": Path(node_of(workflow, "LoadImage")["image"]).stem,
                "low": canny["low_threshold"],
                "high": canny["high_threshold"],
                "strength": apply["strength"],
                "start": apply["start_percent"],
                "end": apply["end_percent"],
            }
        else:
            loader = node_of(workflow, "LoraLoader")
            strengths = {"strength": loader["strength_model"], "text_strength": loader["strength_clip"]}
            case["loras"] = [{"file": LORA_FILES[loader["lora_name"]]} | strengths]
            tensors[f"{name}.latent"] = stored("latent")["samples"]
            for side in ("pos", "neg"):
                tensors[f"{name}.{side}"] = stored(side)["cond_0"][0]
                tensors[f"{name}.{side}_pooled"] = stored(side)["pooled_output_0"][0]
        levels = 255 * stored("image")["image"].astype(np.float64)
        pictures = levels.astype(np.uint8)
        files = sorted(folder.glob(f"{name}_0*.png"))
        assert np.array_equal(pictures, np.stack([np.asarray(Image.open(file)) for file in files]))
        tensors[f"{name}.pictures"] = pictures
        tensors[f"{name}.fractions"] = ((levels - pictures) * 256).astype(np.uint8)
        cases.append(case)
    return cases, tensors


def used_tokens(prompts: set[str], tokenizer: CLIPTokenizer) -> list[int]:
    """Every token that any way of splitting these prompts into weighted groups can give."""
    texts = set(prompts)
    for prompt in prompts:
        bare = prompt
        for mark in "()\\:[],":
            bare = bare.replace(mark, " ")
        texts |= {bare, *bare.split(), *prompt.split(), *prompt.replace("\\", "").split(), *"()[],:"}
    ids = {0, 49406, 49407}
    for text in texts:
        ids |= set(tokenizer(text)["input_ids"])
    return sorted(ids)


def pictures_in(folder: Path) -> np.ndarray | None:
    """The folder's PNGs as `[n, h, w, 3]` bytes."""
    files = sorted(folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]) if files else None


def timestep_embedding(number: float, width: int = 256) -> torch.Tensor:
    """The sinusoidal embedding of one of SDXL's sizes."""
    angles = number * torch.exp(-np.log(10_000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()])


def controlnet_call(folder: Path) -> dict[str, np.ndarray]:
    """The first network call of the ControlNet's workflow."""
    workflow = json.loads((folder / "workflow.json").read_text())
    stored = load_file(folder / "e1_controlnet_calls.safetensors")
    call = {name.removeprefix("0."): tensor for name, tensor in stored.items() if name.startswith("0.")}
    rows = [0, len(call["x"]) - 1]
    sigma = call["sigma"][rows]
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    sigmas = (1 / np.cumprod(1 - betas) - 1) ** 0.5
    timesteps = np.abs(np.log(sigmas)[None] - np.log(sigma)[:, None]).argmin(1)
    _, _, height, width = call["x"].shape
    sizes = [8 * height, 8 * width, 0, 0, 8 * height, 8 * width]
    embedded = torch.cat([timestep_embedding(size) for size in sizes]).numpy()
    pooled = call["y"].shape[1] - len(embedded)
    assert np.allclose(call["y"][:, pooled:], embedded, atol=1e-4)
    hint = load_file(folder / "e1_controlnet_canny.safetensors")["image"]
    assert set(np.unique(hint)) == {0.0, 1.0}
    residuals = {name: tensor for name, tensor in call.items() if name.startswith("control.")}
    return {
        "strength": np.float32([node_of(workflow, "ControlNetApplyAdvanced")["strength"]]),
        "hint": np.ascontiguousarray((hint * 255).astype(np.uint8)),
        "latent": call["x"][rows] / np.sqrt(sigma**2 + 1)[:, None, None, None],
        "timesteps": timesteps.astype(np.float32),
        "context": call["c_crossattn"][rows],
        "pooled": np.ascontiguousarray(call["y"][rows, :pooled]),
        "size_ids": np.float32([sizes] * len(rows)),
        "final": load_file(folder / "e1_controlnet_latent.safetensors")["samples"],
    } | {
        name: np.ascontiguousarray(tensor[rows, :, :: tensor.shape[2] // 8, :: tensor.shape[3] // 8])
        for name, tensor in residuals.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, required=True, help="folder of recorded ComfyUI runs")
    parser.add_argument("--out", type=Path, default=Path("pipelines/tests/golden/comfyui"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    folders = sorted(f for f in args.recorded.iterdir() if f.name[:2] in ("a1", "a2", "a4", "a6", "a7", "c1", "c2", "c3"))
    folders += sorted((args.recorded / "samplers").iterdir())
    cases, tensors, prompts = [], {}, set()
    for folder in folders:
        case = case_of(folder.name, json.loads((folder / "workflow.json").read_text()))
        if case is None:
            continue
        cases.append(case)
        prompts |= {case["prompt"], case["negative"]}
        for file in folder.glob("*.safetensors"):
            stored = load_file(file)
            what = file.stem.rsplit("_", 1)[1]
            if what in ("latent", "encoded"):
                tensors[f"{folder.name}.{what}"] = stored["samples"]
            elif what in ("pos", "neg"):
                tensors[f"{folder.name}.{what}"] = stored["cond_0"][0]
                tensors[f"{folder.name}.{what}_pooled"] = stored["pooled_output_0"][0]
        if (pictures := pictures_in(folder)) is not None:
            tensors[f"{folder.name}.pictures"] = pictures
    tiled = args.recorded / "c5_tiled_vae"
    tensors["c5_tiled_vae.latent"] = load_file(tiled / "c5_tiled_vae_latent.safetensors")["samples"]
    tensors["c5_tiled_vae.pictures"] = pictures_in(tiled)
    for name in ("test_256", "test_mask_256"):
        tensors[f"input.{name}"] = np.asarray(Image.open(args.recorded / f"input/{name}.png").convert("RGBA"))
    save_file(tensors, args.out / "recorded.safetensors")
    save_file(controlnet_call(args.recorded / "e1_controlnet"), args.out / "controlnet.safetensors")
    shutil.copyfile(
        args.recorded / "models/controlnet/controlnet_tiny.safetensors", args.out / "controlnet-tiny.safetensors"
    )
    for theirs, ours in LORA_FILES.items():
        shutil.copyfile(args.recorded / "models/loras" / theirs, args.out / f"{ours}.safetensors")
    guided, guided_tensors = guided_cases(args.recorded)
    save_file(guided_tensors, args.out / "guided.safetensors")
    prompts |= {case[side] for case in guided for side in ("prompt", "negative")}
    (args.out / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    (args.out / "guided.json").write_text(json.dumps(guided, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), "<|endoftext|>")
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    rows = used_tokens(prompts, tokenizer)
    weights = load_file(args.recorded / "models/checkpoints/sdxl_tiny.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("denoiser.")}
    metadata = {"title": "tiny SDXL-shaped checkpoint, random weights, for golden tests"}
    for table in TOKEN_TABLES:
        kept = np.zeros_like(weights[table])
        kept[rows] = weights[table][rows]
        weights[table] = kept
    tensors = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
    model_file.write(args.out / "sdxl-tiny.safetensors", tensors, metadata, sparse=TOKEN_TABLES)
    print(f"{len(cases)} cases, {len(rows)} of 49408 token rows kept")


if __name__ == "__main__":
    main()
