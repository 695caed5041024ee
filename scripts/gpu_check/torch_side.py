"""The same pictures by PyTorch: diffusers' pipeline with the same random weights, sizes, batches and rules of timing.

The UNet and the ControlNet in f16 or bf16, channels-last, with PyTorch's scaled dot-product attention, as eager code and
compiled. The VAE in bf16, as Darkroom's: diffusers' own choice for an SDXL VAE in f16 is f32, which is slower. diffusers
and transformers must be importable, or `--diffusers WHEEL` names a wheel, which is unpacked. Without diffusers there is
no UNet in PyTorch, and nothing is measured.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check import lines  # noqa: E402

WARM_UP, SAMPLED = 3, 6
"""Steps before the clock counts, and steps that are timed where not all are made: as in `benches/gpu_check/speed.rs`."""
COMPILE_SECONDS = 75
"""What compiling the UNet is taken to need; it is left out where less time is there."""
GUESSED_RATE = 120e12
GUIDANCE = 7.5


@dataclass
class Job:
    """What is drawn."""

    width: int
    height: int
    batch: int
    steps: int
    whole: bool = False
    """Whether all steps are made and timed."""
    guided: bool = False
    """With a ControlNet, and a LoRA in the weights."""
    compiled: bool = False

    def name(self) -> str:
        """In the words of Darkroom's own cases."""
        more = ", ControlNet, LoRA merged" if self.guided else ""
        how = "compiled" if self.compiled else "eager"
        return f"diffusers {how}: {self.width}x{self.height}, {self.steps} steps, batch {self.batch}{more}"


def jobs(quick: bool, cuda: bool) -> list[Job]:
    """In the order of what must be known."""
    if quick:
        small = [Job(64, 64, 1, 4, whole=True), Job(64, 64, 2, 3, guided=True)]
        # For a CPU, compiling takes minutes at any size.
        return [*small, Job(64, 64, 1, 4, compiled=True)] if cuda else small
    return [
        Job(1024, 1024, 1, 20, whole=True),
        Job(1024, 1024, 8, 20),
        Job(1024, 1024, 1, 30),
        Job(1024, 1024, 8, 20, compiled=True),
        Job(1536, 1536, 4, 30, guided=True),
        Job(1024, 1024, 1, 20, compiled=True),
        Job(1024, 1024, 4, 20),
        Job(1024, 1024, 8, 20, guided=True),
        Job(1024, 1536, 4, 20),
        Job(1536, 1536, 4, 20),
        Job(512, 512, 8, 20),
    ]


class Clock:
    """Times on the device."""

    def __init__(self, torch: Any, device: str) -> None:
        self.torch, self.cuda = torch, device.startswith("cuda")

    def mark(self) -> Any:
        """A moment in the device's work."""
        if not self.cuda:
            return time.perf_counter()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Until all of it is done."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Between two moments."""
        return begin.elapsed_time(end) if self.cuda else (end - begin) * 1e3


class Peer:
    """diffusers' pipeline, built from the folder that Darkroom's weights are in."""

    def __init__(self, options: Any, dtype_name: str) -> None:
        import diffusers
        import torch
        import transformers
        from safetensors.torch import load_file

        diffusers.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()
        self.torch, self.device, self.work = torch, options.device, options.work
        self.clock = Clock(torch, options.device)
        cuda = options.device.startswith("cuda")
        self.dtype = getattr(torch, dtype_name) if cuda else torch.float32
        self.vae_dtype = torch.bfloat16 if cuda else torch.float32
        folder = self.work / "models/checkpoints/random_sdxl"

        def config(path: Path) -> dict[str, Any]:
            values = json.loads((path / "config.json").read_text())
            return {k: v for k, v in values.items() if k not in ("_class_name", "architectures", "model_type")}

        def load(make: Any, file: Path, dtype: Any) -> Any:
            with torch.device("meta"):
                module = make()
            # On the device itself: nothing but the file is in the machine's memory.
            weights = {key: value.to(dtype) for key, value in load_file(file, device=options.device).items()}
            names = set(module.state_dict())
            # transformers 5 leaves this out of the names of some encoders.
            prefix = "text_model."
            renamed = {}
            for key, value in weights.items():
                bare = key.removeprefix(prefix)
                renamed[key if key in names else bare if bare in names else prefix + key] = value
            missing, unexpected = module.load_state_dict(renamed, strict=False, assign=True)
            if unexpected or [name for name in missing if not name.endswith("position_ids")]:
                raise ValueError(f"{file.name}: missing {missing[:3]}, unexpected {unexpected[:3]}")
            for name, buffer in list(module.named_buffers()):
                if buffer.is_meta:
                    owner, _, leaf = name.rpartition(".")
                    made = torch.arange(buffer.shape[-1], device=options.device).expand(buffer.shape)
                    module.get_submodule(owner).register_buffer(leaf, made, persistent=False)
            return module.eval().requires_grad_(False)

        network = "diffusion_pytorch_model.safetensors"
        unet, vae = config(folder / "unet"), config(folder / "vae")
        self.unet = load(lambda: diffusers.UNet2DConditionModel(**unet), folder / "unet" / network, self.dtype)
        self.vae = load(lambda: diffusers.AutoencoderKL(**vae), folder / "vae" / network, self.vae_dtype)
        clip = transformers.CLIPTextConfig
        l, g = config(folder / "text_encoder"), config(folder / "text_encoder_2")
        self.text = load(
            lambda: transformers.CLIPTextModel(clip(**l)), folder / "text_encoder/model.safetensors", self.dtype
        )
        self.text_2 = load(
            lambda: transformers.CLIPTextModelWithProjection(clip(**g)), folder / "text_encoder_2/model.safetensors", self.dtype
        )
        for module in (self.unet, self.vae):
            module.to(memory_format=torch.channels_last)
        # Scaled already, and in a type with f32's range.
        self.vae.config.force_upcast = False
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        self.scheduler = diffusers.EulerDiscreteScheduler(**{k: v for k, v in scheduler.items() if k != "_class_name"})
        common = {
            "vae": self.vae, "text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None,
            "unet": self.unet, "scheduler": self.scheduler, "add_watermarker": False,
        }  # fmt: skip
        self.plain = diffusers.StableDiffusionXLPipeline(**common)
        self.plain.set_progress_bar_config(disable=True)
        self.guided: Any = None

        def guided() -> Any:
            """Loaded once it is asked for: memory that plain pictures take is theirs alone."""
            settings = config(self.work / "control_net")
            file = self.work / "models/controlnet/random_canny.safetensors"
            control = load(lambda: diffusers.ControlNetModel(**settings), file, self.dtype)
            control.to(memory_format=torch.channels_last)
            made = diffusers.StableDiffusionXLControlNetPipeline(**common, controlnet=control)
            made.set_progress_bar_config(disable=True)
            return made

        self.make_guided = guided
        self.eager = self.unet.forward
        self.compiled: Any = None
        self.fused = False

    def fuse_lora(self) -> None:
        """Adds a LoRA to the weights, in place: what fusing does, without another library."""
        if self.fused:
            return
        from safetensors.torch import load_file

        factors = load_file(self.work / "models/loras/random_a.safetensors", device=self.device)
        modules = dict(self.unet.named_modules())
        for key, down in factors.items():
            if key.endswith(".lora_A.weight"):
                layer = key.removeprefix("unet.").removesuffix(".lora_A.weight")
                up = factors[key.replace("lora_A", "lora_B")]
                modules[layer].weight.data += (up.float() @ down.float()).to(self.dtype)
        self.fused = True

    def encode(self, batch: int) -> dict[str, Any]:
        """Positive and negative prompts of one chunk: the same number of tokens through the same encoders."""
        torch = self.torch
        ids = torch.arange(2 * batch * 77, device=self.device).reshape(2 * batch, 77) * 577 % 40_000 + 1
        ids[:, 0], ids[:, -1] = 49_406, 49_407
        l = self.text(ids, output_hidden_states=True).hidden_states[-2]
        out = self.text_2(ids, output_hidden_states=True)
        hidden = torch.cat([l, out.hidden_states[-2]], dim=-1)
        return {
            "prompt_embeds": hidden[:batch], "negative_prompt_embeds": hidden[batch:],
            "pooled_prompt_embeds": out.text_embeds[:batch], "negative_pooled_prompt_embeds": out.text_embeds[batch:],
        }  # fmt: skip

    def draw(self, job: Job, steps: int) -> dict[str, float]:
        """One batch from its tokens to its pixels."""
        torch, clock = self.torch, self.clock
        marks: list[Any] = []

        def stepped(_pipeline: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            marks.append(clock.mark())
            return tensors

        clock.wait()
        started = time.perf_counter()
        prompts = self.encode(job.batch)
        clock.wait()
        encoded = time.perf_counter()
        generators = [torch.Generator().manual_seed(42 + index) for index in range(job.batch)]
        more: dict[str, Any] = {}
        if job.guided:
            picture = (torch.rand(1, 3, job.height, job.width, device=self.device) > 0.98).to(self.dtype)
            more = {"image": picture.repeat(job.batch, 1, 1, 1), "controlnet_conditioning_scale": 0.8}
        latents = (self.guided if job.guided else self.plain)(
            **prompts, **more, width=job.width, height=job.height, num_inference_steps=steps, guidance_scale=GUIDANCE,
            generator=generators, callback_on_step_end=stepped, output_type="latent",
        ).images  # fmt: skip
        clock.wait()
        denoised = time.perf_counter()
        finite = bool(torch.isfinite(latents).all())
        # One by one, as many as fit: slicing is what keeps a batch of 16 within the card.
        pixels = [
            self.vae.decode(row[None].to(self.vae_dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
            for row in latents
        ]
        pictures = [((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu() for image in pixels]
        clock.wait()
        decoded = time.perf_counter()
        if not finite or not pictures:
            raise ValueError("the latents are no numbers: this measures nothing")
        times = [clock.milliseconds(before, after) for before, after in zip(marks, marks[1:])]
        return {
            "encode": encoded - started, "denoise": denoised - encoded, "decode": decoded - denoised,
            "step_ms": statistics.median(times) if times else float("nan"),
        }  # fmt: skip

    def measure(self, job: Job) -> dict[str, Any]:
        """Warm, then timed."""
        torch = self.torch
        if job.guided:
            self.fuse_lora()
            self.guided = self.guided or self.make_guided()
        found: dict[str, Any] = {}
        self.unet.forward = self.eager
        if job.compiled:
            started = time.perf_counter()
            if self.compiled is None:
                self.compiled = torch.compile(self.eager, fullgraph=False, dynamic=False)
            self.unet.forward = self.compiled
            self.draw(job, 2)
            found["compile_seconds"] = lines.rounded(time.perf_counter() - started)
        if self.clock.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.draw(job, WARM_UP)
        steps = job.steps if job.whole else min(SAMPLED, job.steps)
        drawn = self.draw(job, steps)
        self.unet.forward = self.eager
        denoise = drawn["denoise"] if job.whole else drawn["step_ms"] / 1e3 * job.steps
        total = drawn["encode"] + denoise + drawn["decode"]
        memory = {}
        if self.clock.cuda:
            memory = {"used": torch.cuda.max_memory_allocated() >> 20, "reserved": torch.cuda.max_memory_reserved() >> 20}
        return {
            "width": job.width, "height": job.height, "batch": job.batch, "steps": job.steps, "steps_measured": steps,
            "extrapolated": not job.whole, "compiled": job.compiled, "control": job.guided,
            "lora": "merged" if job.guided else "none", "seconds": lines.rounded(total),
            "images_per_second": lines.rounded(job.batch / total),
            "denoising_images_per_second": lines.rounded(job.batch / denoise),
            "encode_seconds": lines.rounded(drawn["encode"]), "step_ms": lines.rounded(drawn["step_ms"]),
            "decode_seconds": lines.rounded(drawn["decode"]), "peak_mib": memory, **found,
        }  # fmt: skip


def main() -> None:
    """Measures what there is time for."""
    parser = lines.parser(__doc__ or "")
    parser.add_argument("--diffusers", type=Path, metavar="WHEEL", help="a wheel of diffusers")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="default: %(default)s")
    options = parser.parse_args()
    record = lines.Record(options)
    with tempfile.TemporaryDirectory(prefix="darkroom-gpu-check-peer-") as folder:
        if options.diffusers:
            with zipfile.ZipFile(options.diffusers) as wheel:
                wheel.extractall(folder)
            sys.path.insert(0, folder)
        try:
            import torch
        except ImportError as error:
            record.skipped("diffusers", f"PyTorch is not there: {error}")
            return
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            record.skipped("diffusers", "this PyTorch finds no GPU")
            return
        try:
            import diffusers
            import transformers
        except ImportError as error:
            record.skipped("diffusers", f"there is no UNet in PyTorch alone; --diffusers names a wheel of it: {error}")
            return
        record.fact("versions", {module.__name__: module.__version__ for module in (torch, diffusers, transformers)})
        record.fact("dtype", options.dtype if options.device.startswith("cuda") else "float32")
        with torch.inference_mode():
            started = time.perf_counter()
            peer = Peer(options, options.dtype)
            peer.clock.wait()
            record.fact("load_seconds", lines.rounded(time.perf_counter() - started))
            for job in jobs(options.quick, options.device.startswith("cuda")):
                # 6.76 TFLOP a row of 1024², two rows a picture.
                steps = WARM_UP + (job.steps if job.whole else SAMPLED)
                work = 13.5e12 * job.batch * steps * job.width * job.height / 1024**2 * (1.5 if job.guided else 1)
                needs = 1 + work / GUESSED_RATE + (COMPILE_SECONDS if job.compiled else 0)
                record.case(job.name(), 2 if options.quick else needs, lambda job=job: peer.measure(job))


if __name__ == "__main__":
    main()
