#!/usr/bin/env python3
"""Times torch's CPU operators at the shapes of `kernels/benches/shapes.rs`, in f32.

    OMP_NUM_THREADS=2 python scripts/bench/kernels_torch.py [operation] [--threads N] [--cpu-time]

Prints, per shape, the fastest of some runs in milliseconds and the rate in 1e9 operations (multiply and add
counted apart; elements for norms and gates) a second. Run it beside `cargo bench -p darkroom-kernels`, in
turns. `--cpu-time` with `--threads 1` measures time on the processor instead of wall time, for busy machines.
"""

import argparse
import time

import torch
import torch.nn.functional as F

LINEAR = [(2048, 640, 640), (2048, 640, 5120), (2048, 2560, 640), (512, 1280, 1280), (512, 1280, 10240),
          (512, 5120, 1280), (154, 2048, 640), (154, 2048, 1280), (2, 1280, 1280)]
CONV = [(2, 64, 4, 320, 3), (2, 64, 320, 4, 3), (2, 64, 320, 320, 3), (2, 64, 960, 320, 3), (2, 64, 640, 320, 1),
        (2, 32, 640, 640, 3), (2, 32, 1280, 640, 3), (2, 32, 1920, 640, 3), (2, 16, 1280, 1280, 3),
        (2, 16, 2560, 1280, 3), (1, 64, 512, 512, 3), (1, 128, 512, 512, 3), (1, 256, 256, 256, 3),
        (1, 512, 128, 128, 3)]
ATTENTION = [(2, 1024, 1024, 10, 64), (2, 256, 256, 20, 64), (2, 1024, 77, 10, 64), (2, 256, 77, 20, 64),
             (1, 4096, 4096, 1, 512)]
GROUP_NORM = [(2, 64, 320), (2, 32, 640), (2, 16, 1280), (1, 512, 128)]
ROWS = [(2048, 640), (512, 1280)]
GEGLU = [(2048, 2560), (512, 5120)]


def cases():
    for m, k, n in LINEAR:
        x, w, b = torch.rand(m, k), torch.rand(n, k), torch.rand(n)
        yield f"linear {m} {k} {n}", 2 * m * k * n, lambda: F.linear(x, w, b)
    for b, side, i, o, k in CONV:
        x, w, bias = torch.rand(b, i, side, side), torch.rand(o, i, k, k), torch.rand(o)
        flop = 2 * b * side * side * i * o * k * k
        yield f"conv {b} {side} {i} {o} {k}", flop, lambda: F.conv2d(x, w, bias, padding=k // 2)
        xl, wl = (t.to(memory_format=torch.channels_last) for t in (x, w))
        yield f"conv {b} {side} {i} {o} {k} (nhwc)", flop, lambda: F.conv2d(xl, wl, bias, padding=k // 2)
    for b, n, m, heads, d in ATTENTION:
        q, k, v = torch.rand(b, n, heads * d), torch.rand(b, m, heads * d), torch.rand(b, m, heads * d)

        def run():
            split = (t.unflatten(2, (heads, d)).transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

        yield f"attention {b} {n} {m} {heads} {d}", 4 * b * n * m * heads * d, run
    for b, side, c in GROUP_NORM:
        x, w, bias = torch.rand(b, c, side, side), torch.rand(c), torch.rand(c)
        yield f"group_norm_silu {b} {side * side} {c}", x.numel(), lambda: F.silu(F.group_norm(x, 32, w, bias))
    for n, c in ROWS:
        x, w, bias = torch.rand(n, c), torch.rand(c), torch.rand(c)
        yield f"layer_norm {n} {c}", x.numel(), lambda: F.layer_norm(x, (c,), w, bias)
    for n, c in GEGLU:
        x = torch.rand(n, 2 * c)

        def gate():
            value, gate = x.chunk(2, -1)
            return value * F.gelu(gate)

        yield f"geglu {n} {c}", n * c, gate


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("operation", nargs="?", default="")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--cpu-time", action="store_true")
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    with torch.inference_mode():
        for name, work, run in cases():
            if not name.startswith(arguments.operation):
                continue
            run()
            best, begin, runs = float("inf"), clock(), 0
            while runs < 3 or (clock() - begin < 0.3 and runs < 50):
                start = clock()
                run()
                best = min(best, clock() - start)
                runs += 1
            print(f"{name:40} {best * 1e3:9.2f} ms {work / best / 1e9:8.1f} G/s", flush=True)


if __name__ == "__main__":
    main()
