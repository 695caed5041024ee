// Darkroom's page: the form, the pictures as they come up, and what was drawn before. Speaks the public /v1 API and
// nothing else. Text from the server only ever becomes text (never markup), seeds stay strings (they have 64 bits).

import { $, clamp, duration, el, show, sleep } from "./dom.js";
import * as guides from "./guides.js";

// ---------------------------------------------------------------------------------------------------- the server

/** What the server refused, in its own words; `status` 0 if it did not answer. */
class Refusal extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message || (status ? `The server answered with status ${status}.` : "The server does not answer."));
    this.status = status;
    this.field = error?.field;
    this.hint = error?.hint;
    this.retryAfter = Number(retryAfter) > 0 ? Math.ceil(Number(retryAfter)) : null;
  }

  /** For a person: message, hint, and when to come back. */
  get text() {
    const again = this.retryAfter ? `Try again in ${duration(this.retryAfter)}.` : null;
    return [this.message, this.hint, again].filter(Boolean).join("\n");
  }
}

const remembered = {
  get(name) {
    try { return localStorage.getItem(name) || ""; } catch { return ""; }
  },
  set(name, value) {
    try { value ? localStorage.setItem(name, value) : localStorage.removeItem(name); } catch { /* not kept, then */ }
  },
};

let key = remembered.get("darkroom.key");
/** Counts up with every key, so that answers to an earlier one are dropped. */
let session = 0;

const address = (path) => new URL(path, document.baseURI);
const imagePath = (id, width) => `v1/images/${id}${width ? `?width=${width}` : ""}`;
/** The id in a picture's address, whatever host it names: the page asks only the server it came from. */
const imageId = (url) => /\/v1\/images\/([0-9a-f]{32})/.exec(url ?? "")?.[1];

async function ask(path, { method = "GET", headers = {}, body } = {}) {
  const asked = session;
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(address(path), { method, headers, body, signal: AbortSignal.timeout(60_000) });
  } catch {
    throw new Refusal(0);
  }
  if (response.ok) return response;
  let error;
  try { error = (await response.json()).error; } catch { /* no body of ours */ }
  if (response.status === 401 && asked === session) wantKey(error?.message);
  throw new Refusal(response.status, error, response.headers.get("Retry-After"));
}

async function json(path, options) {
  const text = await (await ask(path, options)).text();
  return JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));
}

/** Submits `body`. Sent twice under one key if the connection breaks, so that it is one task. */
async function post(path, { seed, ...body }) {
  const text = JSON.stringify(body);
  const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": id },
    body: seed == null ? text : `${text.slice(0, -1)},"seed":${seed}}`,
  };
  try {
    return await json(path, options);
  } catch (refusal) {
    if (refusal.status !== 0) throw refusal;
    await sleep(700);
    return json(path, options);
  }
}

function wantKey(message) {
  if ($("key-panel").hidden) {
    openKeyPanel(true);
    $("key").focus();
  }
  $("key-note").textContent = message ? `${message}. Kept in this browser only.` : "Kept in this browser only.";
}

function openKeyPanel(open) {
  $("key-panel").hidden = !open;
  $("key-open").setAttribute("aria-expanded", String(open));
}

// ------------------------------------------------------------------------------------------------- live messages

/** One WebSocket for all running tasks; gone while nothing runs. Polling fills in when it cannot be had. */
const live = {
  socket: null,
  wanted: new Set(),
  failures: 0,
  timer: 0,
  limit: 200,

  get open() { return this.socket?.readyState === WebSocket.OPEN; },

  watch(id) {
    if (this.wanted.has(id) || this.wanted.size >= this.limit) return;
    this.wanted.add(id);
    clearTimeout(this.timer);
    if (this.open) this.subscribe(id);
    else this.connect();
  },

  /** The server ends a subscription by itself after the final status. */
  leave(id) {
    if (!this.wanted.delete(id)) return;
    if (!this.wanted.size) this.timer = setTimeout(() => this.close(), 20_000);
  },

  subscribe(id) {
    const auth = key ? { auth_token: `Bearer ${key}` } : {};
    this.socket.send(JSON.stringify({ action: "subscribe", task_id: id, previews: true, ...auth }));
  },

  connect() {
    if (this.socket) return;
    const url = address("v1/tasks/ws");
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(url));
    socket.onopen = () => {
      this.failures = 0;
      for (const id of this.wanted) this.subscribe(id);
    };
    socket.onmessage = ({ data }) => {
      let message;
      try { message = JSON.parse(data); } catch { return; }
      sheets.get(message.task_id)?.hear(message);
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.socket = null;
      if (!this.wanted.size) return;
      const pause = Math.min(500 * 2 ** this.failures++, 20_000) * (0.75 + Math.random() / 2);
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.wanted.size && this.connect(), pause);
    };
  },

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  },

  reset() {
    this.wanted.clear();
    this.close();
  },
};

// ------------------------------------------------------------------------------------------------------- pictures

/**
 * Thumbnails. Without a key the browser fetches and keeps them itself; with one they come as blobs, of which a
 * bounded number is held: the ones seen longest ago are dropped and fetched again when they are scrolled to.
 */
const thumbnails = {
  most: 240,
  width: devicePixelRatio > 1.25 ? 512 : 256,
  wanted: new WeakMap(),
  held: new Map(),
  visible: new Set(),
  waiting: [],
  running: 0,
  observer: new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        thumbnails.visible.add(target);
        thumbnails.load(target);
      } else {
        thumbnails.visible.delete(target);
      }
    }
  }, { rootMargin: "600px" }),

  show(img, id) {
    this.wanted.set(img, id);
    if (key) {
      this.observer.observe(img);
    } else {
      img.loading = "lazy";
      img.src = address(imagePath(id, this.width));
    }
  },

  load(img) {
    const held = this.held.get(img);
    if (held) {
      this.held.delete(img);
      this.held.set(img, held);
    } else if (!this.waiting.includes(img)) {
      this.waiting.push(img);
      this.next();
    }
  },

  async next() {
    if (this.running >= 4 || !this.waiting.length) return;
    const img = this.waiting.shift();
    if (!img.isConnected || this.held.has(img)) return this.next();
    this.running++;
    const asked = session;
    try {
      const blob = await (await ask(imagePath(this.wanted.get(img), this.width))).blob();
      if (asked === session && img.isConnected) {
        img.src = URL.createObjectURL(blob);
        this.held.set(img, img.src);
        this.drop(this.most);
      }
    } catch (refusal) {
      if (refusal.status === 404) img.dispatchEvent(new Event("error"));
    }
    this.running--;
    this.next();
  },

  drop(most) {
    for (const [img, url] of this.held) {
      if (this.held.size <= most) break;
      if (most && this.visible.has(img)) continue;
      URL.revokeObjectURL(url);
      this.held.delete(img);
      img.removeAttribute("src");
      img.classList.remove("loaded");
    }
  },

  forget(img) {
    this.observer.unobserve(img);
    this.visible.delete(img);
    const url = this.held.get(img);
    if (url) URL.revokeObjectURL(url);
    this.held.delete(img);
  },
};

// ---------------------------------------------------------------------------------------------------------- tasks

const FINAL = new Set(["completed", "failed", "cancelled"]);
/** Tasks on the page, by id. */
const sheets = new Map();
/** Sheet and index of a frame's button, for the viewer. */
const places = new WeakMap();
let columns = 4;

/** One task: its pictures, and how far it is while it runs. */
class Sheet {
  constructor(id, asked) {
    this.id = id;
    /** What this page asked for, if it was this page: see `request`. */
    this.asked = asked;
    this.task = {};
    this.frames = [];
    this.title = el("h3");
    this.edge = el("p", { className: "edge" });
    this.text = el("span", { className: "text" });
    this.button = el("button", { type: "button", textContent: "Cancel" });
    this.button.addEventListener("click", () => this.act());
    this.state = el("div", { className: "state" }, this.text, this.button);
    this.bar = el("div", { className: "bar", role: "progressbar", ariaLabel: "Progress" }, el("i"));
    this.problem = el("p", { className: "problem", hidden: true });
    this.head = el("header", { className: "head" }, this.title, this.edge);
    this.list = el("div", { className: "frames" });
    this.element = el("article", { className: "sheet one", data: { task: id } },
      this.head, this.list, this.bar, this.state, this.problem);
  }

  get final() { return FINAL.has(this.task.status); }
  get body() { return this.asked?.body ?? {}; }

  /** Takes what the server says of the task. */
  update(task) {
    if (this.final && !FINAL.has(task.status)) return;
    this.task = { ...this.task, ...task };
    const images = task.images ?? task.images_completed ?? [];
    const count = Math.max(1, task.image_count ?? 0, this.asked?.count ?? 0, ...images.map((image) => image.index + 1));
    this.grow(count);
    for (const image of images) this.frames[image.index]?.finish(image);
    this.draw();
    if (this.final) live.leave(this.id);
    else live.watch(this.id);
  }

  /** Takes a live message. */
  hear(message) {
    if (this.final) return;
    const { status, progress, current_step, eta_seconds, queue_position, error, index } = message;
    for (const [name, value] of Object.entries({ progress, current_step, eta_seconds, queue_position })) {
      if (value !== undefined) this.task[name] = value;
    }
    if (Number.isInteger(index) && index >= 0 && index < 1000) {
      this.grow(index + 1);
      if (message.preview) this.frames[index].develop(message.preview);
      if (message.image_url) this.frames[index].finish({ url: message.image_url, index });
    }
    if (FINAL.has(status)) {
      if (status === "failed" && error) this.task.error = error;
      this.settle();
    } else if (status) {
      this.task.status = status;
    }
    this.draw();
  }

  /** Asks for the whole task: the live messages leave out what its pictures were drawn from. */
  async settle() {
    try {
      const task = await json(`v1/tasks/${encodeURIComponent(this.id)}`);
      this.update(task);
      if (task.status === "completed") {
        const n = this.frames.length;
        say(n > 1 ? `${n} pictures are done` : "The picture is done");
      }
      refreshSoon();
    } catch (refusal) {
      if (refusal.status === 404) remove(this);
    }
  }

  grow(count) {
    const before = this.frames.length;
    while (this.frames.length < count) {
      const frame = new Frame(this, this.frames.length);
      this.frames.push(frame);
      this.list.append(frame.element);
    }
    if (this.frames.length !== before) this.arrange();
  }

  /** Rows of equal length: 12 pictures are 4 + 4 + 4 where 5 would fit. */
  arrange() {
    const n = this.frames.length;
    const rows = Math.ceil(n / columns);
    this.element.classList.toggle("many", n > 1);
    this.element.classList.toggle("one", n === 1);
    this.list.style.setProperty("--across", n > 1 ? Math.max(Math.ceil(n / rows), Math.min(columns, 4)) : 1);
    // The state stands in the header of a sheet with many pictures, and under a single one.
    if (n > 1) {
      this.head.insertBefore(this.state, this.edge);
      this.list.before(this.bar, this.problem);
    } else {
      this.list.after(this.bar, this.state, this.problem);
    }
  }

  draw() {
    const { status = "queued", progress = 0, current_step, eta_seconds, queue_position, error } = this.task;
    this.element.dataset.status = status;
    this.element.classList.toggle("final", this.final);
    this.element.classList.toggle("completed", status === "completed");
    this.title.textContent = this.subject();
    this.title.title = this.title.textContent;
    this.edge.textContent = this.print();
    const parts = [];
    if (status === "queued") {
      parts.push(queue_position > 0 ? `Waiting, ${queue_position} before it` : "Waiting");
    } else if (status === "processing") {
      parts.push(current_step || "Drawing");
    } else if (status === "cancelled") {
      parts.push("Cancelled");
    } else if (status === "failed") {
      parts.push("Failed");
    }
    if (!this.final && eta_seconds > 0) parts.push(`${duration(eta_seconds)} left`);
    this.text.textContent = parts.join(" · ");
    const done = status === "completed" ? 1 : clamp(Number(progress) || 0, 0, 1);
    this.bar.style.setProperty("--done", done);
    this.bar.ariaValueNow = Math.round(done * 100);
    this.button.textContent = this.final ? "Try again" : "Cancel";
    this.button.hidden = this.final && !this.asked;
    show(this.problem, status === "failed" ? error?.message || "The server does not say why." : this.trouble);
    for (const frame of this.frames) frame.draw();
  }

  /** What the task is of: the character of a pack, the prompt of a picture. */
  subject() {
    const given = this.body.new_outfit_prompt ?? this.body.character_prompt ?? this.body.prompt ?? this.task.prompt;
    if (given) return given;
    const prompts = (this.task.images ?? []).map((image) => image.prompt ?? "");
    if (!prompts.length) return { expressions: "Expression pack", scene: "Scene", prototypes: "Prototypes", full_body: "Full body", outfit_change: "Outfit", stickers: "Stickers" }[this.task.kind] ?? "Pictures";
    let shared = prompts[0];
    for (const prompt of prompts) while (!prompt.startsWith(shared)) shared = shared.slice(0, -1);
    if (shared.length < prompts[0].length && shared.includes(",")) shared = shared.slice(0, shared.lastIndexOf(","));
    return shared || prompts[0];
  }

  /** What a film prints along its edge. */
  print() {
    const first = this.task.images?.[0];
    const { model, width, height, steps, sampler, scheduler } = { ...this.body, ...first };
    const seed = first?.seed ?? this.body.seed;
    const took = this.final && this.task.started_at && this.task.finished_at
      ? (Date.parse(this.task.finished_at) - Date.parse(this.task.started_at)) / 1000 : null;
    return [
      model, width && `${width} × ${height}`, sampler && [sampler, scheduler].filter(Boolean).join(" / "),
      steps && `${steps} steps`, seed != null && `seed ${seed}`,
      this.task.images?.length && this.task.images.every((image) => image.cached) && "from the bank", took >= 0.1 && `${took.toFixed(1)} s`,
    ].filter(Boolean).join("  ·  ");
  }

  async act() {
    this.button.disabled = true;
    this.trouble = null;
    try {
      if (this.final) await submit(this.asked);
      else this.update(await json(`v1/tasks/${encodeURIComponent(this.id)}`, { method: "DELETE" }));
    } catch (refusal) {
      if (refusal.status === 409) await this.settle();
      else this.trouble = refusal.text;
    }
    this.button.disabled = false;
    this.draw();
    refreshSoon();
  }
}

/** One picture of a sheet: nothing, then previews, then the picture. */
class Frame {
  constructor(sheet, index) {
    this.sheet = sheet;
    this.index = index;
    this.image = null;
    this.preview = el("img", { className: "preview", alt: "" });
    this.final = el("img", { className: "final", alt: "", decoding: "async" });
    this.open = el("button", { type: "button", className: "open", disabled: true }, this.preview, this.final);
    this.open.addEventListener("click", () => viewer.show(this.open));
    this.caption = el("span");
    const number = el("span", { className: "number", textContent: String(index + 1).padStart(2, "0"), ariaHidden: "true" });
    this.element = el("figure", { className: "frame" }, this.open, el("figcaption", {}, number, this.caption));
    this.final.addEventListener("load", () => {
      this.final.classList.add("loaded");
      this.preview.removeAttribute("src");
    });
    this.final.addEventListener("error", () => {
      if (this.image) this.element.dataset.state = "gone";
    });
    places.set(this.open, this);
    const { width, height } = sheet.body;
    if (width && height) this.shape(width, height);
  }

  shape(width, height) {
    this.open.style.setProperty("--shape", `${width} / ${height}`);
  }

  develop(dataUrl) {
    if (!this.image && /^data:image\/(jpeg|png|webp);base64,/.test(dataUrl)) this.preview.src = dataUrl;
    this.draw();
  }

  finish(image) {
    const known = this.image;
    this.image = { ...known, ...image };
    if (image.width && image.height) this.shape(image.width, image.height);
    const id = imageId(image.url);
    if (!known && id) {
      this.id = id;
      thumbnails.show(this.final, id);
    }
    this.draw();
  }

  draw() {
    const { sheet, image } = this;
    const state = image ? "done" : sheet.final ? "missing" : this.preview.hasAttribute("src") ? "preview"
      : sheet.task.status === "processing" ? "drawing" : "waiting";
    if (this.element.dataset.state !== "gone") this.element.dataset.state = state;
    if (state === "missing") this.preview.removeAttribute("src");
    this.open.disabled = !image;
    const label = image?.label ?? sheet.asked?.labels?.[this.index];
    this.caption.textContent = readable(label) || (sheet.frames.length > 1 ? seedOf(this) ?? "" : sheet.subject());
    this.caption.title = image?.prompt ?? this.caption.textContent;
    const name = readable(label) || image?.prompt || sheet.subject();
    this.open.ariaLabel = image ? `Open: ${name}` : `Not done yet: ${name}`;
  }
}

const seedOf = (frame) => (frame.image?.seed != null ? `seed ${frame.image.seed}` : null);

/** `smile_gentle` as people write it, if the server has no better word. */
function readable(label) {
  if (!label) return "";
  const plain = expressions.find((expression) => expression.name === label)?.label ?? label.replaceAll("_", " ");
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}

function say(text) {
  $("said").textContent = text;
}

/** Puts a task on the page, or what is new of it. */
function place(task, { asked, older = false } = {}) {
  let sheet = sheets.get(task.task_id);
  if (sheet && asked) sheet.asked = asked;
  if (!sheet) {
    // Taken back before anything was drawn: nothing to look at later.
    if (task.status === "cancelled" && !task.images?.length && !asked) return;
    sheet = new Sheet(task.task_id, asked);
    sheets.set(task.task_id, sheet);
    if (older) {
      $("grid").append(sheet.element);
    } else {
      sheet.element.classList.add("arrived");
      $("grid").prepend(sheet.element);
    }
  }
  sheet.update(task);
  $("empty").hidden = true;
  return sheet;
}

function remove(sheet) {
  live.leave(sheet.id);
  for (const frame of sheet.frames) thumbnails.forget(frame.final);
  sheet.element.remove();
  sheets.delete(sheet.id);
}

/** Submits what the form or a picture says and shows the task. */
async function submit(asked) {
  const answer = await post(asked.path, asked.body);
  asked = { ...asked, count: answer.expression_count ?? asked.count };
  const sheet = place(answer, { asked });
  sheet.trouble = answer.warnings?.join("\n");
  sheet.draw();
  say("Sent. It comes up under Pictures.");
  refreshSoon();
  return sheet;
}

// -------------------------------------------------------------------------------------------------------- polling

const PAGE = 24;
const list = { cursor: null, loaded: false };

async function loadTasks(older = false) {
  const asked = session;
  const cursor = older && list.cursor ? `&cursor=${encodeURIComponent(list.cursor)}` : "";
  const page = await json(`v1/tasks?limit=${PAGE}${cursor}`);
  if (asked !== session) return;
  const tasks = page.tasks ?? [];
  const first = !list.loaded;
  if (older || first) list.cursor = page.next_cursor ?? null;
  list.loaded = true;
  // Newest last, so that new ones go to the top in order; older ones go to the end as they come.
  for (const task of older || first ? tasks : tasks.toReversed()) place(task, { older: older || first });
  $("more").hidden = !list.cursor;
  $("empty").hidden = sheets.size > 0;
}

async function loadQueue() {
  const queue = await json("v1/queue");
  const { standard = 0, priority = 0, urgent = 0 } = queue.queued ?? {};
  const waiting = standard + priority + urgent;
  const ahead = [urgent && `${urgent} urgent`, priority && `${priority} priority`].filter(Boolean).join(", ");
  const parts = [];
  if (queue.processing) parts.push(`${queue.processing} developing`);
  if (waiting) parts.push(`${waiting} waiting${ahead && ` (${ahead})`}`);
  if (waiting && queue.capacity && waiting + queue.processing >= queue.capacity) parts.push("the queue is full");
  if (parts.length && queue.eta_seconds > 0) parts.push(`done in about ${duration(queue.eta_seconds)}`);
  if (queue.processing && queue.step_batch > 1) parts.push(`${queue.step_batch} pictures a step`);
  $("queue").textContent = parts.join(" · ") || "Ready";
  $("queue").title = queue.capacity ? `Room for ${queue.capacity} tasks` : "";
  $("lamp").classList.toggle("busy", queue.processing > 0);
  return queue.processing + waiting;
}

let tick = 0;
let ticking = false;
let silences = 0;
let lastList = 0;

/** Looks at the queue, and at the tasks as often as there is reason to; says so when the server does not answer. */
async function poll() {
  clearTimeout(tick);
  if (ticking || document.hidden) return;
  ticking = true;
  const asked = session;
  let pause = 2000;
  try {
    if (!started) await start();
    const unfinished = await loadQueue();
    const mine = [...sheets.values()].some((sheet) => !sheet.final);
    const every = mine && !live.open ? 1000 : mine || unfinished ? 3000 : 8000;
    if (!list.loaded || Date.now() - lastList >= every) {
      lastList = Date.now();
      await loadTasks();
      await catchUp();
    }
    if (mine && !live.open) pause = 1000;
    silences = 0;
    show($("notice"), "");
    $("lamp").classList.add("on");
  } catch (refusal) {
    if (asked === session) pause = trouble(refusal);
  }
  ticking = false;
  tick = setTimeout(poll, asked === session ? pause : 0);
}

/** Unfinished tasks that the newest page of tasks did not have are asked for one by one. */
async function catchUp() {
  const stale = [...sheets.values()].filter((sheet) => !sheet.final).slice(PAGE, PAGE + 8);
  for (const sheet of stale) await sheet.settle();
}

/** Says why the server is not there; returns the milliseconds until it is asked again. */
function trouble(refusal) {
  if (!(refusal instanceof Refusal)) throw refusal;
  $("lamp").classList.remove("on", "busy");
  $("queue").textContent = "";
  if (refusal.status === 401) return 30_000;
  const pause = refusal.retryAfter ?? Math.min(2 ** ++silences, 30);
  const wait = `Asking again in ${duration(pause)}.`;
  if (refusal.status === 0) {
    if (silences > 1) show($("notice"), `The server does not answer. ${wait} What it has accepted is not lost.`);
  } else if (refusal.status === 429) {
    show($("notice"), `The server has had too many requests from here: ${refusal.message}. ${wait}`);
  } else if (refusal.status === 503) {
    show($("notice"), `The server cannot serve just now: ${refusal.message}. ${wait}`);
  } else {
    show($("notice"), `${refusal.text} ${wait}`);
  }
  return pause * 1000;
}

function refreshSoon() {
  lastList = 0;
  clearTimeout(tick);
  tick = setTimeout(poll, 150);
}

// ----------------------------------------------------------------------------------------------------------- form

const SAMPLERS = ["euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_sde",
  "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm", "ddim", "uni_pc", "res_multistep"];
const SCHEDULERS = ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
  "kl_optimal"];
const STYLES = ["auto", "anime", "semi_realistic", "realistic", "photorealistic", "cartoon", "chibi", "comic", "manga",
  "watercolor", "oil_painting", "digital_painting"];
/** Words that the built-in model understands; larger models draw them too. */
const TAGS = {
  picture: [
    ["a smile", "1girl, blonde hair, blue eyes, smile"],
    ["a wink", "1girl, pink hair, cat ears, long hair, wink, purple background"],
    ["a smirk", "1boy, black hair, short hair, blue shirt, smirk, orange background"],
    ["a beach", "no humans, scenery, beach, ocean"],
  ],
  pack: [
    ["blonde", "1girl, blonde hair, twintails, blue eyes, red shirt, blue background"],
    ["redhead", "1boy, red hair, short hair, brown eyes, green shirt, yellow background"],
    ["cat ears", "1girl, white hair, long hair, cat ears, red eyes, black shirt, pink background"],
  ],
};
const WORDS = {
  picture: [
    ["a lighthouse", "a lighthouse on a cliff at dusk, storm clouds, oil painting"],
    ["a portrait", "portrait of a woman with freckles, soft window light, 85mm photograph"],
    ["a street", "a narrow street in the rain at night, neon reflections, wide angle"],
  ],
  pack: TAGS.pack,
};
const SOURCE_BYTES = 20 * 2 ** 20;

const MODES = ["picture", "pack", "body", "outfit"];

let mode = "picture";
let models = [];
let expressions = [];
let chosen = new Set();
/** The picture to start from: `{ blob, data, url }`. */
let source = null;
/** The size was chosen by hand, so another model does not change it. */
let sizeChosen = false;
/** An empty negative prompt is meant to be empty, not the model's own. */
let negativeChosen = false;

const model = () => models.find((one) => one.id === $("model").value) ?? models.find((one) => one.is_default) ?? models[0];
const isSmall = () => (model()?.native_side ?? 0) <= 256;

function setMode(next, focus = false) {
  mode = next;
  for (const name of MODES) {
    const tab = $(`tab-${name}`);
    tab.ariaSelected = String(name === mode);
    tab.tabIndex = name === mode ? 0 : -1;
    if (name === mode && focus) tab.focus();
  }
  $("form").setAttribute("aria-labelledby", `tab-${mode}`);
  $("form").dataset.shows = mode;
  for (const part of document.querySelectorAll("#form [data-mode]")) part.hidden = !isOfMode(part);
  if (!source) setDenoise(mode === "outfit" ? 0.4 : 0.6);
  // A pack without a seed takes the one that the server keeps for the character.
  $("seed").placeholder = mode === "pack" ? "the character's" : "random";
  drawSizes();
  drawExamples();
  drawSummary();
  drawSubmit();
  clearProblems();
}

/** Whether a part of the form is shown in this mode: `data-mode` names one or more. */
const isOfMode = (part) => part.dataset.mode.split(" ").includes(mode);

function drawExamples() {
  const examples = (isSmall() ? TAGS : WORDS)[mode === "picture" ? "picture" : "pack"];
  const field = mode === "picture" ? $("prompt") : $("character");
  $(`${mode === "picture" ? "picture" : "pack"}-examples`).replaceChildren("Try", ...examples.map(([name, text]) => {
    const button = el("button", { type: "button", textContent: name, title: text });
    button.addEventListener("click", () => {
      field.value = text;
      field.focus();
      clearProblems();
    });
    return button;
  }));
}

/** Sizes that suit a model made for squares of `side`. */
function presets(side) {
  if (side <= 256) return [[side, side], [side, side * 1.25], [side * 1.25, side]];
  if (side <= 640) return [[side, side], [side, side * 1.5], [side * 1.5, side]];
  return [[side, side], [side * 0.8125, side * 1.1875], [side * 1.1875, side * 0.8125]];
}

function drawSizes(size) {
  const { width, height } = model()?.defaults ?? {};
  const side = model()?.native_side ?? 1024;
  const sizes = presets(side).map((pair) => pair.map((n) => Math.round(n / 8) * 8));
  if (width && !sizes.some(([w, h]) => w === width && h === height)) sizes[0] = [width, height];
  size ??= sizeChosen ? chosenSize() : null;
  const at = size ? sizes.findIndex(([w, h]) => String(w) === String(size.width) && String(h) === String(size.height)) : 0;
  const options = sizes.map(([w, h], index) => sizeOption(`${w}x${h}`, `${w} × ${h}`, w, h, index === at));
  options.push(sizeOption("custom", "Custom", 0, 0, at < 0));
  $("sizes").replaceChildren(...options);
  $("custom-size").hidden = at >= 0;
  $("width").value = size?.width ?? sizes[0][0];
  $("height").value = size?.height ?? sizes[0][1];
}

function sizeOption(value, text, width, height, checked) {
  const input = el("input", { type: "radio", name: "size", value, checked });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS(svg.namespaceURI, "rect");
  const scale = 19 / Math.max(width, height, 1);
  const [w, h] = width ? [width * scale, height * scale] : [17, 17];
  const attributes = { x: 12 - w / 2, y: 12 - h / 2, width: w, height: h, rx: 2 };
  if (!width) attributes["stroke-dasharray"] = "3 3";
  for (const [name, number] of Object.entries(attributes)) shape.setAttribute(name, number);
  svg.append(shape);
  input.addEventListener("change", () => {
    sizeChosen = true;
    $("custom-size").hidden = value !== "custom";
    if (value !== "custom") [$("width").value, $("height").value] = value.split("x");
    else $("width").focus();
  });
  return el("label", {}, input, svg, text);
}

const number = (id) => {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
};
const text = (id) => $(id).value.trim() || undefined;
const chosenSize = () => ({ width: number("width"), height: number("height") });

function drawDefaults() {
  const defaults = model()?.defaults ?? {};
  for (const name of ["steps", "cfg", "sampler", "scheduler"]) $(name).placeholder = defaults[name] ?? "";
  guides.drawLoras(model());
  $("negative").placeholder = (!negativeChosen && defaults.negative_prompt) || "none";
  drawSizes();
  drawExamples();
  drawSummary();
}

function drawSummary() {
  const of = (id) => $(id).value || $(id).placeholder;
  const words = mode !== "picture" ? [model()?.id, $("priority").value] : [model()?.id, of("steps") && `${of("steps")} steps`, of("sampler")];
  $("settings-summary").textContent = words.filter(Boolean).join(" · ");
}

function drawModels() {
  const before = $("model").value;
  const where = { resident: "loaded", loading: "loading…", failed: "cannot be loaded" };
  $("model").replaceChildren(...models.map((one) => {
    const state = where[one.residency?.state ?? one.state];
    return el("option", { value: one.id, textContent: state ? `${one.id} (${state})` : one.id, selected: one.is_default });
  }));
  if (models.some((one) => one.id === before)) $("model").value = before;
  drawDefaults();
}

function drawExpressions() {
  $("chips").hidden = !expressions.length;
  $("expressions-all").hidden = !expressions.length;
  $("expression-text").hidden = expressions.length > 0;
  $("chips").replaceChildren(...expressions.map(({ name, label, tags }) => {
    const chip = el("button", { type: "button", textContent: label || name, title: tags ?? name, ariaPressed: String(chosen.has(name)) });
    chip.addEventListener("click", () => {
      chosen.has(name) ? chosen.delete(name) : chosen.add(name);
      chip.ariaPressed = String(chosen.has(name));
      drawSubmit();
    });
    return chip;
  }));
  drawSubmit();
}

function pickedExpressions() {
  if (!expressions.length) return ($("expression-text").value.trim() || "all").split(",").map((name) => name.trim()).filter(Boolean);
  return expressions.map(({ name }) => name).filter((name) => chosen.has(name));
}

function drawSubmit() {
  const picked = pickedExpressions().length;
  $("expression-count").textContent = expressions.length ? `${picked} of ${expressions.length}` : "";
  $("expressions-all").textContent = picked ? "none" : "all";
  const count = mode === "pack" ? picked : mode === "picture" ? number("count") || 1 : 1;
  const unnamed = !expressions.length && pickedExpressions()[0] === "all";
  $("submit-label").textContent = mode === "body" ? "Develop the pose" : mode === "outfit" ? "Develop the outfit" : mode === "pack" && unnamed ? "Develop the pack" : mode === "pack" ? `Develop ${picked} expression${picked === 1 ? "" : "s"}`
    : count > 1 ? `Develop ${count} pictures` : "Develop";
}

function clearProblems() {
  show($("problem"), "");
  for (const said of document.querySelectorAll("#form .said")) said.remove();
  for (const field of document.querySelectorAll("#form [aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Shows a refusal at its field, if the form has that field, else above the button. */
function showProblem(refusal) {
  clearProblems();
  const same = { resolution: "width", base_image_url: "init_image", denoise_strength: "denoise", lora_strength: "character_lora_id",
    character_design: "character_prompt", use_templates: "template_set" };
  const plain = refusal.field?.split(/[.[]/)[0];
  const name = same[plain] ?? plain;
  const field = [...document.querySelectorAll("#form [data-field]")]
    .find((one) => one.dataset.field === name && (!one.closest("[data-mode]") || isOfMode(one.closest("[data-mode]"))));
  if (!field) {
    show($("problem"), refusal.text);
    return;
  }
  if (field.closest("details")) field.closest("details").open = true;
  if (field.closest("#custom-size")) $("custom-size").hidden = false;
  field.setAttribute("aria-invalid", "true");
  const line = field.closest(".row")?.parentElement === field.closest("fieldset") ? field.closest(".row") : field.closest(".field") ?? field;
  line.append(el("p", { className: "problem said", role: "alert", textContent: refusal.text }));
  field.focus?.();
}

/** The form as a request: `{ path, body, labels, count, source }`. Throws a `Refusal` for what needs no server to refuse. */
function request() {
  const refuse = (field, message, hint) => { throw new Refusal(422, { field, message, hint }); };
  const { width, height } = chosenSize();
  if (!width || !height) refuse("width", "Give a width and a height.");
  const seed = text("seed");
  if (seed && !/^\d{1,20}$/.test(seed)) refuse("seed", "A seed is a whole number.", "Leave it empty for a random one.");
  const body = { seed: seed && BigInt(seed).toString() };
  const character = { character_prompt: text("character"), ...guides.chosenLora() };
  const drawn = { art_style: text("style"), model: $("model").value || undefined, priority: $("priority").value };
  if (mode !== "picture" && mode !== "outfit" && !character.character_prompt && !character.character_lora_id) {
    refuse("character_prompt", "Say who it is.", "One of the examples, perhaps, or a LoRA.");
  }
  if (mode === "body") {
    Object.assign(body, character, drawn, {
      outfit_prompt: text("outfit"), pose_data: guides.chosenPose(), resolution: sizeChosen ? `${width}x${height}` : undefined,
    });
    return { path: "v1/character-packs/full-body", body, count: 1 };
  }
  if (mode === "outfit") {
    if (!source) refuse("base_image_url", "Choose the picture that shall change.");
    if (!text("outfit")) refuse("new_outfit_prompt", "Say what to wear.");
    Object.assign(body, character, drawn, {
      base_image_url: source.data, new_outfit_prompt: text("outfit"), denoise_strength: number("denoise"),
      preserve_pose: $("preserve-pose").checked ? undefined : false, resolution: sizeChosen ? `${width}x${height}` : undefined,
    });
    return { path: "v1/character-packs/outfit-change", body, count: 1, source: source.blob };
  }
  if (mode === "pack") {
    const tags = pickedExpressions();
    if (!tags.length) refuse("expression_tags", "Choose at least one expression.");
    Object.assign(body, {
      ...character, ...drawn, ...guides.chosenTemplates(), expression_tags: tags,
      resolution: `${width}x${height}`, bypass_cache: $("bank").value ? true : undefined,
    });
    return { path: "v1/character-packs/expressions", body, labels: expressions.length ? tags : undefined, count: tags.length };
  }
  if (!text("prompt")) refuse("prompt", "Write what you want to see.", "One of the examples, perhaps.");
  Object.assign(body, {
    prompt: text("prompt"), negative_prompt: text("negative") ?? (negativeChosen ? "" : undefined), model: $("model").value || undefined, width, height,
    steps: number("steps"), cfg: number("cfg"), sampler: text("sampler"), scheduler: text("scheduler"),
    count: number("count"), format: $("format").value, priority: $("priority").value,
  });
  if (source) Object.assign(body, { init_image: source.data, denoise: number("denoise") });
  return { path: "v1/images", body, count: body.count ?? 1, source: source?.blob };
}

let sending = false;

async function sendForm() {
  if (sending) return;
  sending = true;
  clearProblems();
  $("submit").disabled = true;
  try {
    const sheet = await submit(request());
    if (matchMedia("(max-width: 900px)").matches) sheet.element.scrollIntoView({ block: "start" });
    else scrollTo({ top: 0 });
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    showProblem(refusal);
  } finally {
    sending = false;
    $("submit").disabled = false;
  }
}

/** Starts from `blob`, or from nothing. */
async function setSource(blob) {
  clearProblems();
  if (source) URL.revokeObjectURL(source.url);
  source = null;
  $("file").value = "";
  if (blob) {
    if (mode !== "outfit") setMode("picture");
    if (!blob.type.startsWith("image/")) return showProblem(new Refusal(422, { field: "init_image", message: "That file is not a picture." }));
    if (blob.size > SOURCE_BYTES) return showProblem(new Refusal(413, { field: "init_image", message: "That picture is larger than 20 MB." }));
    const data = await new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(blob);
    });
    source = { blob, data, url: URL.createObjectURL(blob) };
    $("source-image").src = source.url;
  }
  $("chosen").hidden = !source;
  $("source").querySelector(".drop").hidden = !!source;
}

/** Puts a picture's settings into the form. */
function fill(settings, seed) {
  setMode("picture");
  $("prompt").value = settings.prompt ?? "";
  $("negative").value = settings.negative_prompt ?? "";
  negativeChosen = settings.negative_prompt != null;
  if (models.some((one) => one.id === settings.model)) $("model").value = settings.model;
  for (const name of ["steps", "cfg", "sampler", "scheduler"]) $(name).value = settings[name] ?? "";
  if (settings.format) $("format").value = settings.format;
  $("count").value = 1;
  $("seed").value = seed ?? "";
  drawDefaults();
  if (settings.width && settings.height) {
    sizeChosen = true;
    drawSizes(settings);
  }
  drawSubmit();
}

function drawStarters() {
  const examples = isSmall() ? TAGS : WORDS;
  const starters = [
    ["picture", "A picture", examples.picture[0][1], "Develop it"],
    ["picture", isSmall() ? "A scene" : "Another", examples.picture.at(-1)[1], "Develop it"],
    ["pack", "One character, every expression", examples.pack[0][1], "Develop the pack"],
  ];
  $("starters").replaceChildren(...starters.map(([kind, title, prompt, action]) => {
    const button = el("button", { type: "button" }, el("b", { textContent: title }), el("span", { textContent: prompt }), el("em", { textContent: action }));
    button.addEventListener("click", () => {
      setMode(kind);
      $(kind === "pack" ? "character" : "prompt").value = prompt;
      sendForm();
    });
    return button;
  }));
}

// --------------------------------------------------------------------------------------------------------- viewer

/** A picture in full, with what it was drawn from. */
const viewer = {
  frame: null,
  url: null,

  buttons() { return [...document.querySelectorAll('.frame[data-state="done"] .open')]; },

  /** All settings of the picture that are known: the server's words, else what this page asked for. */
  settings() {
    const { sheet, image } = this.frame;
    const { prompt, model, negative_prompt, width, height, steps, cfg, sampler, scheduler, denoise, format } = sheet.body;
    const asked = { prompt, model, negative_prompt, width, height, steps, cfg, sampler, scheduler, denoise, format };
    return { ...asked, ...image };
  },

  /** The picture began with another one that this page does not have. */
  get lacksSource() {
    return this.settings().from_image && !this.frame.sheet.asked?.source;
  },

  async show(button) {
    const frame = (this.frame = places.get(button));
    this.clear();
    const settings = this.settings();
    const label = readable(settings.label ?? frame.sheet.asked?.labels?.[frame.index]);
    const siblings = frame.sheet.frames.length;
    $("viewer-title").textContent = label || (siblings > 1 ? `Picture ${frame.index + 1} of ${siblings}` : "Picture");
    $("viewer-prompt").replaceChildren(settings.prompt ?? "", settings.prompt ? copyLink(settings.prompt, "prompt") : "");
    const { task } = frame.sheet;
    const took = task.usage?.device_seconds;
    const facts = [
      ["Seed", settings.seed, true],
      ["Size", settings.width && `${settings.width} × ${settings.height}`],
      ["Model", settings.model],
      ["Negative", settings.negative_prompt],
      ["Steps", settings.steps],
      ["CFG", settings.cfg],
      ["Sampler", settings.sampler && [settings.sampler, settings.scheduler].filter(Boolean).join(" / ")],
      ["LoRAs", settings.loras?.map(({ id, strength }) => `${id} ${strength}`).join(", ")],
      ["ControlNets", settings.controls?.map(({ id, strength }) => `${id} ${strength}`).join(", ")],
      ["Began as", settings.from_image && "a picture"],
      ["Denoise", settings.from_image ? settings.denoise : null],
      ["File", [settings.format?.toUpperCase(), settings.bytes && `${Math.ceil(settings.bytes / 1024)} KB`].filter(Boolean).join(", ")],
      ["Drawn", task.finished_at && new Date(task.finished_at).toLocaleString()],
      ["Device", took > 0 && `${took.toFixed(1)} s for the task`],
      ["Bank", settings.cached ? "taken from the expression bank" : null],
    ];
    $("viewer-facts").replaceChildren(...facts.filter(([, value]) => value || value === 0).flatMap(([name, value, copies]) => [
      el("dt", { textContent: name }), el("dd", {}, String(value), copies ? copyLink(String(value), "seed") : null),
    ]));
    const lacks = this.lacksSource;
    for (const id of ["again", "vary"]) $(id).disabled = lacks;
    $("again").disabled ||= settings.seed == null;
    show($("viewer-problem"), lacks ? "It began with a picture that this page does not have; choose it again under Edit settings." : "");
    const all = this.buttons();
    const at = all.indexOf(button);
    $("viewer-place").textContent = `${at + 1} of ${all.length}`;
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= all.length - 1;
    if (!$("viewer").open) $("viewer").showModal();
    await this.fetch(frame, settings, label);
  },

  async fetch(frame, settings, label) {
    const img = $("viewer-image");
    img.alt = settings.prompt ?? "";
    // Small pictures are shown larger, but not so large that they fall apart.
    const [width, height] = [settings.width ?? 512, settings.height ?? 512];
    const scale = clamp(512 / Math.max(width, height), 1, 4);
    img.width = width * scale;
    img.style.aspectRatio = `${width} / ${height}`;
    try {
      const blob = await (await ask(imagePath(frame.id))).blob();
      if (this.frame !== frame) return;
      this.blob = blob;
      this.url = URL.createObjectURL(blob);
      img.src = this.url;
      const name = [label || "darkroom", settings.seed].filter(Boolean).join("-").toLowerCase().replace(/[^a-z0-9-]+/g, "-");
      $("download").href = this.url;
      $("download").download = `${name}.${blob.type.split("/")[1]?.replace("jpeg", "jpg") ?? "png"}`;
    } catch (refusal) {
      if (this.frame === frame) show($("viewer-problem"), refusal.text);
    }
  },

  clear() {
    $("viewer-image").removeAttribute("src");
    $("download").removeAttribute("href");
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = this.blob = null;
  },

  turn(by) {
    const all = this.buttons();
    const next = all[all.indexOf(this.frame.open) + by];
    if (next) this.show(next);
  },

  close() {
    $("viewer").close();
  },

  /** Draws it again: from the same seed the same picture, without a seed another one. */
  async draw(seed) {
    try {
      await this.fillForm(seed);
      await submit(request());
      this.close();
      scrollTo({ top: 0 });
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      show($("viewer-problem"), refusal.text);
    }
  },

  async fillForm(seed) {
    const settings = this.settings();
    fill(settings, seed);
    await setSource(this.frame.sheet.asked?.source);
    if (settings.from_image) setDenoise(settings.denoise);
  },
};

function copyLink(value, what) {
  const button = el("button", { type: "button", className: "link", textContent: "copy", ariaLabel: `Copy the ${what}` });
  button.addEventListener("click", () => copy(value, button));
  return button;
}

/** Copies text and says so on the button. */
async function copy(value, button) {
  let copied = false;
  try {
    await navigator.clipboard.writeText(value);
    copied = true;
  } catch {
    // Pages that come over plain HTTP from another machine have no clipboard but this one.
    const field = el("textarea", { value, className: "visually-hidden" });
    button.parentElement.append(field);
    field.select();
    copied = document.execCommand("copy");
    field.remove();
  }
  const before = button.textContent;
  button.textContent = copied ? "copied" : "not copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}

/** Settings as AUTOMATIC1111 writes them. */
function written(settings) {
  const pairs = [["Steps", settings.steps], ["Sampler", settings.sampler], ["Schedule type", settings.scheduler],
    ["CFG scale", settings.cfg], ["Seed", settings.seed], ["Size", settings.width && `${settings.width}x${settings.height}`],
    ["Model", settings.model], ["Denoising strength", settings.from_image ? settings.denoise : null]];
  return [settings.prompt, settings.negative_prompt && `Negative prompt: ${settings.negative_prompt}`,
    pairs.filter(([, value]) => value != null && value !== "").map(([name, value]) => `${name}: ${value}`).join(", ")]
    .filter(Boolean).join("\n");
}

// ---------------------------------------------------------------------------------------------------------- start

let started = false;

/** What the form needs to know of the server. */
async function start() {
  const asked = session;
  const answer = await json("v1/models");
  let known = [];
  try {
    known = (await json("v1/expressions")).expressions ?? [];
  } catch (refusal) {
    if (refusal.status !== 404) throw refusal;
  }
  await guides.load(json);
  if (asked !== session) return;
  models = answer.data ?? [];
  // A server with nothing but the built-in model shows what that one draws.
  expressions = models.length > 1 ? known : known.filter((expression) => expression.built_in_model);
  chosen = new Set(known.filter((expression) => expression.built_in_model).map(({ name }) => name));
  started = true;
  drawModels();
  drawExpressions();
  drawStarters();
  guides.draw(model(), ask);
}

/** Begins anew with another key, or none. */
function restart(next) {
  key = next;
  remembered.set("darkroom.key", key);
  session++;
  live.reset();
  thumbnails.drop(0);
  for (const sheet of [...sheets.values()]) remove(sheet);
  Object.assign(list, { cursor: null, loaded: false });
  $("more").hidden = true;
  started = false;
  show($("notice"), "");
  refreshSoon();
}

function setDenoise(value) {
  $("denoise").value = value;
  $("denoise-value").textContent = Number($("denoise").value).toFixed(2);
}

function connectControls() {
  for (const [at, name] of MODES.entries()) {
    $(`tab-${name}`).addEventListener("click", () => setMode(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) setMode(MODES[(at + step + MODES.length) % MODES.length], true);
    });
  }
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    sendForm();
  });
  $("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      sendForm();
    }
  });
  $("form").addEventListener("input", () => {
    drawSubmit();
    drawSummary();
  });
  $("model").addEventListener("change", () => {
    sizeChosen = negativeChosen = false;
    drawDefaults();
  });
  $("negative").addEventListener("input", () => { negativeChosen = true; });
  for (const id of ["width", "height"]) $(id).addEventListener("input", () => { sizeChosen = true; });
  $("expressions-all").addEventListener("click", () => {
    chosen = new Set(chosen.size ? [] : expressions.map(({ name }) => name));
    drawExpressions();
  });
  $("denoise").addEventListener("input", () => setDenoise($("denoise").value));
  $("file").addEventListener("change", () => $("file").files[0] && setSource($("file").files[0]));
  $("source-clear").addEventListener("click", () => setSource(null));
  $("more").addEventListener("click", async () => {
    $("more").disabled = true;
    show($("list-problem"), "");
    await loadTasks(true).catch((refusal) => show($("list-problem"), refusal.text));
    $("more").disabled = false;
  });

  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) {
      event.preventDefault();
      setSource(file);
    }
  });
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    $("dropping").hidden = false;
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("dropping").hidden = true; });
  document.addEventListener("drop", (event) => {
    $("dropping").hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    setSource(event.dataTransfer.files[0]);
  });

  $("key-open").addEventListener("click", () => {
    openKeyPanel($("key-panel").hidden);
    $("key").value = key;
    if (!$("key-panel").hidden) $("key").focus();
  });
  $("key-panel").addEventListener("submit", (event) => {
    event.preventDefault();
    openKeyPanel(false);
    restart($("key").value.trim());
  });
  $("key-forget").addEventListener("click", () => {
    $("key").value = "";
    openKeyPanel(false);
    restart("");
  });

  $("viewer-close").addEventListener("click", () => viewer.close());
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) viewer.close(); });
  $("viewer").addEventListener("close", () => {
    const opener = viewer.frame?.open;
    viewer.frame = null;
    viewer.clear();
    opener?.focus({ preventScroll: true });
  });
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") viewer.turn(-1);
    if (event.key === "ArrowRight") viewer.turn(1);
  });
  $("previous").addEventListener("click", () => viewer.turn(-1));
  $("next").addEventListener("click", () => viewer.turn(1));
  $("again").addEventListener("click", () => viewer.draw(viewer.settings().seed));
  $("vary").addEventListener("click", () => viewer.draw(undefined));
  $("edit").addEventListener("click", async () => {
    await viewer.fillForm(viewer.settings().seed);
    viewer.close();
    $("prompt").focus();
  });
  $("use-source").addEventListener("click", async () => {
    const { blob } = viewer;
    if (!blob) return;
    fill({ ...viewer.settings() }, undefined);
    viewer.close();
    await setSource(blob);
    $("prompt").focus();
  });
  $("copy").addEventListener("click", () => copy(written(viewer.settings()), $("copy")));

  new ResizeObserver(([{ contentRect }]) => {
    const fit = clamp(Math.floor((contentRect.width + 16) / (contentRect.width < 600 ? 150 : 190)), 2, 8);
    if (fit === columns && $("grid").style.getPropertyValue("--columns")) return;
    columns = fit;
    $("grid").style.setProperty("--columns", columns);
    for (const sheet of sheets.values()) sheet.arrange();
  }).observe($("sheets"));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refreshSoon(); });
  addEventListener("online", refreshSoon);
}

for (const [id, names] of [["samplers", SAMPLERS], ["schedulers", SCHEDULERS], ["styles", STYLES]]) {
  $(id).replaceChildren(...names.map((value) => el("option", { value })));
}
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("shortcut").textContent = "⌘ ⏎";
connectControls();
setMode("picture");
poll();
