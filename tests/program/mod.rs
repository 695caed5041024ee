//! Runs the real program and looks at what it left behind.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use image::RgbImage;
use tempfile::TempDir;

/// A finished run of the program.
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `darkroom` with `args`.
pub(crate) fn darkroom<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Run {
    darkroom_with_input(args, b"")
}

/// The same with bytes on its standard input.
pub(crate) fn darkroom_with_input<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, input: &[u8]) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_darkroom"))
        .args(args)
        .env_remove("RUST_LOG")
        .env("HF_ENDPOINT", "http://127.0.0.1:9") // nothing listens there: no test asks a network
        .env("HF_HOME", std::env::temp_dir().join("darkroom-tests-no-hub"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input closes the pipe; that is its right.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Run {
    /// The run worked.
    #[track_caller]
    pub(crate) fn worked(self) -> Self {
        assert_eq!(self.status, Some(0), "stderr: {}", self.stderr);
        self
    }

    /// The run ended with `status`, and standard error says each of `parts` without a panic's text.
    #[track_caller]
    pub(crate) fn refused(self, status: i32, parts: &[&str]) -> Self {
        assert_eq!(self.status, Some(status), "stderr: {}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "'{part}' is not in: {}", self.stderr);
        }
        for part in ["panicked", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(part), "{}", self.stderr);
        }
        self
    }

    /// The paths on standard output.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.stdout.lines().map(PathBuf::from).collect()
    }

    /// The only picture on standard output.
    #[track_caller]
    pub(crate) fn picture(&self) -> RgbImage {
        let paths = self.paths();
        assert_eq!(paths.len(), 1, "{paths:?}");
        open(&paths[0])
    }
}

/// Draws one small picture with the embedded model and `more` flags; a character, 64 × 64, 2 steps, seed 1.
#[track_caller]
pub(crate) fn draw(folder: &Path, more: &[&str]) -> Run {
    let mut args: Vec<&OsStr> = ["generate", "--quiet", "--out"].map(OsStr::new).to_vec();
    args.push(folder.as_os_str());
    let has = |flag: &str| more.contains(&flag);
    for (flag, value) in [("--prompt", "1girl, blonde hair, smile"), ("--seed", "1"), ("--steps", "2")] {
        if !has(flag) {
            args.extend([OsStr::new(flag), OsStr::new(value)]);
        }
    }
    if !has("--image") {
        for (flag, value) in [("--width", "64"), ("--height", "64")] {
            if !has(flag) {
                args.extend([OsStr::new(flag), OsStr::new(value)]);
            }
        }
    }
    args.extend(more.iter().map(OsStr::new));
    darkroom(args).worked()
}

pub(crate) fn open(path: &Path) -> RgbImage {
    image::open(path).unwrap().into_rgb8()
}

/// A picture of the embedded model, 128 × 128, drawn once for all tests of a file.
pub(crate) fn source_picture() -> &'static Path {
    static DRAWN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = DRAWN.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let run = draw(folder.path(), &["--steps", "8", "--width", "128", "--height", "128"]);
        (folder, run.paths().remove(0))
    });
    path
}

/// Mean absolute difference of two pictures of one size, in 8-bit levels, over the pixels where `counts`.
pub(crate) fn difference(a: &RgbImage, b: &RgbImage, counts: impl Fn(u32, u32) -> bool) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let (mut sum, mut values) = (0.0, 0.0);
    for (x, y, pixel) in a.enumerate_pixels().filter(|(x, y, _)| counts(*x, *y)) {
        for (one, other) in pixel.0.iter().zip(b.get_pixel(x, y).0) {
            sum += f64::from(one.abs_diff(other));
            values += 1.0;
        }
    }
    sum / values
}

/// Largest difference of two pictures of one size, in 8-bit levels.
pub(crate) fn largest_difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(one, other)| one.abs_diff(*other)).max().unwrap()
}
