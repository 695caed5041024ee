// npm @saintno/comfyui-sdk: its API class, its wrapper of a running workflow, and its command `cfli`.
//
// The wrapper begins to listen when it has read the answer to POST /prompt. Of a run that is all cached it then often
// hears nothing, and waits for ever, with ComfyUI more often than not. So every run here has something to do.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CallWrapper, ComfyApi, PromptBuilder } from "@saintno/comfyui-sdk";

const url = process.argv[2];
const read = (file) => JSON.parse(readFileSync(file, "utf8"));

const api = new ComfyApi(url, "sdk-client", { listenTerminal: true });
const terminal = [];
api.on("terminal", (event) => terminal.push(event.detail));
const subscribed = new Promise((done) => api.on("connected", done));
await api.init().waitForReady();
await subscribed;

/** Runs a workflow; its picture, and what was heard. */
async function run(builder) {
  const heard = { pending: 0, started: 0, progress: [], previews: [] };
  const outcome = await new CallWrapper(api, builder)
    .onPending(() => heard.pending++)
    .onStart(() => heard.started++)
    .onProgress((progress) => heard.progress.push(progress))
    .onPreview((blob) => heard.previews.push(blob))
    .onFailed((error) => console.error(error))
    .run();
  assert.ok(outcome, "the run failed");
  const [image] = outcome.images.images;
  const bytes = Buffer.from(await (await api.getImage(image)).arrayBuffer());
  const direct = await fetch(api.getPathImage(image));
  assert.deepEqual(Buffer.from(await direct.arrayBuffer()), bytes);
  return { bytes, heard };
}

const text = new PromptBuilder(read("txt2img.json"), ["checkpoint", "positive", "steps"], ["images"])
  .setInputNode("checkpoint", "4.inputs.ckpt_name")
  .setInputNode("positive", "6.inputs.text")
  .setInputNode("steps", "3.inputs.steps")
  .setOutputNode("images", "9")
  .input("checkpoint", (await api.getCheckpoints())[0], api.osType)
  .input("positive", "1girl, pink hair, green eyes, blue background")
  .input("steps", 6);
const drawn = await run(text);
writeFileSync("txt2img.png", drawn.bytes);
const last = drawn.heard.progress.at(-1);
assert.equal(drawn.heard.started, 1);
assert.deepEqual([last.value, last.max, last.node], [6, 6, "3"]);
assert.ok(drawn.heard.previews.length > 0, "no previews");
for (const preview of drawn.heard.previews) {
  assert.equal(preview.type, "image/jpeg");
  assert.deepEqual([...new Uint8Array(await preview.arrayBuffer()).slice(0, 2)], [0xff, 0xd8]);
}
console.log("did txt2img, with progress and previews");

const drawing = readFileSync("drawing.png");
const uploaded = await api.uploadImage(drawing, "sdk.png", { override: true, subfolder: "sdk" });
assert.deepEqual([uploaded.info.name, uploaded.info.subfolder, uploaded.info.type], ["sdk.png", "sdk", "input"]);
const masked = await api.uploadMask(drawing, uploaded.info);
assert.equal(masked.info.type, "input");
const image = new PromptBuilder(read("img2img.json"), ["image"], ["images"])
  .setInputNode("image", "10.inputs.image")
  .setOutputNode("images", "9")
  .input("image", "sdk/sdk.png");
writeFileSync("img2img.png", (await run(image)).bytes);
console.log("did upload of picture and mask, img2img");

assert.deepEqual(Object.keys(await api.getNodeDefs("KSampler")), ["KSampler"]);
assert.equal(await api.getNodeDefs("None"), null);
assert.ok(Object.keys(await api.getNodeDefs()).length > 50);
const samplers = await api.getSamplerInfo();
assert.ok(samplers.sampler[0].includes("euler") && samplers.scheduler[0].includes("karras"));
assert.ok(Array.isArray(await api.getLoras()) && Array.isArray(await api.getEmbeddings()));
assert.ok(Array.isArray(await api.getExtensions()));
assert.ok((await api.getModelTypes()).includes("checkpoints"));
assert.deepEqual(await api.getModels("checkpoints"), ["tiny-sdxl.safetensors"]);
assert.ok((await api.getModelFolders()).some((folder) => folder.name === "checkpoints"));
assert.ok(Array.isArray(await api.getModelFiles("checkpoints")));
assert.equal(typeof (await api.getViewMetadata("checkpoints", "tiny-sdxl.safetensors")), "object");
assert.equal((await api.getFeatures()).supports_preview_metadata, true);
assert.equal((await api.getSystemStats()).devices.length, 1);
assert.equal(typeof (await api.getWorkflowTemplates()), "object");
console.log("did object_info, models, metadata, features, system_stats, templates");

assert.equal((await api.getUserConfig()).storage, "server");
const created = await api.createUser("second");
assert.equal(created.status, 200);
assert.match(await created.json(), /^second_/);
await api.storeSettings({ "Sdk.A": [1, 2] });
await api.storeSetting("Sdk.B", "b");
assert.deepEqual(await api.getSetting("Sdk.A"), [1, 2]);
assert.equal((await api.getSettings())["Sdk.B"], "b");
await api.storeUserData("sdk/one.json", { one: 1 });
assert.deepEqual(await (await api.getUserData("sdk/one.json")).json(), { one: 1 });
assert.equal((await api.moveUserData("sdk/one.json", "sdk/two.json")).status, 200);
assert.deepEqual(await api.listUserData("sdk", true, false), ["two.json"]);
assert.ok((await api.listUserDataV2("")).some((entry) => entry.name === "sdk" && entry.type === "directory"));
await api.deleteUserData("sdk/two.json");
assert.deepEqual(await api.listUserData("sdk", true, false), []);
console.log("did users, settings, userdata");

const history = await api.getHistories();
const [newest] = Object.keys(history).reverse();
assert.equal((await api.getHistory(newest)).status.completed, true);
await api.clearHistory({ delete: [newest] });
assert.equal(await api.getHistory(newest), undefined);
assert.deepEqual(await api.getQueue(), { queue_running: [], queue_pending: [] });
assert.equal((await api.pollStatus()).exec_info.queue_remaining, 0);
await api.manageQueue({ clear: true });
await api.interrupt();
assert.equal(await api.freeMemory(true, true), true);
const logs = await api.getTerminalLogs();
assert.ok(logs.entries.length > 0 && "t" in logs.entries[0] && "m" in logs.entries[0]);
assert.ok(terminal.length > 0, "no line of the log was heard");
await api.setTerminalSubscription(false);
console.log("did history, queue, interrupt, free, logs and their subscription");

const folder = dirname(fileURLToPath(import.meta.url));
const cfli = (...words) =>
  execFileSync(process.execPath, [join(folder, "node_modules/@saintno/comfyui-sdk/dist/cli.js"), ...words, "--host", url], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
assert.match(cfli("list", "checkpoints"), /tiny-sdxl\.safetensors/);
cfli("queue");
const words = ["-f", "txt2img.json", "-i", "3.inputs.steps=5", "--output-nodes", "9", "--no-tui", "--download", "-o", "cfli-out"];
cfli("run", ...words);
const [made] = readdirSync("cfli-out", { recursive: true }).filter((name) => name.endsWith(".png"));
renameSync(join("cfli-out", made), "cfli.png");
cfli("codegen", "-o", "nodes.ts");
assert.match(readFileSync("nodes.ts", "utf8"), /KSampler/);
console.log("did cfli: list, queue, run with download, codegen");

api.destroy();
process.exit(0);
