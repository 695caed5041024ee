#!/usr/bin/env python3
"""Drives ComfyUI's official front end, served by Darkroom, in a real, headless Chromium.

    scripts/test_comfy_frontend.py --binary target/release/darkroom
    scripts/test_comfy_frontend.py --binary target/release/darkroom --screenshot docs/images/comfyui-frontend.png

Needs Chromium (`apt install chromium`). Playwright and the front end come from PyPI, into a virtual environment under
target/. Starts the program on a free port with an empty data folder, and stops it when done.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PACKAGES = ["comfyui-frontend-package==1.27.10", "playwright==1.65.2"]
VENV = Path(__file__).resolve().parents[1] / "target/comfy-frontend-venv"
START_SECONDS = 60
PAGE_MS = 90_000
PICTURE_MS = 180_000
STEPS = 12
SIDE = 128
PROMPT = "1girl, white hair, long hair, cat ears, red eyes, black shirt, pink background"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
# What ComfyUI itself answers with 404 as well: files that a user may have, and its icon.
ABSENT = {
    "/user.css",
    "/favicon.ico",
    "/api/userdata",
    "/api/userdata/user.css",
    "/api/userdata/comfy.templates.json",
    "/api/userdata/workflows%2F.index.json",
}
# The front end's own: on a first visit it sets a setting before it knows it, against ComfyUI as well; when it is left it
# takes leave of graphs that it never had.
OWN_ERRORS = ("Cannot read properties of undefined (reading 'id')", "Attempted to cleanup event listeners for graph")
DEFAULT_GRAPH = {
    "CheckpointLoaderSimple": 1,
    "CLIPTextEncode": 2,
    "EmptyLatentImage": 1,
    "KSampler": 1,
    "SaveImage": 1,
    "VAEDecode": 1,
}
# Notes every title that the page has: it says how far a run is.
WATCH_TITLES = """
window.titlesSeen = [];
new MutationObserver(() => {
  if (window.titlesSeen.at(-1) !== document.title) window.titlesSeen.push(document.title);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""


class CheckFailed(Exception):
    """Something that should hold and did not."""


def check(claim: str, holds: bool, detail: object = "") -> None:
    """Prints the claim if it holds, and ends the test if not."""
    if not holds:
        raise CheckFailed(f"{claim} {detail}".rstrip())
    print(f"ok  {claim}", flush=True)


def in_virtual_environment() -> None:
    """Goes on in an environment that has the packages, which is made where it is not there."""
    done = VENV / "packages"
    wanted = "\n".join(PACKAGES)
    python = VENV / "bin/python"
    if not done.is_file() or done.read_text() != wanted:
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        done.write_text(wanted)
    if Path(sys.prefix) != VENV:
        os.execv(python, [str(python), *sys.argv])


@contextmanager
def server(binary: Path, data_dir: Path, frontend: Path) -> Iterator[str]:
    """Starts the program; its address. Stops it by its own process id."""
    command = [str(binary), "serve", "--port", "0", "--data-dir", str(data_dir), "--comfy-frontend", str(frontend)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    with (data_dir.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            yield wait_for_address(lines, Path(log.name))
        finally:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_address(lines: queue.Queue[str | None], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            raise CheckFailed(f"the server ended before it listened:\n{log.read_text()[-2000:]}")
        if found := re.search(r"listening on (https?://\S+)", line):
            return found.group(1)
    raise CheckFailed(f"the server did not listen within {START_SECONDS} s")


class Visit:
    """A window on the front end, and everything that went wrong in it."""

    def __init__(self, browser, url: str) -> None:  # noqa: ANN001 - playwright comes later
        self.url = url
        self.host = urlsplit(url).netloc
        self.complaints: list[str] = []
        self.progress: list[int] = []
        self.page = browser.new_page(viewport={"width": 1440, "height": 900})
        self.page.set_default_timeout(PAGE_MS)
        self.page.add_init_script(WATCH_TITLES)
        self.page.on("response", self._look)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._receive))

    def _look(self, response) -> None:  # noqa: ANN001
        address = urlsplit(response.url)
        if address.netloc == self.host and response.status >= 400 and address.path not in ABSENT:
            self._note(f"{response.status} {response.request.method} {response.url}")

    def _hear(self, message) -> None:  # noqa: ANN001
        address = urlsplit(message.location.get("url", ""))
        ours = address.netloc in ("", self.host)
        # What was not found is counted by its response.
        expected = "Failed to load resource" in message.text or "Refused to apply style" in message.text
        if message.type == "error" and ours and not expected:
            self._note(f"{message.text} {message.location.get('url', '')}")

    def _note(self, complaint: str) -> None:
        if not any(known in complaint for known in OWN_ERRORS):
            self.complaints.append(complaint)

    def _receive(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            message = json.loads(frame)
            if message["type"] == "progress":
                self.progress.append(message["data"]["value"])

    def widget(self, node: str, name: str, value: object = None, number: int = 0) -> object:
        """What a widget of the graph says; sets it first if there is a value."""
        return self.page.evaluate(
            """([type, name, value, number]) => {
              const node = app.graph.nodes.filter((node) => node.type === type).sort((a, b) => a.id - b.id)[number];
              const widget = node.widgets.find((widget) => widget.name === name);
              if (value !== null) { widget.value = value; widget.callback?.(value); }
              return widget.value;
            }""",
            [node, name, value, number],
        )


def the_front_end_loads(visit: Visit) -> None:
    request = urllib.request.Request(f"{visit.url}/api/settings/Comfy.TutorialCompleted", data=b"true", method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - our own server
        check("a setting is kept before the first visit", response.status == 200, response.status)
    visit.page.goto(visit.url + "/")
    visit.page.wait_for_function("window.app?.graph?.nodes?.length > 0")
    visit.page.get_by_role("button", name="Run", exact=True).wait_for()
    visit.page.wait_for_timeout(2000)
    types = visit.page.evaluate("app.graph.nodes.map((node) => node.type)")
    counts = {kind: types.count(kind) for kind in types}
    check("the default graph comes up", counts == DEFAULT_GRAPH, counts)
    broken = visit.page.evaluate("app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)")
    check("every node of it is known", broken == [], broken)
    check("nothing is missing and nothing fails while it loads", visit.complaints == [], visit.complaints[:5])


def the_built_in_model_is_offered(visit: Visit) -> None:
    model = visit.widget("CheckpointLoaderSimple", "ckpt_name")
    check("the built-in model is chosen", model == "tiny-sdxl.safetensors", model)


def a_run_draws_a_picture(visit: Visit) -> None:
    page = visit.page
    visit.widget("EmptyLatentImage", "width", SIDE)
    visit.widget("EmptyLatentImage", "height", SIDE)
    visit.widget("KSampler", "steps", STEPS)
    visit.widget("KSampler", "seed", 7)
    visit.widget("KSampler", "control_after_generate", "fixed")
    visit.widget("CLIPTextEncode", "text", PROMPT)
    # A node loads its picture when it is on the screen.
    page.get_by_role("button", name="Fit View (.)").click()
    page.evaluate("window.titlesSeen = []")
    page.get_by_role("button", name="Run", exact=True).click()
    shown = "app.graph.nodes.find((node) => node.type === 'SaveImage').imgs"
    page.wait_for_function(f"{shown}?.[0]?.complete && {shown}[0].naturalWidth > 0", timeout=PICTURE_MS)
    size = page.evaluate(f"[{shown}[0].naturalWidth, {shown}[0].naturalHeight]")
    check("Run makes a picture appear", size == [SIDE, SIDE], size)
    check("every step is told", visit.progress[-1:] == [STEPS] and len(visit.progress) >= STEPS, visit.progress)
    titles = page.evaluate("window.titlesSeen")
    shares = {share for title in titles for share in re.findall(r"(\d+)%", title)}
    check("progress moves on the page", len(shares) >= 3, titles)
    address = page.evaluate(f"{shown}[0].src")
    query = parse_qs(urlsplit(address).query)
    check("the picture has ComfyUI's name", query["filename"] == ["ComfyUI_00001_.png"], address)
    check("nothing is missing and nothing fails while it runs", visit.complaints == [], visit.complaints[:5])


def the_same_again_comes_from_the_cache(visit: Visit) -> None:
    told = len(visit.progress)
    shown = "app.graph.nodes.find((node) => node.type === 'SaveImage').imgs?.[0]?.src ?? ''"
    visit.widget("SaveImage", "filename_prefix", "again")
    visit.page.get_by_role("button", name="Run", exact=True).click()
    visit.page.wait_for_function(f"({shown}).includes('again_00001_.png')", timeout=PICTURE_MS)
    check("what was drawn is not drawn again", len(visit.progress) == told, visit.progress[told:])
    visit.widget("SaveImage", "filename_prefix", "ComfyUI")


def a_workflow_is_kept(visit: Visit) -> None:
    graph = visit.page.evaluate("app.graph.serialize()")
    address = f"{visit.url}/api/userdata/workflows%2Fkept.json"
    request = urllib.request.Request(address, data=json.dumps(graph).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        check("a workflow is kept", json.load(response) == "workflows/kept.json")
    visit.page.reload()
    visit.page.wait_for_function("window.app?.graph?.nodes?.length > 0")
    visit.page.get_by_role("button", name="Workflows (w)").click()
    visit.page.get_by_text("kept").first.wait_for()
    check("a workflow that was kept is listed", True)
    check("nothing is missing and nothing fails after a reload", visit.complaints == [], visit.complaints[:5])


def take_screenshot(visit: Visit, path: Path) -> None:
    """The graph with its picture, as the README shows it."""
    page = visit.page
    page.evaluate(
        """() => {
          const node = app.graph.nodes.find((node) => node.type === 'SaveImage');
          node.setSize([300, 360]);
          app.canvas.deselectAll?.();
          app.graph.setDirtyCanvas(true, true);
        }"""
    )
    page.get_by_test_id("close-minmap-button").click()
    page.set_viewport_size({"width": 1440, "height": 640})
    page.mouse.move(720, 560)
    page.get_by_role("button", name="Fit View (.)").click()
    page.wait_for_timeout(2000)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    print(f"screenshot: {path}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, default=Path("target/debug/darkroom"))
    parser.add_argument("--url", help="a server that runs already, with the front end, an empty output folder and no key")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    parser.add_argument("--screenshot", type=Path)
    arguments = parser.parse_args()
    if not arguments.chromium:
        print("chromium is missing; on Debian and Ubuntu: apt-get install chromium", file=sys.stderr)
        return 2
    in_virtual_environment()
    import comfyui_frontend_package
    from playwright.sync_api import Error, sync_playwright

    frontend = Path(comfyui_frontend_package.__file__).parent / "static"
    with tempfile.TemporaryDirectory(prefix="darkroom-frontend-") as folder:
        data = Path(folder) / "data"
        try:
            with (
                server(arguments.binary, data, frontend) if not arguments.url else nothing(arguments.url) as url,
                sync_playwright() as playwright,
            ):
                browser = playwright.chromium.launch(executable_path=arguments.chromium, args=CHROMIUM_FLAGS)
                visit = Visit(browser, url.rstrip("/"))
                the_front_end_loads(visit)
                the_built_in_model_is_offered(visit)
                a_run_draws_a_picture(visit)
                if arguments.screenshot:
                    take_screenshot(visit, arguments.screenshot)
                the_same_again_comes_from_the_cache(visit)
                a_workflow_is_kept(visit)
                browser.close()
        except (CheckFailed, Error) as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print("the front end works", flush=True)
    return 0


@contextmanager
def nothing(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    sys.exit(main())
