"""PyPI comfyui_api_client: what a Telegram bot was built on.

Its modules import each other as `api.…`, the name of the author's folder, so `import comfyui_api_client` fails
wherever it is installed. Here a package `api` stands for the installed folder; the files are as they were published.
Two of its functions work with no server: `interrupt_prompt` encodes a dict, and `clear` reads JSON where ComfyUI
answers `/free` with an empty body (it logs that it could not, after the server has freed).
"""

import importlib.util
import json
import logging
import sys
import types
from pathlib import Path

installed = importlib.util.find_spec("comfyui_api_client")
api = types.ModuleType("api")
api.__path__ = list(installed.submodule_search_locations)
sys.modules["api"] = api

from api import api_helpers, text2image, websocket_api  # noqa: E402

address = sys.argv[1].removeprefix("http://")
steps: list[str] = []


class Steps(logging.Handler):
    """Its progress goes to the log and nowhere else."""

    def emit(self, record: logging.LogRecord) -> None:
        if "K-Sampler" in record.getMessage():
            steps.append(record.getMessage())


api_helpers.logger.addHandler(Steps())


workflow = json.loads(Path("txt2img.json").read_text())
(picture,) = api_helpers.generate_image_by_prompt(workflow, address)
picture.save("txt2img.png")
assert steps[-1].endswith("Step: 4 of 4"), steps
print("did txt2img, with progress")

workflow = json.loads(Path("img2img.json").read_text())
workflow["10"]["inputs"]["image"] = "api_client.png"
api_helpers.generate_image_by_prompt_and_image(workflow, address, "made", "drawing.png", "api_client.png")
(made,) = Path("made").iterdir()
made.rename("img2img.png")
print("did upload, img2img")

assert list(websocket_api.get_node_info_by_class("KSampler", address)) == ["KSampler"]
assert text2image.find_workflow_key(workflow, "KSampler") == "3"
api_helpers.load_cache_models(workflow, address)
api_helpers.clear(address, unload_models=True, free_memory=True)
print("did object_info, cached run, free")
