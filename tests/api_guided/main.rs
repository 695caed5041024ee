//! Pictures and packs that LoRAs, ControlNets, templates and base pictures guide, asked of the real program with the
//! built-in model: what is answered, what is refused and how, and what becomes of it when several clients, damaged
//! files and crashes come together.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod bodies;
mod damaged;
mod packs;
mod pictures;
mod refusals;
#[path = "../server/mod.rs"]
mod server;
mod together;
mod weights;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{Rgb, RgbImage, RgbaImage};
use serde_json::Value;

use server::Server;

const BODIES: &str = "/v1/character-packs/full-body";
const EXPRESSIONS: &str = "/v1/character-packs/expressions";
const OUTFITS: &str = "/v1/character-packs/outfit-change";
const STICKERS: &str = "/v1/character-packs/stickers";
const IMAGES: &str = "/v1/images";

/// The value of a sample of the server's metrics, 0 if it is not there.
async fn metric(server: &Server, sample: &str) -> f64 {
    let text = server.get("/metrics").await.text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}

/// How many step batches were larger than `size`, one of the histogram's bounds.
async fn batches_over(server: &Server, size: &str) -> f64 {
    let all = metric(server, "darkroom_step_batch_size_count").await;
    all - metric(server, &format!("darkroom_step_batch_size_bucket{{le=\"{size}\"}}")).await
}

fn decoded(file: &[u8]) -> RgbaImage {
    image::load_from_memory(file).unwrap().to_rgba8()
}

/// A finished task's picture number `index`.
async fn picture(server: &Server, task: &Value, index: usize) -> RgbaImage {
    decoded(&server.picture(task, index).await)
}

/// Mean distance of two pictures' colours, 0 to 255, where `counts`.
fn distance_where(one: &RgbaImage, other: &RgbaImage, counts: impl Fn(u32, u32) -> bool) -> f64 {
    assert_eq!(one.dimensions(), other.dimensions());
    let (mut sum, mut count) = (0.0, 0.0);
    for ((x, y, a), b) in one.enumerate_pixels().zip(other.pixels()) {
        if counts(x, y) {
            sum += (0..3).map(|c| f64::from(a[c].abs_diff(b[c]))).sum::<f64>();
            count += 3.0;
        }
    }
    sum / count
}

fn distance(one: &RgbaImage, other: &RgbaImage) -> f64 {
    distance_where(one, other, |_, _| true)
}

/// Whether two pictures are one but for the last digits of a step in another batch.
fn alike(one: &RgbaImage, other: &RgbaImage) -> bool {
    one.dimensions() == other.dimensions()
        && one.pixels().zip(other.pixels()).all(|(a, b)| (0..4).all(|c| a[c].abs_diff(b[c]) <= 2))
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

fn data_url(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

/// A picture of one colour with a disc of another in its middle.
fn disc(side: u32, ground: [u8; 3], disc: [u8; 3]) -> RgbImage {
    let centre = f64::from(side) / 2.0;
    RgbImage::from_fn(side, side, |x, y| {
        let (dx, dy) = (f64::from(x) + 0.5 - centre, f64::from(y) + 0.5 - centre);
        Rgb(if dx.hypot(dy) < centre / 2.0 { disc } else { ground })
    })
}
