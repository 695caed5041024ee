//! `darkroom run`: a ComfyUI workflow without a server. The same checks and the same nodes as behind `serve`; files
//! are read and written where the flags say.

mod read;
mod set;
mod watch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use darkroom_pipelines::{Picture, Source};
use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use super::error::CommandError;
use super::print_result;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::engine::{Engine, EngineOptions, Sources};
use crate::metrics::Metrics;
use crate::service::engine_options;
use crate::task::{BlobId, ImageSpec, TaskError, TaskErrorKind};
use crate::workflow::check::FaultyNodes;
use crate::workflow::event::Failure;
use crate::workflow::{Checked, Ending, Folders, Graph, Refusal, Workflows};
use set::Setting;
use watch::Watch;

const EXAMPLES: &str = "\
Examples:
  A workflow in API format (front end: Workflow > Export (API)):
    darkroom run workflow.json --models-dir ~/ComfyUI/models --input-dir ~/ComfyUI/input
  The same with other values; NODE is an id, or a title or class that only one node has:
    darkroom run workflow.json --set 3.seed=7 --set KSampler.steps=30 --set 6.text=\"a red fox\"
  The workflow inside a picture that ComfyUI or Darkroom made:
    darkroom run ComfyUI_00001_.png --set 3.seed=8
  From another program:
    make-workflow | darkroom run - --output-dir out

Without --models-dir the built-in model tiny-sdxl.safetensors is there. The paths of the files
go to standard output, one a line; what happens meanwhile to standard error.";

/// Flags of `darkroom run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// A workflow in ComfyUI's API format, or a PNG that carries one; `-` is standard input
    #[arg(value_name = "WORKFLOW")]
    workflow: PathBuf,
    /// Put VALUE in the place of a node's input: JSON, or a text; may come several times
    #[arg(long, value_name = "NODE.INPUT=VALUE", value_parser = Setting::parse, allow_hyphen_values = true)]
    set: Vec<Setting>,
    /// Folder of models, laid out as ComfyUI's
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Qwen-Image's tokenizer.json, or a folder that has one, where it lies not beside the text encoder
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Folder that pictures are loaded from
    #[arg(long, value_name = "DIR", default_value = "input")]
    input_dir: PathBuf,
    /// Folder that pictures are saved to
    #[arg(long, value_name = "DIR", default_value = "output")]
    output_dir: PathBuf,
}

/// Runs it.
pub(super) fn run(args: &RunArgs, quiet: bool) -> Result<(), CommandError> {
    let mut source = read::workflow(&args.workflow)?;
    let temp = tempfile::TempDir::new()
        .map_err(|e| CommandError::plain(format!("cannot make a temporary folder: {e}")))?;
    let folders = Folders {
        input: args.input_dir.clone(),
        output: args.output_dir.clone(),
        temp: temp.path().join("temp"),
        user: temp.path().join("user"),
        models: args.models_dir.clone(),
    };
    let catalog = Catalog::open(args.models_dir.as_deref(), None)
        .map_err(CommandError::plain)?
        .with_tokenizer(args.tokenizer.clone());
    let workflows = workflows(Arc::new(catalog), folders)?;
    for setting in &args.set {
        setting.apply(&mut source.graph, &workflows.registry)?;
    }
    let checked = workflows.check(&source.graph, None).map_err(|refusal| refused(&refusal, &source.graph))?;
    std::fs::create_dir_all(&args.output_dir).map_err(|e| {
        CommandError::failure(
            format!("cannot make the folder {}: {e}", args.output_dir.display()),
            "choose another with --output-dir",
        )
    })?;
    let watch = Watch::new(&checked, quiet);
    let interrupt = CancellationToken::new();
    let result = workflows.run(&prompt_id(), &checked, source.extra_pnginfo.as_ref(), &watch, &interrupt);
    watch.finish();
    for id in checked.graph.ids() {
        if let Some(ui) = result.outputs.get(id) {
            tell(id, &checked, ui, &args.output_dir, &watch)?;
        }
    }
    workflows.engine.stop();
    match result.ending {
        Ending::Failed(failure) => Err(failed(&failure, &checked.graph)),
        Ending::Interrupted { node, .. } => {
            Err(CommandError::plain(format!("interrupted in node {}", named(&checked.graph, &node))))
        }
        Ending::Succeeded if checked.node_errors.0.is_empty() => Ok(()),
        Ending::Succeeded => {
            say_errors(&checked.node_errors, &checked.graph);
            Err(CommandError::failure(
                "some outputs of the workflow were left out, because they cannot be run",
                "correct the inputs named above; the other outputs were made",
            ))
        }
    }
}

/// Pictures of tasks, of which there are none here.
struct NoSources;

impl Sources for NoSources {
    fn open(&self, _: &ImageSpec) -> Result<Source, TaskError> {
        Err(no_tasks())
    }

    fn picture(&self, _: &BlobId, _: &str) -> Result<Picture, TaskError> {
        Err(no_tasks())
    }
}

fn no_tasks() -> TaskError {
    TaskError { kind: TaskErrorKind::Internal, message: "no tasks are kept here".into() }
}

fn workflows(catalog: Arc<Catalog>, folders: Folders) -> Result<Workflows, CommandError> {
    let config = Config::default();
    let options = EngineOptions { preview_every: None, ..engine_options(&config) };
    let metrics = Arc::new(Metrics::default());
    let started = Engine::start(options, Arc::clone(&catalog), metrics, Arc::new(NoSources));
    let (engine, mut events) =
        started.map_err(|e| CommandError::plain(format!("cannot start threads: {e}")))?;
    // Nothing is a task here, so nothing of it is worth telling; the channel has to be read all the same.
    std::thread::spawn(move || while events.blocking_recv().is_some() {});
    // One prompt: what it needs later it holds itself.
    Ok(Workflows::new(Arc::new(engine), catalog, folders, 0))
}

fn prompt_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// `3 (KSampler, "My sampler")`.
fn named(graph: &Graph, id: &str) -> String {
    match graph.title(id) {
        Some(title) if title != graph.class(id) => format!("{id} ({}, \"{title}\")", graph.class(id)),
        _ => format!("{id} ({})", graph.class(id)),
    }
}

/// Prints the files that a node wrote, and texts that it shows.
fn tell(
    id: &str,
    checked: &Checked,
    ui: &Json,
    output: &Path,
    watch: &Watch<'_>,
) -> Result<(), CommandError> {
    let lists = ui.as_object().into_iter().flatten();
    for item in lists.filter_map(|(_, list)| list.as_array()).flatten() {
        if let Some(text) = item.as_str() {
            watch.say(&format!("node {}: {text}", named(&checked.graph, id)));
            continue;
        }
        let part = |name: &str| item.get(name).and_then(Json::as_str).unwrap_or_default();
        match part("type") {
            "output" => {
                let path = output.join(part("subfolder")).join(part("filename"));
                print_result(&path.display().to_string())?;
            }
            "temp" => watch.say(&format!(
                "node {} only shows {}: use SaveImage to keep it",
                named(&checked.graph, id),
                part("filename")
            )),
            _ => {}
        }
    }
    Ok(())
}

fn failed(failure: &Failure, graph: &Graph) -> CommandError {
    let message = format!("node {}: {}", named(graph, &failure.node), failure.message.trim_end());
    match &*failure.kind {
        "torch.OutOfMemoryError" => {
            CommandError::failure(message, "make the pictures smaller, or fewer at once (batch_size)")
        }
        "ValueError" => CommandError::failure(
            message,
            format!("change the input with --set {}.INPUT=VALUE, or what is linked to it", failure.node),
        ),
        _ => CommandError::plain(message),
    }
}

fn refused(refusal: &Refusal, graph: &Graph) -> CommandError {
    say_errors(&refusal.node_errors, graph);
    if !refusal.missing.is_empty() {
        return CommandError::failure(
            format!("Darkroom has no node {}", refusal.missing.join(", ")),
            "use nodes that it has, or `darkroom serve --comfy-upstream URL` with a ComfyUI that has the others",
        );
    }
    let cycle = refusal.error.extra_info.get("cycle").and_then(Json::as_array);
    if let Some(cycle) = cycle {
        let ids: Vec<&str> = cycle.iter().filter_map(Json::as_str).collect();
        return CommandError::failure(
            format!("{}: nodes {} wait for each other", refusal.error.message, ids.join(", ")),
            "take one of the links between them out",
        );
    }
    let fix = match refusal.error.kind {
        "prompt_no_outputs" => "add a node that keeps its result, like SaveImage",
        "prompt_outputs_failed_validation" => "correct the inputs named above, in the file or with --set",
        _ => "export the workflow anew in API format (front end: Workflow > Export (API))",
    };
    // Details of nodes are above.
    let message = match refusal.error.kind {
        "prompt_outputs_failed_validation" => refusal.error.message.clone(),
        _ => refusal.to_string(),
    };
    CommandError::failure(message, fix)
}

/// A line for each error of a node.
fn say_errors(errors: &FaultyNodes, graph: &Graph) {
    for (id, node) in &errors.0 {
        for error in &node.errors {
            let line = format!("node {}: {}: {}", named(graph, id), error.message, error.details);
            let _ = writeln!(std::io::stderr(), "{}", line.replace(['\n', '\r'], " "));
        }
    }
}
