//! Checkpoints: both layouts give the same networks the same tensors, full-size models are recognised by their
//! names, and what is no checkpoint is called by its name.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper fails as its test does"
)]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use darkroom_models::checkpoint::{
    Checkpoint, CheckpointError, CheckpointParts, Layout, ModelKind, Part, PredictionType, inspect,
};
use darkroom_models::clip::{ClipTextConfig, HiddenAct};
use darkroom_models::unet::AdditionConfig;
use darkroom_models::weights::Weights;
use safetensors_bytes::{f32s, file_of, hollow, open as open_bytes};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Device::Cpu).unwrap()
}

/// Fails unless both views hold the same tensors, value by value.
#[track_caller]
fn assert_same(single: &Weights, folder: &Weights) {
    assert_eq!(single.names(), folder.names());
    for name in folder.names() {
        let shape = folder.shape(&name).unwrap();
        let [left, right] = [single, folder]
            .map(|weights| weights.take(&name, &shape).unwrap().to_dtype(DType::F32).unwrap());
        let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&left), flat(&right), "{name}");
    }
}

#[test]
fn both_layouts_give_the_same_tensors_under_the_same_names() {
    for (model, kind) in [("sdxl", ModelKind::Sdxl), ("sd15", ModelKind::Sd15)] {
        let folder = open(&golden(model));
        let single = open(&golden(&format!("{model}.safetensors")));
        assert_eq!((folder.kind, single.kind), (kind, kind));
        assert_eq!((folder.layout, single.layout), (Layout::DiffusersFolder, Layout::Ldm));
        assert_eq!(folder.unet.config, single.unet.config);
        assert_eq!(folder.vae.config, single.vae.config);
        // These files tell the UNet's and the VAE's configs but not the text encoders', whose heads no shape shows.
        let heads = folder.clip_l.config.num_attention_heads;
        let config = ClipTextConfig { num_attention_heads: heads, ..single.clip_l.config.clone() };
        assert_eq!(config, folder.clip_l.config);
        assert_same(&single.unet.weights, &folder.unet.weights);
        assert_same(&single.vae.weights, &folder.vae.weights);
        assert_same(&single.clip_l.weights, &folder.clip_l.weights);
        match (&single.clip_g, &folder.clip_g) {
            (Some(single), Some(folder)) => {
                let heads = folder.config.num_attention_heads;
                assert_eq!(
                    ClipTextConfig { num_attention_heads: heads, ..single.config.clone() },
                    folder.config
                );
                assert_same(&single.weights, &folder.weights);
            }
            (None, None) => assert_eq!(kind, ModelKind::Sd15),
            other => panic!("{other:?}"),
        }
        assert!(single.stray.is_empty(), "{:?}", single.stray);
    }
}

#[test]
fn the_embedded_model_tells_what_its_shapes_do_not() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-sdxl.safetensors");
    let model = open(&path);
    assert_eq!((model.kind, model.layout), (ModelKind::Sdxl, Layout::Ldm));
    assert!(model.stray.is_empty(), "{:?}", model.stray);
    assert_eq!(model.unet.config.norm_num_groups, 8);
    assert_eq!(model.unet.config.attention_heads, [2, 3, 4]);
    assert_eq!(model.unet.config.addition.as_ref().map(|addition| addition.time_embed_dim), Some(32));
    assert_eq!(model.vae.config.norm_num_groups, 4);
    let clip_g = model.clip_g.unwrap();
    for clip in [&model.clip_l, &clip_g] {
        assert_eq!((clip.config.num_attention_heads, clip.config.hidden_size), (2, 64));
        // Stored as its few rows that are not zero, read as the whole table.
        let table = "text_model.embeddings.token_embedding.weight";
        assert_eq!(clip.weights.take(table, &[49_408, 64]).unwrap().dims(), [49_408, 64]);
    }
}

#[test]
fn a_tiny_sdxl_without_configs_is_read_off_its_shapes() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/tests/golden/comfyui/sdxl-tiny.safetensors");
    let model = open(&path);
    let unet = model.unet.config;
    assert_eq!((unet.block_out_channels, unet.transformer_layers), (vec![32, 64, 128], vec![0, 1, 2]));
    assert_eq!((unet.attention_heads, unet.mid_transformer_layers), (vec![1, 1, 2], 2));
    // (1600 - 64) / 6: what the pooled text leaves for each size id.
    assert_eq!(unet.addition, Some(AdditionConfig { time_embed_dim: 256, projection_input_dim: 1600 }));
    assert_eq!(model.clip_l.config.num_hidden_layers, 3);
    assert_eq!(model.clip_g.unwrap().config.num_hidden_layers, 4);
}

type Names = BTreeMap<String, Vec<usize>>;

/// Names and shapes of full-size models, by the reference's classes: model → `ldm` or part → names.
fn full_size() -> BTreeMap<String, BTreeMap<String, Names>> {
    serde_json::from_str(&std::fs::read_to_string(golden("full_size_names.json")).unwrap()).unwrap()
}

fn names(weights: &Weights) -> Names {
    weights.names().into_iter().map(|name| (name.clone(), weights.shape(&name).unwrap_or_default())).collect()
}

#[test]
fn full_size_sdxl_is_recognised_and_every_name_is_the_references() {
    let reference = &full_size()["sdxl"];
    let folder = tempfile::tempdir().unwrap();
    let mut ldm = reference["ldm"].clone();
    // What the published file carries besides.
    ldm.insert("conditioner.embedders.1.model.logit_scale".into(), vec![]);
    ldm.insert("conditioner.embedders.0.transformer.text_model.embeddings.position_ids".into(), vec![1, 77]);
    let path = hollow(&folder.path().join("sdxl.safetensors"), ldm, &[]);
    let model = open(&path);
    assert_eq!(names(&model.unet.weights), reference["unet"]);
    assert_eq!(names(&model.vae.weights), reference["vae"]);
    assert_eq!(names(&model.clip_l.weights), reference["text_encoder"]);
    let clip_g = model.clip_g.unwrap();
    assert_eq!(names(&clip_g.weights), reference["text_encoder_2"]);

    assert_eq!((model.kind, model.prediction.kind), (ModelKind::Sdxl, PredictionType::Epsilon));
    let unet = model.unet.config;
    assert_eq!(unet.block_out_channels, [320, 640, 1280]);
    assert_eq!((unet.layers_per_block, unet.mid_transformer_layers), (2, 10));
    assert_eq!(unet.transformer_layers, [0, 2, 10]);
    assert_eq!(unet.attention_heads[1..], [10, 20]);
    assert_eq!((unet.cross_attention_dim, unet.norm_num_groups), (2048, 32));
    assert!(unet.use_linear_projection);
    assert_eq!(unet.addition, Some(AdditionConfig { time_embed_dim: 256, projection_input_dim: 2816 }));
    let vae = model.vae.config;
    assert_eq!((vae.scaling_factor, vae.layers_per_block, vae.norm_num_groups), (0.13025, 2, 32));
    assert_eq!(vae.block_out_channels, [128, 256, 512, 512]);
    let clip_l = model.clip_l.config;
    assert_eq!((clip_l.hidden_size, clip_l.num_hidden_layers, clip_l.num_attention_heads), (768, 12, 12));
    assert_eq!((clip_l.hidden_act, clip_l.projection_dim), (HiddenAct::QuickGelu, None));
    let clip_g = clip_g.config;
    assert_eq!((clip_g.hidden_size, clip_g.num_hidden_layers, clip_g.num_attention_heads), (1280, 32, 20));
    assert_eq!((clip_g.hidden_act, clip_g.projection_dim), (HiddenAct::Gelu, Some(1280)));
    assert_eq!((clip_g.bos_token_id, clip_g.eos_token_id), (49_406, 49_407));

    let found = inspect(&path).unwrap();
    assert_eq!((found.kind, found.missing.len()), (ModelKind::Sdxl, 0));
    assert!(found.to_string().contains("3.47 G parameters"), "{found}");
}

#[test]
fn full_size_sd15_is_recognised_and_every_name_is_the_references() {
    let reference = &full_size()["sd15"];
    let folder = tempfile::tempdir().unwrap();
    let mut ldm = reference["ldm"].clone();
    for buffer in ["alphas_cumprod", "betas", "model_ema.decay", "sqrt_alphas_cumprod"] {
        ldm.insert(buffer.into(), vec![1000]);
    }
    let path = hollow(&folder.path().join("sd15.safetensors"), ldm.clone(), &[]);
    let model = open(&path);
    assert_eq!(names(&model.unet.weights), reference["unet"]);
    assert_eq!(names(&model.vae.weights), reference["vae"]);
    assert_eq!(names(&model.clip_l.weights), reference["text_encoder"]);
    assert!(model.clip_g.is_none());
    assert_eq!(model.kind, ModelKind::Sd15);
    let unet = model.unet.config;
    assert_eq!(unet.block_out_channels, [320, 640, 1280, 1280]);
    assert_eq!(
        (unet.transformer_layers.as_slice(), unet.mid_transformer_layers),
        ([1, 1, 1, 0].as_slice(), 1)
    );
    assert_eq!((unet.cross_attention_dim, unet.addition), (768, None));
    assert_eq!(unet.attention_heads[..3], [8, 8, 8]);
    assert!(!unet.use_linear_projection);
    assert_eq!(model.vae.config.scaling_factor, 0.18215);
    // Some files spell the text encoder without its inner prefix.
    let short =
        ldm.into_iter().map(|(name, shape)| (name.replace("transformer.text_model.", "transformer."), shape));
    let model = open(&hollow(&folder.path().join("short.safetensors"), short, &[]));
    assert_eq!(names(&model.clip_l.weights), reference["text_encoder"]);
}

#[test]
fn old_diffusers_names_of_the_vaes_attention_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let reference = &full_size()["sd15"]["vae"];
    let old = reference.iter().map(|(name, shape)| {
        let mut name = name.clone();
        for (new, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")] {
            name = name.replace(new, old);
        }
        (name, shape.clone())
    });
    std::fs::write(root.join("model_index.json"), r#"{"_class_name":"StableDiffusionPipeline"}"#).unwrap();
    std::fs::create_dir(root.join("vae")).unwrap();
    let config = std::fs::read_to_string(golden("sd15/vae/config.json")).unwrap();
    std::fs::write(root.join("vae/config.json"), config).unwrap();
    hollow(&root.join("vae/diffusion_pytorch_model.fp16.safetensors"), old, &[]);
    let parts = CheckpointParts::open(root, &Device::Cpu).unwrap();
    assert_eq!(names(&parts.vae.as_ref().unwrap().weights), *reference);
    assert_eq!(parts.missing(), [Part::UNet, Part::ClipL]);
    let error = parts.complete().unwrap_err().to_string();
    assert!(error.contains("no UNet, no text encoder (CLIP-L)"), "{error}");
}

/// The sdxl golden folder with its UNet cut in two files and an index.
fn sharded(root: &Path, weight_map: impl Fn(&str) -> String) {
    let copy = |from: &str, to: &str| std::fs::copy(golden("sdxl").join(from), root.join(to)).unwrap();
    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        std::fs::create_dir_all(root.join(part)).unwrap();
        copy(&format!("{part}/config.json"), &format!("{part}/config.json"));
    }
    copy("model_index.json", "model_index.json");
    copy("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors");
    copy("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors");
    copy("text_encoder_2/model.safetensors", "text_encoder_2/other-name.safetensors");
    let unet = std::fs::read(golden("sdxl/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&unet).unwrap();
    let (first, second): (Vec<_>, Vec<_>) = tensors.iter().partition(|(name, _)| name.starts_with("down"));
    let map: BTreeMap<String, String> =
        tensors.names().into_iter().map(|n| (n.to_owned(), weight_map(n))).collect();
    safetensors::serialize_to_file(first, None, &root.join("unet/a.safetensors")).unwrap();
    safetensors::serialize_to_file(second, None, &root.join("unet/b.safetensors")).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(root.join("unet/diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
}

fn shard_of(name: &str) -> String {
    if name.starts_with("down") { "a.safetensors".into() } else { "b.safetensors".into() }
}

#[test]
fn shards_and_variants_are_found() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path(), shard_of);
    let (pieces, whole) = (open(folder.path()), open(&golden("sdxl")));
    assert_same(&pieces.unet.weights, &whole.unet.weights);
    assert_same(&pieces.clip_g.unwrap().weights, &whole.clip_g.unwrap().weights);
    let found = inspect(folder.path()).unwrap();
    assert_eq!((found.kind, found.components.len()), (ModelKind::Sdxl, 4));
}

#[test]
fn an_index_cannot_reach_outside_its_folder() {
    for name in [
        "../vae/diffusion_pytorch_model.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "..",
        "",
        "c:a.safetensors",
        "./a.safetensors",
        "a.bin",
    ] {
        let folder = tempfile::tempdir().unwrap();
        sharded(folder.path(), |_| name.to_owned());
        let error = Checkpoint::open(folder.path(), &Device::Cpu).unwrap_err();
        assert!(matches!(error, CheckpointError::UnsafeName { .. }), "{name}: {error}");
    }
}

#[test]
fn an_index_that_is_wrong_about_a_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path(), |_| "a.safetensors".into());
    let error = Checkpoint::open(folder.path(), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("a.safetensors") && error.contains("is missing"), "{error}");
}

#[test]
fn a_folder_of_pickles_says_so() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path(), shard_of);
    let vae = folder.path().join("vae");
    std::fs::rename(vae.join("diffusion_pytorch_model.safetensors"), vae.join("diffusion_pytorch_model.bin"))
        .unwrap();
    let error = Checkpoint::open(folder.path(), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("pickle") && error.contains("vae"), "{error}");
    let error = Checkpoint::open(&folder.path().join("vae"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("model_index.json"), "{error}");
}

/// The golden single file's tensors under their stored names, changed by `change`.
fn changed(model: &str, change: impl Fn(&mut BTreeMap<String, Vec<usize>>)) -> (tempfile::TempDir, PathBuf) {
    let file = std::fs::read(golden(&format!("{model}.safetensors"))).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let mut shapes = metadata.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect();
    change(&mut shapes);
    let said = metadata.metadata().clone().unwrap_or_default();
    let said: Vec<(&str, &str)> = said.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = hollow(&folder.path().join("changed.safetensors"), shapes, &said);
    (folder, path)
}

#[test]
fn a_checkpoint_without_a_part_names_the_part() {
    let (_folder, path) = changed("sdxl", |shapes| {
        shapes.retain(|name, _| !name.starts_with("first_stage_model."));
    });
    let error = Checkpoint::open(&path, &Device::Cpu).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::MissingParts { parts, .. } if *parts == [Part::Vae]),
        "{error}"
    );
    assert_eq!(inspect(&path).unwrap().missing, [Part::Vae]);
    assert!(CheckpointParts::open(&path, &Device::Cpu).unwrap().vae.is_none());
}

#[test]
fn markers_tell_v_prediction() {
    let (_folder, path) = changed("sdxl", |shapes| {
        shapes.insert("v_pred".into(), vec![0]);
        shapes.insert("ztsnr".into(), vec![0]);
    });
    let model = open(&path);
    assert_eq!((model.prediction.kind, model.prediction.zero_terminal_snr), (PredictionType::V, true));
    assert!(model.stray.is_empty());
    let (_folder, path) = changed("sdxl", |shapes| {
        shapes.insert("ztsnr".into(), vec![0]);
    });
    let alone = open(&path).prediction;
    assert_eq!((alone.kind, alone.zero_terminal_snr), (PredictionType::Epsilon, false));
    let (_folder, path) = changed("sdxl", |shapes| {
        shapes.insert("edm_vpred.sigma_max".into(), vec![]);
    });
    let error = Checkpoint::open(&path, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("EDM"), "{error}");
}

#[test]
fn tensors_that_no_network_has_are_reported() {
    let (_folder, path) = changed("sdxl", |shapes| {
        shapes.insert("model.diffusion_model.input_blocks.0.1.surprise".into(), vec![1]);
        shapes.insert("somebodys.notes".into(), vec![1]);
    });
    let model = open(&path);
    assert_eq!(model.stray, ["somebodys.notes"]);
    assert!(model.unet.weights.contains("input_blocks.0.1.surprise"));
    assert!(inspect(&path).unwrap().to_string().contains("somebodys.notes"));
}

#[test]
fn two_tensors_of_one_meaning_are_both_named() {
    let prefix = "conditioner.embedders.0.transformer.";
    let (_folder, path) = changed("sdxl", |shapes| {
        let shape = shapes[&format!("{prefix}text_model.final_layer_norm.bias")].clone();
        shapes.insert(format!("{prefix}final_layer_norm.bias"), shape);
    });
    let error = Checkpoint::open(&path, &Device::Cpu).unwrap_err();
    assert!(matches!(error, CheckpointError::Ambiguous { .. }), "{error}");
}

#[test]
fn inpainting_models_are_refused_instead_of_misused() {
    let (_folder, path) = changed("sd15", |shapes| {
        shapes.get_mut("model.diffusion_model.input_blocks.0.0.weight").unwrap()[1] = 9;
    });
    let error = Checkpoint::open(&path, &Device::Cpu).unwrap_err().to_string();
    // The golden file's metadata tells the four channels it was made with.
    assert!(error.contains("9"), "{error}");
}

#[test]
fn names_with_absurd_numbers_are_left_over_and_break_nothing() {
    let (_folder, path) = changed("sdxl", |shapes| {
        for name in [
            "model.diffusion_model.input_blocks.99999999999999999999.0.weight",
            "model.diffusion_model.output_blocks.4294967296.0.in_layers.0.weight",
            "model.diffusion_model.input_blocks.999.0.op.weight",
            "first_stage_model.decoder.up.99999999999.block.0.norm1.weight",
            "conditioner.embedders.1.model.transformer.resblocks.18446744073709551615.ln_1.weight",
            "conditioner.embedders.1.model.transformer.resblocks.00.ln_1.weight",
        ] {
            shapes.insert(name.into(), vec![1]);
        }
    });
    let model = open(&path);
    assert!(model.unet.weights.contains("input_blocks.99999999999999999999.0.weight"));
}

/// Names and shapes that a file is made of.
type Tensors<'a> = &'a [(&'a str, &'a [usize])];

fn kind_of(names: Tensors<'_>) -> (ModelKind, Layout) {
    let folder = tempfile::tempdir().unwrap();
    let tensors = names.iter().map(|(name, shape)| (name.to_string(), shape.to_vec()));
    let path = hollow(&folder.path().join("m.safetensors"), tensors, &[]);
    let found = inspect(&path).unwrap();
    if !matches!((found.kind, found.layout), (ModelKind::Sdxl | ModelKind::Sd15, Layout::Ldm)) {
        let error = Checkpoint::open(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("not a checkpoint of") || error.contains("not supported"), "{error}");
    }
    (found.kind, found.layout)
}

#[test]
fn other_models_are_recognised_by_their_names() {
    const CONTEXT: &str = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    const LABEL: &str = "model.diffusion_model.label_emb.0.0.weight";
    let cases: &[(Tensors<'_>, ModelKind, Layout)] = &[
        (&[(CONTEXT, &[8, 2048]), (LABEL, &[8, 2816])], ModelKind::Sdxl, Layout::Ldm),
        (&[(CONTEXT, &[8, 1280]), (LABEL, &[8, 2560])], ModelKind::SdxlRefiner, Layout::Ldm),
        (&[(CONTEXT, &[8, 768])], ModelKind::Sd15, Layout::Ldm),
        (&[(CONTEXT, &[8, 1024])], ModelKind::Sd2, Layout::Ldm),
        (
            &[("cond_stage_model.model.ln_final.weight", &[8]), (CONTEXT, &[8, 1024])],
            ModelKind::Sd2,
            Layout::Ldm,
        ),
        (
            &[("conditioner.embedders.0.model.ln_final.weight", &[8]), (CONTEXT, &[8, 1280])],
            ModelKind::SdxlRefiner,
            Layout::Ldm,
        ),
        (
            &[
                ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", &[8, 2048]),
                ("time_embedding.linear_1.weight", &[8, 8]),
                ("add_embedding.linear_1.weight", &[8, 2816]),
            ],
            ModelKind::Sdxl,
            Layout::Diffusers,
        ),
        (&[("double_blocks.0.img_attn.qkv.weight", &[8])], ModelKind::Flux, Layout::Ldm),
        (&[("single_transformer_blocks.0.attn.to_q.weight", &[8])], ModelKind::Flux, Layout::Diffusers),
        (&[("transformer_blocks.0.img_mod.1.weight", &[8])], ModelKind::QwenImage, Layout::Diffusers),
        (&[("decoder.up.0.block.0.norm1.weight", &[8])], ModelKind::Vae, Layout::Ldm),
        (&[("decoder.up_blocks.0.resnets.0.norm1.weight", &[8])], ModelKind::Vae, Layout::Diffusers),
        (
            &[("text_model.encoder.layers.0.self_attn.q_proj.weight", &[768, 768])],
            ModelKind::ClipL,
            Layout::Transformers,
        ),
        (
            &[("text_model.encoder.layers.0.self_attn.q_proj.weight", &[1280, 1280])],
            ModelKind::ClipG,
            Layout::Transformers,
        ),
        (&[("transformer.resblocks.0.ln_1.weight", &[1280])], ModelKind::ClipG, Layout::OpenClip),
        (&[("controlnet_cond_embedding.conv_in.weight", &[8])], ModelKind::ControlNet, Layout::Diffusers),
        (&[("control_model.input_hint_block.0.weight", &[8])], ModelKind::ControlNet, Layout::Ldm),
        (&[("lora_unet_input_blocks_1_1_proj_in.lora_down.weight", &[4, 8])], ModelKind::Lora, Layout::Kohya),
        (
            &[("unet.down_blocks.1.attentions.0.proj_in.lora_A.weight", &[4, 8])],
            ModelKind::Lora,
            Layout::Peft,
        ),
        (
            &[("unet.down_blocks.0.attn1.processor.to_q_lora.down.weight", &[4, 8])],
            ModelKind::Lora,
            Layout::Diffusers,
        ),
        (&[("body.0.rdb1.conv1.weight", &[8])], ModelKind::Upscaler, Layout::Other),
        (&[("model.1.sub.0.RDB1.conv1.0.weight", &[8])], ModelKind::Upscaler, Layout::Other),
        (&[("something.else", &[8])], ModelKind::Unknown, Layout::Other),
        (&[], ModelKind::Unknown, Layout::Other),
    ];
    for (tensors, kind, layout) in cases {
        assert_eq!(kind_of(tensors), (*kind, *layout), "{tensors:?}");
    }
}

#[test]
fn an_inspection_speaks_to_people_and_programs() {
    let bytes = file_of(
        &[
            ("lora_unet_x.lora_down.weight", "F32", &[2, 2], f32s(&[0.0; 4])),
            ("lora_unet_x.alpha", "F16", &[], vec![0, 0]),
        ],
        &[("ss_network_dim", "2"), ("bell", "\u{7}\u{1b}[31m"), ("long", &"x".repeat(5000))],
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("l.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let found = inspect(&path).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["kind"], "lora");
    assert_eq!(json["layout"], "kohya");
    assert_eq!(json["parameters"], 5);
    assert_eq!(json["bytes_by_type"], serde_json::json!({ "f16": 2, "f32": 16 }));
    assert_eq!(json["metadata"]["ss_network_dim"], "2");
    let text = found.to_string();
    assert!(text.contains("a LoRA (kohya names)") && text.contains("5 parameters"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text}");
    assert!(text.len() < 1500, "{text}");
}

#[test]
fn metadata_that_contradicts_the_tensors_is_refused() {
    let open = |key: &str, value: &str| {
        let bytes = file_of(
            &[
                (
                    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
                    "F32",
                    &[4, 2],
                    vec![0; 32],
                ),
                (
                    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
                    "F32",
                    &[3, 2],
                    vec![0; 24],
                ),
                (
                    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
                    "F32",
                    &[8, 2],
                    vec![0; 64],
                ),
                (
                    "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
                    "F32",
                    &[2, 2],
                    vec![0; 16],
                ),
            ],
            &[(key, value)],
        );
        CheckpointParts::from_file(&open_bytes(&bytes).unwrap(), &Device::Cpu)
    };
    let config = |hidden: usize| {
        serde_json::json!({
            "hidden_size": hidden, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8,
            "vocab_size": 4, "max_position_embeddings": 3,
        })
        .to_string()
    };
    for key in ["text_encoder_config", "tiny.text_encoder_config"] {
        let parts = open(key, &config(2)).unwrap();
        assert_eq!(parts.clip_l.unwrap().config.num_attention_heads, 2);
    }
    // Without a config one head is the default for so narrow an encoder.
    assert_eq!(open("other", "").unwrap().clip_l.unwrap().config.num_attention_heads, 1);
    let error = open("text_encoder_config", &config(4)).unwrap_err().to_string();
    assert!(error.contains("hidden_size") && error.contains("metadata"), "{error}");
    let error = open("text_encoder_config", "[1]").unwrap_err().to_string();
    assert!(error.contains("text encoder"), "{error}");
}
