//! What can be read as the rows of a matrix while it is packed.

use std::ops::Range;

use super::Kernel;
use crate::Conv2dGeometry;
use crate::cpu::element::Element;

/// The most rows any kernel asks for in one panel.
const MAX_PANEL: usize = 32;

/// A matrix that is read a panel at a time.
pub(crate) trait PanelSource: Sync {
    /// The type of the elements.
    type Element: Element;

    /// Gives `visit` the part `rows` (at most [`MAX_PANEL`] of them) × `depth`, cut so that each row is
    /// contiguous: where each row starts, the first column as counted from `depth.start`, and how many.
    ///
    /// # Safety
    /// The ranges lie inside the matrix.
    unsafe fn runs(
        &self,
        rows: Range<usize>,
        depth: Range<usize>,
        visit: impl FnMut(&[*const Self::Element], usize, usize),
    );

    /// Packs `rows` (at most `stride` of them) × `depth` as [`Kernel::pack`] does.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions, the ranges lie inside the matrix, and the panel holds
    /// `depth.len() · stride` floats, `stride` being the kernel's `MR` or `NR`.
    unsafe fn pack<K: Kernel>(
        &self,
        rows: Range<usize>,
        depth: Range<usize>,
        panel: *mut f32,
        stride: usize,
    ) {
        // SAFETY: each start has `len` elements behind it; the panel has room for the depth.
        unsafe {
            self.runs(rows, depth, |starts, at, len| K::pack(starts, len, panel.add(at * stride), stride));
        }
    }
}

/// A row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dense<'a, E> {
    /// The elements.
    pub(crate) elements: &'a [E],
    /// Elements in a row.
    pub(crate) width: usize,
}

impl<E: Element> PanelSource for Dense<'_, E> {
    type Element = E;

    unsafe fn runs(
        &self,
        rows: Range<usize>,
        depth: Range<usize>,
        mut visit: impl FnMut(&[*const E], usize, usize),
    ) {
        let mut starts = [std::ptr::null(); MAX_PANEL];
        let count = rows.len();
        for (start, row) in starts.iter_mut().zip(rows) {
            *start = self.elements[row * self.width + depth.start..].as_ptr();
        }
        visit(&starts[..count], 0, depth.len());
    }
}

/// A channels-last picture read as the matrix whose rows are the patches under a moving kernel:
/// `[b · h' · w', kh · kw · channels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Im2col<'a> {
    /// `[b, height, width, channels]`.
    pub(crate) picture: &'a [f32],
    /// Rows of the input.
    pub(crate) height: usize,
    /// Columns of the input.
    pub(crate) width: usize,
    /// Channels of the input.
    pub(crate) channels: usize,
    /// Rows of the output.
    pub(crate) out_height: usize,
    /// Columns of the output.
    pub(crate) out_width: usize,
    /// Columns of the kernel.
    pub(crate) kernel_width: usize,
    /// Stride and padding.
    pub(crate) geometry: Conv2dGeometry,
    /// At least `channels` zeros, what the padding reads as.
    pub(crate) zeros: &'a [f32],
}

impl PanelSource for Im2col<'_> {
    type Element = f32;

    unsafe fn runs(
        &self,
        rows: Range<usize>,
        depth: Range<usize>,
        mut visit: impl FnMut(&[*const f32], usize, usize),
    ) {
        let count = rows.len();
        let mut corners = [(0usize, 0usize, 0usize); MAX_PANEL];
        for (corner, row) in corners.iter_mut().zip(rows) {
            let (line, column) = (row / self.out_width, row % self.out_width);
            let (image, line) = (line / self.out_height, line % self.out_height);
            *corner = (image * self.height, line * self.geometry.stride, column * self.geometry.stride);
        }
        let mut starts = [std::ptr::null(); MAX_PANEL];
        let mut at = depth.start;
        while at < depth.end {
            let (tap, channel) = (at / self.channels, at % self.channels);
            let (ky, kx) = (tap / self.kernel_width, tap % self.kernel_width);
            let len = (self.channels - channel).min(depth.end - at);
            for (start, &(image, y, x)) in starts.iter_mut().zip(&corners[..count]) {
                let y = (y + ky).checked_sub(self.geometry.padding.top).filter(|&y| y < self.height);
                let x = (x + kx).checked_sub(self.geometry.padding.left).filter(|&x| x < self.width);
                *start = match (y, x) {
                    (Some(y), Some(x)) => {
                        self.picture[((image + y) * self.width + x) * self.channels + channel..].as_ptr()
                    }
                    _ => self.zeros.as_ptr(),
                };
            }
            // Each start has `len <= channels` elements behind it, the zeros too.
            visit(&starts[..count], at - depth.start, len);
            at += len;
        }
    }
}
