//! Qwen-Image in the engine: one budget with SDXL, one step batch for pictures with different prompts and LoRAs.

use darkroom_pipelines::{LoadOptions, MemoryPlan};

use super::*;
use crate::catalog::Opened;

/// ComfyUI's folder of models with a small Qwen-Image in it, whose token table is twice as large as the built-in model.
fn qwen_image_models() -> tempfile::TempDir {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tests/golden/qwen_image/models");
    let folder = tempfile::TempDir::new().unwrap();
    for path in [
        "diffusion_models/tiny_qwen_image.safetensors",
        "text_encoders/tokenizer.json",
        "vae/tiny_qwen_image_vae.safetensors",
        "loras/tiny_qwen_image_lightning_4steps.safetensors",
    ] {
        let target = folder.path().join(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(small.join(path), target).unwrap();
    }
    let bytes = std::fs::read(small.join("text_encoders/tiny_qwen_vl.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rows = 2 * (crate::embedded::bytes() / (2 * 32)) as usize;
    let mut table = file.tensor("model.embed_tokens.weight").unwrap().data().to_vec();
    table.resize(2 * 32 * rows, 0);
    let mut config: serde_json::Value = serde_json::from_str(&metadata["text_encoder_config"]).unwrap();
    for part in [&["text_config"][..], &[]] {
        let object = part.iter().try_fold(&mut config, |json, key| json.get_mut(*key));
        if let Some(size) = object.and_then(|object| object.get_mut("vocab_size")) {
            *size = rows.into();
        }
    }
    let view = |name: &str| match name {
        "model.embed_tokens.weight" => {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![rows, 32], &table).unwrap()
        }
        name => file.tensor(name).unwrap(),
    };
    let tensors = file.names().into_iter().map(|name| (name, view(name)));
    let metadata = std::iter::once(("text_encoder_config".to_owned(), config.to_string())).collect();
    let path = folder.path().join("text_encoders/large_qwen_vl.safetensors");
    safetensors::serialize_to_file(tensors, Some(metadata), &path).unwrap();
    folder
}

fn qwen_image(prompt: &str, steps: usize, seed: u64) -> ImageSpec {
    let plain = spec(prompt, 64, steps, seed);
    ImageSpec { model: "tiny_qwen_image".into(), cfg: 1.0, scheduler: "simple".into(), ..plain }
}

#[tokio::test]
async fn qwen_image_and_sdxl_share_a_budget_that_holds_one_of_them_at_a_time() {
    let folder = qwen_image_models();
    let catalog = Arc::new(Catalog::open(Some(folder.path()), None).unwrap());
    let qwen = catalog.find("tiny_qwen_image").unwrap();
    assert_eq!((qwen.kind, &qwen.problem), (darkroom_models::checkpoint::ModelKind::QwenImage, &None));
    // Room for either with its steps, and not for both.
    let (held, step, _) = costs();
    let Opened::QwenImage(parts) = catalog.open_model(&qwen, &candle_core::Device::Cpu).unwrap() else {
        panic!("it is Qwen-Image");
    };
    let needs = MemoryPlan::of(&parts, &candle_core::Device::Cpu, &LoadOptions::default());
    let least = LoadOptions {
        budget: Some(needs.resident_bytes() + needs.step_bytes + (1 << 20)),
        ..LoadOptions::default()
    };
    let plan = MemoryPlan::of(&parts, &candle_core::Device::Cpu, &least);
    assert_eq!(plan.resident_bytes(), needs.resident_bytes(), "nothing is streamed");
    let budget = least.budget.unwrap().max(held + 2 * step);
    assert!(held + plan.resident_bytes() > budget, "{held} {} {budget}", plan.resident_bytes());
    let metrics = Arc::new(Metrics::default());
    let options = EngineOptions { memory_budget: budget, ..options() };
    let (engine, mut events) =
        Engine::start(options, catalog, Arc::clone(&metrics), Arc::new(NoSources)).unwrap();
    let specs = [
        spec("1girl", 64, 3, 1),
        qwen_image("a cat", 3, 2),
        spec("1girl", 64, 3, 3),
        qwen_image("the old town in the evening light", 4, 4),
    ];
    let jobs: Vec<Job> = specs.into_iter().map(|spec| job(spec, Priority::Standard)).collect();
    engine.load("tiny-sdxl").await.unwrap();
    engine.submit(jobs.clone());
    let together = drawn(&mut events, jobs.len()).await;
    assert!(metrics.evictions.get() >= 1);
    let text = metrics.text();
    for model in ["tiny-sdxl", "tiny_qwen_image"] {
        let loads = format!("darkroom_model_loads_total{{model=\"{model}\"}} ");
        let count: u32 = text.split_once(&loads).unwrap().1.lines().next().unwrap().parse().unwrap();
        assert!((1..=2).contains(&count), "{model}: {count}");
    }
    assert_eq!(engine.residency().len(), 1, "{:?}", engine.residency());
    // One at a time, each model once more.
    for job in &jobs {
        engine.submit([job.clone()]);
        let alone = drawn(&mut events, 1).await;
        let (together, alone) = (&together[&job.id.task], &alone[&job.id.task]);
        let worst = together.iter().zip(alone).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= TOLERANCE, "{worst} levels apart: {:?}", job.content);
    }
}

#[tokio::test]
async fn pictures_of_qwen_image_share_step_batches_whatever_their_prompts_and_loras_are() {
    let folder = qwen_image_models();
    let (engine, mut events, metrics) = start_with(options(), Some(folder.path()));
    let lightning =
        LoraSpec { lora: "tiny_qwen_image_lightning_4steps".into(), strength: 1.0, text_strength: 0.0 };
    let specs = [
        qwen_image("a cat", 12, 1),
        qwen_image("the old town in the evening light, with a sign that says \"Hello world\"", 12, 2),
        ImageSpec { cfg: 3.0, negative_prompt: "blurry".into(), ..qwen_image("", 12, 3) },
        ImageSpec { loras: vec![lightning], ..qwen_image("a cat", 12, 4) },
        ImageSpec { shift: Some(darkroom_pipelines::FlowShift::Dynamic), ..qwen_image("a cat", 12, 5) },
    ];
    let jobs: Vec<Job> = specs.into_iter().map(|spec| job(spec, Priority::Standard)).collect();
    engine.submit(jobs.clone());
    let together = drawn(&mut events, jobs.len()).await;
    let batches = metrics.step_batches.load(Ordering::Relaxed);
    let samples = metrics.stepped_samples.load(Ordering::Relaxed);
    assert!(samples as f64 / batches as f64 > 2.0, "{samples} samples in {batches} batches");
    for job in &jobs {
        engine.submit([job.clone()]);
        let alone = drawn(&mut events, 1).await;
        let (together, alone) = (&together[&job.id.task], &alone[&job.id.task]);
        let worst = together.iter().zip(alone).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= TOLERANCE, "{worst} levels apart: {:?}", job.content);
    }
}
