//! Whether two servers draw the same pictures: PSNR, SSIM and the largest difference of 8-bit values, seed by seed.

use image_compare::{Algorithm, gray_similarity_structure};

use super::Runner;
use super::peer::PeerError;

/// How alike the pictures of two servers are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Alike {
    /// Pictures that were compared.
    pub(super) pictures: usize,
    /// Seeds of which one server gave other pictures in number or size.
    pub(super) unequal: usize,
    /// Lowest PSNR, decibels; infinite where all are the same.
    pub(super) psnr: f64,
    /// Lowest SSIM of the grey pictures, 1 where all are the same.
    pub(super) ssim: f64,
    /// Largest difference of a value, of 255.
    pub(super) largest: u8,
    /// Share of values that differ by more than 2.
    pub(super) beyond_two: f64,
}

/// Compares the pictures that both drew.
pub(super) async fn pictures(a: &Runner, b: &Runner) -> Result<Alike, PeerError> {
    let mut alike =
        Alike { pictures: 0, unequal: 0, psnr: f64::INFINITY, ssim: 1.0, largest: 0, beyond_two: 0.0 };
    let (mut beyond, mut values) = (0_usize, 0_usize);
    for (seed, own) in &a.drawn {
        let other = b.drawn.get(seed).map(Vec::as_slice).unwrap_or_default();
        if own.len() != other.len() {
            alike.unequal += 1;
            continue;
        }
        for (own, other) in own.iter().zip(other) {
            let (own, other) = (a.peer.view(own).await?, b.peer.view(other).await?);
            match one(&own, &other) {
                Some(one) => {
                    alike.pictures += 1;
                    alike.psnr = alike.psnr.min(one.psnr);
                    alike.ssim = alike.ssim.min(one.ssim);
                    alike.largest = alike.largest.max(one.largest);
                    beyond += one.beyond;
                    values += one.values;
                }
                None => alike.unequal += 1,
            }
        }
    }
    alike.beyond_two = beyond as f64 / values.max(1) as f64;
    Ok(alike)
}

struct One {
    psnr: f64,
    ssim: f64,
    largest: u8,
    beyond: usize,
    values: usize,
}

/// `None`: they cannot be compared.
fn one(a: &[u8], b: &[u8]) -> Option<One> {
    let (a, b) = (image::load_from_memory(a).ok()?, image::load_from_memory(b).ok()?);
    if (a.width(), a.height()) != (b.width(), b.height()) {
        return None;
    }
    let ssim = gray_similarity_structure(&Algorithm::MSSIMSimple, &a.to_luma8(), &b.to_luma8()).ok()?.score;
    let (a, b) = (a.to_rgb8(), b.to_rgb8());
    let differences = || a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b));
    let values = a.as_raw().len();
    let mean = differences().map(|d| f64::from(d).powi(2)).sum::<f64>() / values.max(1) as f64;
    Some(One {
        psnr: 10.0 * (255.0 * 255.0 / mean).log10(),
        ssim,
        largest: differences().max().unwrap_or(0),
        beyond: differences().filter(|d| *d > 2).count(),
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(value: impl Fn(u32, u32) -> u8) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(32, 24, |x, y| image::Rgb([value(x, y), 100, 7]));
        let mut file = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        file.into_inner()
    }

    #[test]
    fn the_same_picture_is_endlessly_alike() {
        let picture = png(|x, y| (x * 7 + y) as u8);
        let one = one(&picture, &picture).unwrap();
        assert_eq!((one.psnr, one.largest, one.beyond), (f64::INFINITY, 0, 0));
        assert!((one.ssim - 1.0).abs() < 1e-6);
    }

    #[test]
    fn psnr_is_that_of_the_mean_square() {
        let (a, b) = (png(|_, _| 100), png(|x, _| if x % 2 == 0 { 110 } else { 100 }));
        let one = one(&a, &b).unwrap();
        // Half of the red values differ by 10: the mean square over three channels is 100 / 6.
        assert!((one.psnr - 10.0 * (255.0_f64.powi(2) * 6.0 / 100.0).log10()).abs() < 1e-9, "{}", one.psnr);
        assert_eq!((one.largest, one.beyond), (10, 16 * 24));
    }

    #[test]
    fn pictures_of_other_sizes_are_not_compared() {
        let mut file = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(3, 3).write_to(&mut file, image::ImageFormat::Png).unwrap();
        assert!(one(&png(|_, _| 0), &file.into_inner()).is_none());
    }
}
