//! The flags of `darkroom bench`.

use std::path::PathBuf;

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  Against your ComfyUI, eight clients at once; Darkroom is started for it:
    darkroom bench --workflow pack.json --against http://127.0.0.1:8188 \\
      --models-dir ~/ComfyUI/models --input-dir ~/ComfyUI/input -n 40 --concurrency 8
  Against a Darkroom that runs already:
    darkroom bench --workflow pack.json --url http://127.0.0.1:8190 --against http://127.0.0.1:8188

The workflow is in API format (in ComfyUI: Workflow > Export (API)). Every seed in it is changed
from prompt to prompt, so that nothing is taken from a cache. Both servers are warmed up, then
take turns. Latency is from POST to the end of the prompt as the WebSocket tells it; pictures
are fetched afterwards and compared seed by seed.";

/// Flags of `darkroom bench`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct BenchArgs {
    /// Workflow in API format
    #[arg(short, long, value_name = "FILE.json")]
    pub(super) workflow: PathBuf,
    /// The server to compare with; without it only Darkroom is measured
    #[arg(short, long, value_name = "URL")]
    pub(super) against: Option<String>,
    /// A Darkroom that runs already; without it one is started
    #[arg(long, value_name = "URL", conflicts_with_all = ["models_dir", "input_dir"])]
    pub(super) url: Option<String>,
    /// Key of that Darkroom
    #[arg(long, value_name = "KEY")]
    pub(super) key: Option<String>,
    /// Models of the Darkroom that is started, laid out as ComfyUI's
    #[arg(long, value_name = "DIR")]
    pub(super) models_dir: Option<PathBuf>,
    /// Its input folder
    #[arg(long, value_name = "DIR")]
    pub(super) input_dir: Option<PathBuf>,
    /// Prompts that are measured on each server
    #[arg(short, default_value_t = 20, value_name = "N", value_parser = positive)]
    pub(super) n: usize,
    /// Prompts at once, each from a client of its own
    #[arg(short, long, default_value_t = 1, value_name = "C", value_parser = positive)]
    pub(super) concurrency: usize,
    /// Prompts on each server before anything is measured
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(super) warmup: usize,
    /// Turns that the servers take
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = positive)]
    pub(super) rounds: usize,
    /// First seed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(super) seed: u64,
    /// A number of the workflow that changes instead of its seeds; may be repeated
    #[arg(long, value_name = "NODE.INPUT")]
    pub(super) vary: Vec<String>,
    /// Seconds that one prompt may take
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(super) timeout: u64,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE.json")]
    pub(super) json: Option<PathBuf>,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=100_000) => Ok(n),
        _ => Err("must be 1 to 100000".into()),
    }
}
