"""What every training script shares: its budget, its ranks, averaged weights, and how it reports.

Training runs as several processes of one thread each (`torchrun`): on a busy CPU that is several times faster than one
process of several threads.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist


def parser(doc: str | None, seconds: float | None = None, steps: int | None = None) -> argparse.ArgumentParser:
    """A command line with the work folder and, if the script trains, its budget (the default is what made the weights)."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "work", type=Path, help="folder of the run: earlier stages' results are read and new ones written here"
    )
    if seconds is not None or steps is not None:
        shipped = f"{steps} steps" if steps else f"{seconds:.0f} seconds"
        budget = result.add_mutually_exclusive_group()
        budget.add_argument("--steps", type=int, help=f"train this many steps (the shipped weights: {shipped})")
        budget.add_argument("--seconds", type=float, help="train this long on the clock")
        result.set_defaults(shipped_steps=steps, shipped_seconds=seconds)
    return result


@dataclass
class Ranks:
    """The processes of this run, and what they do together. One process alone works too."""

    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")))
    count: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")))

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        torch.backends.cuda.enable_flash_sdp(False)  # the CPU's flash attention is slow backwards at these sizes
        if self.count > 1:
            dist.init_process_group("gloo")

    @property
    def first(self) -> bool:
        """Whether this process reports and saves."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """Rank 0's value."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces every tensor (weights or gradients) by its mean over the ranks."""
        if self.count == 1:
            return
        tensors = list(tensors)
        with torch.no_grad():
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.count
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
                tensor.copy_(mean.view_as(tensor))

    def share(self, total: int) -> range:
        """This rank's part of `total` items."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.count > 1:
            dist.barrier()

    def close(self) -> None:
        """Ends the process group."""
        if self.count > 1:
            dist.destroy_process_group()


class Budget:
    """How much of a run is done: by steps if a number of steps was asked for, else by the clock.

    Learning rates follow the fraction. Steps make a run repeatable; the clock makes it predictable.
    """

    def __init__(self, arguments: argparse.Namespace, ranks: Ranks, every: int = 1) -> None:
        self._steps: int | None = arguments.steps
        self._seconds: float | None = arguments.seconds
        if self._steps is None and self._seconds is None:
            self._steps, self._seconds = arguments.shipped_steps, arguments.shipped_seconds
        self._ranks, self._every, self._fraction = ranks, every, 0.0
        self._started = time.monotonic()

    def fraction(self, step: int) -> float:
        """0 at the start, 1 when it is time to stop. By the clock, ranks agree every `every` steps."""
        if self._steps:
            return step / self._steps
        if step % self._every == 0:
            self._fraction = self._ranks.agree(self.elapsed() / (self._seconds or 1))
        return self._fraction

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started


class Ema:
    """Exponential moving average of modules' weights; young averages forget faster."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], longest: float, warmup: int) -> None:
        self._modules, self._longest, self._warmup = modules, longest, warmup
        self.states = {
            name: {key: value.clone() for key, value in module.state_dict().items()} for name, module in modules.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the current weights."""
        decay = min(self._longest, (step + 1) / (step + self._warmup))
        for name, module in self._modules.items():
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    self.states[name][key].lerp_(value, 1 - decay)


class Report:
    """Prints means of the given figures every so many steps, on rank 0."""

    def __init__(self, ranks: Ranks, budget: Budget, every: int) -> None:
        self._ranks, self._budget, self._every = ranks, budget, every
        self._values: dict[str, list[float]] = {}

    def add(self, step: int, **figures: float) -> None:
        """Counts one step's figures."""
        for name, value in figures.items():
            self._values.setdefault(name, []).append(value)
        if step % self._every == 0:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Prints what has been counted since the last time."""
        if self._ranks.first and self._values:
            figures = "  ".join(f"{name} {np.mean(values):.4g}" for name, values in self._values.items())
            print(f"step {step}  {self._budget.elapsed():.0f} s  {figures}", flush=True)
        self._values = {}


def load_images(work: Path) -> np.ndarray:
    """The drawings, `[count, 128, 128, 3]`, mapped."""
    return np.load(work / "images.npy", mmap_mode="r")


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """`[n, h, w, 3]` bytes to `[n, 3, h, w]` in -1..1. Contiguous: channels-last makes GroupNorm's backward 4× slower."""
    return (torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def to_images(tensor: torch.Tensor) -> np.ndarray:
    """The reverse of `to_tensor`."""
    return ((tensor.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
