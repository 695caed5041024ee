"""No client library: `POST /prompt`, then `GET /history/{id}` until it is there, as most bots do it."""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

URL = sys.argv[1]


def ask(path: str, body: object = None, prefix: str = "") -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + prefix + path, data=data)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def get(path: str, prefix: str = "") -> object:
    status, body = ask(path, prefix=prefix)
    assert status == 200, (path, status, body)
    return json.loads(body)


def run(workflow: dict, prefix: str = "") -> bytes:
    """Runs a workflow; its one picture."""
    status, body = ask("/prompt", {"prompt": workflow}, prefix)
    assert status == 200, body
    accepted = json.loads(body)
    assert accepted["node_errors"] == {}
    while not (history := get(f"/history/{accepted['prompt_id']}", prefix)):
        time.sleep(0.1)
    entry = history[accepted["prompt_id"]]
    assert entry["status"]["status_str"] == "success" and entry["status"]["completed"], entry["status"]
    assert entry["prompt"][2] == workflow
    (picture,) = entry["outputs"]["9"]["images"]
    status, body = ask("/view?" + urllib.parse.urlencode(picture), prefix=prefix)
    assert status == 200, body
    return body


txt2img = json.loads(Path("txt2img.json").read_text())
Path("txt2img.png").write_bytes(run(txt2img))
print("did txt2img by polling")

txt2img["3"]["inputs"]["seed"] += 1
Path("again.png").write_bytes(run(txt2img, "/api"))
print("did the same under /api")

txt2img["3"]["inputs"]["steps"] = 0
status, body = ask("/prompt", {"prompt": txt2img})
refused = json.loads(body)
assert status == 400 and refused["error"]["type"] == "prompt_outputs_failed_validation", body
assert refused["node_errors"]["3"]["errors"][0]["type"] == "value_smaller_than_min", body
print("did refusal of 0 steps")

assert get("/queue") == {"queue_running": [], "queue_pending": []}
assert get("/prompt") == {"exec_info": {"queue_remaining": 0}}
assert "KSampler" in get("/object_info") and list(get("/object_info/KSampler")) == ["KSampler"]
assert get("/system_stats")["devices"]
print("did queue, object_info, system_stats")
