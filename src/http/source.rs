//! Pictures that come with a request: base64, a `data:` URL or an address to fetch. What is stored for a task has
//! been decoded once, so that the device never meets a file that is no picture.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::DecodePaddingMode};
use bytes::Bytes;
use image::{DynamicImage, ImageDecoder, ImageReader};

use super::app::App;
use super::error::{ApiError, shown};
use crate::service::ServiceError;
use crate::task::BlobId;

/// Longest address, characters.
const URL_CHARACTERS: usize = 2048;
/// With or without padding: both are common.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A picture that was read and can be kept.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    /// Its name once it is kept.
    pub(super) id: BlobId,
    /// The file.
    pub(super) bytes: Bytes,
    /// Pixels in a row.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
    /// Whether it has an alpha channel.
    pub(super) has_alpha: bool,
}

/// Reads the picture that `field` gives.
pub(super) async fn read(app: &App, field: &'static str, text: &str) -> Result<Upload, ApiError> {
    let limits = &app.config.limits;
    let bytes = match given(field, text, limits.source_bytes)? {
        Given::Bytes(bytes) => bytes,
        Given::Address(url) => app.service.fetch(&url).await.map_err(|error| match error {
            ServiceError::Invalid { message, .. } => {
                ApiError::invalid(field, format!("cannot be fetched: {message}"))
            }
            other => other.into(),
        })?,
    };
    if bytes.len() > limits.source_bytes {
        return Err(too_large(field, limits.source_bytes));
    }
    let pixels = limits.source_pixels;
    let to_check = bytes.clone();
    let (width, height, has_alpha) =
        app.picture_work(move || check(&to_check, pixels)).await?.map_err(|reason| {
            ApiError::invalid(field, reason).hint("give a PNG, JPEG, WebP, GIF or BMP within the limits")
        })?;
    Ok(Upload { id: BlobId::of(&bytes), bytes, width, height, has_alpha })
}

#[derive(Debug, PartialEq)]
enum Given {
    Bytes(Bytes),
    Address(url::Url),
}

fn given(field: &'static str, text: &str, limit: usize) -> Result<Given, ApiError> {
    let text = text.trim();
    let scheme = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    if scheme.starts_with("http://") || scheme == "https://" {
        return Ok(Given::Address(address(field, text)?));
    }
    let encoded = if scheme.starts_with("data:") {
        let (head, data) =
            text.split_once(',').ok_or_else(|| ApiError::invalid(field, "is a data URL without data"))?;
        if !head.to_ascii_lowercase().ends_with(";base64") {
            return Err(ApiError::invalid(field, "is a data URL that is not base64"));
        }
        data
    } else {
        text
    };
    // Line breaks are common in base64; nothing else is forgiven.
    let encoded: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if encoded.is_empty() {
        return Err(ApiError::invalid(field, "is empty").hint("leave it out, or give a picture"));
    }
    if encoded.len() / 4 * 3 > limit.saturating_add(3) {
        return Err(too_large(field, limit));
    }
    let bytes = BASE64.decode(&encoded).map_err(|error| {
        ApiError::invalid(field, format!("is neither an address nor base64: {error}"))
            .hint("give base64, a data: URL, or an http(s) address")
    })?;
    Ok(Given::Bytes(bytes.into()))
}

fn too_large(field: &'static str, limit: usize) -> ApiError {
    ApiError::too_large(format!("{field} has more than {limit} bytes")).field(field)
}

/// An `http` or `https` address with a host and without a password.
pub(super) fn address(field: &'static str, text: &str) -> Result<url::Url, ApiError> {
    if text.len() > URL_CHARACTERS {
        return Err(ApiError::invalid(field, format!("has more than {URL_CHARACTERS} characters")));
    }
    let url = url::Url::parse(text)
        .map_err(|error| ApiError::invalid(field, format!("'{}' is no address: {error}", shown(text))))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ApiError::invalid(field, "must begin with http:// or https://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(ApiError::invalid(field, "names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ApiError::invalid(field, "must not hold a name or password"));
    }
    Ok(url)
}

/// Decodes a picture; its size and whether it has alpha. Bounded before anything is decoded.
fn check(bytes: &[u8], max_pixels: usize) -> Result<(usize, usize, bool), String> {
    let reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format().is_none_or(|format| !format.reading_enabled()) {
        return Err("is not a picture".into());
    }
    let damaged = |error: image::ImageError| format!("is damaged or incomplete: {error}");
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels as u64 {
        return Err(format!("has {width}x{height} pixels; {max_pixels} pixels is the most"));
    }
    let mut limits = image::Limits::default();
    // Eight bytes a pixel is 16-bit RGBA; decoders keep a little beside it.
    limits.max_alloc = Some(pixels.saturating_mul(8).saturating_add(1 << 20));
    decoder.set_limits(limits).map_err(damaged)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);
    if decoded.width() == 0 || decoded.height() == 0 {
        return Err("has no pixels".into());
    }
    Ok((decoded.width() as usize, decoded.height() as usize, decoded.color().has_alpha()))
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, RgbaImage};
    use proptest::prelude::*;

    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        RgbaImage::new(width, height).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    fn status(result: Result<Given, ApiError>) -> u16 {
        result.map_or_else(|error| error.status().as_u16(), |_| 200)
    }

    #[test]
    fn base64_a_data_url_and_an_address_are_told_apart() {
        let bytes = Given::Bytes(Bytes::from_static(b"picture"));
        for text in ["cGljdHVyZQ==", "cGljdHVyZQ", " cGlj\ndHVyZQ== ", "data:image/png;base64,cGljdHVyZQ=="] {
            assert_eq!(given("init_image", text, 100).unwrap(), bytes, "{text}");
        }
        let address = given("init_image", "HTTPS://example.com/a.png", 100).unwrap();
        assert_eq!(address, Given::Address("https://example.com/a.png".parse().unwrap()));
    }

    #[test]
    fn what_is_none_of_them_is_422_and_too_much_is_413() {
        for text in
            ["", "  ", "%%%", "data:image/png,plain", "data:;base64", "file:///etc/passwd", "http://", "é"]
        {
            assert_eq!(status(given("init_image", text, 100)), 422, "{text}");
        }
        assert_eq!(status(given("init_image", &"A".repeat(400), 100)), 413);
    }

    #[test]
    fn an_address_has_a_host_and_no_password() {
        let refused = |text: &str| address("webhook_url", text).is_err();
        assert!(
            refused("ftp://example.com") && refused("https://user:word@example.com/") && refused("/path")
        );
        assert!(refused(&format!("https://example.com/{}", "x".repeat(2048))));
        assert!(!refused("https://example.com:8443/hook?x=1"));
    }

    #[test]
    fn a_picture_is_decoded_before_it_is_kept() {
        let whole = png(16, 8);
        assert_eq!(check(&whole, 1000), Ok((16, 8, true)));
        assert!(check(&whole[..whole.len() - 20], 1000).unwrap_err().contains("damaged"));
        assert!(check(&whole, 127).unwrap_err().contains("16x8 pixels"));
        assert!(check(b"hello", 1000).unwrap_err().contains("not a picture"));
        assert!(check(b"", 1000).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            let _ = given("init_image", &text, 100);
        }
    }
}
