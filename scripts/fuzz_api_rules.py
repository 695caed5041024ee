"""What schemathesis cannot know of this server: ids and names that exist, and what must not leave this machine.

Loaded by `scripts/fuzz_api`, which says where the server is. Without this nearly every request would end at the first
unknown model or task, and no picture would ever be drawn.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from typing import Any
from zlib import crc32

import schemathesis

URL = os.environ["DARKROOM_FUZZ_URL"]
KEY = os.environ.get("DARKROOM_FUZZ_KEY")
# Addresses that the server would ask. Only ones that it refuses, or that nothing answers, may stay.
FOREIGN = re.compile(r"^\s*(https?|ftp|wss?)://", re.IGNORECASE)
REFUSED = "http://127.0.0.1:9/"

# Seconds that an answer may take.
PATIENCE = 120.0


def ask(path: str, body: object = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {KEY}"} if KEY else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data=data, headers=headers)  # noqa: S310 - our own server
    latest = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as error:
            # Pictures that an earlier round asked for may still be waiting.
            if error.code != 429 or time.monotonic() > latest:
                raise
            time.sleep(min(5.0, float(error.headers.get("Retry-After") or 1)))


TASK = ask("/v1/images?wait=true", {"prompt": "1girl, smile", "steps": 2})
assert TASK["status"] == "completed", TASK
IMAGE = TASK["images"][0]
LORAS = [one["id"] for one in ask("/v1/loras")["loras"]]
CONTROLS = [one["id"] for one in ask("/v1/controlnets")["controlnets"]]
POSES = [one["id"] for one in ask("/v1/poses")["poses"]]
TEMPLATES = [one["name"] for one in ask("/v1/templates")["sets"]]
# A white picture, 8 x 8.
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAD0lEQVR4nGP4jwMwDC0JALoev0Ewkwr8AAAAAElFTkSuQmCC"
)
EXPRESSIONS = [one["name"] for one in ask("/v1/expressions")["expressions"]]
KNOWN_PATHS = {
    "/v1/tasks/{id}": {"id": TASK["task_id"]},
    "/v1/tasks/{id}/events": {"id": TASK["task_id"]},
    "/v1/images/{id}": {"id": IMAGE["id"]},
    "/v1/models/{id}": {"id": IMAGE["model"]},
    "/v1/models/{id}/load": {"id": IMAGE["model"]},
    "/v1/models/{id}/unload": {"id": IMAGE["model"]},
    "/assets/{file}": {"file": "app.js"},
    "/v1/poses/{file}": {"file": f"{POSES[0]}.png"},
    "/v1/templates/{set}/{file}": {"set": TEMPLATES[0], "file": f"{EXPRESSIONS[0]}.png"},
}
# In a query, these are yes and no as well, whatever the description's plain "boolean" says.
FLAGS = ("wait", "previews", "download")
YES_AND_NO = ("", "1", "0", "yes", "no", "true", "false")
KNOWN_WORDS = {
    "model": [IMAGE["model"]],
    "sampler": ["euler", "euler_ancestral", "dpmpp_2m"],
    "scheduler": ["karras", "normal"],
    "resolution": ["64x64", "128x64"],
    "size": ["64x64", "auto"],
    "art_style": ["anime", "auto"],
    "init_image": [IMAGE["url"]],
    "base_image_url": [PICTURE],
    "pose_image": [PICTURE],
    "character_lora_id": LORAS,
    "template_set": TEMPLATES,
    "pose_id": POSES,
    "webhook_url": [REFUSED],
    "callback_webhook": [REFUSED],
}


def at_home(value: object) -> object:
    """The value with no address in it that the server could ask."""
    if isinstance(value, str):
        return REFUSED if FOREIGN.match(value) else value
    if isinstance(value, list):
        return [at_home(one) for one in value]
    if isinstance(value, dict):
        return {name: at_home(one) for name, one in value.items()}
    return value


def drawable(body: dict[str, Any], chance: int) -> dict[str, Any]:
    """The body with known names in place of drawn ones, and of a size that is drawn at once."""
    body = dict(body)
    for place, name in enumerate(sorted(body)):
        luck = chance >> place & 3
        known = KNOWN_WORDS.get(name)
        if known and isinstance(body[name], str) and luck:
            body[name] = known[luck % len(known)]
        elif name == "expression_tags" and luck:
            body[name] = EXPRESSIONS[: luck + 1]
        elif name in ("width", "height") and luck:
            body[name] = 16 * luck
        elif name in ("steps", "num_inference_steps", "count", "n", "variant_count") and luck:
            body[name] = luck
        elif name == "loras" and isinstance(body[name], list) and luck:
            body[name] = [{"id": LORAS[luck % len(LORAS)], "strength": luck / 2}]
        elif name == "controls" and isinstance(body[name], list) and luck:
            body[name] = [{"id": CONTROLS[luck % len(CONTROLS)], "image": PICTURE, "preprocess": "canny"}]
        elif name == "pose_data" and isinstance(body[name], dict):
            body[name] = drawable(body[name], chance + 1)
        elif name == "requests" and isinstance(body[name], list):
            body[name] = [drawable(one, chance + 1) if isinstance(one, dict) else one for one in body[name]]
    return body


def is_meant_to_fit(case: schemathesis.Case) -> bool:
    return case.meta is not None and case.meta.generation.mode.value == "positive"


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    case.body = at_home(case.body)
    # ComfyUI answers `null` with 500, and so does this server.
    if case.path == "/interrupt" and case.body is None:
        case.body = {}
    # What is meant to be wrong is wrong.
    for name in FLAGS:
        if str((case.query or {}).get(name)).lower() in YES_AND_NO and not is_meant_to_fit(case):
            case.query[name] = "neither"
    if not is_meant_to_fit(case):
        return
    # The same case always has the same luck, so that a seed is enough to see a finding again.
    chance = crc32(repr((case.path_parameters, case.query, case.body)).encode())
    if case.path in KNOWN_PATHS and chance % 2:
        case.path_parameters |= KNOWN_PATHS[case.path]
    if isinstance(case.body, dict) and chance % 4:
        case.body = drawable(case.body, chance >> 8)
