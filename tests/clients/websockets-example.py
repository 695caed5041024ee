"""The pattern of ComfyUI's own examples (`script_examples/websockets_api_example*.py`), which half the world copied:
a socket from websocket-client, urllib for the rest; pictures from the history, or as they are, over the socket."""

import json
import sys
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import websocket

URL = sys.argv[1]
CLIENT = str(uuid.uuid4())


def queue_prompt(prompt: dict, prompt_id: str) -> None:
    body = json.dumps({"prompt": prompt, "client_id": CLIENT, "prompt_id": prompt_id}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{URL}/prompt", data=body)) as answer:
        assert json.loads(answer.read())["prompt_id"] == prompt_id


def get_json(path: str) -> dict:
    with urllib.request.urlopen(URL + path) as answer:
        return json.loads(answer.read())


def messages(socket: websocket.WebSocket, prompt_id: str):
    """What is heard until the prompt is done."""
    while True:
        heard = socket.recv()
        if isinstance(heard, bytes):
            yield "binary", heard
            continue
        message = json.loads(heard)
        yield message["type"], message["data"]
        if message["type"] == "execution_error":
            raise SystemExit(message["data"]["exception_message"])
        if message["type"] == "executing" and message["data"]["node"] is None:
            assert message["data"]["prompt_id"] == prompt_id
            return


socket = websocket.WebSocket()
socket.connect(f"{URL.replace('http', 'ws', 1)}/ws?clientId={CLIENT}", timeout=60)

prompt_id = str(uuid.uuid4())
queue_prompt(json.loads(Path("txt2img.json").read_text()), prompt_id)
heard = list(messages(socket, prompt_id))
assert heard[0][0] == "status" and heard[0][1]["sid"] == CLIENT, heard[0]
steps = [data["value"] for kind, data in heard if kind == "progress" and data["node"] == "3"]
assert steps[-1] == 4 and steps == sorted(steps), steps
assert [data["node"] for kind, data in heard if kind == "executed"] == ["9"], heard
kinds = [kind for kind, _ in heard]
assert kinds.index("execution_start") < kinds.index("execution_cached") < kinds.index("executing") < kinds.index("progress")
assert kinds[-1] == "executing" and "execution_success" in kinds
# The history is there when the last message is, so nobody polls.
(picture,) = get_json(f"/history/{prompt_id}")[prompt_id]["outputs"]["9"]["images"]
with urllib.request.urlopen(f"{URL}/view?{urllib.parse.urlencode(picture)}") as answer:
    Path("txt2img.png").write_bytes(answer.read())
print("did txt2img over the socket, with progress")

prompt_id = str(uuid.uuid4())
workflow = json.loads(Path("socket.json").read_text())
workflow["3"]["inputs"]["seed"] += 1
queue_prompt(workflow, prompt_id)
current, pictures = "", []
for kind, data in messages(socket, prompt_id):
    if kind == "executing":
        current = data["node"]
    elif kind == "binary" and current == "9":
        pictures.append(data[8:])
(picture,) = pictures
Path("socket.png").write_bytes(picture)
print("did SaveImageWebsocket")
socket.close()
