#!/usr/bin/env python3
"""Records what a running ComfyUI (0.3.64) answers, for the acceptance tests in `tests/comfy_*.rs`.

`comfyui_server.py models CHECKPOINT MODELS` puts the small models into a ComfyUI's models folder: upscalers, an
embedding, and the parts of the tiny checkpoint. Checkpoint, ControlNet and LoRAs of the recorded runs have to be there
already, under the names `sdxl_tiny`, `controlnet_tiny`, `lora_tiny` and `lora_tiny_diffusers`; ComfyUI itself knows no
network so small, and needs a custom node that adds a model class for it (CPU, float32).

`comfyui_server.py record URL --out tests/data/comfyui [PART...]` asks a server on which nothing has run yet. Parts:
workflows, object_info, errors, protocol.

`comfyui_server.py record URL --out tests/data/comfyui_qwen --workflows comfyui_qwen` records those of Qwen-Image, with
the files of `qwen_image_pipeline.py` beside the others, and those that `comfyui_qwen.py MODELS` makes of them. Of these
ComfyUI has to be told by a custom node as well: the sizes that it takes for granted (heads and axes of the transformer,
the language model's configuration, the autoencoder's first width), the tiny tokenizer and its ids.
"""

import argparse
import asyncio
import importlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import comfyui_errors
import comfyui_files
import comfyui_protocol


BROKEN = b"\x89PNG\r\n\x1a\n but then nothing"


class Server:
    """A running ComfyUI."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, dict, bytes]:
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as answer:
            return answer.code, dict(answer.headers), answer.read()

    def json(self, method: str, path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        status, _, text = self.ask(method, path, data)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {text[:2000].decode(errors='replace')}")
        return json.loads(text)

    def upload(self, name: str, data: bytes, route: str = "image", **fields: str) -> tuple[int, dict, bytes]:
        body, kind = multipart({"image": (name, data)} | fields)
        return self.ask("POST", f"/upload/{route}", body, {"Content-Type": kind})

    def finished(self, prompt_id: str) -> dict:
        while True:
            found = self.json("GET", f"/history/{prompt_id}")
            if found:
                return found[prompt_id]
            time.sleep(0.02)


def multipart(fields: dict) -> tuple[bytes, str]:
    """A form; a file is a pair of name and bytes."""
    boundary = "recording-boundary"
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if isinstance(value, tuple):
            body += f'; filename="{value[0]}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode() + value[1]
        else:
            body += b"\r\n\r\n" + value.encode()
        body += b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


PROSE = ("tooltip", "output_tooltips", "description")


def facts(value):
    """Without tracebacks, which name files of the machine that ran it, and without explanations, which are ComfyUI's
    authors' words."""
    if isinstance(value, dict):
        return {key: [] if key == "traceback" else facts(inner) for key, inner in value.items() if key not in PROSE}
    return [facts(inner) for inner in value] if isinstance(value, list) else value


def write_json(path: Path, value) -> None:
    value = facts(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def put_inputs(server: Server, out: Path | None) -> None:
    """Uploads the input files and keeps them, if it is said where."""
    for path, data in comfyui_files.inputs().items():
        folder, _, name = path.rpartition("/")
        status, _, answer = server.upload(name, data, subfolder=folder, overwrite="true")
        assert status == 200, answer
        if out:
            target = out / "input" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    if not out:
        return
    for path, data in comfyui_files.small_models().items():
        target = out / "models" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def files_of(outputs: dict) -> list[dict]:
    """The files that a history entry names."""
    return [file for node in outputs.values() for files in node.values() for file in files
            if isinstance(file, dict) and "filename" in file]


def record_workflows(server: Server, out: Path, workflows: str, only: list[str]) -> None:
    """Runs each workflow of a module and keeps the workflow, its history entry and its files."""
    # All modules have the same input files, which are kept beside the first one's.
    put_inputs(server, out if workflows == "comfyui_workflows" else None)
    kept = {}
    stored = out / "workflows.json"
    if only and stored.exists():
        kept = json.loads(stored.read_text())
    for graph in importlib.import_module(workflows).all_workflows():
        if only and graph.name not in only:
            continue
        body = json.dumps({"prompt": graph.nodes, "extra_data": graph.extra})
        status, _, answer = server.ask("POST", "/prompt", body.encode())
        assert status == 200, answer
        answer = json.loads(answer)
        entry = server.finished(answer["prompt_id"])
        status = entry["status"]
        print(graph.name, status["status_str"], flush=True)
        if status["status_str"] != "success":
            print(json.dumps(status["messages"][-1])[:3000])
        for file in files_of(entry["outputs"]):
            query = urllib.parse.urlencode(file)
            code, _, data = server.ask("GET", f"/view?{query}")
            assert code == 200, (file, code)
            target = out / file["type"] / file["subfolder"] / file["filename"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        # The body as text: the order of a prompt's keys is the order of its nodes.
        kept[graph.name] = {"body": body, "node_errors": answer["node_errors"], "outputs": entry["outputs"],
                            "status": status["status_str"], "messages": [kind for kind, _ in status["messages"]], "meta": entry["meta"]}
    write_json(stored, kept)


def record_object_info(server: Server, out: Path, classes: Path) -> None:
    """What the server says of each class that the list names, without the names of models."""
    everything = server.json("GET", "/object_info")
    files = {name for folder in server.json("GET", "/models") for name in server.json("GET", f"/models/{folder}")}
    files |= set(server.json("GET", "/internal/files/input"))

    def without_files(value):
        if isinstance(value, dict):
            return {key: without_files(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [without_files(inner) for inner in value if not (isinstance(inner, str) and inner in files)]
        return value

    kept = {name: without_files(everything[name]) for name in json.loads(classes.read_text())}
    write_json(out / "object_info.json", kept)


def record_errors(server: Server, out: Path) -> None:
    """Answers to prompts that are refused, and histories of those that fail."""
    server.upload("broken.png", BROKEN, overwrite="true")
    server.upload("photo.png", comfyui_files.inputs()["photo.png"], overwrite="true")
    kept, failed = {}, {}
    for name, body in comfyui_errors.bodies().items():
        text = body if isinstance(body, str) else json.dumps(body)
        status, headers, answer = server.ask("POST", "/prompt", text.encode())
        try:
            answer = json.loads(answer)
        except ValueError:
            answer = answer.decode()
        if status == 200:
            server.finished(answer["prompt_id"])
        kept[name] = {"body": text, "status": status, "type": headers["Content-Type"], "answer": answer}
    for name, prompt in comfyui_errors.failing().items():
        body = {"prompt": prompt, "prompt_id": name}
        server.json("POST", "/prompt", body)
        failed[name] = {"body": json.dumps(body), "history": server.finished(name)}
    write_json(out / "errors.json", {"refused": kept, "failed": failed})


def record_protocol(server: Server, out: Path) -> None:
    """Requests to every route, and what clients hear over their WebSockets."""
    write_json(out / "requests.json", comfyui_protocol.record_requests(server, multipart))
    server.upload("broken.png", BROKEN, overwrite="true")
    # What POST /free asked for is done after the next prompt.
    server.finished(server.json("POST", "/prompt", {"prompt": comfyui_errors.PICTURE})["prompt_id"])
    write_json(out / "conversations.json", asyncio.run(comfyui_protocol.converse(server)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    models = commands.add_parser("models")
    models.add_argument("checkpoint", type=Path)
    models.add_argument("models", type=Path)
    record = commands.add_parser("record")
    record.add_argument("url")
    record.add_argument("--out", type=Path, default=Path("tests/data/comfyui"))
    record.add_argument("--workflows", default="comfyui_workflows", help="the module that has them")
    record.add_argument("--only", nargs="*", default=[], help="names of workflows to record again")
    record.add_argument("--classes", type=Path, help="JSON whose keys are the classes to keep of object_info")
    record.add_argument("parts", nargs="*", default=["workflows"])
    args = parser.parse_args()
    if args.command == "models":
        comfyui_files.split(args.checkpoint, args.models)
        for path, data in comfyui_files.small_models().items():
            (args.models / path).parent.mkdir(parents=True, exist_ok=True)
            (args.models / path).write_bytes(data)
        return
    server = Server(args.url)
    if "workflows" in args.parts:
        record_workflows(server, args.out, args.workflows, args.only)
    if "object_info" in args.parts:
        record_object_info(server, args.out, args.classes)
    if "errors" in args.parts:
        record_errors(server, args.out)
    if "protocol" in args.parts:
        record_protocol(server, args.out)


if __name__ == "__main__":
    main()
