//! The other side: `scripts/bench/packs_diffusers.py` in a process of its own, which is asked by lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::Plan;
use crate::packs::{Rgb, rgb};
use crate::subject::{self, Subject};
use crate::watch::{Seen, Watch};

/// The running process.
pub(crate) struct Diffusers {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) load_seconds: f64,
    pub(crate) versions: Value,
    _out: tempfile::TempDir,
}

/// One way through some pictures.
pub(crate) struct Drawn {
    pub(crate) seen: Seen,
    pub(crate) step_seconds: Vec<f64>,
    pub(crate) pictures: Vec<Rgb>,
}

impl Diffusers {
    /// Starts it and waits until it has loaded.
    pub(crate) fn start(plan: &Plan, subject: &Subject, python: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench/packs_diffusers.py");
        let out = tempfile::TempDir::new().unwrap();
        let mut command = Command::new(python);
        command.arg(script).arg(subject.folder.as_ref().unwrap()).arg("--out").arg(out.path());
        command.args(["--lora", &subject.loras[0]]);
        for (flag, value) in [("size", subject.side), ("steps", plan.steps), ("threads", plan.threads)] {
            command.args([format!("--{flag}"), value.to_string()]);
        }
        for (flag, value) in [("cfg", subject::CFG), ("control-strength", subject::CONTROL_STRENGTH)] {
            command.args([format!("--{flag}"), value.to_string()]);
        }
        for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(name, plan.threads.to_string());
        }
        command.env("HF_HUB_OFFLINE", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let asks = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut started = Self { child, asks, answers, load_seconds: 0.0, versions: Value::Null, _out: out };
        let ready = started.answer();
        started.load_seconds = ready["load_seconds"].as_f64().unwrap();
        started.versions = ready["versions"].clone();
        started
    }

    /// Draws pictures, `batch` at a time, with the LoRA in this way: `none`, `adapters` or `fused`.
    pub(crate) fn draw(&mut self, way: &str, batch: usize, pictures: &[Value]) -> Drawn {
        let watch = Watch::begin(self.child.id());
        writeln!(self.asks, "{}", json!({"way": way, "batch": batch, "pictures": pictures})).unwrap();
        let answer = self.answer();
        let seen = watch.end();
        let steps = answer["step_seconds"].as_array().unwrap();
        let files = answer["files"].as_array().unwrap();
        let read = |file: &Value| rgb(&std::fs::read(PathBuf::from(file.as_str().unwrap())).unwrap());
        Drawn {
            seen,
            step_seconds: steps.iter().filter_map(Value::as_f64).collect(),
            pictures: files.iter().map(read).collect(),
        }
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("packs_diffusers.py ended: run it alone to see why"))
    }
}

impl Drop for Diffusers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
