//! Networks that enlarge pictures: the ESRGAN family (RRDBNet: ESRGAN, BSRGAN, Real-ESRGAN, ESRGAN+) and Real-ESRGAN's
//! compact networks (SRVGGNetCompact), as spandrel and ComfyUI load them.
//!
//! Which of them a file holds, and every width, is read off its header. Other architectures are refused by name.

mod compact;
mod detect;
mod error;
mod model;
mod rectify;
mod rrdb;
mod shuffle;

pub use detect::{Architecture, CompactConfig, RrdbConfig};
pub use error::UpscalerError;
pub use model::Upscaler;
