//! Whole workflows, node by node through the registry, against latents and pictures that ComfyUI made of them. The
//! recordings are those of `pipelines/tests/`; `scripts/golden/comfyui.py` says what is in them.

mod third_party;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use darkroom_models::device::DeviceName;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use darkroom_pipelines::{Limits, Picture, Source};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::super::Registry;
use super::super::context::{Context, Inputs, NodeError, Outputs, Slot};
use super::super::event::{Event, Listener};
use super::super::folders::Folders;
use super::super::image::{Image, Mask};
use super::super::interface::Socket;
use super::super::latent::Latent;
use super::super::metadata::Metadata;
use super::super::value::Value;
use crate::catalog::Catalog;
use crate::engine::{Engine, EngineOptions, Sources};
use crate::metrics::Metrics;
use crate::task::{BlobId, ImageSpec, TaskError};

/// Final latents, ‖ours − theirs‖ / ‖theirs‖; ComfyUI against itself with another thread count is 3.5e-6 off.
const LATENT_TOLERANCE: f64 = 1e-3;
/// Latents of the VAE's encoder, which is badly conditioned with random weights.
const ENCODER_TOLERANCE: f64 = 5e-4;
/// Share of a picture's values that may be more than two levels off.
const PICTURE_SHARE: f64 = 1e-3;

struct NoSources;

impl Sources for NoSources {
    fn open(&self, spec: &ImageSpec) -> Result<Source, TaskError> {
        Ok(Source::Empty { width: spec.width, height: spec.height })
    }

    fn picture(&self, _: &BlobId, _: &str) -> Result<Picture, TaskError> {
        panic!("nothing asks for pictures")
    }
}

/// Keeps what it hears.
#[derive(Default)]
struct Heard {
    events: Mutex<Vec<Event>>,
    previews: bool,
    /// Told to stop after so many steps.
    stop: Option<(usize, CancellationToken)>,
}

impl Listener for Heard {
    fn tell(&self, event: Event) {
        if let (Event::Progress { value, .. }, Some((after, stop))) = (&event, &self.stop)
            && value >= after
        {
            stop.cancel();
        }
        self.events.lock().unwrap().push(event);
    }

    fn wants_previews(&self) -> bool {
        self.previews
    }
}

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tests/golden/comfyui")
}

/// An engine over a models folder with the recorded runs' files.
struct Bench {
    engine: Engine,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    registry: Registry,
    recorded: HashMap<String, Tensor>,
    folders: Folders,
    _models: TempDir,
}

impl Bench {
    fn open() -> Self {
        let models = TempDir::new().unwrap();
        for (folder, file, name) in [
            ("checkpoints", "sdxl-tiny", "sdxl_tiny"),
            ("loras", "lora-kohya", "lora_tiny"),
            ("loras", "lora-diffusers", "lora_tiny_diffusers"),
            ("controlnet", "controlnet-tiny", "controlnet_tiny"),
        ] {
            let folder = models.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let file = recordings().join(format!("{file}.safetensors"));
            std::fs::copy(file, folder.join(format!("{name}.safetensors"))).unwrap();
        }
        let networks = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden");
        for (folder, file) in [("upscale_models", "upscaler/esrgan_x4"), ("ultralytics/bbox", "yolo")] {
            let folder = models.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let name = format!("{}.safetensors", file.rsplit('/').next().unwrap());
            std::fs::copy(networks.join(format!("{file}.safetensors")), folder.join(name)).unwrap();
        }
        let read =
            |file: &str| candle_core::safetensors::load(recordings().join(file), &Device::Cpu).unwrap();
        let mut recorded = read("recorded.safetensors");
        recorded.extend(read("guided.safetensors"));
        recorded
            .insert("e1_controlnet.latent".into(), read("controlnet.safetensors").remove("final").unwrap());
        let catalog = Arc::new(Catalog::open(Some(models.path()), None).unwrap());
        let metrics = Arc::new(Metrics::default());
        let options = EngineOptions {
            devices: vec![DeviceName::Cpu],
            compute_type: darkroom_models::ComputeType::Full,
            limits: Limits::default(),
            memory_budget: 4 << 30,
            vram_limit: 0,
            max_batch: 16,
            pinned: Vec::new(),
            prompt_cache_bytes: 1 << 20,
            preview_every: Some(Duration::ZERO),
            age_after: Duration::from_secs(30),
            max_unwritten: 64,
        };
        let (engine, _) =
            Engine::start(options, Arc::clone(&catalog), Arc::clone(&metrics), Arc::new(NoSources)).unwrap();
        let folders = Folders {
            input: models.path().into(),
            output: models.path().into(),
            temp: models.path().into(),
            user: models.path().into(),
            models: Some(models.path().into()),
        };
        Self { engine, catalog, metrics, registry: Registry::all(), recorded, folders, _models: models }
    }

    fn run<'a>(&'a self, prompt: &'a Json) -> Run<'a> {
        Run {
            bench: self,
            prompt,
            done: HashMap::new(),
            heard: Heard::default(),
            stop: CancellationToken::new(),
        }
    }
}

/// One prompt on its way.
struct Run<'a> {
    bench: &'a Bench,
    prompt: &'a Json,
    done: HashMap<String, Outputs>,
    heard: Heard,
    stop: CancellationToken,
}

impl Run<'_> {
    /// The value at a node's output.
    fn value(&mut self, id: &str, slot: usize) -> Result<Value, NodeError> {
        if !self.done.contains_key(id) {
            let outputs = self.node(id)?;
            self.done.insert(id.to_owned(), outputs);
        }
        match &self.done[id].slots[slot] {
            Slot::One(value) => Ok(value.clone()),
            Slot::List(_) => panic!("{id} gives a list"),
        }
    }

    fn latent(&mut self, id: &str) -> Arc<Latent> {
        match self.value(id, 0).unwrap() {
            Value::Latent(latent) => latent,
            other => panic!("{id} gives {other:?}"),
        }
    }

    fn image(&mut self, id: &str) -> Image {
        match self.value(id, 0).unwrap() {
            Value::Image(image) => image,
            other => panic!("{id} gives {other:?}"),
        }
    }

    fn node(&mut self, id: &str) -> Result<Outputs, NodeError> {
        let (class, given) = (&self.prompt[id]["class_type"], &self.prompt[id]["inputs"]);
        let class = class.as_str().unwrap();
        let interface = self.bench.registry.get(class).map(|node| &node.interface);
        let mut inputs = Inputs::default();
        for (name, value) in given.as_object().unwrap() {
            let value = match value {
                Json::Array(link) => {
                    let slot = link[1].as_u64().unwrap() as usize;
                    self.value(link[0].as_str().unwrap(), slot)?
                }
                Json::String(text) => Value::String(text.as_str().into()),
                Json::Bool(value) => Value::Boolean(*value),
                Json::Object(_) => Value::Json(value.clone()),
                Json::Number(number) => {
                    let float = interface
                        .and_then(|interface| interface.find(name))
                        .is_some_and(|input| matches!(input.socket, Socket::Float { .. }));
                    match number.as_u64().map(i128::from).or(number.as_i64().map(i128::from)) {
                        Some(whole) if !float => Value::Int(whole),
                        _ => Value::Float(number.as_f64().unwrap()),
                    }
                }
                other => panic!("{id}.{name}: {other}"),
            };
            inputs.0.insert(name.clone(), value);
        }
        let Some(node) = self.bench.registry.get(class) else { return Ok(self.stand_in(class, &inputs)) };
        let metadata = Metadata::default();
        let context = Context {
            engine: &self.bench.engine,
            catalog: &self.bench.catalog,
            folders: &self.bench.folders,
            listener: &self.heard,
            interrupt: &self.stop,
            prompt_id: "golden",
            node: id,
            metadata: &metadata,
        };
        (node.run)(&inputs, &context)
    }

    /// What comes from elsewhere than models, in short.
    fn stand_in(&self, class: &str, inputs: &Inputs) -> Outputs {
        let size = |name| inputs.size(name).unwrap();
        match class {
            "Recorded" => {
                let rgba = &self.bench.recorded[&*inputs.string("name").unwrap()];
                let (height, width, _) = rgba.dims3().unwrap();
                let bytes: Vec<u8> = rgba.flatten_all().unwrap().to_vec1().unwrap();
                let unit = |byte: &u8| f32::from(*byte) / 255.0;
                let rgb = bytes.chunks(4).flat_map(|pixel| pixel[..3].iter().map(unit)).collect();
                let mask = bytes.chunks(4).map(|pixel| 1.0 - unit(&pixel[3])).collect();
                Outputs::of([
                    Value::Image(Image::new(1, height, width, 3, rgb).unwrap()),
                    Value::Mask(Mask::new(1, height, width, mask).unwrap()),
                ])
            }
            "Empty" => {
                let shape = (size("batch"), size("channels"), size("height") / 8, size("width") / 8);
                let samples = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
                Outputs::one(Value::Latent(Arc::new(Latent::new(samples))))
            }
            "Part" => {
                let whole = inputs.latent("samples").unwrap();
                let (first, length) = (size("first"), size("length"));
                let samples = whole.samples.narrow(0, first, length).unwrap();
                let batch_index = Some((first..first + length).collect());
                Outputs::one(Value::Latent(Arc::new(Latent { batch_index, ..Latent::new(samples) })))
            }
            "Masked" => {
                let mut latent = Latent::clone(&inputs.latent("samples").unwrap());
                latent.noise_mask = Some(inputs.mask("mask").unwrap());
                Outputs::one(Value::Latent(Arc::new(latent)))
            }
            "Edges" => {
                let image = inputs.image("image").unwrap();
                let picture = super::vae::picture(&image, 0).unwrap();
                let (low, high) = (inputs.float("low").unwrap(), inputs.float("high").unwrap());
                let edges = Canny { method: CannyMethod::ComfyUi, low, high }.detect(&picture);
                let data = edges.data().to_vec();
                Outputs::one(Value::Image(Image::new(1, edges.height(), edges.width(), 3, data).unwrap()))
            }
            other => panic!("no node {other}"),
        }
    }
}

fn norm(x: &Tensor) -> f64 {
    let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
    sum.to_scalar::<f64>().unwrap().sqrt()
}

fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

fn assert_picture(name: &str, ours: &Image, theirs: &Tensor) {
    let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.data().len(), theirs.len());
    let eight_bits = ours.data().iter().map(|value| (value * 255.0) as u8);
    let far = eight_bits.zip(&theirs).filter(|(a, b)| a.abs_diff(**b) > 2).count();
    assert!(far as f64 <= PICTURE_SHARE * theirs.len() as f64, "{name}: {far} values of {}", theirs.len());
}

fn cases(file: &str) -> Vec<Json> {
    serde_json::from_slice(&std::fs::read(recordings().join(file)).unwrap()).unwrap()
}

/// The recorded workflow, less what saves.
fn workflow(case: &Json) -> Json {
    let node = |class: &str, inputs: Json| json!({"class_type": class, "inputs": inputs});
    let mut graph = json!({
        "model": node("CheckpointLoaderSimple", json!({"ckpt_name": "sdxl_tiny.safetensors"})),
        "positive": node("CLIPTextEncode", json!({"text": case["prompt"], "clip": ["model", 1]})),
        "negative": node("CLIPTextEncode", json!({"text": case["negative"], "clip": ["model", 1]})),
        "drawn": node("KSampler", json!({
            "model": ["model", 0], "seed": case["seed"], "steps": case["steps"], "cfg": case["cfg"],
            "sampler_name": case["sampler"], "scheduler": case["scheduler"], "positive": ["positive", 0],
            "negative": ["negative", 0], "latent_image": ["start", 0], "denoise": case["denoise"],
        })),
        "decoded": node("VAEDecode", json!({"samples": ["drawn", 0], "vae": ["model", 2]})),
        "picture": node("Recorded", json!({"name": format!("input.{}", case["image"].as_str().unwrap_or_default())})),
    });
    if let Some(skip) = case["clip_skip"].as_i64() {
        graph["skipped"] =
            node("CLIPSetLastLayer", json!({"clip": ["model", 1], "stop_at_clip_layer": -skip}));
        for side in ["positive", "negative"] {
            graph[side]["inputs"]["clip"] = json!(["skipped", 0]);
        }
    }
    if let Some(lora) = case["loras"].get(0) {
        let file = if lora["file"] == "lora-kohya" { "lora_tiny" } else { "lora_tiny_diffusers" };
        graph["lora"] = node(
            "LoraLoader",
            json!({
                "model": ["model", 0], "clip": ["model", 1], "lora_name": format!("{file}.safetensors"),
                "strength_model": lora["strength"], "strength_clip": lora["text_strength"],
            }),
        );
        graph["drawn"]["inputs"]["model"] = json!(["lora", 0]);
        for side in ["positive", "negative"] {
            graph[side]["inputs"]["clip"] = json!(["lora", 1]);
        }
    }
    if case["control"].is_object() {
        let control = &case["control"];
        graph["picture"]["inputs"]["name"] = json!("input.test_256");
        graph["edges"] =
            node("Edges", json!({"image": ["picture", 0], "low": control["low"], "high": control["high"]}));
        graph["net"] = node("ControlNetLoader", json!({"control_net_name": "controlnet_tiny.safetensors"}));
        graph["steered"] = node(
            "ControlNetApplyAdvanced",
            json!({
                "positive": ["positive", 0], "negative": ["negative", 0], "control_net": ["net", 0], "image": ["edges", 0],
                "strength": control["strength"], "start_percent": control["start"], "end_percent": control["end"],
            }),
        );
        graph["drawn"]["inputs"]["positive"] = json!(["steered", 0]);
        graph["drawn"]["inputs"]["negative"] = json!(["steered", 1]);
    }
    let (pixels, vae) = (json!(["picture", 0]), json!(["model", 2]));
    graph["start"] = if let Some(grow) = case["fill_grow"].as_i64() {
        node(
            "VAEEncodeForInpaint",
            json!({"pixels": pixels, "vae": vae, "mask": ["picture", 1], "grow_mask_by": grow}),
        )
    } else if case["noise_mask"] == json!(true) {
        graph["encoded"] = node("VAEEncode", json!({"pixels": pixels, "vae": vae}));
        node("Masked", json!({"samples": ["encoded", 0], "mask": ["picture", 1]}))
    } else if case["image"].is_string() {
        node("VAEEncode", json!({"pixels": pixels, "vae": vae}))
    } else {
        let size = json!({
            "width": case["width"], "height": case["height"], "batch": case["batch"], "channels": 4,
        });
        match case["first"].as_u64() {
            None => node("Empty", size),
            Some(first) => {
                graph["whole"] = node("Empty", size);
                node("Part", json!({"samples": ["whole", 0], "first": first, "length": case["length"]}))
            }
        }
    };
    graph
}

#[test]
fn recorded_workflows_give_comfyuis_latents_and_pictures() {
    let bench = Bench::open();
    let mut checked = 0;
    for case in cases("cases.json").into_iter().chain(cases("guided.json")) {
        let name = case["name"].as_str().unwrap();
        // The runs that are there for samplers and schedulers are tested in `pipelines`.
        if name.contains("--") {
            continue;
        }
        let graph = workflow(&case);
        let mut run = bench.run(&graph);
        let latent = run.latent("drawn");
        let error = relative_error(&latent.samples, &bench.recorded[&format!("{name}.latent")]);
        assert!(error <= LATENT_TOLERANCE, "{name}: {error}");
        if let Some(theirs) = bench.recorded.get(&format!("{name}.encoded")) {
            let error = relative_error(&run.latent("start").samples, theirs);
            assert!(error <= ENCODER_TOLERANCE, "{name}: encoded {error}");
        }
        if let Some(theirs) = bench.recorded.get(&format!("{name}.pictures")) {
            assert_picture(name, &run.image("decoded"), theirs);
        }
        checked += 1;
    }
    assert!(checked >= 12, "only {checked} workflows were checked");
}

#[test]
fn tiles_give_comfyuis_latent_and_picture() {
    let bench = Bench::open();
    let tiles = |mut inputs: Json, class: &str| {
        inputs["vae"] = json!(["model", 2]);
        for (name, value) in
            [("tile_size", 128), ("overlap", 32), ("temporal_size", 64), ("temporal_overlap", 8)]
        {
            inputs[name] = json!(value);
        }
        json!({"class_type": class, "inputs": inputs})
    };
    let graph = json!({
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl_tiny.safetensors"}},
        "picture": {"class_type": "Recorded", "inputs": {"name": "input.test_256"}},
        "encoded": tiles(json!({"pixels": ["picture", 0]}), "VAEEncodeTiled"),
        "decoded": tiles(json!({"samples": ["encoded", 0]}), "VAEDecodeTiled"),
    });
    let mut run = bench.run(&graph);
    let error = relative_error(&run.latent("encoded").samples, &bench.recorded["c5_tiled_vae.latent"]);
    assert!(error <= ENCODER_TOLERANCE, "{error}");
    assert_picture("tiles", &run.image("decoded"), &bench.recorded["c5_tiled_vae.pictures"]);
}

/// Three steps of a small picture.
fn small() -> Json {
    let mut case = cases("cases.json").remove(0);
    for (name, value) in [("width", 64), ("height", 64), ("steps", 4)] {
        case[name] = json!(value);
    }
    workflow(&case)
}

#[test]
fn a_latent_for_other_models_says_only_how_large_while_it_is_empty() {
    let bench = Bench::open();
    let plain = small();
    let mut wide = plain.clone();
    wide["start"]["inputs"]["channels"] = json!(16);
    let (ours, theirs) = (bench.run(&wide).latent("drawn"), bench.run(&plain).latent("drawn"));
    assert_eq!(relative_error(&ours.samples, &theirs.samples), 0.0);
}

#[test]
fn two_halves_of_a_run_are_the_whole() {
    let bench = Bench::open();
    let whole = small();
    let advanced = |latent: &str, add_noise: &str, from: usize, to: usize, leftover: &str| {
        let mut inputs = whole["drawn"]["inputs"].clone();
        inputs.as_object_mut().unwrap().remove("denoise");
        inputs["noise_seed"] = inputs.as_object_mut().unwrap().remove("seed").unwrap();
        inputs["sampler_name"] = json!("euler");
        inputs["latent_image"] = json!([latent, 0]);
        for (name, value) in [("add_noise", add_noise), ("return_with_leftover_noise", leftover)] {
            inputs[name] = json!(value);
        }
        inputs["start_at_step"] = json!(from);
        inputs["end_at_step"] = json!(to);
        json!({"class_type": "KSamplerAdvanced", "inputs": inputs})
    };
    let mut graph = whole.clone();
    graph["drawn"]["inputs"]["sampler_name"] = json!("euler");
    graph["first"] = advanced("start", "enable", 0, 2, "enable");
    graph["second"] = advanced("first", "disable", 2, 10000, "disable");
    let mut run = bench.run(&graph);
    let (all, halves) = (run.latent("drawn"), run.latent("second"));
    let error = relative_error(&halves.samples, &all.samples);
    // The latent goes to the VAE's units and back between them.
    assert!(error < 1e-5, "{error}");
    // What is left between them is noise at the third sigma.
    assert!(relative_error(&run.latent("first").samples, &all.samples) > 0.01);
}

#[test]
fn samples_of_two_prompts_share_steps_and_are_those_drawn_alone() {
    let bench = Bench::open();
    let first = small();
    let mut second = first.clone();
    second["positive"]["inputs"]["text"] = json!("blurry");
    second["drawn"]["inputs"]["seed"] = json!(1);
    second["drawn"]["inputs"]["steps"] = json!(200);
    let mut long = first.clone();
    long["drawn"]["inputs"]["steps"] = json!(200);
    let alone = [bench.run(&long).latent("drawn"), bench.run(&second).latent("drawn")];
    let count = || {
        let load =
            |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        (load(&bench.metrics.step_batches), load(&bench.metrics.stepped_samples))
    };
    let before = count();
    let together = std::thread::scope(|scope| {
        let threads = [&long, &second].map(|graph| scope.spawn(|| bench.run(graph).latent("drawn")));
        threads.map(|thread| thread.join().unwrap())
    });
    let after = count();
    let (batches, samples) = (after.0 - before.0, after.1 - before.1);
    assert!(samples > 2 * batches, "{samples} samples in {batches} batches: the prompts did not share steps");
    for (together, alone) in together.iter().zip(&alone) {
        let error = relative_error(&together.samples, &alone.samples);
        assert!(error < 1e-4, "{error}");
    }
}

#[test]
fn progress_counts_steps_of_the_batch_and_previews_show_its_first() {
    let bench = Bench::open();
    let graph = small();
    let mut run = bench.run(&graph);
    run.heard.previews = true;
    run.latent("drawn");
    let events = run.heard.events.into_inner().unwrap();
    let steps: Vec<(usize, usize)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Progress { node, value, max } if node == "drawn" => Some((*value, *max)),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    let previews = events.iter().filter(|event| matches!(event, Event::Preview { .. })).count();
    assert!((1..=5).contains(&previews), "{previews} previews of two samples and four steps");
}

#[test]
fn an_interrupted_prompt_ends_between_steps() {
    let bench = Bench::open();
    let mut graph = small();
    graph["drawn"]["inputs"]["steps"] = json!(1000);
    let mut run = bench.run(&graph);
    run.heard.stop = Some((2, run.stop.clone()));
    assert!(matches!(run.value("drawn", 0), Err(NodeError::Interrupted)));
}

#[test]
fn what_does_not_go_together_is_said_by_the_inputs_name() {
    let bench = Bench::open();
    let refused = |change: &dyn Fn(&mut Json)| {
        let mut graph = small();
        let inputs = json!({"model": ["model", 0], "shift": 0.0});
        graph["flow"] = json!({"class_type": "ModelSamplingSD3", "inputs": inputs});
        change(&mut graph);
        bench.run(&graph).value("drawn", 0).unwrap_err().to_string()
    };
    let missing = refused(&|graph| graph["model"]["inputs"]["ckpt_name"] = json!("../sdxl_tiny.safetensors"));
    assert!(missing.starts_with("ckpt_name: there is no model '../sdxl_tiny.safetensors'"), "{missing}");
    let lora = refused(&|graph| {
        let inputs = json!({
            "model": ["model", 0], "lora_name": "controlnet_tiny.safetensors", "strength_model": 1.0,
        });
        graph["lora"] = json!({"class_type": "LoraLoaderModelOnly", "inputs": inputs});
        graph["drawn"]["inputs"]["model"] = json!(["lora", 0]);
    });
    assert!(lora.starts_with("lora_name: there is no LoRA"), "{lora}");
    let flow = refused(&|graph| graph["drawn"]["inputs"]["model"] = json!(["flow", 0]));
    assert!(flow.starts_with("shift: must be above 0"), "{flow}");
}
