//! What a stage has found, line by line: a process that ends in the middle has lost nothing but the case it was at, and
//! which one that was can be read.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use serde_json::{Map, Value, json};

use crate::Outcome;

/// The lines, and how much time is left.
pub(crate) struct Record {
    file: File,
    end: Instant,
    skip: Vec<String>,
    /// What failures are followed by a look at.
    device: Option<Device>,
}

/// The exit status of a process that asks to be started anew: a card that failed once gives its process nothing more
/// (`scripts/gpu_check/stages.py` knows it).
const AGAIN: i32 = 75;

impl Record {
    pub(crate) fn open(path: &Path, time: Duration, skip: Vec<String>) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, end: Instant::now() + time, skip, device: None })
    }

    /// From now on ends the process after a failure that has left the device unusable.
    pub(crate) fn watch(&mut self, device: &Device) {
        self.device = Some(device.clone());
    }

    /// Seconds until the stage has to be done.
    pub(crate) fn left(&self) -> f64 {
        self.end.saturating_duration_since(Instant::now()).as_secs_f64()
    }

    /// Runs a case that takes about `needs` seconds, unless there is no time for it or it was done before. A failure
    /// or a panic is written down, and the next case goes on. Returns what it found.
    pub(crate) fn case(
        &mut self,
        name: &str,
        needs: f64,
        work: impl FnOnce() -> Outcome<Value>,
    ) -> Option<Value> {
        if self.skip.iter().any(|skipped| skipped == name) {
            return None;
        }
        if self.left() < needs {
            let reason = format!("{:.0} s were left, it takes about {needs:.0} s", self.left());
            self.line(&json!({"end": name, "status": "skipped", "reason": reason}));
            return None;
        }
        self.line(&json!({"begin": name}));
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
        let seconds = rounded(started.elapsed().as_secs_f64());
        let (status, values) = match &outcome {
            Ok(Ok(values)) => ("ok", values.clone()),
            Ok(Err(error)) => ("failed", json!({"reason": error.to_string()})),
            Err(panic) => ("failed", json!({"reason": format!("a panic: {}", said(panic.as_ref()))})),
        };
        let mut line = Map::new();
        line.insert("end".into(), json!(name));
        line.insert("status".into(), json!(status));
        line.insert("took_seconds".into(), json!(seconds));
        if let Value::Object(values) = values {
            line.extend(values);
        }
        self.line(&Value::Object(line));
        if status == "failed" && self.device.as_ref().is_some_and(|device| device.synchronize().is_err()) {
            std::process::exit(AGAIN);
        }
        outcome.ok()?.ok()
    }

    /// A case that cannot be tried here.
    pub(crate) fn skipped(&mut self, name: &str, reason: &str) {
        if !self.skip.iter().any(|skipped| skipped == name) {
            self.line(&json!({"end": name, "status": "skipped", "reason": reason}));
        }
    }

    /// Something about the whole stage.
    pub(crate) fn fact(&mut self, name: &str, value: &Value) {
        self.line(&json!({"fact": name, "value": value}));
    }

    /// The stage itself cannot go on.
    pub(crate) fn failed(&mut self, reason: &str) {
        self.line(&json!({"failed": reason}));
    }

    fn line(&mut self, line: &Value) {
        // One write a line: readers never see half of one for long. A disk that is full is no reason to stop.
        let _ = self.file.write_all(format!("{line}\n").as_bytes());
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it says nothing")
}

/// Four significant digits: more are noise.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
