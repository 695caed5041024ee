"""Pictures with a LoRA and a Canny ControlNet by diffusers on the CPU, timed: the reference side of `benches/packs`.

Reads the very files that Darkroom reads (`make_random_pack.py`): the single-file checkpoint, the ControlNet, kohya's
LoRA, the templates. One process is kept for all rounds: a JSON object a line comes in, one goes out for each.

    {"way": "fused", "batch": 1, "pictures": [{"prompt": …, "negative_prompt": …, "seed": 1, "template": FILE}]}
    {"seconds": …, "step_seconds": […], "files": […]}

`way` is `none`, `adapters` (the LoRA beside the weights, as it is loaded) or `fused` (in the weights, as diffusers
recommends for speed); none and adapters come before fused, which is final.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def load_pipeline(models: Path, lora: str) -> Any:
    """diffusers' pipeline with DPM++ 2M Karras, built from the single files in f32."""
    import diffusers
    import torch
    import transformers
    from safetensors.torch import load_file

    from clip_tokenizer import write_tokenizer
    from ldm_keys import PARTS, clip_key, state_dicts
    from make_random_pack import CHECKPOINT, CONTROL_NET, control_config, model_configs

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    configs = {
        part: {key: value for key, value in config.items() if key not in ("_class_name", "architectures", "model_type")}
        for part, config in model_configs().items()
    }
    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel(**configs["unet"]),
            "vae": diffusers.AutoencoderKL(**configs["vae"]),
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"])),
            "text_encoder_2": transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**configs["text_encoder_2"])
            ),
        }
        control = diffusers.ControlNetModel(**control_config())
    keys = {part: [name for name, _ in parts[part].named_parameters()] for part in PARTS}
    weights = state_dicts(load_file(models / CHECKPOINT), keys)
    for part in PARTS:
        module = parts[part].to_empty(device="cpu")
        # What is no parameter (position ids) is not in the file.
        for name, buffer in module.named_buffers():
            if not name.endswith("position_ids"):
                raise ValueError(f"{part}: nothing says what {name} is")
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
        missing, unexpected = module.load_state_dict({k: v.float() for k, v in weights[part].items()}, strict=False)
        if unexpected or [name for name in missing if not name.endswith("position_ids")]:
            raise ValueError(f"{part}: missing {missing[:3]}, unexpected {unexpected[:3]}")
        module.eval()
    control = control.to_empty(device="cpu").eval()
    control.load_state_dict({key: value.float() for key, value in load_file(models / CONTROL_NET).items()})

    with tempfile.TemporaryDirectory() as folder:
        tokenizers = []
        for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
            write_tokenizer(Path(folder) / name, pad)
            tokenizers.append(transformers.CLIPTokenizer.from_pretrained(Path(folder) / name))
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="dpmsolver++",
        solver_order=2, use_karras_sigmas=True, steps_offset=1,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionXLControlNetPipeline(
        **parts, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], controlnet=control, scheduler=scheduler,
        force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(models / "loras"), weight_name=f"{lora}.safetensors", adapter_name=lora)
    return pipeline


def edges(template: str, side: int) -> Any:
    """What the gateways show a ControlNet: `cv2.Canny` at 100 and 200 on 8-bit grey."""
    import cv2
    import numpy
    from PIL import Image

    picture = Image.open(template).convert("RGB")
    if picture.size != (side, side):
        raise ValueError(f"{template} has {picture.size} pixels, {side} a side are needed: nothing is scaled here")
    found = cv2.Canny(cv2.cvtColor(numpy.asarray(picture), cv2.COLOR_RGB2GRAY), 100, 200)
    return Image.fromarray(numpy.repeat(found[:, :, None], 3, axis=2))


class Drawer:
    """The pipeline, and which way the LoRA is in it."""

    def __init__(self, pipeline: Any, lora: str, arguments: argparse.Namespace) -> None:
        self.pipeline, self.lora, self.arguments = pipeline, lora, arguments
        self.way = "adapters"

    def take(self, way: str) -> None:
        """Brings the LoRA into the weights, or beside them, or out of the way."""
        if way == self.way:
            return
        if self.way == "fused":
            raise ValueError("what is fused stays fused")
        if way == "none":
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
        if way == "fused":
            self.pipeline.fuse_lora()
            self.pipeline.unload_lora_weights()
        self.way = way

    def draw(self, pictures: list[dict[str, Any]], batch: int, out: Path) -> dict[str, Any]:
        """All pictures, `batch` a call."""
        import torch

        arguments = self.arguments
        cells = arguments.size // 8
        steps: list[float] = []
        files: list[str] = []
        begin = time.perf_counter()
        for first in range(0, len(pictures), batch):
            part = pictures[first : first + batch]
            noise = [
                torch.randn((1, 4, cells, cells), generator=torch.Generator().manual_seed(picture["seed"]))
                for picture in part
            ]
            marks: list[float] = []

            def done(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any], marks: Any = marks) -> Any:
                marks.append(time.perf_counter())
                return tensors

            images = self.pipeline(
                prompt=[picture["prompt"] for picture in part],
                negative_prompt=[picture["negative_prompt"] for picture in part],
                image=[edges(picture["template"], arguments.size) for picture in part],
                controlnet_conditioning_scale=arguments.control_strength,
                width=arguments.size,
                height=arguments.size,
                num_inference_steps=arguments.steps,
                guidance_scale=arguments.cfg,
                latents=torch.cat(noise),
                callback_on_step_end=done,
            ).images
            # The first step has what comes before it in its time.
            steps += [after - before for before, after in zip(marks, marks[1:])]
            for index, image in enumerate(images):
                files.append(str(out / f"{first + index}.png"))
                image.save(files[-1])
        return {"seconds": time.perf_counter() - begin, "step_seconds": steps, "files": files}


def main() -> None:
    """Answers line by line until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="what make_random_pack.py wrote")
    parser.add_argument("--lora", default="pack_a", help="default: %(default)s")
    parser.add_argument("--control-strength", type=float, default=0.8, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--cfg", type=float, default=7.5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures")
    arguments = parser.parse_args()
    # Libraries print what they like; only answers may go where answers are read.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    import diffusers
    import peft
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    begin = time.perf_counter()
    drawer = Drawer(load_pipeline(arguments.models, arguments.lora), arguments.lora, arguments)
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, peft)}
    print(json.dumps({"load_seconds": time.perf_counter() - begin, "versions": versions}), file=answers)
    with torch.inference_mode():
        for line in sys.stdin:
            asked = json.loads(line)
            drawer.take(asked["way"])
            print(json.dumps(drawer.draw(asked["pictures"], asked["batch"], arguments.out)), file=answers)


if __name__ == "__main__":
    main()
