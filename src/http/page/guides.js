// What a picture follows beside its prompt: the character's LoRA, a set of templates, a pose. Lists come from the
// server; what it does not have is not shown.

import { $, clamp, el } from "./dom.js";

let loras = [];
let sets = [];
let poses = [];
/** The chosen pose's id, or null. */
let pose = null;
/** Addresses of pictures that were fetched, so that each is fetched once. */
const pictures = new Map();

/** Asks the server what there is. An older server has none of it. */
export async function load(json) {
  const list = async (path, name) => {
    try {
      return (await json(path))[name] ?? [];
    } catch (refusal) {
      if (refusal.status !== 404) throw refusal;
      return [];
    }
  };
  [loras, sets, poses] = await Promise.all([list("v1/loras", "loras"), list("v1/templates", "sets"), list("v1/poses", "poses")]);
  for (const url of pictures.values()) URL.revokeObjectURL(url);
  pictures.clear();
}

/** Shows what there is; `ask` fetches a path with the key. */
export function draw(model, ask) {
  drawLoras(model);
  drawTemplates(ask);
  drawPoses(ask);
}

/** LoRAs that may fit the model. */
export function drawLoras(model) {
  const before = $("lora").value;
  const fitting = loras.filter((lora) => !lora.problem && (!lora.family || !model || lora.family === model.family));
  $("lora").replaceChildren(
    el("option", { value: "", textContent: "none" }),
    ...fitting.map(({ id, trigger_words: words }) => el("option", { value: id, textContent: id, title: words.join(", ") })),
  );
  if (fitting.some(({ id }) => id === before)) $("lora").value = before;
  $("lora-field").hidden = !fitting.length;
  $("lora-strength").disabled = !$("lora").value;
  $("lora").onchange = () => { $("lora-strength").disabled = !$("lora").value; };
}

/** The character's LoRA as a request has it. */
export function chosenLora() {
  if (!$("lora").value) return {};
  const strength = Number($("lora-strength").value || 1);
  return { character_lora_id: $("lora").value, lora_strength: clamp(strength, -10, 10) };
}

function drawTemplates(ask) {
  const options = sets.map(({ name, is_default: first }) => el("option", { value: name, textContent: first ? `${name} (usual)` : name }));
  $("templates").replaceChildren(el("option", { value: "", textContent: "as it suits" }), ...options, el("option", { value: "none", textContent: "none" }));
  $("templates-field").hidden = !sets.length;
  const show = () => {
    const set = sets.find(({ name }) => name === $("templates").value);
    $("template-pictures").replaceChildren(...(set?.templates ?? []).slice(0, 24).map(({ name, url }) => picture(url, name, ask)));
  };
  $("templates").onchange = show;
  show();
}

/** The set of templates as a request has it. */
export function chosenTemplates() {
  const set = $("templates").value;
  if (!set) return {};
  return set === "none" ? { use_templates: false } : { template_set: set };
}

function drawPoses(ask) {
  if (!poses.some(({ id }) => id === pose)) pose = null;
  $("poses-field").hidden = !poses.length;
  const button = (id, about, child) => {
    const made = el("button", { type: "button", title: about, ariaPressed: String(pose === id), data: { pose: id ?? "" } }, child,
      el("span", { textContent: id?.replaceAll("_", " ") ?? "any" }));
    made.addEventListener("click", () => {
      pose = id;
      for (const other of $("poses").children) other.ariaPressed = String(other === made);
    });
    return made;
  };
  $("poses").replaceChildren(button(null, "Wherever the prompt leads", el("i")),
    ...poses.map(({ id, about, url }) => button(id, about, picture(url, about, ask))));
}

/** The pose as a request has it. */
export const chosenPose = () => (pose ? { source: "preset", pose_id: pose } : undefined);

/** A small picture from the server, fetched with the key when it comes into sight. */
function picture(url, name, ask) {
  const img = el("img", { alt: name, title: name.replaceAll("_", " ") });
  const path = url.replace(/^\//, "");
  new IntersectionObserver(async ([{ isIntersecting }], observer) => {
    if (!isIntersecting) return;
    observer.disconnect();
    try {
      if (!pictures.has(path)) pictures.set(path, URL.createObjectURL(await (await ask(path)).blob()));
      img.src = pictures.get(path);
    } catch { /* the name stays */ }
  }).observe(img);
  return img;
}
