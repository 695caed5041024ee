//! ComfyUI's `prompt`: a workflow in API format, of core nodes only. What they cannot do is done as nearly as they
//! can, and the node's title says so.

use darkroom_pipelines::FlowShift;
use serde_json::{Map, Value, json};

use super::{Origin, Recipe, RecipeControl, RecipeFlow, RecipeLora};
use crate::task::{Background, Preprocess};

impl Recipe {
    /// ComfyUI's workflow in API format: node id → class and inputs; a link is `[node id, output]`.
    pub fn comfyui_prompt(&self) -> Value {
        let mut graph = Graph::default();
        let (mut model, mut clip, vae) = match &self.flow {
            None => {
                let checkpoint = graph.add("CheckpointLoaderSimple", json!({ "ckpt_name": self.model }));
                (checkpoint.output(0), checkpoint.output(1), checkpoint.output(2))
            }
            Some(flow) => self.split_loaders(&mut graph, flow),
        };
        for lora in &self.loras {
            if self.flow.is_some() {
                model = with_model_lora(&mut graph, lora, &model);
            } else {
                (model, clip) = with_lora(&mut graph, lora, &model, &clip);
            }
        }
        if let Some(flow) = &self.flow {
            model = self.shifted(&mut graph, flow, &model);
        }
        if let Some(skip) = self.clip_skip {
            let inputs = json!({ "clip": clip, "stop_at_clip_layer": -(skip as i64) });
            clip = graph.add("CLIPSetLastLayer", inputs).output(0);
        }
        let mut encode =
            |text: &str| graph.add("CLIPTextEncode", json!({ "clip": clip, "text": text })).output(0);
        let (mut positive, mut negative) = (encode(&self.prompt), encode(&self.negative_prompt));
        for control in &self.controls {
            (positive, negative) = self.with_control(&mut graph, control, &positive, &negative);
        }
        let latent = self.latent(&mut graph, &vae);
        let sampled = graph.add(
            "KSampler",
            json!({
                "model": model,
                "seed": self.seed,
                "steps": self.steps,
                "cfg": self.cfg,
                "sampler_name": self.sampler,
                "scheduler": self.scheduler,
                "positive": positive,
                "negative": negative,
                "latent_image": latent,
                "denoise": self.denoise,
            }),
        );
        let decoded = graph.add("VAEDecode", json!({ "samples": sampled.output(0), "vae": vae }));
        let inputs = json!({ "images": decoded.output(0), "filename_prefix": "darkroom" });
        graph.add_titled("SaveImage", inputs, self.beyond());
        Value::Object(graph.nodes)
    }

    /// Qwen-Image's three files; the links to model, text encoder and VAE.
    fn split_loaders(&self, graph: &mut Graph, flow: &RecipeFlow) -> (Value, Value, Value) {
        let inputs = json!({ "unet_name": self.model, "weight_dtype": "default" });
        let model = graph.add("UNETLoader", inputs).output(0);
        let inputs = json!({ "clip_name": flow.text_encoder, "type": "qwen_image" });
        let clip = graph.add("CLIPLoader", inputs).output(0);
        let vae = graph.add("VAELoader", json!({ "vae_name": flow.vae })).output(0);
        (model, clip, vae)
    }

    /// Moves noise levels up, and where there is guidance brings it back to the prompt's length; the link to the model.
    fn shifted(&self, graph: &mut Graph, flow: &RecipeFlow, model: &Value) -> Value {
        let (shift, note) = match flow.shift {
            FlowShift::Fixed(shift) => (shift, None),
            // The same curve, without its end being stretched.
            FlowShift::Dynamic => {
                let shift = FlowShift::exponent(self.width, self.height).exp();
                let note = "ModelSamplingAuraFlow (in place of a shift by the picture's size)";
                ((100.0 * shift).round() / 100.0, Some(note.to_owned()))
            }
        };
        let inputs = json!({ "model": model, "shift": shift });
        let model = graph.add_titled("ModelSamplingAuraFlow", inputs, note).output(0);
        if self.cfg == 1.0 {
            return model;
        }
        let note = "CFGNorm (in place of one by tokens)";
        graph
            .add_titled("CFGNorm", json!({ "model": model, "strength": 1.0 }), Some(note.to_owned()))
            .output(0)
    }

    /// What was done after decoding, which is not in the workflow.
    fn beyond(&self) -> Option<String> {
        let what = match (self.detail.is_some(), self.background != Background::Keep) {
            (false, false) => return None,
            (true, false) => "without the detail pass",
            (false, true) => "with its background",
            (true, true) => "without the detail pass and with its background",
        };
        Some(format!("Save Image ({what})"))
    }

    /// Adds a ControlNet to both conditionings; the links to them.
    fn with_control(
        &self,
        graph: &mut Graph,
        control: &RecipeControl,
        positive: &Value,
        negative: &Value,
    ) -> (Value, Value) {
        let network = graph.add("ControlNetLoader", json!({ "control_net_name": control.file }));
        let image = self.control_picture(graph, control);
        // Both are shares of the same schedule, so start and end are taken over as they are.
        let strength = control.strength.clamp(0.0, 10.0);
        let note = changed("Apply ControlNet", "strength", &[(control.strength, strength)]);
        let applied = graph.add_titled(
            "ControlNetApplyAdvanced",
            json!({
                "positive": positive,
                "negative": negative,
                "control_net": network.output(0),
                "image": image,
                "strength": strength,
                "start_percent": control.start,
                "end_percent": control.end,
            }),
            note,
        );
        (applied.output(0), applied.output(1))
    }

    /// The picture that a ControlNet is shown. One that is not preprocessed is scaled by the node that applies it.
    fn control_picture(&self, graph: &mut Graph, control: &RecipeControl) -> Value {
        let loaded = graph.add("LoadImage", json!({ "image": control.image })).output(0);
        match control.preprocess {
            Preprocess::None => loaded,
            Preprocess::Canny { low, high } => {
                let scaled = self.scaled(graph, &loaded, None);
                canny(graph, &scaled, (low, high), None)
            }
            Preprocess::OpencvCanny { low, high } => {
                let scaled = self.scaled(graph, &loaded, None);
                let note = format!("Canny (in place of OpenCV's with thresholds {low} and {high})");
                canny(graph, &scaled, (low / 255.0, high / 255.0), Some(note))
            }
            Preprocess::Depth => {
                let note = "Upscale Image (make a depth map of it: there is no core node for that)";
                self.scaled(graph, &loaded, Some(note.to_owned()))
            }
        }
    }

    /// Scales a picture until it covers the result's size and cuts it to that; the link to it.
    fn scaled(&self, graph: &mut Graph, image: &Value, note: Option<String>) -> Value {
        let inputs = json!({
            "image": image, "upscale_method": "lanczos", "crop": "center",
            "width": self.width, "height": self.height,
        });
        graph.add_titled("ImageScale", inputs, note).output(0)
    }

    /// The nodes that make the latent to start from; the link to it.
    fn latent(&self, graph: &mut Graph, vae: &Value) -> Value {
        let load = |graph: &mut Graph, image: &str, scaled: bool| {
            let loaded = graph.add("LoadImage", json!({ "image": image }));
            let pixels = loaded.output(0);
            (if scaled { self.scaled(graph, &pixels, None) } else { pixels }, loaded)
        };
        match &self.origin {
            Origin::Empty => {
                let inputs = json!({ "width": self.width, "height": self.height, "batch_size": 1 });
                let class = if self.flow.is_some() { "EmptySD3LatentImage" } else { "EmptyLatentImage" };
                graph.add(class, inputs).output(0)
            }
            Origin::Image { image, scaled } => {
                let (pixels, _) = load(graph, image, *scaled);
                graph.add("VAEEncode", json!({ "pixels": pixels, "vae": vae })).output(0)
            }
            Origin::Inpaint { image, mask, scaled, fill_grow } => {
                let (pixels, loaded) = load(graph, image, *scaled);
                let mut mask = match mask {
                    None => loaded.output(1),
                    Some(file) => {
                        graph.add("LoadImageMask", json!({ "image": file, "channel": "red" })).output(0)
                    }
                };
                if *scaled {
                    let picture = graph.add("MaskToImage", json!({ "mask": mask })).output(0);
                    let picture = self.scaled(graph, &picture, None);
                    let inputs = json!({ "image": picture, "channel": "red" });
                    mask = graph.add("ImageToMask", inputs).output(0);
                }
                if let Some(grow) = fill_grow {
                    let inputs = json!({ "pixels": pixels, "vae": vae, "mask": mask, "grow_mask_by": grow });
                    graph.add("VAEEncodeForInpaint", inputs).output(0)
                } else {
                    let encoded = graph.add("VAEEncode", json!({ "pixels": pixels, "vae": vae }));
                    let inputs = json!({ "samples": encoded.output(0), "mask": mask });
                    graph.add("SetLatentNoiseMask", inputs).output(0)
                }
            }
        }
    }
}

/// Adds a LoRA; the links to the model and the text encoders with it.
fn with_lora(graph: &mut Graph, lora: &RecipeLora, model: &Value, clip: &Value) -> (Value, Value) {
    let within = |strength: f64| strength.clamp(-100.0, 100.0);
    let (strength, text_strength) = (within(lora.strength), within(lora.text_strength));
    let pairs = [(lora.strength, strength), (lora.text_strength, text_strength)];
    let note = changed("Load LoRA", "strength", &pairs);
    let inputs = json!({
        "model": model,
        "clip": clip,
        "lora_name": lora.file,
        "strength_model": strength,
        "strength_clip": text_strength,
    });
    let loaded = graph.add_titled("LoraLoader", inputs, note);
    (loaded.output(0), loaded.output(1))
}

/// The same of a model whose text encoder LoRAs leave alone; the link to the model.
fn with_model_lora(graph: &mut Graph, lora: &RecipeLora, model: &Value) -> Value {
    let strength = lora.strength.clamp(-100.0, 100.0);
    let note = changed("LoraLoaderModelOnly", "strength", &[(lora.strength, strength)]);
    let inputs = json!({ "model": model, "lora_name": lora.file, "strength_model": strength });
    graph.add_titled("LoraLoaderModelOnly", inputs, note).output(0)
}

/// Adds an edge detector; the link to its edges. Thresholds 0 to 1.
fn canny(graph: &mut Graph, image: &Value, thresholds: (f64, f64), note: Option<String>) -> Value {
    let within = |threshold: f64| threshold.clamp(0.01, 0.99);
    let (low, high) = (within(thresholds.0), within(thresholds.1));
    let note = note.or_else(|| changed("Canny", "threshold", &[(thresholds.0, low), (thresholds.1, high)]));
    let inputs = json!({ "image": image, "low_threshold": low, "high_threshold": high });
    graph.add_titled("Canny", inputs, note).output(0)
}

/// A title that names the values that a node does not take: pairs of what was asked for and what it takes.
fn changed(title: &str, what: &str, values: &[(f64, f64)]) -> Option<String> {
    let others: Vec<String> = values
        .iter()
        .filter(|(asked, taken)| asked != taken)
        .map(|(asked, taken)| format!("{what} {taken} in place of {asked}"))
        .collect();
    (!others.is_empty()).then(|| format!("{title} ({})", others.join(", ")))
}

/// Nodes under the ids `"1"`, `"2"`, … in the order they were added.
#[derive(Default)]
struct Graph {
    nodes: Map<String, Value>,
}

struct Node {
    id: String,
}

impl Node {
    fn output(&self, index: usize) -> Value {
        json!([self.id, index])
    }
}

impl Graph {
    fn add(&mut self, class: &str, inputs: Value) -> Node {
        self.add_titled(class, inputs, None)
    }

    /// Adds a node; people see `title` in place of its class's own.
    fn add_titled(&mut self, class: &str, inputs: Value, title: Option<String>) -> Node {
        let id = (self.nodes.len() + 1).to_string();
        let mut node = Map::new();
        node.insert("class_type".to_owned(), class.into());
        node.insert("inputs".to_owned(), inputs);
        if let Some(title) = title {
            node.insert("_meta".to_owned(), json!({ "title": title }));
        }
        self.nodes.insert(id.clone(), node.into());
        Node { id }
    }
}

#[cfg(test)]
mod tests;
