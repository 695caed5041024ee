//! From pictures and poses to the control pictures that ControlNets read: edges ([`canny`]), nearness ([`depth`]), skeletons
//! ([`openpose`]), and the rules by which such a picture is brought to the size of a latent ([`resize`]).
//!
//! Sits beside the samplers and below the program: pictures come in as [`Picture`](crate::Picture) and go out as
//! [`Picture`](crate::Picture); no files, no devices.

pub mod canny;
pub mod depth;
pub mod openpose;
pub mod resize;
