//! What the server and the machine say about themselves.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::server::Server;
use crate::spread::{Spread, rounded};

/// The server's counters at one moment: `name{labels}` to value.
pub(crate) struct Counters(BTreeMap<String, f64>);

/// Stages of a picture, in order.
pub(crate) const STAGES: [&str; 5] = ["encode", "prepare", "step", "decode", "write"];

impl Counters {
    pub(crate) async fn of(server: &Server) -> Self {
        let text = server.get("/metrics").await.text().await.unwrap();
        let line = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|text| !text.starts_with('#')).filter_map(line).collect())
    }

    fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// Seconds that a stage took since `before`, over all its calls.
    pub(crate) fn stage_since(&self, before: &Self, stage: &str) -> f64 {
        let name = format!("darkroom_stage_seconds_sum{{stage=\"{stage}\"}}");
        self.get(&name) - before.get(&name)
    }

    /// The same for every stage.
    pub(crate) fn stages_since(&self, before: &Self) -> Value {
        STAGES
            .iter()
            .map(|stage| ((*stage).to_owned(), json!(rounded(self.stage_since(before, stage)))))
            .collect()
    }

    /// Steps of pictures with LoRAs since `before`, by way: `adapters`, `merged`.
    pub(crate) fn lora_steps_since(&self, before: &Self, way: &str) -> f64 {
        let name = format!("darkroom_lora_steps_total{{way=\"{way}\"}}");
        self.get(&name) - before.get(&name)
    }

    /// Step batches since `before`, and the samples in them.
    pub(crate) fn steps_since(&self, before: &Self) -> (f64, f64) {
        let since = |name: &str| self.get(name) - before.get(name);
        (since("darkroom_step_batch_size_count"), since("darkroom_step_batch_size_sum"))
    }
}

/// A process' memory.
pub(crate) fn memory(pid: u32) -> Value {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib >> 10)
    };
    json!({"peak_mib": mib("VmHWM:"), "now_mib": mib("VmRSS:")})
}

/// What it runs on, without names that tell whose it is.
pub(crate) fn machine() -> Value {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let kib =
        field("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<f64>().ok());
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    json!({
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_gb": kib.map(|kib| rounded(kib * 1024.0 / 1e9)),
        "system": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        "load_average_before": load.and_then(|text| text.split(' ').next()?.parse::<f64>().ok()),
    })
}

/// Milliseconds that a disk takes to keep 4 KiB more of a file.
pub(crate) fn sync_ms(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("sync-probe")).unwrap();
    let times = (0..50).map(|_| {
        file.write_all(&[1; 4096]).unwrap();
        let started = Instant::now();
        file.sync_data().unwrap();
        started.elapsed().as_secs_f64() * 1e3
    });
    Spread::of(times).median()
}
