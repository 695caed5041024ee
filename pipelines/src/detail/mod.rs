//! The geometry of the detail pass: which parts of a picture are drawn again larger, and how they go back.
//!
//! Faces that are small in a picture have few latent cells and come out badly. The pass cuts each out with some
//! surroundings, enlarges it, has it drawn again at low denoise and blends it back. Here is only where to cut and
//! how to blend; boxes come from a detector, a client or a mask, drawing is the denoiser's.
//!
//! Options and rules are those of ComfyUI's `FaceDetailer` (Impact Pack), with three differences, all so that the
//! faces of many pictures can be drawn together: every crop is cut from the picture as it was, not from one that
//! earlier faces were already pasted into; crops are square by default, so that all have one working size; and a
//! crop always has room for its feather, so that no seam can show.

mod components;
mod crop;
mod feather;
mod layout;
mod options;
mod region;

pub use components::{MAX_MASK_BOXES, boxes_of_mask};
pub use crop::Crop;
pub use layout::crops;
pub use options::{CropShape, DetailError, DetailOptions};
pub use region::BoundingBox;
