//! Pictures in files: read within limits, scaled, encoded with the recipe that made them, written. The buffers are the
//! pipelines' own [`Picture`](darkroom_pipelines::Picture) and [`Mask`](darkroom_pipelines::Mask).

mod animated;
mod encode;
mod exif;
mod frames;
mod png_file;
mod read;
mod recipe;
mod scale;
mod thumbnail;
mod webp_layout;

pub use animated::{Animation, WebpEffort};
pub use encode::{EncodeError, encode};
pub use frames::{Frames, Rgba, read_first_frame, read_frames, read_rgba};
pub use png_file::{
    TextChunk, WriteError, encode_png, encode_png_fast, read_text_chunks, save_numbered, save_whole,
};
pub use read::{
    MAX_BYTES, MAX_PIXELS, MAX_SIDE, ReadError, ReadLimits, read_mask, read_mask_bytes, read_picture,
    read_picture_bytes,
};
pub use recipe::{Origin, Recipe, RecipeControl, RecipeFlow, RecipeLora};
pub use scale::{cover, cover_mask};
pub use thumbnail::{ThumbnailError, thumbnail};
