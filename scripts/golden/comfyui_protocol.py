"""Requests to every route of ComfyUI, and conversations over its WebSocket, in the order in which they are recorded."""

import asyncio
import base64
import hashlib
import json

import aiohttp

import comfyui_errors
import comfyui_files

PICTURE = comfyui_errors.PICTURE


def requests() -> list[dict]:
    """Each: `name`, `method`, `path`, and `json` (kept as text), `text` or `form` (a file is `[name, input file or text]`); `compare` says how
    answers are alike: `json` (the default; times aside), `shape` (keys and kinds), `holds` (a list that has all of it),
    `picture`, `bytes`, or `status`. `may` says that Darkroom may as well `refuse` it, or `serve` it."""
    photo, other, shape, text = "photo.png", "odd.png", "shape.png", "not a picture"
    made: list[dict] = []

    def ask(name, method, path, **more):
        made.append({"name": name, "method": method, "path": path} | more)

    def upload(name, file, data, route="image", may=None, **fields):
        more = {"may": may} if may else {}
        ask("upload: " + name, "POST", "/upload/" + route, form={"image": [file, data]} | fields, **more)

    def view(name, query, compare="bytes"):
        ask("view: " + name, "GET", "/view" + ("?" + query if query else ""), compare=compare)

    upload("new", "p.png", photo)
    upload("the same again", "p.png", photo)
    upload("another of that name", "p.png", other)
    upload("that other again", "p.png", other)
    upload("a third of that name", "p.png", shape)
    upload("overwriting", "p.png", shape, overwrite="true")
    upload("overwriting by 1", "p.png", photo, overwrite="1")
    upload("overwrite false", "p.png", shape, overwrite="false")
    upload("in a subfolder", "p.png", photo, subfolder="a/b")
    upload("in an untidy subfolder", "q.png", photo, subfolder="a/./b//../b/", may="refuse")
    upload("to temp", "t.png", photo, type="temp")
    upload("to output", "o.png", photo, type="output", subfolder="deep")
    upload("to an unknown type", "p.png", photo, type="models")
    upload("subfolder above", "p.png", photo, subfolder="..")
    upload("subfolder above by a detour", "p.png", photo, subfolder="a/../../x")
    upload("absolute subfolder", "p.png", photo, subfolder="/etc")
    upload("file name above", "../p.png", photo)
    upload("file name with a folder", "c/p.png", photo, may="serve")
    upload("two dots in the name", "test..png", photo)
    upload("a space and an umlaut", "ä b.png", photo)
    upload("no ending", "plain", photo)
    upload("not a picture", "note.txt", text)
    upload("a page", "page.html", text)
    upload("no file name", "", photo)
    ask("upload: no image", "POST", "/upload/image", form={"subfolder": "x"})
    ask("upload: image is a field", "POST", "/upload/image", form={"image": "x"})
    ask("upload: not a form", "POST", "/upload/image", json={"image": "x"})
    upload("mask", "mask.png", shape, "mask", original_ref=json.dumps({"filename": "p (1).png", "type": "input", "subfolder": ""}))
    upload("mask of the same size", "mask2.png", shape, "mask", original_ref=json.dumps({"filename": "p.png", "type": "input"}), subfolder="clipspace")
    upload("mask of an absent original", "mask3.png", shape, "mask", original_ref=json.dumps({"filename": "absent.png", "type": "input"}), may="refuse")
    upload("mask of an original above", "mask4.png", shape, "mask", original_ref=json.dumps({"filename": "../p.png", "type": "input"}), may="refuse")
    upload("mask without original", "mask5.png", shape, "mask")
    upload("mask with a broken reference", "mask6.png", shape, "mask", original_ref="{")

    view("an input", "filename=p.png&type=input")
    view("annotated", "filename=p.png%20%5Binput%5D")
    view("in a subfolder", "filename=p.png&type=input&subfolder=a/b")
    view("empty subfolder", "filename=p.png&type=input&subfolder=")
    view("of output by default", "filename=o.png&subfolder=deep")
    view("temp", "filename=t.png&type=temp")
    view("absent", "filename=absent.png&type=input", "status")
    view("no file name", "", "status")
    view("empty file name", "filename=", "status")
    view("a folder", "filename=a&type=input", "status")
    view("above", "filename=../p.png&type=input", "status")
    view("absolute", "filename=/etc/passwd&type=input", "status")
    view("two dots in the name", "filename=test..png&type=input", "status")
    made[-1]["may"] = "serve"
    view("with a folder in the name", "filename=a/b/p.png&type=input", "status")
    view("unknown type", "filename=p.png&type=models", "status")
    view("subfolder above", "filename=p.png&type=input&subfolder=..", "status")
    view("absolute subfolder", "filename=p.png&type=input&subfolder=/etc", "status")
    view("text", "filename=note.txt&type=input")
    view("a page", "filename=page.html&type=input")
    view("no ending", "filename=plain&type=input")
    view("umlaut", "filename=%C3%A4%20b.png&type=input")
    for channel in ("rgb", "a", "rgba", "x"):
        view(f"channel {channel} of a mask", f"filename=mask2.png&type=input&subfolder=clipspace&channel={channel}", "picture")
    view("channel a of an opaque picture", "filename=p.png&type=input&channel=a", "picture")
    view("the mask on a picture of another size", "filename=mask.png&type=input", "picture")
    for preview in ("webp;90", "jpeg;50", "png", "webp", "jpeg;x", ""):
        view(f"preview {preview}", f"filename=p.png&type=input&preview={preview}", "picture")
    view("preview of alpha", "filename=mask2.png&type=input&subfolder=clipspace&preview=jpeg;90&channel=a", "picture")
    view("preview of text", "filename=note.txt&type=input&preview=webp", "status")
    view("under /api", "filename=p.png&type=input")
    made[-1]["path"] = "/api" + made[-1]["path"]

    held = ("/models", "/models/loras", "/models/checkpoints", "/api/models/loras")
    for path in ("/prompt", "/api/prompt", "/queue", "/history", "/features", "/embeddings", "/models", "/models/loras",
                 "/models/checkpoints", "/models/upscale_models", "/models/vae", "/models/nothing", "/api/models/loras",
                 "/experiment/models/controlnet", "/experiment/models/nothing", "/experiment/models/preview/loras/0/lora_tiny.safetensors",
                 "/experiment/models/preview/nothing/0/x", "/experiment/models/preview/loras/7/x", "/i18n", "/workflow_templates",
                 "/view_metadata/loras?filename=absent.safetensors", "/view_metadata/nothing?filename=x.safetensors",
                 "/view_metadata/loras", "/view_metadata/loras?filename=x.pt", "/view_metadata/embeddings?filename=tiny.safetensors",
                 "/view_metadata/loras?filename=lora_tiny.safetensors", "/object_info/NoSuchNode", "/history/none",
                 "/internal/files/output", "/internal/files/temp", "/internal/files/models", "/internal/nothing"):
        ask(path, "GET", path, compare="holds" if path in held else "json")
    for path in ("/system_stats", "/experiment/models", "/internal/folder_paths", "/internal/logs", "/internal/logs/raw", "/extensions"):
        ask(path, "GET", path, compare="shape")
    ask("files of the input folder", "GET", "/internal/files/input", compare="shape")
    ask("a path that is nowhere", "GET", "/no/such/path", compare="status")
    ask("a path that is nowhere under api", "GET", "/api/nothing", compare="status")
    ask("api of internal", "GET", "/api/internal/logs", compare="status")
    ask("a method that a route lacks", "PUT", "/prompt", compare="status")
    ask("another", "GET", "/interrupt", compare="status")
    ask("options", "OPTIONS", "/prompt", compare="status")
    ask("head", "HEAD", "/prompt", compare="status")
    ask("another origin", "GET", "/prompt", headers={"Host": "127.0.0.1:8188", "Origin": "http://elsewhere.example"}, compare="status")
    ask("the same origin", "GET", "/prompt", headers={"Host": "127.0.0.1:8188", "Origin": "http://127.0.0.1:8188"})

    ask("user", "GET", "/users")
    ask("settings at first", "GET", "/settings")
    ask("user after settings", "GET", "/users")
    ask("a setting that is absent", "GET", "/settings/Comfy.Absent")
    ask("set a setting", "POST", "/settings/Comfy.One", json={"deep": [1, None]})
    ask("set several", "POST", "/settings", json={"Comfy.Two": True, "Comfy.Three": "three"})
    ask("settings", "GET", "/settings")
    ask("a setting", "GET", "/settings/Comfy.One")
    ask("a setting under api", "GET", "/api/settings/Comfy.Two")
    ask("set a setting to null", "POST", "/settings/Comfy.Two", json=None)
    ask("set a setting to nothing", "POST", "/settings/Comfy.Two", text="", compare="status")
    ask("settings that are no object", "POST", "/settings", json=[1], compare="status")
    ask("settings that are no JSON", "POST", "/settings", text="{", compare="status")
    ask("settings then", "GET", "/settings")

    ask("userdata without a folder", "GET", "/userdata")
    ask("userdata of an absent folder", "GET", "/userdata?dir=workflows")
    ask("keep a file", "POST", "/userdata/workflows%2Fone.json", text='{"a": 1}')
    ask("keep another, fully told", "POST", "/userdata/workflows%2Fdeep%2Ftwo.json?full_info=true&overwrite=false", text="{}")
    ask("not over it", "POST", "/userdata/workflows%2Fone.json?overwrite=false", text="new")
    ask("over it", "POST", "/userdata/workflows%2Fone.json?overwrite=true", text='{"a": 2}')
    ask("keep at the top", "POST", "/userdata/top.txt", text="top")
    ask("keep with a space and an umlaut", "POST", "/userdata/workflows%2F%C3%A4%20b.json", text="[]")
    ask("read it", "GET", "/userdata/workflows%2Fone.json", compare="bytes")
    ask("read it under api", "GET", "/api/userdata/workflows%2Fone.json", compare="bytes")
    ask("read with plain slashes", "GET", "/userdata/workflows/one.json", compare="status")
    ask("read what is absent", "GET", "/userdata/workflows%2Fabsent.json", compare="status")
    ask("read above", "GET", "/userdata/..%2F..%2Fsecret", compare="status")
    ask("read above, encoded twice", "GET", "/userdata/..%252F..%252Fsecret", compare="status")
    ask("keep above", "POST", "/userdata/..%2Fx.json", text="x", compare="status")
    ask("keep at an absolute path", "POST", "/userdata/%2Fetc%2Fx.json", text="x", compare="status")
    for query in ("dir=workflows", "dir=workflows&recurse=true", "dir=workflows&recurse=true&split=true",
                  "dir=workflows&recurse=true&full_info=true", "dir=workflows&full_info=true&split=true", "dir=..", "dir=absent", "dir=top.txt", "dir=.&recurse=true"):
        ask("list " + query, "GET", "/userdata?" + query, unordered=True, **({"may": "refuse"} if query == "dir=top.txt" else {}))
    for query in ("", "?path=workflows", "?path=workflows/deep", "?path=absent", "?path=top.txt", "?path=../..", "?path=workflows%2Fdeep"):
        ask("list v2 " + query, "GET", "/v2/userdata" + query)
    ask("move", "POST", "/userdata/top.txt/move/workflows%2Fmoved.txt")
    ask("move, fully told", "POST", "/userdata/workflows%2Fmoved.txt/move/moved.txt?full_info=true")
    ask("move what is absent", "POST", "/userdata/top.txt/move/x.txt")
    ask("move over another, no", "POST", "/userdata/moved.txt/move/workflows%2Fone.json?overwrite=false")
    ask("move above", "POST", "/userdata/moved.txt/move/..%2Fx.txt")
    ask("move over another", "POST", "/userdata/moved.txt/move/workflows%2Fone.json")
    ask("delete", "DELETE", "/userdata/workflows%2Fone.json")
    ask("delete again", "DELETE", "/userdata/workflows%2Fone.json")
    ask("what is left", "GET", "/userdata?dir=.&recurse=true", unordered=True)

    for number in (1, 2, 3):
        ask(f"prompt {number}", "POST", "/prompt", json={"prompt": comfyui_errors.changed(PICTURE, {"1.color": number, "2.filename_prefix": "protocol"}),
                                                         "prompt_id": f"prompt-{number}", "extra_data": {"extra_pnginfo": {"n": number}, "api_key_comfy_org": "hidden"},
                                                         "client_id": "client"}, wait=f"prompt-{number}")
    ask("numbered prompt", "POST", "/prompt", json={"prompt": PICTURE, "prompt_id": "numbered", "number": 3.5}, wait="numbered")
    ask("prompt to the front", "POST", "/api/prompt", json={"prompt": PICTURE, "prompt_id": "front", "front": True}, wait="front")
    ask("prompt of one target", "POST", "/prompt", wait="target", json={
        "prompt": comfyui_errors.changed(PICTURE, {"3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}),
        "prompt_id": "target", "partial_execution_targets": ["2"]})
    for query in ("", "?max_items=2", "?max_items=2&offset=1", "?offset=4", "?max_items=0", "?max_items=100&offset=100", "?max_items=1&offset=-1"):
        ask("history " + query, "GET", "/history" + query)
    ask("history of bad numbers", "GET", "/history?max_items=x", compare="status")
    ask("history of one", "GET", "/history/prompt-2")
    ask("history of one under api", "GET", "/api/history/prompt-2")
    ask("delete two of the history", "POST", "/history", json={"delete": ["prompt-1", "front", "absent"]})
    ask("history then", "GET", "/history")
    ask("clear false", "POST", "/history", json={"clear": False})
    ask("clear the history", "POST", "/history", json={"clear": True})
    ask("history at last", "GET", "/history")
    ask("history without a body", "POST", "/history", text="", compare="status")
    ask("queue", "GET", "/queue")
    ask("clear the queue", "POST", "/queue", json={"clear": True})
    ask("delete from the queue", "POST", "/queue", json={"delete": ["absent"]})
    ask("queue of another kind", "POST", "/queue", json={"other": 1})
    ask("queue without a body", "POST", "/queue", text="", compare="status")
    ask("queue of nonsense", "POST", "/queue", text="[", compare="status")
    for name, more in {"empty": {"text": ""}, "object": {"json": {}}, "another's": {"json": {"prompt_id": "absent"}}, "null": {"text": "null", "compare": "status"},
                       "list": {"text": "[]", "compare": "status"}, "nonsense": {"text": "{"}}.items():
        ask("interrupt " + name, "POST", "/interrupt", **more)
    for name, more in {"nothing": {"json": {}}, "models": {"json": {"unload_models": True}}, "memory": {"json": {"unload_models": True, "free_memory": True}},
                       "empty": {"text": "", "compare": "status"}}.items():
        ask("free " + name, "POST", "/free", **more)
    ask("subscribe to logs", "PATCH", "/internal/logs/subscribe", json={"clientId": "client", "enabled": True})
    ask("unsubscribe from logs", "PATCH", "/internal/logs/subscribe", json={"clientId": "client", "enabled": False})
    ask("subscribe without a client", "PATCH", "/internal/logs/subscribe", json={}, compare="status")
    return made


KEPT_HEADERS = ("Content-Type", "Content-Disposition", "Allow")


def shape(value):
    """What of an answer does not depend on the machine: its keys, and the kinds of its values."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "boolean" if isinstance(value, bool) else {str: "string", int: "number", float: "number"}.get(type(value))


def record_requests(server, multipart) -> list[dict]:
    """Asks them one after the other."""
    inputs = comfyui_files.inputs()
    for step in (steps := requests()):
        body, headers = None, dict(step.get("headers", {}))
        if "json" in step:
            step["text"] = json.dumps(step.pop("json"))
        if "text" in step:
            body = step["text"].encode()
        elif "form" in step:
            body, headers["Content-Type"] = multipart({
                name: (value[0], inputs.get(value[1], value[1].encode())) if isinstance(value, list) else value for name, value in step["form"].items()})
        status, answered, data = server.ask(step["method"], step["path"], body, headers)
        step["status"] = status
        step["answered"] = {name.lower(): value for name, value in answered.items() if name in KEPT_HEADERS}
        match step.setdefault("compare", "json"):
            case "bytes":
                step["answer"] = {"sha256": hashlib.sha256(data).hexdigest()}
            case "picture":
                step["answer"] = {"base64": base64.b64encode(data).decode()}
            case "shape":
                step["answer"] = {"json": shape(json.loads(data))}
            case "json" | "holds":
                try:
                    step["answer"] = {"json": json.loads(data)}
                except ValueError:
                    step["answer"] = {"text": data.decode()}
        if "wait" in step:
            server.finished(step["wait"])
    return steps


def conversation_prompts() -> dict:
    sampled = comfyui_errors.changed(comfyui_errors.SAMPLED, {"4.steps": 3, "4.seed": 4711, "6.filename_prefix": "talk"})
    long = comfyui_errors.changed(sampled, {"4.steps": 10000, "4.seed": 5})
    return {"sampled": sampled, "long": long, "broken": comfyui_errors.failing()["broken_picture"]}


class Talk:
    """Clients of one conversation, and every frame that each has got."""

    def __init__(self, session, server):
        self.session, self.server = session, server
        self.frames: dict[str, list] = {}
        self.tasks = []
        self.sockets = {}
        self.steps: list[list] = []

    async def connect(self, client: str, name: str | None = None, client_id: bool = True):
        name = name or client
        self.steps.append(["connect", name, client if client_id else None])
        path = f"/ws?clientId={client}" if client_id else "/ws"
        socket = await self.session.ws_connect(self.server.url + path)
        self.sockets[name] = socket
        self.frames[name] = []

        async def listen():
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.frames[name].append(json.loads(message.data))

        self.tasks.append(asyncio.create_task(listen()))
        await self.until(name, lambda frames: frames)

    async def until(self, name, condition):
        for _ in range(3000):
            if condition(self.frames[name]):
                return
            await asyncio.sleep(0.01)
        raise RuntimeError(f"{name} waited in vain: {self.frames[name]}")

    async def post(self, path, body):
        text = json.dumps(body)
        self.steps.append(["post", path, text])
        status, _, answer = await asyncio.to_thread(self.server.ask, "POST", path, text.encode())
        assert status == 200, answer

    async def ended(self, prompt_id, name="one"):
        self.steps.append(["ended", prompt_id, name])
        def over(frames):
            return any(f["type"] == "executing" and f["data"]["node"] is None and f["data"].get("prompt_id") == prompt_id for f in frames)
        if name in self.frames:
            await self.until(name, over)
        await asyncio.to_thread(self.server.finished, prompt_id)

    async def progressed(self, name="one"):
        self.steps.append(["progressed", name])
        await self.until(name, lambda frames: any(f["type"] == "progress" for f in frames))

    async def close(self, name):
        self.steps.append(["close", name])
        await self.sockets[name].close()

    async def settle(self):
        await asyncio.sleep(0.3)


async def converse(server) -> dict:
    prompts = conversation_prompts()
    made = {}

    async def talk(name, script):
        async with aiohttp.ClientSession() as session:
            one = Talk(session, server)
            await script(one)
            await one.settle()
            for socket in one.sockets.values():
                await socket.close()
            await asyncio.gather(*one.tasks)
            made[name] = {"steps": one.steps, "frames": one.frames}

    def run(prompt, prompt_id, client="one"):
        return {"prompt": prompt, "prompt_id": prompt_id} | ({"client_id": client} if client else {})

    def simple(prompt, prompt_id):
        async def script(t):
            await t.connect("one")
            await t.post("/prompt", run(prompt, prompt_id))
            await t.ended(prompt_id)
        return script

    sampled = prompts["sampled"]
    await talk("first run", simple(sampled, "talk-1"))
    await talk("all cached", simple(sampled, "talk-2"))
    await talk("one input changed", simple(comfyui_errors.changed(sampled, {"4.seed": 4712}), "talk-3"))

    async def two(t):
        await t.connect("one")
        for number in (1, 2):
            await t.post("/prompt", run(comfyui_errors.changed(sampled, {"4.seed": 100 + number}), f"pair-{number}"))
        await t.ended("pair-2")
    await talk("two prompts in a row", two)

    async def stopped(t):
        await t.connect("one")
        await t.post("/prompt", run(prompts["long"], "stopped"))
        await t.progressed()
        await t.post("/interrupt", {"prompt_id": "stopped"})
        await t.ended("stopped")
    await talk("interrupted", stopped)

    async def again(t):
        await t.connect("one", "before")
        await t.post("/prompt", run(comfyui_errors.changed(prompts["long"], {"4.seed": 6}), "again"))
        await t.progressed("before")
        await t.close("before")
        await t.connect("one", "after")
        await t.post("/interrupt", {})
        await t.ended("again", "after")
    await talk("a client comes back", again)

    async def others(t):
        await t.connect("one")
        await t.connect("other")
        await t.post("/prompt", run(comfyui_errors.changed(sampled, {"4.seed": 200}), "mine"))
        await t.ended("mine")
    await talk("another client listens", others)

    async def nobody(t):
        await t.connect("one")
        await t.post("/prompt", run(comfyui_errors.changed(sampled, {"4.seed": 201}), "nobody's", None))
        await t.ended("nobody's", "nobody")
    await talk("a prompt of no client", nobody)

    async def flags(t):
        await t.connect("one")
        await t.sockets["one"].send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        t.steps.append(["send", "one", {"type": "feature_flags", "data": {"supports_preview_metadata": True}}])
        await t.until("one", lambda frames: len(frames) > 1)
    await talk("feature flags", flags)

    async def nameless(t):
        await t.connect("nameless", client_id=False)
    await talk("a client without a name", nameless)

    await talk("a text", simple({"1": {"class_type": "PrimitiveInt", "inputs": {"value": 5}},
                                "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}, "texts"))

    await talk("failing", simple(prompts["broken"], "fails"))

    return made
