"""Pictures from the shipped file through diffusers: the reference that every other program's pictures are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

import model_file
from drawings import Picture

STEPS, CFG_SCALE = 20, 5.0
BATCH = 12


def load(path: Path, work: Path) -> StableDiffusionXLPipeline:
    """The pipeline with DPM++ 2M on Karras' sigmas, as recommended."""
    torch.backends.cuda.enable_flash_sdp(False)
    made = model_file.pipeline(path, work)
    made.scheduler = DPMSolverMultistepScheduler.from_config(
        made.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True
    )
    return made


@torch.no_grad()
def draw(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = STEPS,
    cfg: float = CFG_SCALE,
    negative: str = "",
    bf16: bool = True,
    **options: Any,
) -> list[Picture]:
    """One picture a prompt, each from its own seed; 128×128 unless `options` say otherwise."""
    pictures: list[Picture] = []
    options = {"width": 128, "height": 128} | options
    for first in range(0, len(prompts), BATCH):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[first : first + BATCH]]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            images = pipeline(
                prompt=list(prompts[first : first + BATCH]),
                negative_prompt=[negative] * len(generators),
                num_inference_steps=steps,
                guidance_scale=cfg,
                generator=generators,
                output_type="np",
                **options,
            ).images
        pictures += [(image * 255).round().clip(0, 255).astype(np.uint8) for image in images]
    return pictures
