"""Stage 1: draws the training set: `images.npy` (uint8) and `attributes.json` (what each drawing shows)."""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from drawings import make
from pen import SIZE

FIRST_SEED = 10_000_000
SHIPPED_COUNT = 32_768


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the run")
    parser.add_argument(
        "--count", type=int, default=SHIPPED_COUNT, help="drawings; 640 at least (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.count < 640:
        parser.error("--count: 512 drawings are held out from training, so 640 is the least that makes sense")
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    shape = (arguments.count, SIZE, SIZE, 3)
    images = np.lib.format.open_memmap(arguments.work / "images.npy", "w+", np.uint8, shape)
    attributes = []
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.count)
    with Pool(arguments.processes) as pool:
        for index, (image, shown) in enumerate(pool.imap(make, seeds, chunksize=64)):
            images[index] = image
            attributes.append(shown)
    images.flush()
    (arguments.work / "attributes.json").write_text(json.dumps(attributes))
    print(f"{arguments.count} drawings in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
