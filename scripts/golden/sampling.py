#!/usr/bin/env python3
"""Makes the golden files of noise, schedules and samplers in `pipelines/tests/golden`.

- `randn.safetensors`: `torch.randn` of a CPU generator, `SEED.N` and draws one after the other, `SEED.sequence`.
- `brownian.safetensors`: k-diffusion's `BrownianTreeNoiseSampler`; `CASE.queries` are the sigmas of the draws.
- `samplers.safetensors`: k-diffusion's samplers with an analytic denoiser in place of a network.
- `sigmas.json`: with `--recorded FILE`, the SDXL part of the sigmas recorded from ComfyUI 0.3.64.

Wants the packages of requirements.txt and k-diffusion, which is installed without the many packages that its
training code asks for: `pip install --no-deps k-diffusion==0.1.1.post1`.
"""

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "pipelines" / "tests" / "golden"


def k_diffusion_sampling():
    """k-diffusion's `sampling` module alone: its package would import the training code."""
    package = types.ModuleType("k_diffusion")
    package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    package.utils = utils
    likelihood = types.ModuleType("torchdiffeq")
    likelihood.odeint = None
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils, "torchdiffeq": likelihood}
    import k_diffusion.sampling

    return k_diffusion.sampling


def randn():
    out = {}
    for seed in (0, 1, 12345, 2**32 - 1, 2**32 + 5, 2**64 - 1):
        for n in (1, 5, 15, 16, 17, 31, 33, 1024):
            out[f"{seed}.{n}"] = torch.randn(n, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        out[f"{seed}.sequence"] = torch.cat([torch.randn(n, generator=generator) for n in (3, 16, 4, 40)])
    save_file(out, OUT / "randn.safetensors")


SIGMAS = torch.tensor([14.614643, 7.902945, 4.0277104, 1.9103567, 0.8289, 0.3210889, 0.10718, 0.029167158, 0.0])


def brownian(k_diffusion):
    queries = [(a, b) for a, b in zip(SIGMAS[:-2], SIGMAS[1:-1])]
    halves = [(a, (a * b).sqrt()) for a, b in queries]
    # The whole, upwards, a tie of the rounding to six decimals, and a step of a few millionths.
    odd = [(14.614643, 0.029167158), (0.5, 2.0), (3.0078125, 1.0), (1.000003, 1.0)]
    queries = torch.tensor([[float(a), float(b)] for a, b in queries + halves + odd])
    out = {}
    for seed, shape in ((0, (2, 4, 4, 4)), (12345, (2, 4, 4, 4)), (2**40 + 7, (3, 1, 3, 5)), (2**64 - 15, (1, 2, 5))):
        noise = k_diffusion.BrownianTreeNoiseSampler(torch.zeros(shape), SIGMAS[-2], SIGMAS[0], seed=seed)
        out[f"{seed}.draws"] = torch.stack([noise(a, b) for a, b in queries])
    save_file(out | {"queries": queries, "sigmas": SIGMAS}, OUT / "brownian.safetensors")


def denoiser(x, sigma, **_):
    """Stands in for a network: smooth, not linear, and different at every sigma."""
    s = sigma.view(-1, *[1] * (x.ndim - 1))
    return x / (1 + s * s) + 0.3 * torch.tanh(0.5 * x)


def samplers(k_diffusion):
    seed, shape = 12345, (2, 4, 4, 4)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * torch.sqrt(1 + SIGMAS[0] ** 2)

    def independent():
        generator = torch.Generator().manual_seed(seed)
        return lambda *_: torch.randn(shape, generator=generator)

    def path(sigmas):
        return k_diffusion.BrownianTreeNoiseSampler(start, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed)

    out = {"sigmas": SIGMAS, "start": start}
    for ending, sigmas in (("to_zero", SIGMAS), ("partial", SIGMAS[:-1])):
        def run(name, function, **settings):
            out[f"{name}.{ending}"] = function(denoiser, start.clone(), sigmas, disable=True, **settings)

        run("euler", k_diffusion.sample_euler)
        run("heun", k_diffusion.sample_heun)
        run("dpm_2", k_diffusion.sample_dpm_2)
        run("dpmpp_2m", k_diffusion.sample_dpmpp_2m)
        if ending == "partial":
            # At sigma 0 ComfyUI takes the prediction, k-diffusion extrapolates.
            run("lms", k_diffusion.sample_lms)
        run("euler_ancestral", k_diffusion.sample_euler_ancestral, noise_sampler=independent())
        run("dpm_2_ancestral", k_diffusion.sample_dpm_2_ancestral, noise_sampler=independent())
        run("dpmpp_2s_ancestral", k_diffusion.sample_dpmpp_2s_ancestral, noise_sampler=independent())
        run("dpmpp_sde", k_diffusion.sample_dpmpp_sde, noise_sampler=path(sigmas))
        run("dpmpp_3m_sde", k_diffusion.sample_dpmpp_3m_sde, noise_sampler=path(sigmas))
        for name, solver in (("dpmpp_2m_sde", "midpoint"), ("dpmpp_2m_sde_heun", "heun")):
            run(name, k_diffusion.sample_dpmpp_2m_sde, noise_sampler=path(sigmas), solver_type=solver)

    low, high = SIGMAS[-2].item(), SIGMAS[0].item()
    for steps in range(1, 9):
        fast = k_diffusion.sample_dpm_fast(denoiser, start, low, high, steps, disable=True)
        out[f"dpm_fast.{steps}"] = fast
    # Its steps follow the error of the batch, so each sample is run alone.
    alone = [k_diffusion.sample_dpm_adaptive(denoiser, x[None], low, high, disable=True) for x in start]
    out["dpm_adaptive.to_zero"] = torch.cat(alone)
    save_file(out, OUT / "samplers.safetensors")


def recorded_sigmas(file):
    recorded = json.loads(file.read_text())
    for steps_of in recorded["models"]["sdxl"]["schedulers"].values():
        # kl_optimal has no single step.
        for steps in [steps for steps, sigmas in steps_of.items() if any(sigma != sigma for sigma in sigmas)]:
            del steps_of[steps]
    kept = {"comfyui": recorded["comfyui"], "torch": recorded["torch"], **recorded["models"]["sdxl"]}
    (OUT / "sigmas.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, help="sigmas recorded from ComfyUI")
    args = parser.parse_args()
    torch.set_num_threads(1)
    k_diffusion = k_diffusion_sampling()
    randn()
    brownian(k_diffusion)
    samplers(k_diffusion)
    if args.recorded:
        recorded_sigmas(args.recorded)


if __name__ == "__main__":
    main()
