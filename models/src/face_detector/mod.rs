//! YOLOv8 (Jocher et al. 2023), the detector that finds faces and hands for the detail pass: a picture to boxes.
//!
//! [`FaceDetector`] is all of it: pictures are letterboxed to the size the network was trained at, the network
//! gives a box and class scores for every cell of three grids, and overlapping boxes are suppressed. The rules
//! are those of the `ultralytics` package, whose `.pt` files `scripts/convert_yolo.py` turns into safetensors.
//! Widths, depths and classes are read off the tensors, so that every size (n, s, m, l, x) loads.

mod blocks;
mod decode;
mod detector;
mod error;
mod letterbox;
mod network;
mod options;
mod suppression;

pub use decode::Detection;
pub use detector::FaceDetector;
pub use error::DetectorError;
pub use network::Predictions;
pub use options::{DetectOptions, MAX_DETECTIONS, MAX_PICTURE_SIDE, MAX_SIZE};
