//! Loading holds a file's weights once: mapped pages are released as they are copied. A test of its own
//! process, since it reads the process's peak memory.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper fails as its test does"
)]
#![cfg(target_os = "linux")]

#[path = "support/safetensors_bytes.rs"]
mod safetensors_bytes;

use std::sync::Arc;

use candle_core::Device;
use darkroom_models::weights::{WeightFile, Weights};

/// Tensors of the file, each larger than a piece that is copied at once.
const TENSORS: usize = 4;
const ROWS: usize = 8192;
const COLUMNS: usize = 4096;
/// What threads, the header and a few pieces in flight may take beside the weights.
const BESIDE: usize = 48 << 20;

fn peak_resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

#[test]
fn loading_takes_the_files_size_once() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = (0..TENSORS).map(|index| (format!("t{index}"), vec![ROWS, COLUMNS]));
    let path = safetensors_bytes::hollow(&folder.path().join("m.safetensors"), tensors, &[]);
    let before = peak_resident_bytes();
    let file = Arc::new(WeightFile::open(&path).unwrap());
    let weights = Weights::from_file(file, &Device::Cpu);
    let loaded: Vec<_> =
        (0..TENSORS).map(|index| weights.take(&format!("t{index}"), &[ROWS, COLUMNS]).unwrap()).collect();
    weights.finish().unwrap();
    let size = TENSORS * ROWS * COLUMNS * 2;
    let grown = peak_resident_bytes() - before;
    println!("{size} bytes of weights, peak memory grew by {grown}");
    assert!(grown >= size, "the weights were not copied: {grown} bytes for {size}");
    assert!(grown <= size + BESIDE, "{grown} bytes for {size} bytes of weights");
    drop(loaded);
}
