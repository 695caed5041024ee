#!/usr/bin/env python3
"""Drives the server's page in a real, headless Chromium, as a person would: without keys, then with one.

Needs playwright (`pip install playwright`; its own browser is not needed) and Chromium (`apt install chromium`).

    scripts/test_page.py --binary target/release/darkroom
    scripts/test_page.py --binary target/release/darkroom --screenshot docs/images/page.png

Starts the program on a free port with an empty data folder, and stops it when done. `--url` (and `--key`) tests a
server that runs already instead.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

TOTAL_SECONDS = 540
START_SECONDS = 60
TASK_MS = 120_000
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOWN = "1girl, white hair, long hair, cat ears, red eyes, black shirt, pink background"
CHARACTER = "1girl, blonde hair, twintails, blue eyes, red shirt, blue background"
PROMPT = "1boy, black hair, short hair, blue shirt, smirk, orange background"
MARKUP = "<i><i>1girl</i></i>, red hair"
# Notes every preview that any frame shows.
WATCH_PREVIEWS = """
window.previewsSeen = {};
new MutationObserver((changes) => {
  for (const { target } of changes) {
    if (!target.classList?.contains("preview") || !target.getAttribute("src")) continue;
    const sheet = target.closest(".sheet");
    const index = [...sheet.querySelectorAll(".frame")].indexOf(target.closest(".frame"));
    const seen = ((window.previewsSeen[sheet.dataset.task] ??= {})[index] ??= []);
    if (!seen.includes(target.src)) seen.push(target.src);
  }
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["src"] });
"""


class CheckFailed(Exception):
    """Something that the page should do and did not."""


def check(claim: str, holds: bool, detail: object = "") -> None:
    """Prints the claim if it holds, and ends the test if not."""
    if not holds:
        raise CheckFailed(f"{claim} {detail}".rstrip())
    print(f"ok  {claim}", flush=True)


class Visit:
    """A browser window on the page, and everything it should not have done."""

    def __init__(self, browser: Browser, url: str, key: str | None, **context_options: object) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        options = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark", **context_options}
        self.context: BrowserContext = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.add_init_script(WATCH_PREVIEWS)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self._look(request.url))
        self.page.on("websocket", lambda socket: self._look(socket.url))

    def _hear(self, message) -> None:  # noqa: ANN001 - playwright's ConsoleMessage
        if message.type not in ("error", "warning"):
            return
        # The browser itself logs the refusal that makes the page ask for a key.
        if self.key and "401" in message.text:
            return
        self.complaints.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _look(self, url: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != urlsplit(self.url).netloc:
            self.foreign.append(url)

    def open(self) -> None:
        self.page.goto(self.url + "/")

    def submit(self) -> Locator:
        """Submits the form; the task's sheet."""
        known = set(self.tasks())
        self.page.click("#submit")
        self.page.wait_for_function(
            "known => [...document.querySelectorAll('.sheet')].some((s) => !known.includes(s.dataset.task))",
            arg=list(known),
        )
        new = next(task for task in self.tasks() if task not in known)
        return self.sheet(new)

    def tasks(self) -> list[str]:
        return self.page.eval_on_selector_all(".sheet", "sheets => sheets.map((s) => s.dataset.task)")

    def sheet(self, task: str) -> Locator:
        return self.page.locator(f'.sheet[data-task="{task}"]')

    def wait_done(self, sheet: Locator, pictures: int) -> None:
        """Waits until all its pictures are there and have been loaded."""
        expect(sheet).to_have_attribute("data-status", "completed", timeout=TASK_MS)
        expect(sheet.locator('.frame[data-state="done"]')).to_have_count(pictures)
        for index in range(pictures):
            sheet.locator(".frame").nth(index).scroll_into_view_if_needed()
        expect(sheet.locator(".final.loaded")).to_have_count(pictures)
        broken = sheet.locator(".final").evaluate_all("all => all.filter((i) => !i.naturalWidth).length")
        check("every picture is one that the browser can show", broken == 0, broken)

    def fetch(self, path: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}")
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - our own server
            return response.read()

    def task(self, sheet: Locator) -> dict:
        return json.loads(self.fetch(f"v1/tasks/{sheet.get_attribute('data-task')}"))

    def picture(self, sheet: Locator) -> bytes:
        """The file of the sheet's first picture."""
        address = self.task(sheet)["images"][0]["url"]
        return self.fetch(re.search(r"v1/images/[0-9a-f]{32}", address).group())

    def close(self) -> None:
        self.context.close()


def a_newcomer_sees_something_to_click(visit: Visit) -> None:
    visit.open()
    expect(visit.page.locator("#starters button")).to_have_count(3)
    visit.page.wait_for_selector("#chips button", state="attached")
    check("a newcomer sees examples to click", visit.page.locator("#empty").is_visible())


def a_pack_comes_up_live(visit: Visit) -> None:
    page = visit.page
    page.click("#tab-pack")
    page.fill("#character", CHARACTER)
    chips = page.locator("#chips button")
    count = chips.count()
    check("the page offers expressions", count >= 6, count)
    sheet = visit.submit()
    expect(sheet.locator(".frame")).to_have_count(count)
    visit.wait_done(sheet, count)
    seen = page.evaluate("id => window.previewsSeen[id] ?? {}", sheet.get_attribute("data-task"))
    moved = [index for index, previews in seen.items() if len(previews) >= 2]
    check("previews change at least twice before the pictures are done", len(moved) > 0, {k: len(v) for k, v in seen.items()})
    names = sheet.locator("figcaption").all_inner_texts()
    wanted = chips.all_inner_texts()
    check("every picture of the pack has its expression's name", all(w in n for w, n in zip(wanted, names, strict=True)), names)


def a_body_follows_a_pose_and_an_outfit_a_picture(visit: Visit) -> None:
    page = visit.page
    page.click("#tab-body")
    expect(page.locator("#poses-field")).to_be_visible()
    page.fill("#character", CHARACTER)
    page.select_option("#lora", "tinychan")
    page.locator("#poses button").nth(1).click()
    expect(page.locator("#poses img").first).to_have_js_property("complete", True)
    body = visit.submit()
    visit.wait_done(body, 1)
    image = visit.task(body)["images"][0]
    check("a body is drawn with the chosen LoRA and pose", image["loras"] and image["controls"], image)

    page.click("#tab-outfit")
    page.set_input_files("#file", {"name": "base.png", "mimeType": "image/png", "buffer": visit.picture(body)})
    expect(page.locator("#denoise")).to_have_value("0.4")
    page.fill("#outfit", "")
    page.click("#submit")
    expect(page.locator("#outfit")).to_have_attribute("aria-invalid", "true")
    page.fill("#outfit", "blue shirt")
    outfit = visit.submit()
    visit.wait_done(outfit, 1)
    image = visit.task(outfit)["images"][0]
    check("an outfit begins as the picture and keeps its outlines", image["from_image"] and image["controls"], image)
    check("an outfit is drawn over as much as the slider says", image["denoise"] == 0.4, image["denoise"])
    page.click("#source-clear")
    page.select_option("#lora", "")


def a_pack_follows_the_chosen_templates(visit: Visit) -> None:
    page = visit.page
    page.click("#tab-pack")
    page.select_option("#templates", "short")
    expect(page.locator("#template-pictures img")).to_have_count(page.locator("#chips button").count())
    page.select_option("#templates", "")
    page.click("#tab-picture")


def a_picture_can_be_drawn_again(visit: Visit) -> None:
    page = visit.page
    page.click("#tab-picture")
    page.fill("#prompt", PROMPT)
    page.click("#settings summary")
    page.fill("#steps", "14")
    page.fill("#sampler", "euler_ancestral")
    first = visit.submit()
    visit.wait_done(first, 1)
    page.fill("#prompt", "something else")
    page.fill("#steps", "")
    page.fill("#sampler", "")
    first.locator(".open").click()
    expect(page.locator("#viewer")).to_be_visible()
    seed = str(visit.task(first)["images"][0]["seed"])
    check("the viewer shows the seed", seed in page.locator("#viewer-facts").inner_text(), seed)
    expect(page.locator("#viewer-image")).to_have_js_property("complete", True)
    known = set(visit.tasks())
    page.click("#again")
    expect(page.locator("#viewer")).to_be_hidden()
    second = visit.sheet(next(task for task in visit.tasks() if task not in known))
    visit.wait_done(second, 1)
    check("again with this seed gives the same file, byte for byte", visit.picture(first) == visit.picture(second))

    first.locator(".open").click()
    known = set(visit.tasks())
    page.click("#vary")
    expect(page.locator("#viewer")).to_be_hidden()
    varied = visit.sheet(next(task for task in visit.tasks() if task not in known))
    visit.wait_done(varied, 1)
    check("vary gives another picture", visit.picture(first) != visit.picture(varied))


def a_picture_can_start_from_another(visit: Visit) -> Locator:
    page = visit.page
    page.locator('.sheet.one .frame[data-state="done"] .open').first.click()
    expect(page.locator("#download")).to_have_attribute("href", re.compile("^blob:"))
    page.click("#use-source")
    expect(page.locator("#source-image")).to_be_visible()
    page.fill("#prompt", "1girl, pink hair, laughing")
    sheet = visit.submit()
    visit.wait_done(sheet, 1)
    page.click("#source-clear")
    check("a picture can be the source of another", page.locator("#chosen").is_hidden())
    return sheet


def a_task_can_be_cancelled(visit: Visit) -> None:
    page = visit.page
    page.fill("#prompt", MARKUP)
    page.fill("#count", "8")
    page.fill("#steps", "150")
    sheet = visit.submit()
    sheet.locator(".state button").click()
    expect(sheet).to_have_attribute("data-status", "cancelled", timeout=TASK_MS)
    page.fill("#count", "1")
    page.fill("#steps", "")
    check("a task that was cancelled is cancelled on the server, too", visit.task(sheet)["status"] == "cancelled")
    check("markup in a prompt stays text", sheet.locator("h3").inner_text() == MARKUP and sheet.locator("i i").count() == 0)


def without_a_socket_the_page_polls(browser: Browser, url: str) -> None:
    visit = Visit(browser, url, None)
    visit.page.route_web_socket(re.compile(r"/v1/tasks/ws"), lambda socket: socket.close())
    visit.open()
    visit.page.fill("#prompt", PROMPT)
    visit.wait_done(visit.submit(), 1)
    check("without a socket the page polls", not visit.complaints, visit.complaints[:3])
    visit.close()


def a_refusal_stands_at_its_field(visit: Visit) -> None:
    page = visit.page
    page.fill("#prompt", "")
    page.click("#submit")
    expect(page.locator("#prompt")).to_have_attribute("aria-invalid", "true")
    check("an empty prompt is refused beside the prompt", page.locator(".field:has(#prompt) .problem").is_visible())


def what_was_drawn_is_there_after_a_reload(visit: Visit) -> None:
    page = visit.page
    done = page.locator('.frame[data-state="done"]').count()
    page.reload()
    expect(page.locator('.frame[data-state="done"]')).to_have_count(done)
    page.locator('.sheet.one .frame[data-state="done"] .open').first.click()
    expect(page.locator("#viewer-image")).to_have_js_property("complete", True)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    check("what was drawn is there after a reload", True)


def what_began_as_a_picture_says_so_after_a_reload(visit: Visit, sheet: Locator) -> None:
    page = visit.page
    sheet.locator(".open").click()
    facts = page.locator("#viewer-facts").inner_text()
    check("what began as a picture says so", "a picture" in facts and "0.6" in facts, facts)
    expect(page.locator("#again")).to_be_disabled()
    page.keyboard.press("Escape")
    check("without its source it is not drawn again as something else", True)


def the_page_keeps_to_itself(visit: Visit) -> None:
    check("nothing is complained about in the console", not visit.complaints, visit.complaints[:3])
    check("nothing is asked of other hosts", not visit.foreign, visit.foreign[:3])


def without_a_key_the_page_asks_for_one(visit: Visit) -> None:
    visit.open()
    expect(visit.page.locator("#key-panel")).to_be_visible()
    check("a server with keys makes the page ask for one", visit.page.locator("#key").is_visible())
    visit.page.fill("#key", "dk_wrong")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#key-panel")).to_be_visible()
    visit.page.fill("#key", visit.key)
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#key-panel")).to_be_hidden()
    visit.page.wait_for_selector("#chips button", state="attached")
    check("with the key the page works", True)


def with_a_key_pictures_are_blobs(visit: Visit) -> None:
    sources = visit.page.locator(".final.loaded").evaluate_all("all => all.map((i) => i.src)")
    check("with a key pictures come as blobs", len(sources) > 0 and all(s.startswith("blob:") for s in sources), sources[:2])
    check("the key stands in no address", all(visit.key not in s for s in sources))


def take_screenshot(browser: Browser, url: str, path: Path, seed: int) -> None:
    """The page with a finished pack and the form, as the README shows it."""
    visit = Visit(browser, url, None, viewport={"width": 1280, "height": 900})
    visit.open()
    page = visit.page
    page.wait_for_selector("#chips button", state="attached")
    page.click("#tab-pack")
    page.fill("#character", SHOWN)
    page.fill("#seed", str(seed))
    sheet = visit.submit()
    visit.wait_done(sheet, page.locator("#chips button").count())
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.mouse.move(640, 2)
    expect(page.locator("#queue")).to_have_text("Ready")
    bottom = page.evaluate(
        "Math.max(...[document.querySelector('.bench'), document.querySelector('.sheet')]"
        ".map((e) => e.getBoundingClientRect().bottom))"
    )
    page.set_viewport_size({"width": 1280, "height": int(bottom) + 20})
    page.wait_for_timeout(1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    visit.close()
    print(f"screenshot: {path}", flush=True)


@contextmanager
def server(binary: Path, data_dir: Path) -> Iterator[str]:
    """Starts the program; its address. Stops it by its own process id."""
    command = [str(binary), "serve", "--port", "0", "--data-dir", str(data_dir)]
    with (data_dir.parent / f"{data_dir.name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            yield wait_for_address(lines, log.name)
        finally:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_address(lines: queue.Queue[str | None], log: str) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line is None:
            raise CheckFailed(f"the server ended before it listened:\n{Path(log).read_text()[-2000:]}")
        if found := re.search(r"listening on (https?://\S+)", line):
            return found.group(1)
    raise CheckFailed(f"the server did not listen within {START_SECONDS} s")


def create_key(binary: Path, data_dir: Path) -> str:
    command = [str(binary), "keys", "create", "test", "--data-dir", str(data_dir)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"dk_\S+", printed)
    if not found:
        raise CheckFailed(f"keys create printed no key: {printed!r}")
    return found.group()


def test_open(browser: Browser, url: str) -> None:
    visit = Visit(browser, url, None)
    a_newcomer_sees_something_to_click(visit)
    a_pack_comes_up_live(visit)
    a_body_follows_a_pose_and_an_outfit_a_picture(visit)
    a_pack_follows_the_chosen_templates(visit)
    a_picture_can_be_drawn_again(visit)
    redrawn = a_picture_can_start_from_another(visit)
    a_task_can_be_cancelled(visit)
    a_refusal_stands_at_its_field(visit)
    what_was_drawn_is_there_after_a_reload(visit)
    what_began_as_a_picture_says_so_after_a_reload(visit, redrawn)
    the_page_keeps_to_itself(visit)
    visit.close()
    without_a_socket_the_page_polls(browser, url)


def test_with_key(browser: Browser, url: str, key: str) -> None:
    visit = Visit(browser, url, key)
    without_a_key_the_page_asks_for_one(visit)
    a_pack_comes_up_live(visit)
    with_a_key_pictures_are_blobs(visit)
    a_body_follows_a_pose_and_an_outfit_a_picture(visit)
    a_picture_can_be_drawn_again(visit)
    a_task_can_be_cancelled(visit)
    what_was_drawn_is_there_after_a_reload(visit)
    the_page_keeps_to_itself(visit)
    visit.close()


def run(arguments: argparse.Namespace) -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="darkroom-page-") as folder:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=CHROMIUM_FLAGS)
        try:
            if arguments.url:
                if arguments.key:
                    test_with_key(browser, arguments.url, arguments.key)
                else:
                    test_open(browser, arguments.url)
                if arguments.screenshot:
                    take_screenshot(browser, arguments.url, arguments.screenshot, arguments.seed)
                return
            test_own_server(browser, arguments, Path(folder))
        finally:
            browser.close()


def test_own_server(browser: Browser, arguments: argparse.Namespace, folder: Path) -> None:
    """Without keys, with one, and for the screenshot: each time with nothing drawn yet."""
    for name in ["open", "keyed"] + ["screenshot"] * bool(arguments.screenshot):
        data_dir = folder / name
        data_dir.mkdir()
        key = create_key(arguments.binary, data_dir) if name == "keyed" else None
        with server(arguments.binary, data_dir) as url:
            print(f"-- {name}: {url}", flush=True)
            if key:
                test_with_key(browser, url, key)
            elif name == "open":
                test_open(browser, url)
            else:
                take_screenshot(browser, url, arguments.screenshot, arguments.seed)


def out_of_time(*_: object) -> None:
    raise CheckFailed(f"the test took more than {TOTAL_SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--binary", type=Path, help="the program; it is started and stopped")
    target.add_argument("--url", help="a server that runs already, with nothing drawn yet")
    parser.add_argument("--key", help="the key for --url")
    parser.add_argument("--screenshot", type=Path, help="where to put the README's picture of the page")
    parser.add_argument("--seed", type=int, default=7, help="seed of the screenshot's pack")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    if not arguments.chromium:
        parser.error("there is no Chromium; install it (apt install chromium) or name it with --chromium")
    if arguments.binary and not os.access(arguments.binary, os.X_OK):
        parser.error(f"{arguments.binary} is no program")
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(TOTAL_SECONDS)
    try:
        run(arguments)
    except (CheckFailed, AssertionError) as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    print("the page works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
