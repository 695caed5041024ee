//! The flags of `darkroom`, their ranges and their help. What a flag says is checked here as far as the flag
//! alone can tell; what depends on the model or on other flags is checked where it is used.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use darkroom_models::ComputeType;
use darkroom_models::device::DeviceName;
use darkroom_pipelines::FlowShift;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;

use super::bench::BenchArgs;
use super::guide_args::{ControlArg, LoraArg, TemplatesArg};
use super::options::{All, ConfigFlags, Listening, Storage};
use super::preprocess::PreprocessArgs;
use super::run_workflow::RunArgs;
use super::speed_args::SpeedArgs;
use crate::config::parse_bytes;

/// Sides of pictures are multiples of this.
const CELL: usize = 8;
/// Smallest and largest side of a picture, pixels.
const SIDES: std::ops::RangeInclusive<usize> = 16..=8192;

/// Draws pictures with diffusion models.
///
/// Without a model it uses the small one that is built in, so that every command works at once.
#[derive(Debug, Parser)]
#[command(name = "darkroom", bin_name = "darkroom", version, propagate_version = true, after_help = EXAMPLES, max_term_width = 110)]
pub(super) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
    /// Log more to standard error: -v what happens, -vv every step (RUST_LOG is finer)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Only errors on standard error: no progress, no hints
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  darkroom pack --character \"1girl, blonde hair, blue eyes\" --out out/pack
  darkroom generate --prompt \"1girl, pink hair, laughing\" --count 4 --seed 7
  darkroom generate --model sd_xl_base_1.0.safetensors --prompt \"a lighthouse at dusk\"
  darkroom inspect --plan models/diffusion_models/qwen_image_fp8_e4m3fn_scaled.safetensors
  darkroom run workflow.json --models-dir models --set 3.seed=7
  darkroom inspect sd_xl_base_1.0.safetensors

`darkroom help COMMAND` explains a command and its flags.";

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Draw pictures from a prompt, from a picture, or inside a mask
    Generate(Box<GenerateArgs>),
    /// Draw one character with many expressions, with a contact sheet and pack.json
    Pack(Box<PackArgs>),
    /// Run a ComfyUI workflow: a JSON file in API format, or a picture that carries one
    Run(RunArgs),
    /// Make a control picture for a ControlNet: edges, skeletons
    Preprocess(PreprocessArgs),
    /// Say what a weight file, a model folder or a picture is
    Inspect(InspectArgs),
    /// Serve pictures over HTTP, with a page to try it in the browser
    Serve(Box<ServeArgs>),
    /// Print the configuration that `serve` would run with, as a file for --config
    Config(ConfigArgs),
    /// Say which devices and libraries there are, what would be used, and whether a test picture comes out right
    Doctor(DoctorArgs),
    /// Ask a running server whether it is well: exit status 0 if it is, else 1
    Health(HealthArgs),
    /// Compare Darkroom with another server that speaks ComfyUI's API: speed, overhead, pictures
    Bench(BenchArgs),
    /// Make, list and revoke API keys
    Keys(KeysArgs),
}

const GENERATE_EXAMPLES: &str = "\
Examples:
  Text to image, four seeds (7, 8, 9, 10):
    darkroom generate --prompt \"1girl, (smile:1.2), beach\" --negative \"hat\" --seed 7 --count 4
  Image to image: how much may change is --denoise:
    darkroom generate --image a.png --prompt \"1girl, angry\" --denoise 0.5 --width 128
  Inpainting: white in the mask is repainted:
    darkroom generate --image a.png --mask mask.png --prompt \"blue hat\" --inpaint-mode fill
  A checkpoint of your own, or one from the Hugging Face Hub:
    darkroom generate --model my.safetensors --prompt \"a red fox\" --width 832 --height 1216
    darkroom generate --model stabilityai/stable-diffusion-xl-base-1.0 --prompt \"a red fox\"

Every picture is a PNG that carries its settings twice: as AUTOMATIC1111's `parameters` and
as ComfyUI's `prompt`. The paths of the pictures go to standard output, one a line.";

/// Flags of `darkroom generate`.
#[derive(Debug, Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) text: PromptArgs,
    /// How many pictures; each has the seed of the one before it plus 1
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) count: u32,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) source: SourceArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR", default_value = "out", help_heading = "Output")]
    pub(super) out: PathBuf,
    /// Also write the latents to this file, as ComfyUI's LoadLatent reads them
    #[arg(long, value_name = "F.safetensors", help_heading = "Output")]
    pub(super) save_latent: Option<PathBuf>,
}

/// What to draw.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct PromptArgs {
    /// What to draw; `(word:1.2)` weighs, `\(` and `\)` are plain brackets
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) prompt: Option<String>,
    /// Read the prompt from a file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(super) prompt_file: Option<PathBuf>,
}

const PACK_EXAMPLES: &str = "\
Examples:
  darkroom pack --character \"1girl, blonde hair, blue eyes\" --out out/pack
  darkroom pack --character \"1boy, black hair, red shirt\" --expressions happy,angry --seed 3

  With the built-in LoRA, faces kept in place by templates, in other clothes:
    darkroom pack --character \"1girl\" --lora tinychan:0.9 --templates default --outfit \"red shirt\"
  With the outlines of a picture, for the first half of the steps:
    darkroom pack --character \"1girl\" --control canny=a.png:0.8:0-0.5

Writes NAME.png for each expression, contact_sheet.png and pack.json. All pictures share the
seed, so that the character stays the same. An expression is its name or a synonym: `happy`
is smile_gentle.";

/// Flags of `darkroom pack`.
#[derive(Debug, Args)]
#[command(after_help = PACK_EXAMPLES)]
pub(super) struct PackArgs {
    /// Tags of the character: what all pictures share
    #[arg(short, long, value_name = "TAGS", allow_hyphen_values = true)]
    pub(super) character: String,
    /// Expressions, separated by commas, or `all`
    #[arg(short, long, value_name = "A,B,…", value_delimiter = ',', default_value = "all")]
    pub(super) expressions: Vec<String>,
    #[command(flatten)]
    pub(super) guide: GuideArgs,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Folder for the pack
    #[arg(long, value_name = "DIR", default_value = "out/pack", help_heading = "Output")]
    pub(super) out: PathBuf,
}

/// What keeps a pack in character and in place.
#[derive(Debug, Args)]
#[command(next_help_heading = "Character and place")]
pub(super) struct GuideArgs {
    /// A LoRA: a file, or a name as in loras/ of --models-dir or built in (tinychan); may be repeated
    #[arg(long, value_name = "FILE|NAME[:STRENGTH[:TEXT]]", allow_hyphen_values = true)]
    pub(super) lora: Vec<LoraArg>,
    /// A ControlNet's type (canny, openpose, depth) and the picture that steers it; may be repeated
    #[arg(long, value_name = "TYPE=PICTURE[:STRENGTH[:START-END]]")]
    pub(super) control: Vec<ControlArg>,
    /// Folder of template sets, SET/EXPRESSION.png
    #[arg(long, value_name = "DIR")]
    pub(super) template_dir: Option<PathBuf>,
    /// Follow the templates of this set (built in: default, short), or none [default: default with --template-dir, else none]
    #[arg(long, value_name = "SET|none")]
    pub(super) templates: Option<TemplatesArg>,
    /// What the character wears: added to its tags
    #[arg(long, value_name = "TAGS", allow_hyphen_values = true)]
    pub(super) outfit: Option<String>,
    /// Draw over this picture; with --width and --height it is scaled and cut to that size
    #[arg(long, value_name = "PICTURE")]
    pub(super) base: Option<PathBuf>,
    /// How much of --base changes: 1 all, 0.3 little [default: 0.4]
    #[arg(long, value_name = "SHARE", requires = "base", value_parser = share, allow_negative_numbers = true)]
    pub(super) denoise: Option<f64>,
    /// Folder of models, laid out as ComfyUI's, where LoRAs and ControlNets are looked up by name
    #[arg(long, value_name = "DIR")]
    pub(super) models_dir: Option<PathBuf>,
}

/// Flags of `darkroom inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A .safetensors file, a diffusers folder, or a PNG
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Of Qwen-Image: say where its networks would go on a card with --memory, before anything is read
    #[arg(long)]
    pub(super) plan: bool,
    /// Memory of the card that is planned for
    #[arg(long, value_name = "SIZE", default_value = "24GiB", requires = "plan", value_parser = bytes)]
    pub(super) memory: u64,
}

/// The model and how it is sampled.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model and sampling")]
pub(super) struct SamplingArgs {
    /// A .safetensors checkpoint, a diffusers folder, or `org/name` on the Hugging Face Hub
    #[arg(short, long, value_name = "PATH|ORG/NAME", default_value = "embedded")]
    pub(super) model: String,
    /// Of Qwen-Image: its tokenizer.json, or a folder that has one, where it lies not beside the text encoder
    #[arg(long, value_name = "PATH")]
    pub(super) tokenizer: Option<PathBuf>,
    /// What to stay away from
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) negative: Option<String>,
    /// Pixels in a row, a multiple of 8 [default: the model's own size]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = side)]
    pub(super) width: Option<usize>,
    /// Rows of pixels, a multiple of 8 [default: the model's own size]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = side)]
    pub(super) height: Option<usize>,
    /// Sampling steps [default: 20, or what suits the model]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) steps: Option<u32>,
    /// How strongly the prompt pulls; 1 is off and twice as fast [default: 7, or what suits the model]
    #[arg(long, value_name = "SCALE", value_parser = cfg_scale, allow_negative_numbers = true)]
    pub(super) cfg: Option<f64>,
    /// How to walk from noise to picture; --help lists the names [default: dpmpp_2m]
    #[arg(long, value_name = "NAME", value_parser = sampler(), hide_possible_values = true, long_help = sampler_help())]
    pub(super) sampler: Option<SamplerKind>,
    /// Where the steps lie; --help lists the names [default: karras]
    #[arg(long, value_name = "NAME", value_parser = scheduler(), hide_possible_values = true, long_help = scheduler_help())]
    pub(super) scheduler: Option<Scheduler>,
    /// How far noise levels are moved up, of models that predict a flow (Qwen-Image): a number, or `dynamic`, by the
    /// picture's size [default: 3]
    #[arg(long, value_name = "SHIFT", value_parser = shift, allow_negative_numbers = true)]
    pub(super) shift: Option<FlowShift>,
    /// Seed of the noise: the same seed and flags give the same picture [default: generate draws one, pack takes 5]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub(super) seed: Option<u64>,
    /// Text-encoder layer that counts, from the end: 1 the last, 2 the one before [default: the model's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=24))]
    pub(super) clip_skip: Option<u32>,
    /// Most pictures that go through the network at once [default: by size, 1 to 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) max_batch: Option<u32>,
    /// What the UNet and the VAE compute in. `auto` is `full` on a CPU and the 16-bit type of the model's file on a GPU;
    /// `bf16` on a CPU rounds what they multiply to 8 significant bits: several times faster on CPUs with AMX, close to
    /// but not the same picture, and on other CPUs it computes as `full`. `fp8` rounds the UNet's linear layers to 8
    /// bits: for GPUs from Ada and Hopper on, half the memory and up to twice the rate of 16 bits; a CPU imitates it,
    /// slowly
    #[arg(long, value_enum, default_value_t = PrecisionArg::Auto)]
    pub(super) precision: PrecisionArg,
    /// Where to compute: `auto` (the first GPU that answers, or else the CPU), `cpu`, `cuda:0`, `cuda:1`, …
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceName::Auto)]
    pub(super) device: DeviceName,
    /// Most 77-token chunks of a prompt; longer prompts are refused
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) max_prompt_chunks: u32,
    #[command(flatten)]
    pub(super) speed: SpeedArgs,
}

/// `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PrecisionArg {
    /// What the device is good at.
    Auto,
    /// Single precision: ComfyUI's pictures.
    Full,
    /// bfloat16; on a CPU products alone, with single-precision sums.
    Bf16,
    /// Half precision on a GPU.
    F16,
    /// As auto, with 8-bit products in the UNet's linear layers.
    Fp8,
}

impl From<PrecisionArg> for ComputeType {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Auto => Self::Auto,
            PrecisionArg::Full => Self::Full,
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::F16 => Self::F16,
            PrecisionArg::Fp8 => Self::Fp8,
        }
    }
}

/// Flags of `darkroom doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The device to test: `auto` (the first GPU that answers, or else the CPU), `cpu`, `cuda:0`, `cuda:1`, …
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceName::Auto)]
    pub(super) device: DeviceName,
    /// Print the findings as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Flags of `darkroom serve`.
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) flags: ConfigFlags<All>,
}

const SERVE_EXAMPLES: &str = "\
Examples:
  Try it; the page is at http://127.0.0.1:8188:
    darkroom serve
  With models of your own, the first one loaded before the server is ready:
    darkroom serve --models-dir ~/ComfyUI/models --model sd_xl_base_1.0 --preload sd_xl_base_1.0
  For others on the network (a key is needed):
    darkroom keys create gateway
    darkroom serve --host 0.0.0.0

Every setting is a flag, an environment variable and a line of the file that --config names:
`darkroom config` prints them all. SIGTERM and Ctrl-C let it finish what is running; what does
not finish in time goes on at the next start.";

/// Flags of `darkroom config`.
#[derive(Debug, Args)]
#[command(after_help = CONFIG_EXAMPLES)]
pub(super) struct ConfigArgs {
    /// Print the defaults, whatever flags, variables and files say
    #[arg(long)]
    pub(super) defaults: bool,
    #[command(flatten)]
    pub(super) flags: ConfigFlags<All>,
}

const CONFIG_EXAMPLES: &str = "\
Examples:
  darkroom config --defaults > darkroom.toml
  darkroom config --config darkroom.toml --port 8000

Flags win over environment variables, these over the file, and the file over the defaults.
What is not at its default says where it comes from. Secrets are not printed.";

/// Flags of `darkroom health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// The server, such as http://127.0.0.1:8188, or an address on it, such as http://127.0.0.1:8188/ready
    /// [default: where `serve` with the same flags, variables and file listens]
    #[arg(value_name = "URL")]
    pub(super) url: Option<String>,
    #[command(flatten)]
    pub(super) flags: ConfigFlags<Listening>,
}

const KEYS_EXAMPLES: &str = "\
Examples:
  darkroom keys create gateway --admin
  darkroom keys create phone --requests-per-minute 30 --max-tasks 10
  darkroom keys list
  darkroom keys revoke phone

They work while the server runs, and count from its next request on. The data folder or database
must be the server's: pass the same --config, --data-dir or --database-url.";

/// Flags of `darkroom keys`.
#[derive(Debug, Args)]
#[command(after_help = KEYS_EXAMPLES)]
pub(super) struct KeysArgs {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: KeysCommand,
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key and print its secret, once
    Create(CreateKeyArgs),
    /// List the keys, without their secrets
    List(ListKeysArgs),
    /// Take a key back; requests with it are refused from now on
    Revoke(RevokeKeyArgs),
}

/// Flags of `darkroom keys create`.
#[derive(Debug, Args)]
pub(super) struct CreateKeyArgs {
    /// What to call it; unique among keys that are not revoked
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// May also load and unload models, and what else changes the server for everyone
    #[arg(long)]
    pub(super) admin: bool,
    /// Requests a minute; 0 is no limit [default: auth.requests_per_minute]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) requests_per_minute: Option<u32>,
    /// Unfinished tasks at once; 0 is no limit [default: queue.max_tasks_per_key]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) max_tasks: Option<u32>,
    #[command(flatten)]
    pub(super) flags: ConfigFlags<Storage>,
}

/// Flags of `darkroom keys list`.
#[derive(Debug, Args)]
pub(super) struct ListKeysArgs {
    #[command(flatten)]
    pub(super) flags: ConfigFlags<Storage>,
}

/// Flags of `darkroom keys revoke`.
#[derive(Debug, Args)]
pub(super) struct RevokeKeyArgs {
    /// Its name or id
    #[arg(value_name = "NAME|ID")]
    pub(super) key: String,
    #[command(flatten)]
    pub(super) flags: ConfigFlags<Storage>,
}

/// What to start from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Starting from a picture")]
pub(super) struct SourceArgs {
    /// Start from this picture; with --width and --height it is scaled and cut to that size
    #[arg(short, long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// Repaint only where this picture is white (its red channel); black is kept, grey blends
    #[arg(long, value_name = "FILE", requires = "image")]
    pub(super) mask: Option<PathBuf>,
    /// How to inpaint: noise-mask changes what is there, fill replaces it. Without --mask, the picture's
    /// transparent areas are repainted
    #[arg(long, value_name = "MODE", requires = "image")]
    pub(super) inpaint_mode: Option<InpaintKind>,
    /// With --inpaint-mode fill: grow the mask by so many pixels, so that no seam shows [default: 6]
    #[arg(long, value_name = "PIXELS", requires = "inpaint_mode", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub(super) grow_mask: Option<u32>,
    /// Share of the schedule that runs: 1 draws anew, 0.3 changes little [default: 0.75 with --image, else 1]
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub(super) denoise: Option<f64>,
}

/// What the network sees under the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum InpaintKind {
    /// The picture itself; use with --denoise below 1 (ComfyUI's SetLatentNoiseMask)
    NoiseMask,
    /// Grey; draws something new (ComfyUI's VAEEncodeForInpaint)
    Fill,
}

/// What else to write.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Write how long loading, encoding, each step and decoding took, as JSON
    #[arg(long, value_name = "FILE.json")]
    pub(super) timings: Option<PathBuf>,
}

fn side(text: &str) -> Result<usize, String> {
    let side: usize = text.parse().map_err(|_| "not a whole number of pixels".to_owned())?;
    if !SIDES.contains(&side) {
        return Err(format!("must be {} to {}", SIDES.start(), SIDES.end()));
    }
    if side.is_multiple_of(CELL) {
        return Ok(side);
    }
    let below = side / CELL * CELL;
    Err(format!("not a multiple of {CELL}; the nearest are {below} and {}", below + CELL))
}

fn in_range(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (least..=most).contains(&value) { Ok(value) } else { Err(format!("must be {least} to {most}")) }
}

fn cfg_scale(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 100.0)
}

fn shift(text: &str) -> Result<FlowShift, String> {
    match text {
        "dynamic" => Ok(FlowShift::Dynamic),
        number => in_range(number, 0.01, 100.0).map(FlowShift::Fixed),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).and_then(|bytes| u64::try_from(bytes).ok());
    bytes.ok_or_else(|| "must be a number of bytes, such as 24GiB".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 1.0)
}

fn sampler() -> impl TypedValueParser<Value = SamplerKind> {
    PossibleValuesParser::new(SamplerKind::ALL.iter().map(|kind| kind.name()))
        .try_map(|name| name.parse::<SamplerKind>())
}

fn scheduler() -> impl TypedValueParser<Value = Scheduler> {
    PossibleValuesParser::new(Scheduler::ALL.iter().map(|kind| kind.name()))
        .try_map(|name| name.parse::<Scheduler>())
}

fn sampler_help() -> String {
    let names: Vec<&str> = SamplerKind::ALL.iter().map(|kind| kind.name()).collect();
    format!(
        "How to walk from noise to picture [default: dpmpp_2m, or what suits the model]. One of: {}",
        names.join(", ")
    )
}

fn scheduler_help() -> String {
    let names: Vec<&str> = Scheduler::ALL.iter().map(|kind| kind.name()).collect();
    format!("Where the steps lie [default: karras, or what suits the model]. One of: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refused(args: &[&str]) -> String {
        let args = ["darkroom", "generate", "--prompt", "x"].iter().chain(args);
        Cli::try_parse_from(args).unwrap_err().to_string()
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_size_that_is_no_multiple_of_8_names_the_nearest_that_are() {
        let message = refused(&["--width", "130"]);
        assert!(message.contains("--width") && message.contains("128 and 136"), "{message}");
        assert!(refused(&["--height", "0"]).contains("must be 16 to 8192"));
        assert!(refused(&["--height", "99999999999999999999999"]).contains("whole number"));
    }

    #[test]
    fn an_unknown_sampler_names_the_closest_and_all() {
        let message = refused(&["--sampler", "dpmpp_2"]);
        assert!(message.contains("dpmpp_2m") && message.contains("uni_pc_bh2"), "{message}");
        assert!(refused(&["--scheduler", "karas"]).contains("'karras'"));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for args in [
            ["--steps", "0"],
            ["--steps", "1001"],
            ["--cfg", "NaN"],
            ["--cfg", "-1"],
            ["--denoise", "1.5"],
            ["--denoise", "inf"],
            ["--count", "0"],
            ["--seed", "-1"],
            ["--clip-skip", "0"],
            ["--guidance-interval", "0.8-0.2"],
            ["--cache-interval", "0"],
            ["--cache-branch-id", "2"],
        ] {
            let message = refused(&args);
            assert!(message.contains(args[0]), "{args:?}: {message}");
        }
    }

    #[test]
    fn a_mask_needs_a_picture_and_a_prompt_is_needed_once() {
        assert!(refused(&["--mask", "m.png"]).contains("--image"));
        assert!(refused(&["--prompt-file", "p.txt"]).contains("cannot be used with"));
        assert!(Cli::try_parse_from(["darkroom", "generate"]).is_err());
    }

    #[test]
    fn a_prompt_may_start_with_a_dash() {
        let cli = Cli::try_parse_from(["darkroom", "generate", "--prompt", "-x-", "--negative", "--y"]);
        assert!(cli.is_ok(), "{cli:?}");
    }
}
