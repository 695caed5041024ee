//! Whatever an uploaded picture says about itself, reading it asks for no more memory than the limits warrant.
//! A test binary of its own, for its counting allocator.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Cursor;

use darkroom::picture::{ReadLimits, read_picture_bytes};
use image::{ImageFormat, RgbImage};

/// Remembers the largest single allocation of each thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

const PIXELS: u64 = 1 << 16;
/// The pixels as 32-bit floats, what a decoder may take beside them, and some room.
const MOST: usize = (PIXELS as usize) * 3 * 4 + (4 << 20);

fn riff(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = [&kind[..], &(data.len() as u32).to_le_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes
}

fn webp(flags: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
    let canvas = riff(b"VP8X", &[flags, 0, 0, 0, 15, 0, 0, 7, 0, 0]);
    let body = [canvas, chunks.concat()].concat();
    [&b"RIFF"[..], &(body.len() as u32 + 4).to_le_bytes(), b"WEBP", &body].concat()
}

/// A lossy picture of 16383 × 16383 pixels that ends after its header.
fn huge_lossy() -> Vec<u8> {
    let rgb = vec![9; 64 * 64 * 3];
    let mut lossy = webp::Encoder::from_rgb(&rgb, 64, 64).encode(50.0)[12..].to_vec();
    lossy[14..18].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    lossy
}

fn small(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    RgbImage::new(16, 8).write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A file of 16 × 8 pixels with something in it that asks for a great deal more.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let small_lossy = webp::Encoder::from_rgb(&[9; 16 * 8 * 3], 16, 8).encode(50.0)[12..].to_vec();
    let mut exif = riff(b"EXIF", b"abcd");
    exif[4..8].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    let mut frame = vec![0; 16];
    (frame[6], frame[9]) = (15, 7);
    frame.extend(huge_lossy());

    let mut gif = small(ImageFormat::Gif);
    let at = gif.windows(5).position(|w| w == [0x2c, 0, 0, 0, 0]).unwrap() + 5;
    gif[at..at + 4].copy_from_slice(&[0xff; 4]);

    let mut png = Vec::new();
    let mut info = png::Info::with_size(16, 8);
    info.icc_profile = Some(vec![0; 64 << 20].into()); // deflates to some kilobytes
    png::Encoder::with_info(&mut png, info).unwrap().write_header().unwrap();

    vec![
        ("a WebP canvas over a larger picture", webp(0, &[huge_lossy()])),
        ("a WebP frame over a larger picture", webp(2, &[riff(b"ANIM", &[0; 6]), riff(b"ANMF", &frame)])),
        ("WebP metadata of 4 GB", webp(8, &[small_lossy, exif])),
        ("a GIF screen under a larger frame", gif),
        ("a PNG with a bomb for a colour profile", png),
    ]
}

#[test]
fn a_small_canvas_does_not_hide_a_large_allocation() {
    let limits = ReadLimits { bytes: 1 << 20, side: 4096, pixels: PIXELS };
    for (what, bytes) in hostile() {
        LARGEST.set(0);
        let result = read_picture_bytes(&bytes, &limits, "upload");
        let largest = LARGEST.get();
        assert!(largest <= MOST, "{what}: {largest} bytes at once");
        assert!(result.is_err(), "{what} was read");
    }
}
