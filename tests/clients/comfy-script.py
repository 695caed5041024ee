"""PyPI comfy-script: makes a Python function of every node of `/object_info`, so that a script is a workflow.

Installed without the extras that bring ComfyUI nodes: with a URL it needs none of ComfyUI's source.
"""

import sys
from pathlib import Path

from comfy_script.runtime import load, queue

load(sys.argv[1])

from comfy_script.runtime import Workflow  # noqa: E402
from comfy_script.runtime.nodes import *  # noqa: E402, F403

SEED = int(Path("seed").read_text())

heard: list[tuple[str, int, int]] = []
with Workflow() as workflow:
    # Choices are enums of what the server has.
    model, clip, vae = CheckpointLoaderSimple(CheckpointLoaderSimple.ckpt_name.tiny_sdxl)
    positive = CLIPTextEncode("1girl, silver hair, red eyes", clip)
    negative = CLIPTextEncode("lowres", clip)
    latent = EmptyLatentImage(128, 128, 1)
    latent = KSampler(model, SEED, 4, 5, "euler", "normal", positive, negative, latent, 1)
    saved = SaveImage(VAEDecode(latent, vae), "clients/script")
workflow.task.add_progress_callback(lambda step: heard.append((step.node_id, step.value, step.max)))
(picture,) = saved.wait().wait()
picture.save("txt2img.png")
assert heard and heard[-1][1:] == (4, 4), heard
print("did object_info as functions, txt2img, with progress")

queue.cancel_remaining()
queue.cancel_current()
assert queue.queue_remaining == 0
print("did queue, interrupt")
