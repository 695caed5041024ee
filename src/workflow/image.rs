//! Batches of pictures and masks as they travel between nodes: floats in memory, copied only when written to.

use std::sync::Arc;

/// `IMAGE`: `[count, height, width, channels]`, values 0 to 1 (not enforced), 3 channels or 4 with alpha.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    data: Arc<Vec<f32>>,
}

/// `MASK`: `[count, height, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    count: usize,
    height: usize,
    width: usize,
    data: Arc<Vec<f32>>,
}

impl Image {
    /// `None` where the values are not as many as the shape says.
    pub fn new(count: usize, height: usize, width: usize, channels: usize, data: Vec<f32>) -> Option<Self> {
        let expected = count.checked_mul(height)?.checked_mul(width)?.checked_mul(channels)?;
        (data.len() == expected).then(|| Self { count, height, width, channels, data: Arc::new(data) })
    }

    /// Pictures in the batch.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Values of a pixel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// All values.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Those of picture number `index`, `[height, width, channels]`.
    pub fn picture(&self, index: usize) -> &[f32] {
        let size = self.height * self.width * self.channels;
        &self.data[index * size..(index + 1) * size]
    }

    /// The same shape with other values, one by one.
    #[must_use]
    pub fn map(&self, change: impl Fn(f32) -> f32) -> Self {
        Self { data: Arc::new(self.data.iter().map(|value| change(*value)).collect()), ..self.clone() }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        4 * self.data.len()
    }
}

impl Mask {
    /// `None` where the values are not as many as the shape says.
    pub fn new(count: usize, height: usize, width: usize, data: Vec<f32>) -> Option<Self> {
        let expected = count.checked_mul(height)?.checked_mul(width)?;
        (data.len() == expected).then(|| Self { count, height, width, data: Arc::new(data) })
    }

    /// Masks in the batch.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All values.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Those of mask number `index`, `[height, width]`.
    pub fn mask(&self, index: usize) -> &[f32] {
        let size = self.height * self.width;
        &self.data[index * size..(index + 1) * size]
    }

    /// The same shape with other values, one by one.
    #[must_use]
    pub fn map(&self, change: impl Fn(f32) -> f32) -> Self {
        Self { data: Arc::new(self.data.iter().map(|value| change(*value)).collect()), ..self.clone() }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        4 * self.data.len()
    }
}
