//! Nodes of extensions on the recorded runs' model: where they stand for several of ComfyUI's, they give what those
//! give.

use darkroom_models::face_detector::{DetectOptions, Detection};

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "callers write it where they call")]
fn node(class: &str, inputs: Json) -> Json {
    json!({"class_type": class, "inputs": inputs})
}

/// ComfyUI's own nodes for a small picture, and its parts under names.
fn plain() -> Json {
    json!({
        "model": node("CheckpointLoaderSimple", json!({"ckpt_name": "sdxl_tiny.safetensors"})),
        "lora": node("LoraLoader", json!({
            "model": ["model", 0], "clip": ["model", 1], "lora_name": "lora_tiny.safetensors",
            "strength_model": 0.8, "strength_clip": 0.5,
        })),
        "positive": node("CLIPTextEncode", json!({"text": "a red cat", "clip": ["lora", 1]})),
        "negative": node("CLIPTextEncode", json!({"text": "blurry", "clip": ["lora", 1]})),
        "start": node("Empty", json!({"batch": 1, "channels": 4, "width": 64, "height": 64})),
        "drawn": node("KSampler", json!({
            "model": ["lora", 0], "seed": 7, "steps": 3, "cfg": 6.0, "sampler_name": "euler",
            "scheduler": "normal", "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["start", 0], "denoise": 1.0,
        })),
        "decoded": node("VAEDecode", json!({"samples": ["drawn", 0], "vae": ["model", 2]})),
    })
}

fn values(latent: &Latent) -> Vec<f32> {
    latent.samples.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn loaders_and_samplers_of_extensions_draw_what_comfyuis_own_draw() {
    let bench = Bench::open();
    let plain_graph = plain();
    let mut plain_run = bench.run(&plain_graph);
    let (latent, picture) = (plain_run.latent("drawn"), plain_run.image("decoded"));
    let efficient = json!({
        "stack": node("LoRA Stacker", json!({
            "input_mode": "advanced", "lora_count": 2, "lora_name_1": "None", "lora_name_2": "lora_tiny.safetensors",
            "model_str_2": 0.8, "clip_str_2": 0.5,
        })),
        "loader": node("Efficient Loader", json!({
            "ckpt_name": "sdxl_tiny.safetensors", "vae_name": "Baked VAE", "clip_skip": -2, "lora_name": "None",
            "lora_model_strength": 1.0, "lora_clip_strength": 1.0, "positive": "a red cat", "negative": "blurry",
            "token_normalization": "none", "weight_interpretation": "comfy", "empty_latent_width": 64,
            "empty_latent_height": 64, "batch_size": 1, "lora_stack": ["stack", 0],
        })),
        "drawn": node("KSampler (Efficient)", json!({
            "model": ["loader", 0], "seed": 7, "steps": 3, "cfg": 6.0, "sampler_name": "euler",
            "scheduler": "normal", "positive": ["loader", 1], "negative": ["loader", 2],
            "latent_image": ["loader", 3], "denoise": 1.0, "preview_method": "auto", "vae_decode": "true",
            "optional_vae": ["loader", 4],
        })),
    });
    let mut run = bench.run(&efficient);
    let Value::Latent(own) = run.value("drawn", 3).unwrap() else { panic!("no latent") };
    assert!(relative_error(&own.samples, &latent.samples) < 1e-6);
    let Value::Image(image) = run.value("drawn", 5).unwrap() else { panic!("no picture") };
    assert_eq!((image.width(), image.height()), (64, 64));
    let worst = image.data().iter().zip(picture.data()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 1e-4, "{worst:e}");
    assert_eq!(run.done["drawn"].ui.as_ref().unwrap()["images"].as_array().unwrap().len(), 1);
    let mut power = plain();
    power["lora"] = node(
        "Power Lora Loader (rgthree)",
        json!({
            "model": ["model", 0], "clip": ["model", 1],
            "lora_1": {"on": true, "lora": "lora_tiny", "strength": 0.8, "strengthTwo": 0.5},
            "lora_2": {"on": false, "lora": "lora_tiny", "strength": 1.0, "strengthTwo": null},
            "lora_3": {"on": true, "lora": "None", "strength": 1.0, "strengthTwo": null},
        }),
    );
    let own = bench.run(&power).latent("drawn");
    assert_eq!(values(&own), values(&latent));
}

#[test]
fn an_upscale_model_is_found_under_what_wrote_it_and_makes_pictures_larger() {
    let bench = Bench::open();
    let mut graph = plain();
    graph["upscaler"] = node("UpscaleModelLoader", json!({"model_name": "esrgan_x4.pth"}));
    graph["larger"] =
        node("ImageUpscaleWithModel", json!({"upscale_model": ["upscaler", 0], "image": ["decoded", 0]}));
    let mut run = bench.run(&graph);
    let image = run.image("larger");
    assert_eq!((image.width(), image.height(), image.channels()), (256, 256, 3));
    assert!(image.data().iter().all(|value| (0.0..=1.0).contains(value)));
    let heard = run.heard.events.lock().unwrap();
    assert!(heard.iter().any(|event| matches!(event, Event::Progress { value: 1, max: 1, .. })));
    drop(heard);
    graph["upscaler"] = node("UpscaleModelLoader", json!({"model_name": "none.pth"}));
    let error = bench.run(&graph).value("upscaler", 0).unwrap_err().to_string();
    assert!(error.contains("none.safetensors"), "{error}");
}

fn ultimate(denoise: f64, seam_fix: &str) -> Json {
    let mut graph = plain();
    graph["upscaler"] = node("UpscaleModelLoader", json!({"model_name": "esrgan_x4.safetensors"}));
    graph["larger"] = node(
        "UltimateSDUpscale",
        json!({
            "image": ["decoded", 0], "model": ["lora", 0], "positive": ["positive", 0],
            "negative": ["negative", 0], "vae": ["model", 2], "upscale_by": 2.0, "seed": 3, "steps": 2, "cfg": 5.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": denoise, "upscale_model": ["upscaler", 0],
            "mode_type": "Linear", "tile_width": 64, "tile_height": 64, "mask_blur": 4, "tile_padding": 16,
            "seam_fix_mode": seam_fix, "seam_fix_denoise": 1.0, "seam_fix_width": 16, "seam_fix_mask_blur": 4,
            "seam_fix_padding": 8, "force_uniform_tiles": true, "tiled_decode": false, "batch_size": 2,
        }),
    );
    graph
}

#[test]
fn a_picture_is_made_larger_and_drawn_anew_in_tiles() {
    let bench = Bench::open();
    let graph = ultimate(0.5, "None");
    let drawn = bench.run(&graph).image("larger");
    assert_eq!((drawn.width(), drawn.height()), (128, 128));
    assert!(drawn.data().iter().all(|value| (0.0..=1.0).contains(value)));
    // The same again; with seams drawn over it is another.
    assert_eq!(bench.run(&graph).image("larger"), drawn);
    assert_ne!(bench.run(&ultimate(0.5, "Half Tile + Intersections")).image("larger"), drawn);
}

#[expect(clippy::needless_pass_by_value, reason = "callers write it where they call")]
fn detailer(changes: Json) -> Json {
    let mut inputs = json!({
        "image": ["decoded", 0], "model": ["lora", 0], "clip": ["lora", 1], "vae": ["model", 2],
        "guide_size": 64.0, "guide_size_for": true, "max_size": 96.0, "seed": 5, "steps": 2, "cfg": 5.0,
        "sampler_name": "euler", "scheduler": "normal", "positive": ["positive", 0], "negative": ["negative", 0],
        "denoise": 0.5, "feather": 3, "noise_mask": true, "force_inpaint": true, "bbox_threshold": 0.02,
        "bbox_dilation": 4, "bbox_crop_factor": 1.5, "sam_detection_hint": "center-1", "sam_dilation": 0,
        "sam_threshold": 0.93, "sam_bbox_expansion": 0, "sam_mask_hint_threshold": 0.7,
        "sam_mask_hint_use_negative": "False", "drop_size": 4, "bbox_detector": ["detector", 0], "wildcard": "",
        "cycle": 1,
    });
    for (name, value) in changes.as_object().unwrap() {
        inputs[name] = value.clone();
    }
    let mut graph = plain();
    graph["detector"] = node("UltralyticsDetectorProvider", json!({"model_name": "bbox/yolo.pt"}));
    graph["detailed"] = node("FaceDetailer", inputs);
    graph
}

/// A threshold at which the detector, whose weights are random, finds one place.
fn threshold(bench: &Bench, image: &Image) -> f64 {
    let detector = bench.engine.borrow_detector("bbox/yolo", &CancellationToken::new()).unwrap();
    let data: Vec<f32> = image.data().iter().map(|value| (255.0 * value).floor() / 255.0).collect();
    let picture = Tensor::from_vec(data, (image.height(), image.width(), 3), &Device::Cpu).unwrap();
    let options = DetectOptions { confidence: 0.0, ..DetectOptions::default() };
    let found = detector.detect(&[picture], &options).unwrap().remove(0);
    let large =
        |detection: &&Detection| detection.x1 - detection.x0 > 4.0 && detection.y1 - detection.y0 > 4.0;
    let sure: Vec<f64> =
        found.iter().filter(large).map(|detection| f64::from(detection.confidence)).collect();
    (sure[0] + sure[1]) / 2.0
}

#[test]
fn found_places_are_drawn_anew_and_nothing_else_changes() {
    let bench = Bench::open();
    let graph = plain();
    let before = bench.run(&graph).image("decoded");
    let threshold = threshold(&bench, &before);
    let detailer = |changes: Json| {
        let mut changes = changes;
        changes["bbox_threshold"] = json!(threshold);
        super::third_party::detailer(changes)
    };
    let graph = detailer(json!({}));
    let mut run = bench.run(&graph);
    let after = run.image("detailed");
    let Value::Mask(mask) = run.value("detailed", 3).unwrap() else { panic!("no mask") };
    let painted = mask.data().iter().filter(|value| **value > 0.0).count();
    assert!(painted > 16, "{painted} of {}", mask.data().len());
    let Slot::List(refined) = &run.done["detailed"].slots[1] else { panic!("no list") };
    let Slot::List(with_alpha) = &run.done["detailed"].slots[2] else { panic!("no list") };
    assert_eq!((refined.len(), with_alpha.len()), (1, 1));
    let Value::Image(first) = &with_alpha[0] else { panic!("no picture") };
    assert_eq!(first.channels(), 4);
    assert_ne!(before, after);
    // Feathering stays within what was painted and a few pixels around it.
    let near = |place: usize| {
        let (x, y) = (place % 64, place / 64);
        let rows = y.saturating_sub(4)..(y + 5).min(64);
        rows.into_iter()
            .any(|y| (x.saturating_sub(4)..(x + 5).min(64)).any(|x| mask.data()[y * 64 + x] > 0.0))
    };
    for (place, (a, b)) in before.data().chunks(3).zip(after.data().chunks(3)).enumerate() {
        assert!(near(place) || a == b, "pixel {place}");
    }
    // With a soft mask the places are drawn from their middle on, which is another picture.
    let soft = bench.run(&detailer(json!({"noise_mask_feather": 8}))).image("detailed");
    assert_ne!(soft, after);
    let prompted = bench.run(&detailer(json!({"wildcard": "a blue dog"}))).image("detailed");
    assert_ne!(prompted, after);
}

#[test]
fn where_nothing_is_found_a_picture_stays_and_what_is_not_supported_is_told() {
    let bench = Bench::open();
    let graph = detailer(json!({"bbox_threshold": 1.0}));
    let mut run = bench.run(&graph);
    assert_eq!(run.image("decoded"), run.image("detailed"));
    let Slot::List(refined) = &run.done["detailed"].slots[1] else { panic!("no list") };
    let Value::Image(nothing) = &refined[0] else { panic!("no picture") };
    assert_eq!((refined.len(), nothing.width(), nothing.height()), (1, 64, 64));
    for (changes, told) in [
        (json!({"wildcard": "__hair__ girl"}), "__"),
        (json!({"sam_model_opt": 1}), "SAM"),
        (json!({"scheduler": "GITS[coeff=1.2]", "bbox_threshold": 0.02}), "GITS"),
    ] {
        let error = bench.run(&detailer(changes)).value("detailed", 0).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
