// npm @stable-canvas/comfyui-client: a client, and workflows written as code or as a pipe.
//
// `getLogs` and `getRawLogs` work with no server: the address that they ask has the server's name twice. Nor does
// `getUpscaleModels`: ComfyUI writes that node's choices ["COMBO", {options}], of which it takes the first.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
// Its module for bundlers names exports that Node does not find; `require` is its way in for Node.
import { createRequire } from "node:module";
import WebSocket from "ws";

const { BasePipe, Client, Workflow } = createRequire(import.meta.url)("@stable-canvas/comfyui-client");
const seed = Number(readFileSync("seed", "utf8"));
const client = new Client({ api_host: new URL(process.argv[2]).host, WebSocket, fetch, clientId: "stable-canvas" });
await client.connect();

const heard = [];
const bytes = async ([image]) =>
  Buffer.from(image.data instanceof ArrayBuffer ? image.data : await (await fetch(image.data)).arrayBuffer());

const graph = new Workflow();
const nodes = graph.classes;
const [model, clip, vae] = nodes.CheckpointLoaderSimple({ ckpt_name: "tiny-sdxl.safetensors" });
const encode = (text) => nodes.CLIPTextEncode({ text, clip })[0];
const [samples] = nodes.KSampler({
  seed,
  steps: 4,
  cfg: 5,
  sampler_name: "euler",
  scheduler: "normal",
  denoise: 1,
  model,
  positive: encode("1girl, silver hair"),
  negative: encode("lowres"),
  latent_image: nodes.EmptyLatentImage({ width: 128, height: 128, batch_size: 1 })[0],
});
nodes.SaveImage({ filename_prefix: "clients/canvas", images: nodes.VAEDecode({ samples, vae })[0] });
const progress = (step) => heard.push(step);
writeFileSync("txt2img.png", await bytes((await graph.invoke(client, { progress, disable_random_seed: true })).images));
assert.deepEqual([heard.at(-1).value, heard.at(-1).max], [4, 4]);
console.log("did txt2img as code, with progress");

const form = new FormData();
form.append("image", new Blob([readFileSync("drawing.png")]), "canvas.png");
const uploaded = await (await client.fetchApi("/upload/image", { method: "POST", body: form })).json();
const image = JSON.parse(readFileSync("img2img.json", "utf8"));
image["10"].inputs.image = uploaded.name;
const polled = await client.enqueue_polling(image, { polling_ms: 100, disable_random_seed: true });
writeFileSync("img2img.png", await bytes(polled.images));
console.log("did upload, img2img by polling");

const pipe = new BasePipe().with(client).model("tiny-sdxl.safetensors").prompt("1boy").negative("lowres");
const piped = await pipe.size(128, 128).steps(4).cfg(5).seed(seed + 1).sampler("euler").scheduler("normal").save().wait();
writeFileSync("pipe.png", Buffer.from(piped.images[0].data));
console.log("did txt2img as a pipe");

assert.ok((await client.getSamplers()).includes("euler") && (await client.getSchedulers()).includes("karras"));
assert.deepEqual(await client.getSDModels(), ["tiny-sdxl.safetensors"]);
for (const list of ["getCNetModels", "getLoRAs", "getVAEs", "getEmbeddings", "getExtensions"]) {
  assert.ok(Array.isArray(await client[list]()), list);
}
assert.ok("KSampler" in (await client.getNodeDefs()) && (await client.getSystemStats()).devices.length === 1);
assert.ok((await client.getModelFolders()).length > 0 && Array.isArray(await client.getModels("checkpoints")));
console.log("did object_info, models, system_stats");

assert.deepEqual(await client.getQueue(), { Running: [], Pending: [] });
const { History } = await client.getHistory();
assert.ok(History.length >= 3);
const status = await client.getPromptStatus(polled.prompt_id);
assert.equal(status.done, true);
await client.deleteItem("history", polled.prompt_id);
await client.clearItems("queue");
await client.interrupt();
await client.free({ unload_models: true, free_memory: true });
await client.storeSetting("Canvas.A", 1);
assert.equal(await client.getSetting("Canvas.A"), 1);
await client.storeUserData("canvas.json", { a: 1 }, { stringify: true });
assert.deepEqual(await (await client.getUserData("canvas.json")).json(), { a: 1 });
console.log("did queue, history, interrupt, free, settings, userdata");

client.close();
process.exit(0);
