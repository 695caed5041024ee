//! `darkroom doctor`: which devices and libraries there are, which would be used, and whether a picture comes out right.

use std::fmt::Write as _;
use std::time::Instant;

use candle_core::Device;
use darkroom_models::device::{self, Card, DeviceError, DeviceName, Library};
use darkroom_models::{ComputeType, bf16_is_accelerated};
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{ImageRequest, Picture, Pipeline, PipelineError, Source};
use serde::Serialize;

use super::args::DoctorArgs;
use super::error::CommandError;
use super::print_result;
use crate::embedded;

/// Side of the test picture, pixels, and steps on the way to it.
const SIDE: usize = 64;
const STEPS: usize = 4;
/// A GPU's 16-bit picture is at least so close to the CPU's, decibels.
const CLOSE: f64 = 40.0;

/// What was found.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    built_with_cuda: bool,
    cpu: Cpu,
    /// Cards, or why there are none.
    cards: Result<Vec<CardFound>, String>,
    libraries: Vec<LibraryFound>,
    /// What `--device` would take.
    device: String,
    /// What the test picture says; `None` where no device can be opened.
    test: Option<Test>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    threads: usize,
    /// Whether `--precision bf16` is faster than `full`.
    multiplies_bf16: bool,
}

#[derive(Debug, Serialize)]
struct CardFound {
    number: usize,
    name: String,
    compute_capability: String,
    memory_bytes: u64,
    free_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LibraryFound {
    name: &'static str,
    version: Option<String>,
    problem: Option<String>,
    optional: bool,
}

/// The test picture.
#[derive(Debug, Serialize)]
struct Test {
    /// Seconds it took, with loading, and on a GPU with compiling kernels.
    seconds: f64,
    /// PSNR to the CPU's picture, decibels; `None` on the CPU itself, and where the pictures are the same.
    psnr: Option<f64>,
    /// What went wrong.
    problem: Option<String>,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), CommandError> {
    let opened = device::open(args.device);
    let (name, test) = match &opened {
        Ok((device, _)) => (shown(args.device, device), Some(test(device))),
        Err(_) => (args.device.to_string(), None),
    };
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        built_with_cuda: cfg!(feature = "cuda"),
        cpu: Cpu {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            multiplies_bf16: bf16_is_accelerated(),
        },
        cards: device::cards().map(|cards| cards.into_iter().map(found).collect()).map_err(|e| e.to_string()),
        libraries: device::libraries().into_iter().map(library).collect(),
        device: name,
        test,
    };
    if args.json {
        print_result(&serde_json::to_string_pretty(&findings).map_err(CommandError::plain)?)?;
    } else {
        print_result(findings.text().trim_end())?;
    }
    verdict(&findings, opened.err())
}

fn found(card: Card) -> CardFound {
    CardFound {
        number: card.number,
        name: card.name,
        compute_capability: format!("{}.{}", card.capability.0, card.capability.1),
        memory_bytes: card.memory,
        free_bytes: card.free,
    }
}

fn library(library: Library) -> LibraryFound {
    let (version, problem) = match library.version {
        Ok(version) => (Some(version), None),
        Err(problem) => (None, Some(problem)),
    };
    LibraryFound { name: library.name, version, problem, optional: library.optional }
}

fn shown(asked: DeviceName, opened: &Device) -> String {
    match (asked, opened) {
        (DeviceName::Auto, Device::Cpu) => DeviceName::Cpu.to_string(),
        (DeviceName::Auto, _) => DeviceName::Cuda(0).to_string(),
        (asked, _) => asked.to_string(),
    }
}

/// Fails where the device that was asked for cannot draw.
fn verdict(findings: &Findings, unopened: Option<DeviceError>) -> Result<(), CommandError> {
    const FIX: &str = "--device cpu works everywhere";
    if let Some(error) = unopened {
        return Err(CommandError::failure(error, FIX));
    }
    match findings.test.as_ref().and_then(|test| test.problem.as_ref()) {
        Some(problem) => Err(CommandError::failure(format!("{}: {problem}", findings.device), FIX)),
        None => Ok(()),
    }
}

/// Draws with the built-in model, on a GPU also on the CPU to compare with.
fn test(device: &Device) -> Test {
    let started = Instant::now();
    let drawn = draw(device);
    let seconds = started.elapsed().as_secs_f64();
    let problem = |problem: String| Test { seconds, psnr: None, problem: Some(problem) };
    let picture = match drawn {
        Ok(picture) => picture,
        Err(error) => return problem(format!("the test picture cannot be drawn: {error}")),
    };
    if picture.data().iter().any(|value| !value.is_finite()) {
        return problem("the test picture has values that are no numbers".into());
    }
    if device.is_cpu() {
        return Test { seconds, psnr: None, problem: None };
    }
    let psnr = match draw(&Device::Cpu) {
        Ok(reference) => psnr(&picture, &reference),
        Err(error) => return problem(format!("the CPU cannot draw it either: {error}")),
    };
    let far = psnr < CLOSE;
    let message = format!("the test picture is {psnr:.1} dB from the CPU's; at least {CLOSE} are expected");
    Test { seconds, psnr: psnr.is_finite().then_some(psnr), problem: far.then_some(message) }
}

fn draw(device: &Device) -> Result<Picture, PipelineError> {
    let checkpoint = embedded::checkpoint(device)?;
    let pipeline = Pipeline::load_at(&checkpoint, device, ComputeType::Auto)?;
    let request = ImageRequest {
        prompt: "1girl, blonde hair, smile".into(),
        negative_prompt: String::new(),
        steps: STEPS,
        cfg: 4.0,
        sampler: SamplerKind::Euler,
        scheduler: Scheduler::Normal,
        seed: 1,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: SIDE, height: SIDE },
        loras: None,
        controls: Vec::new(),
        speed: darkroom_pipelines::Speed::default(),
        shift: None,
    };
    let mut samples = pipeline.prepare(&[request])?;
    pipeline.denoise(&mut samples, 1, &mut |_| ())?;
    let latents: Vec<_> = samples.iter().filter_map(darkroom_pipelines::Sample::latent).collect();
    let mut pictures = pipeline.decode(&latents)?;
    pictures.pop().ok_or(PipelineError::NotANumber { index: 0 })
}

/// Peak signal-to-noise ratio, decibels; infinite for equal pictures.
fn psnr(a: &Picture, b: &Picture) -> f64 {
    let squares = a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b).powi(2));
    -10.0 * (squares.sum::<f64>() / a.data().len().max(1) as f64).log10()
}

impl Findings {
    fn text(&self) -> String {
        let mut text = String::new();
        let build = if self.built_with_cuda { "with CUDA" } else { "without CUDA" };
        let _ = writeln!(text, "Darkroom {}, built {build}\n\nDevices", self.version);
        let bf16 = if self.cpu.multiplies_bf16 { ", multiplies bf16 (--precision bf16)" } else { "" };
        let _ = writeln!(text, "  cpu      {} threads{bf16}", self.cpu.threads);
        match &self.cards {
            Ok(cards) => {
                for card in cards {
                    let free = card.free_bytes.map_or_else(|| "?".to_owned(), gib);
                    let _ = writeln!(
                        text,
                        "  cuda:{}   {}, compute capability {}, {free} of {} GiB free",
                        card.number,
                        card.name,
                        card.compute_capability,
                        gib(card.memory_bytes)
                    );
                }
            }
            Err(reason) => {
                let _ = writeln!(text, "  cuda     {reason}");
            }
        }
        if !self.libraries.is_empty() {
            text.push_str("\nLibraries\n");
        }
        for library in &self.libraries {
            let state = match (&library.version, &library.problem) {
                (Some(version), _) => version.clone(),
                (None, problem) => {
                    let problem = problem.as_deref().unwrap_or("not found");
                    let without = if library.optional { " (works without it, slower)" } else { "" };
                    format!("{problem}{without}")
                }
            };
            let _ = writeln!(text, "  {:<12} {state}", library.name);
        }
        let _ = writeln!(text, "\nUsed: {}", self.device);
        if let Some(test) = &self.test {
            let state = match (&test.problem, test.psnr) {
                (Some(problem), _) => problem.clone(),
                (None, Some(psnr)) => format!("drawn, {psnr:.1} dB from the CPU's"),
                (None, None) => "drawn".to_owned(),
            };
            let _ = writeln!(text, "Test picture: {state} ({:.1} s)", test.seconds);
        }
        text
    }
}

/// Bytes as GiB with one decimal.
fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_close_has_a_high_ratio() {
        let picture = |value: f32| Picture::new(1, 1, vec![value; 3]).unwrap();
        assert_eq!(psnr(&picture(0.5), &picture(0.5)), f64::INFINITY);
        assert!((psnr(&picture(0.5), &picture(0.51)) - 40.0).abs() < 0.01);
    }

    #[test]
    fn a_missing_library_is_told_with_what_it_means() {
        let findings = Findings {
            version: "0",
            built_with_cuda: true,
            cpu: Cpu { threads: 2, multiplies_bf16: false },
            cards: Err("no CUDA card answers: no driver".into()),
            libraries: vec![LibraryFound {
                name: "cuDNN",
                version: None,
                problem: Some("not found".into()),
                optional: true,
            }],
            device: "cpu".into(),
            test: Some(Test { seconds: 0.5, psnr: None, problem: None }),
        };
        let text = findings.text();
        assert!(text.contains("cuDNN        not found (works without it, slower)"), "{text}");
        assert!(text.contains("no CUDA card answers") && text.contains("Used: cpu"), "{text}");
    }
}
