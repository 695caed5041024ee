//! `darkroom preprocess`: from a picture or a pose to the control picture that a ControlNet reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use clap::{Args, Subcommand, ValueEnum};
use darkroom_models::depth::DepthEstimator;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::Picture;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use darkroom_pipelines::preprocess::depth;
use darkroom_pipelines::preprocess::openpose::{Pose, PoseError, PosePresets, draw};

use super::error::CommandError;
use super::print_result;
use super::source::unreadable;
use crate::picture::{encode_png, read_picture, save_whole};

/// Largest pose file, bytes: 32 people with hands and faces take a quarter of a megabyte.
const MAX_POSE_BYTES: u64 = 4 << 20;
/// What `OUT` may end in.
const EXTENSION: &str = "png";
/// Before the name of a preset.
const PRESET: &str = "preset:";
/// Width and height of a skeleton whose pose does not say a canvas, pixels.
const USUAL_SIZE: (u32, u32) = (512, 768);
/// Sides of a skeleton, pixels.
const SIDES: std::ops::RangeInclusive<i64> = 16..=8192;

const EXAMPLES: &str = "\
Examples:
  darkroom preprocess canny photo.jpg edges.png
  darkroom preprocess canny photo.jpg edges.png --method opencv --low 100 --high 200
  darkroom preprocess openpose preset:waving pose.png --width 1024 --height 1536
  darkroom preprocess openpose pose.json pose.png
  darkroom preprocess depth photo.jpg depth.png --weights depth_anything_v2_vits.safetensors

The path of the PNG goes to standard output. A file of that name is replaced.";

/// Flags of `darkroom preprocess`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PreprocessArgs {
    /// What to make.
    #[command(subcommand)]
    command: PreprocessCommand,
}

/// What can be made.
#[derive(Debug, Subcommand)]
enum PreprocessCommand {
    /// Edges of a picture: white lines on black
    Canny(CannyArgs),
    /// A skeleton from a pose: coloured limbs on black
    Openpose(OpenposeArgs),
    /// How near everything in a picture is: white is near, black is far
    Depth(DepthArgs),
}

/// Flags of `darkroom preprocess canny`.
#[derive(Debug, Args)]
struct CannyArgs {
    /// A picture: PNG, JPEG, WebP, GIF or BMP
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The PNG to write
    #[arg(value_name = "OUT.png")]
    out: PathBuf,
    /// Whose rules to follow
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = Method::Comfyui)]
    method: Method,
    /// Weaker gradients are no edges [default: 0.4, opencv: 100]
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true)]
    low: Option<f64>,
    /// Stronger gradients begin an edge [default: 0.8, opencv: 200]
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true)]
    high: Option<f64>,
    /// With --method opencv: measure gradients by the square root of x² + y², not by |x| + |y|
    #[arg(long)]
    l2_gradient: bool,
}

/// Whose Canny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// ComfyUI's Canny node (kornia); thresholds above 0, to 1
    Comfyui,
    /// cv2.Canny on the 8-bit grey picture; thresholds 0 to 255 and beyond
    Opencv,
}

/// Flags of `darkroom preprocess openpose`.
#[derive(Debug, Args)]
#[command(after_long_help = openpose_help())]
struct OpenposeArgs {
    /// A file of OpenPose JSON or of joints by name, or preset:NAME; --help lists the presets
    #[arg(value_name = "POSE.json|preset:NAME")]
    pose: String,
    /// The PNG to write
    #[arg(value_name = "OUT.png")]
    out: PathBuf,
    /// Pixels in a row [default: the pose's canvas, else 512; with --height alone, in its proportion]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(SIDES))]
    width: Option<u32>,
    /// Rows of pixels [default: the pose's canvas, else 768; with --width alone, in its proportion]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(SIDES))]
    height: Option<u32>,
}

/// Flags of `darkroom preprocess depth`.
#[derive(Debug, Args)]
struct DepthArgs {
    /// A picture: PNG, JPEG, WebP, GIF or BMP
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The PNG to write
    #[arg(value_name = "OUT.png")]
    out: PathBuf,
    /// Depth Anything V2 (small, base or large) as safetensors
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
}

fn openpose_help() -> String {
    let presets: Vec<String> = match PosePresets::embedded() {
        Ok(presets) => presets.iter().map(|preset| format!("  {:24}{}", preset.id, preset.about)).collect(),
        Err(error) => vec![error.to_string()],
    };
    format!(
        "Joints by name are shares of the canvas from the upper left corner, or pixels of `canvas_width` and\n\
         `canvas_height`: {{\"joints\": {{\"nose\": [0.5, 0.13], \"neck\": [0.5, 0.2], …}}}}\n\nPresets:\n{}",
        presets.join("\n")
    )
}

pub(super) fn run(args: &PreprocessArgs) -> Result<(), CommandError> {
    match &args.command {
        PreprocessCommand::Canny(args) => canny(args),
        PreprocessCommand::Openpose(args) => openpose(args),
        PreprocessCommand::Depth(args) => depth(args),
    }
}

fn canny(args: &CannyArgs) -> Result<(), CommandError> {
    check_out(&args.out)?;
    let method = match args.method {
        Method::Comfyui if args.l2_gradient => {
            return Err(CommandError::usage(
                "--l2-gradient is OpenCV's",
                "add --method opencv, or leave it out",
            ));
        }
        Method::Comfyui => CannyMethod::ComfyUi,
        Method::Opencv => CannyMethod::OpenCv { l2_gradient: args.l2_gradient },
    };
    let usual = Canny::with_defaults(method);
    let canny = Canny { low: args.low.unwrap_or(usual.low), high: args.high.unwrap_or(usual.high), method };
    canny.check().map_err(|e| {
        CommandError::usage(
            e,
            format!("without --low and --high, {method} takes {} and {}", usual.low, usual.high),
        )
    })?;
    let (picture, _) = read_picture(&args.input).map_err(unreadable)?;
    save(&canny.detect(&picture), &args.out)
}

fn openpose(args: &OpenposeArgs) -> Result<(), CommandError> {
    check_out(&args.out)?;
    let pose = match args.pose.strip_prefix(PRESET) {
        Some(id) => {
            let presets = PosePresets::embedded().map_err(CommandError::plain)?;
            let preset = presets.get(id);
            preset
                .map_err(|e| {
                    CommandError::usage(e, "`darkroom preprocess openpose --help` lists the presets")
                })?
                .pose
                .clone()
        }
        None => read_pose(&args.pose)?,
    };
    let (width, height) = size(&pose, args.width, args.height)?;
    save(&draw(&pose, width as usize, height as usize), &args.out)
}

fn depth(args: &DepthArgs) -> Result<(), CommandError> {
    check_out(&args.out)?;
    let unusable = |error: &dyn std::fmt::Display| {
        CommandError::failure(error, "give Depth Anything V2's safetensors: small, base or large")
    };
    let file = WeightFile::open(&args.weights).map_err(|e| unusable(&e))?;
    let network = DepthEstimator::from_file(&Arc::new(file), &Device::Cpu).map_err(|e| unusable(&e))?;
    let (picture, _) = read_picture(&args.input).map_err(unreadable)?;
    save(&depth::estimate(&network, &picture).map_err(CommandError::plain)?, &args.out)
}

fn read_pose(file: &str) -> Result<Pose, CommandError> {
    let path = Path::new(file);
    let unreadable = |reason: &dyn std::fmt::Display| {
        let fix = "check the path; a preset is called as in preset:standing_neutral";
        CommandError::failure(format!("{file}: cannot read: {reason}"), fix)
    };
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(&e))?;
    if !metadata.is_file() {
        return Err(unreadable(&"not a regular file"));
    }
    if metadata.len() > MAX_POSE_BYTES {
        return Err(unreadable(&format!("it has {} bytes; the limit is {MAX_POSE_BYTES}", metadata.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(&e))?;
    Pose::from_json(&text).map_err(|e: PoseError| {
        let fix = "`darkroom preprocess openpose --help` shows what a pose looks like";
        CommandError::failure(format!("{file}: {e}"), fix)
    })
}

/// The picture's size: what the flags say, and for the rest what the pose says.
fn size(pose: &Pose, width: Option<u32>, height: Option<u32>) -> Result<(u32, u32), CommandError> {
    let (w, h) = pose.canvas.unwrap_or(USUAL_SIZE);
    let proportional = |side: u32, of: u32, to: u32| {
        ((f64::from(side) * f64::from(to) / f64::from(of)).round()).max(1.0) as u32
    };
    let (width, height) = match (width, height) {
        (Some(width), Some(height)) => (width, height),
        (Some(width), None) => (width, proportional(width, w, h)),
        (None, Some(height)) => (proportional(height, h, w), height),
        (None, None) => (w, h),
    };
    if [width, height].iter().all(|side| SIDES.contains(&i64::from(*side))) {
        return Ok((width, height));
    }
    let sides = format!("{} to {}", SIDES.start(), SIDES.end());
    Err(CommandError::usage(
        format!("the skeleton would have {width}x{height} pixels; a side has {sides}"),
        "give both --width and --height",
    ))
}

fn check_out(out: &Path) -> Result<(), CommandError> {
    let extension = out.extension().and_then(|extension| extension.to_str());
    if extension.is_some_and(|extension| extension.eq_ignore_ascii_case(EXTENSION)) {
        return Ok(());
    }
    let name = out.with_extension(EXTENSION);
    Err(CommandError::usage(
        format!("{}: control pictures are written as PNG", out.display()),
        format!("call it {}", name.display()),
    ))
}

fn save(picture: &Picture, out: &Path) -> Result<(), CommandError> {
    let bytes = encode_png(picture.width(), picture.height(), &picture.to_rgb8(), &[])
        .map_err(CommandError::plain)?;
    save_whole(out, &bytes)
        .map_err(|e| CommandError::failure(e, "check the folder of OUT, its rights and the free space"))?;
    print_result(&out.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skeleton_has_the_size_of_the_flags_then_of_the_canvas_then_the_usual_one() {
        let mut pose = Pose::from_json(r#"{"joints": {"nose": [0.5, 0.5]}}"#).unwrap();
        assert_eq!(size(&pose, None, None).unwrap(), (512, 768));
        pose.canvas = Some((1000, 500));
        assert_eq!(size(&pose, None, None).unwrap(), (1000, 500));
        assert_eq!(size(&pose, Some(100), None).unwrap(), (100, 50));
        assert_eq!(size(&pose, None, Some(100)).unwrap(), (200, 100));
        assert_eq!(size(&pose, Some(64), Some(64)).unwrap(), (64, 64));
        pose.canvas = Some((60_000, 20));
        let message = size(&pose, None, None).unwrap_err().to_string();
        assert!(message.contains("60000x20") && message.contains("16 to 8192"), "{message}");
        assert!(size(&pose, None, Some(8192)).is_err());
    }

    #[test]
    fn what_is_written_is_a_png_by_name_too() {
        assert!(check_out(Path::new("a/b.PNG")).is_ok());
        for name in ["a.jpg", "a", ".png", ""] {
            assert!(check_out(Path::new(name)).is_err(), "{name}");
        }
    }
}
