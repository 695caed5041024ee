"""PyPI comfy-api-simplified: waits on a socket, finds nodes by their titles."""

import sys
from pathlib import Path

from comfy_api_simplified import ComfyApiError, ComfyApiWrapper, ComfyWorkflowWrapper

api = ComfyApiWrapper(sys.argv[1] + "/")


def run(file: str, picture: str, **changes: object) -> None:
    workflow = ComfyWorkflowWrapper(file)
    workflow.set_node_param("Positive", "text", "1boy, black hair, orange background")
    for title, (name, value) in changes.items():
        workflow.set_node_param(title.replace("_", " "), name, value)
    made = api.queue_and_wait_images(workflow, "Save Image")
    (name,) = made
    assert name.startswith(picture) and name.endswith("_.png"), name
    Path(f"{picture}.png").write_bytes(made[name])


run("txt2img.json", "txt2img")
print("did txt2img")

uploaded = api.upload_image("drawing.png")
assert uploaded == {"name": uploaded["name"], "subfolder": "default_upload_folder", "type": "input"}, uploaded
run("img2img.json", "img2img", Load_Image=("image", f"{uploaded['subfolder']}/{uploaded['name']}"))
print("did upload, img2img")

# What it sends without a client id and then looks for.
broken = ComfyWorkflowWrapper("txt2img.json")
broken.set_node_param("KSampler", "steps", 0)
try:
    api.queue_prompt(broken)
    raise SystemExit("0 steps were accepted")
except ComfyApiError as error:
    assert "400" in str(error), error
assert "KSampler" in api.get_object_info() and list(api.get_object_info("KSampler")) == ["KSampler"]
assert api.get_system_stats()["devices"]
assert api.get_embeddings() == []
assert api.get_queue() == {"queue_running": [], "queue_pending": []}
api.interrupt()
print("did object_info, system_stats, embeddings, queue, interrupt")
