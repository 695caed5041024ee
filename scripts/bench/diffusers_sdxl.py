"""One SDXL picture with diffusers on the CPU, timed: the reference side of `compare_sdxl.py`, usable alone.

Writes the same JSON as `darkroom generate --timings`: load_seconds, encode_seconds, step_seconds, decode_seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder of the checkpoint")
    parser.add_argument("--timings", type=Path, required=True, help="where to write the timings (JSON)")
    parser.add_argument("--compute", choices=("f32", "bf16"), default="f32", help="default: %(default)s")
    parser.add_argument("--prompt", default="a red fox in a forest", help="default: %(default)s")
    parser.add_argument("--negative", default="blurry", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--height", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--cfg", type=float, default=7.0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--skip-decode", action="store_true", help="stop at the latents")
    arguments = parser.parse_args()

    def progress(text: str) -> None:
        print(f"  {time.perf_counter() - STARTED:7.1f} s  {text}", file=sys.stderr, flush=True)

    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.compute]
    progress("libraries imported; loading")
    begin = time.perf_counter()
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(arguments.folder, dtype=dtype, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    timings: dict[str, Any] = {"load_seconds": time.perf_counter() - begin}
    progress("loaded")

    with torch.inference_mode():
        begin = time.perf_counter()
        embeds = pipeline.encode_prompt(
            prompt=arguments.prompt, negative_prompt=arguments.negative, do_classifier_free_guidance=arguments.cfg > 1
        )
        timings["encode_seconds"] = time.perf_counter() - begin
        progress("prompts encoded")

        marks: list[float] = []

        def first_call(*_: Any) -> None:
            if not marks:
                marks.append(time.perf_counter())

        def step_done(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            marks.append(time.perf_counter())
            progress(f"step {step + 1} of {arguments.steps}: {marks[-1] - marks[-2]:.2f} s")
            return tensors

        pipeline.unet.register_forward_pre_hook(first_call)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        latents = pipeline(
            **dict(zip(names, embeds)),
            width=arguments.width,
            height=arguments.height,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.cfg,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=step_done,
            output_type="latent",
        ).images
        timings["step_seconds"] = [after - before for before, after in zip(marks, marks[1:])]
        if not torch.isfinite(latents).all():
            sys.exit("the latents are not finite: this run measures nothing")
        timings["decode_seconds"] = None
        if not arguments.skip_decode:
            begin = time.perf_counter()
            image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
            timings["decode_seconds"] = time.perf_counter() - begin
            progress(f"decoded, {tuple(image.shape)}")
    arguments.timings.write_text(json.dumps(timings))


if __name__ == "__main__":
    main()
