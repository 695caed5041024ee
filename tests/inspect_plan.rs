//! `darkroom inspect --plan` of the published Qwen-Image, as ComfyUI keeps it: the transformer and the text encoder in
//! scaled 8-bit weights, the autoencoder in `bf16`. The files have its names, types and shapes, and holes for content:
//! 30 GB that take no space.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test that cannot go on fails")]

mod program;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use program::darkroom;
use serde_json::Value;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;
/// Of a file system that keeps holes as holes, for headers of any size.
const MOST_ALLOCATED: u64 = 8 << 20;

/// Names, types and shapes of a file.
#[derive(Default)]
struct Header {
    json: String,
    bytes: u64,
}

impl Header {
    fn add(&mut self, name: &str, dtype: &str, shape: &[u64]) {
        let size = match dtype {
            "F8_E4M3" => 1,
            "BF16" => 2,
            "F32" => 4,
            other => panic!("{other}"),
        };
        let end = self.bytes + size * shape.iter().product::<u64>();
        let comma = if self.json.is_empty() { "" } else { "," };
        let begin = self.bytes;
        write!(
            self.json,
            r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        )
        .unwrap();
        self.bytes = end;
    }

    /// A linear layer of codes, its scale and its bias.
    fn scaled(&mut self, name: &str, outputs: u64, inputs: u64, bias: bool) {
        self.add(&format!("{name}.weight"), "F8_E4M3", &[outputs, inputs]);
        self.add(&format!("{name}.scale_weight"), "F32", &[1]);
        if bias {
            self.add(&format!("{name}.bias"), "BF16", &[outputs]);
        }
    }

    /// Writes all but the content.
    fn write(&self, path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("{{{}}}", self.json);
        let mut file = File::create(path).unwrap();
        file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_len(8 + text.len() as u64 + self.bytes).unwrap();
    }
}

/// 20 billion weights.
fn transformer() -> Header {
    let (inner, context) = (3072, 3584);
    let mut header = Header::default();
    header.add("scaled_fp8", "F8_E4M3", &[0]);
    header.scaled("img_in", inner, 64, true);
    header.scaled("txt_in", inner, context, true);
    header.add("txt_norm.weight", "BF16", &[context]);
    header.scaled("time_text_embed.timestep_embedder.linear_1", inner, 256, true);
    header.scaled("time_text_embed.timestep_embedder.linear_2", inner, inner, true);
    for block in 0..60 {
        let name = |end: &str| format!("transformer_blocks.{block}.{end}");
        for end in
            ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        {
            header.scaled(&name(&format!("attn.{end}")), inner, inner, true);
        }
        for end in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            header.add(&name(&format!("attn.{end}.weight")), "BF16", &[128]);
        }
        for stream in ["img", "txt"] {
            header.scaled(&name(&format!("{stream}_mod.1")), 6 * inner, inner, true);
            header.scaled(&name(&format!("{stream}_mlp.net.0.proj")), 4 * inner, inner, true);
            header.scaled(&name(&format!("{stream}_mlp.net.2")), inner, 4 * inner, true);
        }
    }
    header.scaled("norm_out.linear", 2 * inner, inner, true);
    header.scaled("proj_out", 64, inner, true);
    header
}

/// 7 billion weights, and those of the head and of the vision tower, which no prompt needs.
fn text_encoder() -> Header {
    let (width, wide, shared, vocabulary) = (3584, 18_944, 512, 152_064);
    let mut header = Header::default();
    header.add("scaled_fp8", "F8_E4M3", &[0]);
    header.add("model.embed_tokens.weight", "BF16", &[vocabulary, width]);
    for layer in 0..28 {
        let name = |end: &str| format!("model.layers.{layer}.{end}");
        for (end, outputs, bias) in [
            ("q_proj", width, true),
            ("k_proj", shared, true),
            ("v_proj", shared, true),
            ("o_proj", width, false),
        ] {
            header.scaled(&name(&format!("self_attn.{end}")), outputs, width, bias);
        }
        header.scaled(&name("mlp.gate_proj"), wide, width, false);
        header.scaled(&name("mlp.up_proj"), wide, width, false);
        header.scaled(&name("mlp.down_proj"), width, wide, false);
        header.add(&name("input_layernorm.weight"), "BF16", &[width]);
        header.add(&name("post_attention_layernorm.weight"), "BF16", &[width]);
    }
    header.add("model.norm.weight", "BF16", &[width]);
    header.add("lm_head.weight", "BF16", &[vocabulary, width]);
    header.add("visual.patch_embed.proj.weight", "BF16", &[1280, 3, 2, 14, 14]);
    header
}

/// Qwen-Image's autoencoder under Wan's names.
struct Autoencoder(Header);

impl Autoencoder {
    fn header() -> Header {
        let mut own = Self(Header::default());
        own.conv("conv1", &[32, 32, 1, 1, 1]);
        own.conv("conv2", &[16, 16, 1, 1, 1]);
        own.conv("encoder.conv1", &[96, 3, 3, 3, 3]);
        let mut index = 0;
        for (level, (from, to)) in [(96, 96), (96, 192), (192, 384), (384, 384)].into_iter().enumerate() {
            for from in [from, to] {
                own.residual(&format!("encoder.downsamples.{index}"), from, to);
                index += 1;
            }
            if level < 3 {
                own.conv(&format!("encoder.downsamples.{index}.resample.1"), &[to, to, 3, 3]);
                if level > 0 {
                    own.conv(&format!("encoder.downsamples.{index}.time_conv"), &[to, to, 3, 1, 1]);
                }
                index += 1;
            }
        }
        own.ends("encoder", 384, 32);
        own.conv("decoder.conv1", &[384, 16, 3, 3, 3]);
        index = 0;
        for (level, (from, to)) in [(384, 384), (192, 384), (192, 192), (96, 96)].into_iter().enumerate() {
            for from in [from, to, to] {
                own.residual(&format!("decoder.upsamples.{index}"), from, to);
                index += 1;
            }
            if level < 3 {
                own.conv(&format!("decoder.upsamples.{index}.resample.1"), &[to / 2, to, 3, 3]);
                if level < 2 {
                    own.conv(&format!("decoder.upsamples.{index}.time_conv"), &[2 * to, to, 3, 1, 1]);
                }
                index += 1;
            }
        }
        own.ends("decoder", 96, 3);
        own.0
    }

    fn conv(&mut self, name: &str, shape: &[u64]) {
        self.0.add(&format!("{name}.weight"), "BF16", shape);
        self.0.add(&format!("{name}.bias"), "BF16", &shape[..1]);
    }

    fn residual(&mut self, name: &str, from: u64, to: u64) {
        self.0.add(&format!("{name}.residual.0.gamma"), "BF16", &[from, 1, 1, 1]);
        self.conv(&format!("{name}.residual.2"), &[to, from, 3, 3, 3]);
        self.0.add(&format!("{name}.residual.3.gamma"), "BF16", &[to, 1, 1, 1]);
        self.conv(&format!("{name}.residual.6"), &[to, to, 3, 3, 3]);
        if from != to {
            self.conv(&format!("{name}.shortcut"), &[to, from, 1, 1, 1]);
        }
    }

    /// The middle blocks and the output.
    fn ends(&mut self, side: &str, width: u64, outputs: u64) {
        self.residual(&format!("{side}.middle.0"), 384, 384);
        self.0.add(&format!("{side}.middle.1.norm.gamma"), "BF16", &[384, 1, 1]);
        self.conv(&format!("{side}.middle.1.to_qkv"), &[3 * 384, 384, 1, 1]);
        self.conv(&format!("{side}.middle.1.proj"), &[384, 384, 1, 1]);
        self.residual(&format!("{side}.middle.2"), 384, 384);
        self.0.add(&format!("{side}.head.0.gamma"), "BF16", &[width, 1, 1, 1]);
        self.conv(&format!("{side}.head.2"), &[outputs, width, 3, 3, 3]);
    }
}

/// Whether a large hole takes space.
fn has_holes(folder: &Path) -> bool {
    let path = folder.join("hole");
    File::create(&path).unwrap().set_len(8 * MOST_ALLOCATED).unwrap();
    let allocated = fs::metadata(&path).unwrap().blocks() * 512;
    fs::remove_file(path).unwrap();
    allocated < MOST_ALLOCATED
}

/// ComfyUI's folders, and the transformer in them; `None` where they would take 30 GB.
fn published() -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    if !has_holes(folder.path()) {
        eprintln!("left out: {} is on a file system without holes", folder.path().display());
        return None;
    }
    let path = folder.path().join("diffusion_models/qwen_image_fp8_e4m3fn_scaled.safetensors");
    transformer().write(&path);
    text_encoder().write(&folder.path().join("text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors"));
    Autoencoder::header().write(&folder.path().join("vae/qwen_image_vae.safetensors"));
    Some((folder, path))
}

fn plan(file: &Path, memory: &str) -> Value {
    let args = ["inspect", "--plan", "--json", "--memory", memory].map(AsRef::as_ref);
    serde_json::from_str(&darkroom(args.into_iter().chain([file.as_os_str()])).worked().stdout).unwrap()
}

#[test]
fn the_published_model_is_planned_for_cards_of_any_size() {
    let Some((_folder, file)) = published() else { return };
    let mut peaks = Vec::new();
    for (gib, text_encoder, transformer) in
        [(8, "streamed", "streamed"), (24, "streamed", "resident"), (80, "resident", "resident")]
    {
        let plan = plan(&file, &format!("{gib}GiB"));
        assert_eq!(plan["text_encoder"]["placement"], text_encoder, "{gib} GiB: {plan:#}");
        assert_eq!(plan["transformer"]["placement"], transformer, "{gib} GiB: {plan:#}");
        assert_eq!(plan["budget"], gib * GIB);
        let (peak, resident) =
            (plan["peak_bytes"].as_u64().unwrap(), plan["resident_bytes"].as_u64().unwrap());
        assert!(resident < peak && peak <= gib * GIB, "{gib} GiB: {plan:#}");
        peaks.push(peak);

        // Codes of a byte, and little else: 20.43 billion weights, 6.53 billion of layers and 0.54 billion of a table of
        // 16 bits. The head and the vision tower are not held.
        let bytes = |part: &str| plan[part]["bytes"].as_u64().unwrap();
        assert!((20_420_000_000..20_450_000_000).contains(&bytes("transformer")), "{plan:#}");
        assert!((7_610_000_000..7_630_000_000).contains(&bytes("text_encoder")), "{plan:#}");
        assert!((253_000_000..255_000_000).contains(&bytes("vae")), "{plan:#}");
        // Activations of a step are of 16 bits: 7401 tokens of the picture in two rows, eight times 3072 wide and once.
        let step = plan["step_bytes"].as_u64().unwrap();
        assert!((750_000_000..850_000_000).contains(&step), "{plan:#}");
    }
    // All of it; all but the text encoder; a block at a time.
    assert!(peaks[0] < 3 * GIB && peaks[0] < peaks[1] && peaks[1] < peaks[2], "{peaks:?}");
    assert!((28_280_000_000..32_000_000_000).contains(&peaks[2]), "{peaks:?}");
}

#[test]
fn the_plan_for_24_gib_is_printed() {
    let Some((_folder, file)) = published() else { return };
    let shown = darkroom(["inspect".as_ref(), "--plan".as_ref(), file.as_os_str()]).worked().stdout;
    let line = |start: &str| {
        let found = shown.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no line of {start} in {shown}"))
    };
    assert!(line("budget").contains("24.00 GiB"), "{shown}");
    assert!(line("text encoder").contains("7.09 GiB  streamed: 0.00 GiB stay"), "{shown}");
    assert!(line("transformer").contains("19.03 GiB  resident"), "{shown}");
    assert!(line("VAE").contains("0.24 GiB  resident"), "{shown}");
    assert!(line("a step").contains("1328x1328 with guidance"), "{shown}");
    assert!(line("at most").contains("are left for more pictures a step"), "{shown}");
}

#[test]
fn a_card_that_is_too_small_even_so_is_told() {
    let Some((_folder, file)) = published() else { return };
    let args = ["inspect", "--plan", "--memory", "1GiB"].map(AsRef::as_ref);
    let shown = darkroom(args.into_iter().chain([file.as_os_str()])).worked().stdout;
    assert!(shown.contains("more than there is"), "{shown}");
}
