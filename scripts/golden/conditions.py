#!/usr/bin/env python3
"""Makes the golden files of guidance, noise and sigmas that ComfyUI's sampling nodes reach.

Runs ComfyUI's own functions (0.3.64, given by its folder) with small stand-ins for networks:

- `pipelines/tests/golden/conditions.json` and `.safetensors`: conditions with areas, masks, ranges and ControlNets;
  which rows the network was asked for, and what guidance made of its answers;
- `pipelines/tests/golden/model_sampling.json`: what each choice of `ModelSamplingDiscrete` does, and what
  `ModelSamplingSD3` and `ModelSamplingAuraFlow` do;
- `pipelines/tests/golden/any_sigmas.safetensors`: samplers on sigmas that rise or repeat;
- `pipelines/tests/golden/every_sampler.safetensors`: every sampler, of noise that is added and of a flow;
- `pipelines/tests/golden/batch_index.safetensors`: noise of numbered batches;
- `models/tests/golden/free_u.safetensors`: `FreeU_V2` on features.

Nothing of ComfyUI is needed to test against these files.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "pipelines" / "tests" / "golden"
CHANNELS = 2


def import_comfyui(folder: Path):
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sample
    import comfy.samplers

    logging.getLogger().setLevel(logging.ERROR)
    return comfy


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- conditions ---------------------------------------------------------------------------------------------------

BASE = {"k": 0.7}
NEGATIVE = {"k": -0.4}
INNER = {"k": 1.3, "area": [12, 8, 4, 4]}
RANGES = [{"k": 0.3, "start": 0.0, "end": 0.4}, {"k": 0.9, "start": 0.4, "end": 1.0}]
# One case: the latent's rows and columns, sigma, guidance scale, and the conditions of both sides.
CASES = {
    "two_everywhere": (12, 10, 3.0, 5.0, [BASE, {"k": 1.5, "strength": 0.6}], [NEGATIVE]),
    "one_stronger": (12, 10, 3.0, 5.0, [{"k": 1.5, "strength": 1.7}], [NEGATIVE]),
    "inner_area": (20, 16, 3.0, 5.0, [BASE, INNER], [NEGATIVE]),
    "area_alone": (20, 16, 3.0, 5.0, [INNER], [NEGATIVE]),
    "wide_fades": (44, 40, 1.0, 7.0, [BASE, {"k": 1.3, "area": [36, 33, 5, 0], "strength": 1.2}], [NEGATIVE]),
    "area_at_the_corner": (20, 16, 3.0, 5.0, [BASE, {"k": 1.3, "area": [64, 64, 7, 9]}], [NEGATIVE]),
    "shares": (
        21, 15, 3.0, 5.0,
        [BASE, {"k": 1.3, "area": ["percentage", 0.5, 0.5, 0.5, 0.5], "size": [640, 512]}],
        [NEGATIVE, {"k": -0.9, "area": ["percentage", 0.62, 0.7, 0.33, 0.3]}],
    ),
    "whole_share": (16, 12, 3.0, 5.0, [{"k": 1.3, "area": ["percentage", 1.0, 1.0, 0, 0]}, BASE], [NEGATIVE]),
    "negative_area": (20, 16, 3.0, 5.0, [BASE, {"k": 0.2}], [NEGATIVE, {"k": -0.9, "area": [8, 8, 0, 8]}]),
    "nested_areas": (
        24, 24, 3.0, 5.0,
        [{"k": 1.1, "area": [20, 20, 2, 2]}, {"k": 1.9, "area": [8, 8, 8, 8]}],
        [{"k": -0.9, "area": [22, 22, 1, 1], "size": [800, 640]}, NEGATIVE],
    ),
    "masks": (
        16, 12, 3.0, 5.0,
        [{"k": 1.3, "mask": "soft", "mask_strength": 0.7}, {"k": 0.4, "mask": "box", "mask_strength": 1.0}],
        [NEGATIVE],
    ),
    "mask_bounds": (16, 12, 3.0, 5.0, [BASE, {"k": 1.3, "mask": "box", "bounds": True}], [NEGATIVE]),
    "empty_mask_bounds": (16, 12, 3.0, 5.0, [BASE, {"k": 1.3, "mask": "empty", "bounds": True}], [NEGATIVE]),
    "mask_in_area": (
        16, 12, 3.0, 5.0, [BASE, {"k": 1.3, "mask": "soft", "area": [8, 8, 3, 2], "strength": 0.5}], [NEGATIVE],
    ),
    "uncovered": (16, 12, 3.0, 5.0, [{"k": 1.3, "mask": "empty"}], [NEGATIVE]),
    "ranges_early": (12, 10, 12.0, 5.0, RANGES, [NEGATIVE]),
    "ranges_late": (12, 10, 1.0, 5.0, RANGES, [NEGATIVE]),
    "out_of_range": (12, 10, 1.0, 5.0, [{"k": 0.3, "start": 0.0, "end": 0.1}], [NEGATIVE]),
    "ranged_area": (
        20, 16, 12.0, 5.0, [BASE, {**INNER, "start": 0.0, "end": 0.3}], [{**NEGATIVE, "start": 0.5, "end": 1.0}],
    ),
    "unguided": (20, 16, 3.0, 1.0, [BASE], [NEGATIVE, {"k": -0.9, "area": [8, 8, 0, 8]}]),
    "no_negative": (20, 16, 3.0, 1.0, [BASE, INNER], None),
    "shared_control": (
        12, 10, 3.0, 5.0,
        [{"k": 0.7, "control": 1, "shared": True}, {"k": 0.9, "control": 2, "shared": True}],
        [NEGATIVE, {"k": -0.2}],
    ),
    "own_control": (
        12, 10, 3.0, 5.0, [{"k": 0.7, "control": 1, "shared": True}], [NEGATIVE, {"k": -0.2, "control": 3}],
    ),
    "controlled_area": (20, 16, 3.0, 5.0, [BASE, {**INNER, "control": 2}], [{"k": -0.4, "control": 3}]),
}
# Guidance that is rescaled: the multiplier.
RESCALED = {"two_everywhere": 0.7, "inner_area": 0.35, "wide_fades": 1.0}
# Guidance whose predictions are cut to the prompt's length, after it was rescaled where it is: the strengths.
NORMED = {"two_everywhere": [0.9], "shares": [1.0, 0.5], "unguided": [0.8]}


def masks():
    box = torch.zeros(1, 33, 30)
    box[:, 8:20, 6:17] = 1.0
    soft = torch.rand((1, 16, 12), generator=torch.Generator().manual_seed(5))
    return {"soft": soft, "box": box, "empty": torch.zeros(1, 16, 12)}


def epsilon_sampling(comfy):
    kinds = comfy.model_sampling
    return type("Sampling", (kinds.ModelSamplingDiscrete, kinds.EPS), {})()


class StandIn:
    """A model whose answer is a smooth function of its input, of the prompt's number and of the size."""

    def __init__(self, comfy):
        self.comfy = comfy
        self.model_sampling = epsilon_sampling(comfy)
        self.current_patcher = SimpleNamespace(prepare_state=lambda t: None, apply_hooks=lambda hooks: {})
        self.rows = []

    def memory_required(self, *_, **__):
        return 0

    def extra_conds(self, **kwargs):
        size = torch.tensor([[float(kwargs["width"]), float(kwargs["height"])]])
        return {
            "c_crossattn": self.comfy.conds.CONDCrossAttn(kwargs["cross_attn"]),
            "y": self.comfy.conds.CONDRegular(size),
        }

    def apply_model(self, x, t, c_crossattn, y, control=0, **_):
        out = []
        for row, context, size in zip(x, c_crossattn, y):
            k = context[0, 0]
            self.rows.append([round(k.item(), 6), *row.shape[1:], *size.tolist(), control])
            out.append(torch.tanh(k * row) + 1e-3 * size[0] - 2e-3 * size[1] + 0.1 * control)
        return torch.stack(out)


def conditioning(entries, masks):
    if entries is None:
        return None
    out = []
    for entry in entries:
        options = {}
        if "area" in entry:
            options["area"] = tuple(entry["area"])
        if "mask" in entry:
            options["mask"] = masks[entry["mask"]]
            options["mask_strength"] = entry.get("mask_strength", 1.0)
            options["set_area_to_bounds"] = entry.get("bounds", False)
        if "start" in entry:
            options |= {"start_percent": entry["start"], "end_percent": entry["end"]}
        if "size" in entry:
            options |= dict(zip(("width", "height"), entry["size"]))
        if "strength" in entry:
            options["strength"] = entry["strength"]
        if "control" in entry:
            number = entry["control"]
            options["control"] = SimpleNamespace(
                pre_run=lambda *_: None, get_control=lambda *_, number=number: number, get_extra_hooks=lambda: [])
            options["control_apply_to_uncond"] = entry.get("shared", False)
        out.append([torch.full((1, 2, 1), entry["k"]), options])
    return out


def conditions(comfy):
    known, cases, tensors = masks(), {}, {}
    for name, mask in known.items():
        tensors[f"mask.{name}"] = mask[0]
    for seed, (name, (height, width, sigma, cfg, positive, negative)) in enumerate(CASES.items()):
        model = StandIn(comfy)
        x = 2 * random(seed, 1, CHANNELS, height, width)

        def guide(model_options):
            model.rows = []
            conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning(positive, known))}
            if negative is not None:
                conds["negative"] = comfy.sampler_helpers.convert_cond(conditioning(negative, known))
            conds = comfy.samplers.process_conds(model, x, conds, "cpu")
            sides = (conds.get("negative"), conds["positive"])
            return comfy.samplers.sampling_function(model, x, torch.tensor([sigma]), *sides, cfg, model_options)

        tensors[f"{name}.x"] = x[0]
        tensors[f"{name}.guided"] = guide({})[0]
        asked = {"sigma": sigma, "cfg": cfg, "positive": positive, "negative": negative}
        cases[name] = asked | {"rows": sorted(model.rows)}
        if name in RESCALED:
            clone = SimpleNamespace(set_model_sampler_cfg_function=lambda f: setattr(clone, "function", f))
            rescale = comfy_extras_nodes().RescaleCFG()
            rescale.patch(SimpleNamespace(clone=lambda: clone), RESCALED[name])
            cases[name]["rescale"] = RESCALED[name]
            tensors[f"{name}.rescaled"] = guide({"sampler_cfg_function": clone.function})[0]
        if name in NORMED:
            options = {"sampler_post_cfg_function": [cfg_norm(strength) for strength in NORMED[name]]}
            if name in RESCALED:
                options["sampler_cfg_function"] = clone.function
            cases[name]["norms"] = NORMED[name]
            tensors[f"{name}.normed"] = guide(options)[0]
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "conditions.safetensors")
    (OUT / "conditions.json").write_text(json.dumps(cases, indent=1) + "\n")


def cfg_norm(strength):
    from comfy_extras.nodes_cfg import CFGNorm

    clone = SimpleNamespace(set_model_sampler_post_cfg_function=lambda f: setattr(clone, "function", f))
    CFGNorm.execute(SimpleNamespace(clone=lambda: clone), strength)
    return clone.function


def comfy_extras_nodes():
    import comfy_extras.nodes_model_advanced

    return comfy_extras.nodes_model_advanced


# --- model sampling -----------------------------------------------------------------------------------------------


def model_sampling(comfy):
    x, output = [0.5, -3.0, 12.0], [1.0, 0.3, -0.7]
    cases = []
    for kind in ("eps", "v_prediction", "lcm", "x0", "img_to_img"):
        for zsnr in (False, True):
            clone = SimpleNamespace(add_object_patch=lambda name, value: setattr(clone, name, value))
            model = SimpleNamespace(clone=lambda: clone, model=SimpleNamespace(model_config=None))
            comfy_extras_nodes().ModelSamplingDiscrete().patch(model, kind, zsnr)
            sampling = clone.model_sampling
            sigmas = [0.02, 0.03, 0.5, 3.0, 14.0, 200.0, 5000.0]
            steps = []
            for sigma in sigmas:
                s, latent = torch.tensor([sigma]), torch.tensor([x])
                steps.append({
                    "sigma": sigma,
                    "timestep": float(sampling.timestep(s)),
                    "input": sampling.calculate_input(s, latent)[0].tolist(),
                    "denoised": sampling.calculate_denoised(s, torch.tensor([output]), latent)[0].tolist(),
                })
            times = [0.0, 18.0, 19.0, 100.5, 500.25, 987.0, 998.5, 999.0]
            schedules = {
                name: comfy.samplers.calculate_sigmas(sampling, name, 7).tolist()
                for name in comfy.samplers.SCHEDULER_NAMES
            }
            cases.append({
                "prediction": kind,
                "zsnr": zsnr,
                "sigmas_at": [[t, sampling.sigma(torch.tensor(t)).item()] for t in times],
                "percents": [[p, sampling.percent_to_sigma(p)] for p in (0.0, 0.001, 0.3, 0.55, 0.999, 1.0)],
                "steps": steps,
                "schedules": schedules,
            })
    document = {"x": x, "output": output, "cases": cases, "flows": flows(comfy, x, output)}
    (OUT / "model_sampling.json").write_text(json.dumps(document, indent=1) + "\n")


def flow_sampling(shift, aura):
    clone = SimpleNamespace(add_object_patch=lambda name, value: setattr(clone, name, value))
    model = SimpleNamespace(clone=lambda: clone, model=SimpleNamespace(model_config=None))
    nodes = comfy_extras_nodes()
    if aura:
        nodes.ModelSamplingAuraFlow().patch_aura(model, shift)
    else:
        nodes.ModelSamplingSD3().patch(model, shift)
    return clone.model_sampling


def flows(comfy, x, output):
    noise, latent = torch.tensor([output]), torch.tensor([x])
    cases = []
    for shift, aura in ((3.0, False), (1.0, False), (0.004, False), (1.73, True), (3.1, True), (100.0, True)):
        sampling = flow_sampling(shift, aura)
        steps = []
        for sigma in (0.0005, 0.03, 0.5, 0.9, 0.9997, 1.0):
            s = torch.tensor([sigma])
            steps.append({
                "sigma": sigma,
                "timestep": float(sampling.timestep(s)),
                "input": sampling.calculate_input(s, latent)[0].tolist(),
                "denoised": sampling.calculate_denoised(s, noise, latent)[0].tolist(),
                "noised": sampling.noise_scaling(s, noise.clone(), latent, True)[0].tolist(),
                "unmixed": sampling.inverse_noise_scaling(s, latent)[0].tolist() if sigma < 1.0 else None,
            })
        times = [part * sampling.multiplier for part in (0.0, 0.001, 0.25, 0.9, 1.0)]
        cases.append({
            "shift": shift,
            "multiplier": sampling.multiplier,
            "table": sampling.sigmas[::37].tolist(),
            "sigmas_at": [[t, sampling.sigma(torch.tensor(t)).item()] for t in times],
            "percents": [[p, sampling.percent_to_sigma(p)] for p in (0.0, 0.001, 0.3, 0.999, 1.0)],
            "steps": steps,
            "schedules": {
                name: comfy.samplers.calculate_sigmas(sampling, name, 7).tolist()
                for name in comfy.samplers.SCHEDULER_NAMES
            },
        })
    return cases


# --- samplers on any sigmas ---------------------------------------------------------------------------------------

LISTS = {
    # FlipSigmas of a schedule that ends at 0.
    "rising": [0.0001, 0.029167158, 0.3210889, 0.8289, 1.9103567, 4.0277104, 7.902945, 14.614643],
    "repeating": [7.902945, 4.0277104, 4.0277104, 0.8289, 0.3210889, 0.3210889, 0.0],
    "rising_then_falling": [0.8289, 4.0277104, 1.9103567, 0.3210889, 0.0],
    "flat": [4.0277104, 4.0277104],
}


class Denoiser:
    """The analytic denoiser of `sampling.py` where ComfyUI has its guided model. `uncond`: whether what the negative
    prompt says is something else."""

    def __init__(self, sampling, uncond=False):
        self.uncond = uncond
        patcher = SimpleNamespace(get_model_object=lambda name: sampling)
        inner = SimpleNamespace(model_sampling=sampling)
        self.inner_model = SimpleNamespace(inner_model=inner, model_patcher=patcher)

    def __call__(self, x, sigma, model_options={}, **_):
        s = sigma.view(-1, *[1] * (x.ndim - 1))
        denoised = x / (1 + s * s) + 0.3 * torch.tanh(0.5 * x)
        uncond = 0.8 * denoised + 0.1 * torch.tanh(x) if self.uncond else denoised
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function({"denoised": denoised, "uncond_denoised": uncond, "model_options": model_options})
        return denoised


def any_sigmas(comfy):
    start = random(12345, 1, 4, 2, 2)
    tensors = {"start": start[0]}
    for name, sigmas in LISTS.items():
        sigmas = torch.tensor(sigmas)
        for sampler in comfy.samplers.SAMPLER_NAMES:
            if sampler.endswith("_gpu"):
                continue
            latent = start * torch.sqrt(1 + sigmas[0] ** 2)
            function = comfy.samplers.sampler_object(sampler).sampler_function
            settings = {"extra_args": {"seed": 12345}, "callback": None, "disable": True}
            try:
                # A copy: uni_pc writes into its sigmas.
                result = function(Denoiser(epsilon_sampling(comfy)), latent, sigmas.clone(), **settings)
            except Exception as error:
                print(f"{name}.{sampler}: {type(error).__name__}: {error}")
                continue
            if not result.isfinite().all():
                print(f"{name}.{sampler}: not finite")
            tensors[f"{name}.{sampler}"] = result[0]
        tensors[f"{name}.sigmas"] = sigmas
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "any_sigmas.safetensors")


# --- every sampler ------------------------------------------------------------------------------------------------


def every_sampler(comfy):
    start = random(7, 1, 4, 2, 2)
    tensors = {"start": start[0]}
    lists = {
        "exploding": (epsilon_sampling(comfy), [14.614643, 4.9, 2.1, 0.83, 0.27, 0.06, 0.0]),
        "flow": (flow_sampling(3.0, True), [1.0, 0.93, 0.81, 0.62, 0.37, 0.12, 0.0]),
        "late_flow": (flow_sampling(3.0, False), [0.93, 0.77, 0.5, 0.31, 0.1, 0.02]),
    }
    for process, (sampling, sigmas) in lists.items():
        sigmas = torch.tensor(sigmas)
        tensors[f"{process}.sigmas"] = sigmas
        for sampler in comfy.samplers.SAMPLER_NAMES:
            if sampler.endswith("_gpu"):
                continue
            latent = sampling.noise_scaling(sigmas[0], start.clone(), torch.full_like(start, 0.4))
            shown = []
            settings = {
                "extra_args": {"seed": 12345},
                "callback": lambda step: shown.append(step["denoised"].clone()),
                "disable": True,
            }
            function = comfy.samplers.sampler_object(sampler).sampler_function
            # A copy: uni_pc writes into its sigmas.
            tensors[f"{process}.{sampler}"] = function(Denoiser(sampling, True), latent, sigmas.clone(), **settings)[0]
            tensors[f"{process}.{sampler}.shown"] = shown[-1][0]
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / "every_sampler.safetensors")


# --- noise of numbered batches ------------------------------------------------------------------------------------


def batch_index(comfy):
    tensors = {}
    for seed, shape in ((0, (4, 4, 4)), (12345, (4, 3, 5)), (2**40 + 7, (4, 1, 1)), (5, (1, 1, 3))):
        places = [0, 2, 5, 2]
        latent = torch.zeros((len(places), *shape))
        tensors[f"{seed}.{'x'.join(map(str, shape))}"] = comfy.sample.prepare_noise(latent, seed, places)
    save_file(tensors | {"places": torch.tensor(places)}, OUT / "batch_index.safetensors")


# --- FreeU --------------------------------------------------------------------------------------------------------


def free_u():
    from comfy_extras.nodes_freelunch import FreeU_V2

    first, scales, tensors = 2, (1.3, 1.4, 0.9, 0.2), {}
    clone = SimpleNamespace(set_model_output_block_patch=lambda f: setattr(clone, "function", f))
    config = SimpleNamespace(unet_config={"model_channels": first})
    model = SimpleNamespace(clone=lambda: clone, model=SimpleNamespace(model_config=config))
    FreeU_V2().patch(model, *scales)
    for seed, (channels, height, width) in enumerate([(8, 8, 6), (4, 5, 7), (8, 2, 3), (4, 1, 6), (2, 6, 6)]):
        backbone, skip = random(seed, 2, channels, height, width), random(seed + 100, 2, 3, height, width)
        name = f"{channels}x{height}x{width}"
        tensors |= {f"{name}.backbone": backbone.clone(), f"{name}.skip": skip.clone()}
        changed, filtered = clone.function(backbone, skip, {})
        tensors |= {f"{name}.changed": changed, f"{name}.filtered": filtered}
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, ROOT / "models" / "tests" / "golden" / "free_u.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="the folder of ComfyUI 0.3.64")
    comfy = import_comfyui(parser.parse_args().comfyui.resolve())
    with torch.inference_mode():
        conditions(comfy)
        model_sampling(comfy)
        any_sigmas(comfy)
        every_sampler(comfy)
        batch_index(comfy)
        free_u()


if __name__ == "__main__":
    main()
