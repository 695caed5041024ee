//! Pictures outside the networks: read from files, converted to bytes, written with the recipe that made them.
//! Nothing here knows a tensor; [`crate::cli`] hands these buffers to `darkroom-pipelines` and back.

mod png_file;
mod read;
mod recipe;
mod scale;

pub use png_file::{TextChunk, WriteError, encode_png, read_text_chunks, save_numbered, save_whole};
pub use read::{MAX_PIXELS, MAX_SIDE, ReadError, read_mask, read_picture};
pub use recipe::{Origin, Recipe};
pub use scale::{cover, cover_mask};

/// An RGB picture, `[height, width, 3]`, each value 0..1.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    width: usize,
    height: usize,
    data: Vec<f32>,
}
impl Picture {
    pub fn new(width: usize, height: usize, data: Vec<f32>) -> Option<Self> {
        (data.len() == width * height * 3).then_some(Self { width, height, data })
    }
    pub fn width(&self) -> usize {
        self.width
    }
    pub fn height(&self) -> usize {
        self.height
    }
    pub fn data(&self) -> &[f32] {
        &self.data
    }
    pub fn to_rgb8(&self) -> Vec<u8> {
        self.data.iter().map(|&x| (255.0 * x) as u8).collect()
    }
}
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    data: Vec<f32>,
}
impl Mask {
    pub fn new(width: usize, height: usize, data: Vec<f32>) -> Option<Self> {
        (data.len() == width * height).then_some(Self { width, height, data })
    }
    pub fn width(&self) -> usize {
        self.width
    }
    pub fn height(&self) -> usize {
        self.height
    }
    pub fn data(&self) -> &[f32] {
        &self.data
    }
}
