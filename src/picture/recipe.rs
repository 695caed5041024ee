//! How a picture was made, in the two forms that other programs read back from a picture: the `parameters` text of
//! AUTOMATIC1111's web UI, and ComfyUI's `prompt`, a workflow in API format that draws the same picture there.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::TextChunk;

/// What a picture started from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Noise alone.
    Empty,
    /// A picture.
    Image {
        /// Its file name.
        image: String,
        /// Whether it was scaled to the size of the result.
        scaled: bool,
    },
    /// A picture of which a part is repainted.
    Inpaint {
        /// The picture's file name.
        image: String,
        /// The mask's file name; `None`: the transparent areas of the picture.
        mask: Option<String>,
        /// Whether picture and mask were scaled to the size of the result.
        scaled: bool,
        /// `Some(pixels)`: the masked area was blanked before encoding and the mask grown so far
        /// (ComfyUI's `VAEEncodeForInpaint`); `None`: the mask only steers the noise (`SetLatentNoiseMask`).
        fill_grow: Option<usize>,
    },
}

/// Everything that decides one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What to draw.
    pub prompt: String,
    /// What not to draw.
    pub negative_prompt: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub cfg: f64,
    /// ComfyUI's name of the sampler: `dpmpp_2m`.
    pub sampler: String,
    /// ComfyUI's name of the scheduler: `karras`.
    pub scheduler: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Part of the schedule that is run: 1 is all of it.
    pub denoise: f64,
    /// Which hidden state of the text encoders counts, from the end: 1 the last layer; `None`: the model's own.
    pub clip_skip: Option<usize>,
    /// Whether the networks formed their products in bf16, which changes the picture a little.
    pub bf16: bool,
    /// File name of the model.
    pub model: String,
    /// What it started from.
    pub origin: Origin,
}

impl Recipe {
    /// Both forms, as the text chunks of a PNG.
    pub fn text_chunks(&self) -> Vec<TextChunk> {
        vec![
            TextChunk { keyword: "parameters".into(), text: self.parameters() },
            TextChunk { keyword: "prompt".into(), text: self.comfyui_text() },
        ]
    }

    /// [`Self::comfyui_prompt`] as ASCII text.
    pub(super) fn comfyui_text(&self) -> String {
        ascii_json(&self.comfyui_prompt())
    }

    /// AUTOMATIC1111's text: the prompt, the negative prompt if any, and one line of settings.
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            let _ = write!(text, "\nNegative prompt: {}", self.negative_prompt);
        }
        let _ = write!(
            text,
            "\nSteps: {}, Sampler: {}, Schedule type: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {}",
            self.steps,
            a1111_sampler(&self.sampler),
            a1111_scheduler(&self.scheduler),
            self.cfg,
            self.seed,
            self.width,
            self.height,
            quoted(self.model_title()),
        );
        if self.denoise < 1.0 {
            let _ = write!(text, ", Denoising strength: {}", self.denoise);
        }
        if let Some(skip) = self.clip_skip {
            let _ = write!(text, ", Clip skip: {skip}");
        }
        if self.bf16 {
            text.push_str(", Precision: bf16");
        }
        if let Origin::Inpaint { fill_grow, .. } = self.origin {
            let content = if fill_grow.is_some() { "fill" } else { "original" };
            let _ = write!(text, ", Masked content: {content}");
        }
        let _ = write!(text, ", Version: darkroom {}", env!("CARGO_PKG_VERSION"));
        text
    }

    /// ComfyUI's workflow in API format: node id → class and inputs; a link is `[node id, output]`.
    pub fn comfyui_prompt(&self) -> Value {
        let mut graph = Graph::default();
        let checkpoint = graph.add("CheckpointLoaderSimple", json!({ "ckpt_name": self.model }));
        let mut clip = checkpoint.output(1);
        if let Some(skip) = self.clip_skip {
            let inputs = json!({ "clip": clip, "stop_at_clip_layer": -(skip as i64) });
            clip = graph.add("CLIPSetLastLayer", inputs).output(0);
        }
        let positive = graph.add("CLIPTextEncode", json!({ "clip": clip, "text": self.prompt }));
        let negative = graph.add("CLIPTextEncode", json!({ "clip": clip, "text": self.negative_prompt }));
        let latent = self.latent(&mut graph, &checkpoint.output(2));
        let sampled = graph.add(
            "KSampler",
            json!({
                "model": checkpoint.output(0),
                "seed": self.seed,
                "steps": self.steps,
                "cfg": self.cfg,
                "sampler_name": self.sampler,
                "scheduler": self.scheduler,
                "positive": positive.output(0),
                "negative": negative.output(0),
                "latent_image": latent,
                "denoise": self.denoise,
            }),
        );
        let decoded =
            graph.add("VAEDecode", json!({ "samples": sampled.output(0), "vae": checkpoint.output(2) }));
        graph.add("SaveImage", json!({ "images": decoded.output(0), "filename_prefix": "darkroom" }));
        Value::Object(graph.nodes)
    }

    /// The nodes that make the latent to start from; the link to it.
    fn latent(&self, graph: &mut Graph, vae: &Value) -> Value {
        let scale = |graph: &mut Graph, image: Value| {
            let inputs = json!({
                "image": image, "upscale_method": "lanczos", "crop": "center",
                "width": self.width, "height": self.height,
            });
            graph.add("ImageScale", inputs).output(0)
        };
        let load = |graph: &mut Graph, image: &str, scaled: bool| {
            let loaded = graph.add("LoadImage", json!({ "image": image }));
            let pixels = loaded.output(0);
            (if scaled { scale(graph, pixels) } else { pixels }, loaded)
        };
        match &self.origin {
            Origin::Empty => {
                let inputs = json!({ "width": self.width, "height": self.height, "batch_size": 1 });
                graph.add("EmptyLatentImage", inputs).output(0)
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
                    let picture = scale(graph, picture);
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

    /// The model's file name without its folder and extension, as AUTOMATIC1111 shows it.
    fn model_title(&self) -> &str {
        let name = self.model.rsplit(['/', '\\']).next().unwrap_or(&self.model);
        name.strip_suffix(".safetensors").unwrap_or(name)
    }
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
        let id = (self.nodes.len() + 1).to_string();
        let mut node = Map::new();
        node.insert("class_type".to_owned(), class.into());
        node.insert("inputs".to_owned(), inputs);
        self.nodes.insert(id.clone(), node.into());
        Node { id }
    }
}

/// JSON with everything beyond ASCII escaped, as Python's `json.dumps` writes it: it fits into `tEXt`.
fn ascii_json(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// A value that would be cut by AUTOMATIC1111's reader is quoted as JSON.
fn quoted(text: &str) -> String {
    if text.contains([',', ':', '\n']) { Value::from(text).to_string() } else { text.to_owned() }
}

/// AUTOMATIC1111's name of a sampler; samplers that it does not have keep ComfyUI's.
fn a1111_sampler(name: &str) -> &str {
    match name {
        "euler" => "Euler",
        "euler_ancestral" => "Euler a",
        "heun" => "Heun",
        "dpm_2" => "DPM2",
        "dpm_2_ancestral" => "DPM2 a",
        "lms" => "LMS",
        "dpmpp_2s_ancestral" => "DPM++ 2S a",
        "dpmpp_sde" => "DPM++ SDE",
        "dpmpp_2m" => "DPM++ 2M",
        "dpmpp_2m_sde" => "DPM++ 2M SDE",
        "dpmpp_3m_sde" => "DPM++ 3M SDE",
        "lcm" => "LCM",
        "ddim" => "DDIM",
        "uni_pc" => "UniPC",
        other => other,
    }
}

fn a1111_scheduler(name: &str) -> &str {
    match name {
        "normal" => "Normal",
        "karras" => "Karras",
        "exponential" => "Exponential",
        "sgm_uniform" => "SGM Uniform",
        "simple" => "Simple",
        "ddim_uniform" => "DDIM",
        "beta" => "Beta",
        "kl_optimal" => "KL Optimal",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(origin: Origin) -> Recipe {
        Recipe {
            prompt: "1girl, (smile:1.2)".into(),
            negative_prompt: "blurry".into(),
            width: 512,
            height: 768,
            steps: 20,
            cfg: 7.0,
            sampler: "dpmpp_2m".into(),
            scheduler: "karras".into(),
            seed: u64::MAX,
            denoise: 1.0,
            clip_skip: None,
            bf16: false,
            model: "sdxl/base.safetensors".into(),
            origin,
        }
    }

    /// Follows every link and fails where one leads nowhere; the classes that reach `SaveImage`.
    fn classes(graph: &Value) -> Vec<&str> {
        let nodes = graph.as_object().unwrap();
        let mut classes: Vec<&str> = Vec::new();
        for node in nodes.values() {
            classes.push(node["class_type"].as_str().unwrap());
            for input in node["inputs"].as_object().unwrap().values() {
                if let Some([id, output]) = input.as_array().map(Vec::as_slice) {
                    assert!(nodes.contains_key(id.as_str().unwrap()), "{input} leads nowhere");
                    assert!(output.is_u64());
                }
            }
        }
        classes.sort_unstable();
        classes
    }

    #[test]
    fn parameters_read_as_automatic1111_writes_them() {
        assert_eq!(
            recipe(Origin::Empty).parameters(),
            format!(
                "1girl, (smile:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, \
                 Schedule type: Karras, CFG scale: 7, Seed: 18446744073709551615, Size: 512x768, \
                 Model: base, Version: darkroom {}",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn optional_settings_appear_only_when_they_matter() {
        let mut recipe = recipe(Origin::Image { image: "a.png".into(), scaled: false });
        recipe.negative_prompt.clear();
        recipe.denoise = 0.55;
        assert!(!recipe.parameters().contains("Precision"));
        recipe.clip_skip = Some(2);
        recipe.bf16 = true;
        recipe.cfg = 7.5;
        recipe.model = "a, b".into();
        let text = recipe.parameters();
        assert!(!text.contains("Negative prompt"));
        for part in [
            "Denoising strength: 0.55",
            "Clip skip: 2",
            "Precision: bf16",
            "CFG scale: 7.5",
            "Model: \"a, b\"",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    #[test]
    fn text_to_image_is_comfyuis_default_workflow() {
        let graph = recipe(Origin::Empty).comfyui_prompt();
        let expected = [
            "CLIPTextEncode",
            "CLIPTextEncode",
            "CheckpointLoaderSimple",
            "EmptyLatentImage",
            "KSampler",
            "SaveImage",
            "VAEDecode",
        ];
        assert_eq!(classes(&graph), expected);
        let sampler = graph.as_object().unwrap().values().find(|n| n["class_type"] == "KSampler").unwrap();
        assert_eq!(sampler["inputs"]["seed"], json!(u64::MAX));
        let positive = sampler["inputs"]["positive"][0].as_str().unwrap();
        assert_eq!(graph[positive]["inputs"]["text"], "1girl, (smile:1.2)");
    }

    #[test]
    fn every_origin_gives_a_graph_whose_links_hold() {
        for scaled in [false, true] {
            for fill_grow in [None, Some(6)] {
                for mask in [None, Some("m.png".to_owned())] {
                    let origin = Origin::Inpaint { image: "a.png".into(), mask, scaled, fill_grow };
                    let mut recipe = recipe(origin);
                    recipe.clip_skip = Some(1);
                    let graph = recipe.comfyui_prompt();
                    let classes = classes(&graph);
                    assert_eq!(classes.contains(&"ImageScale"), scaled);
                    assert_eq!(classes.contains(&"VAEEncodeForInpaint"), fill_grow.is_some());
                    assert_eq!(classes.contains(&"SetLatentNoiseMask"), fill_grow.is_none());
                    assert!(classes.contains(&"CLIPSetLastLayer"));
                }
            }
        }
    }

    #[test]
    fn the_workflow_is_ascii_and_parses_back() {
        let mut recipe = recipe(Origin::Empty);
        recipe.prompt = "少女 \u{1f600} \"x\"\n".into();
        let chunk = &recipe.text_chunks()[1];
        assert!(chunk.text.is_ascii());
        let graph: Value = serde_json::from_str(&chunk.text).unwrap();
        assert_eq!(graph, recipe.comfyui_prompt());
    }
}
