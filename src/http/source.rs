//! Pictures that come with a request: base64, a `data:` URL or an address to fetch. What is stored for a task has
//! been decoded once, so that the device never meets a file that is no picture.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::DecodePaddingMode};
use bytes::Bytes;

use super::app::App;
use super::error::ApiError;
use crate::picture::{ReadError, ReadLimits, read_picture_bytes};
use crate::service::ServiceError;
use crate::task::BlobId;

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
pub(super) async fn read(app: &App, field: &str, text: &str) -> Result<Upload, ApiError> {
    let limits = &app.config.limits;
    let bytes = match given(field, text, limits.source_bytes)? {
        Given::Bytes(bytes) => bytes,
        Given::Address(url) => app.service.fetch(url).await.map_err(|error| match error {
            ServiceError::Invalid { message, .. } => {
                ApiError::invalid(field, format!("cannot be fetched: {message}"))
            }
            other => other.into(),
        })?,
    };
    check(app, field, bytes).await
}

/// Decodes a file once, within the limits.
pub(super) async fn check(app: &App, field: &str, bytes: Bytes) -> Result<Upload, ApiError> {
    let limits = &app.config.limits;
    if bytes.len() > limits.source_bytes {
        return Err(too_large(field, limits.source_bytes));
    }
    let to_read = bytes.clone();
    let within = ReadLimits {
        bytes: limits.source_bytes as u64,
        pixels: limits.source_pixels as u64,
        ..ReadLimits::default()
    };
    let name = field.to_owned();
    let read = app.picture_work(move || look_at(&to_read, &within, &name)).await?;
    let (width, height, has_alpha) = read.map_err(|error| unreadable(field, &error))?;
    Ok(Upload { id: BlobId::of(&bytes), bytes, width, height, has_alpha })
}

#[derive(Debug, PartialEq)]
enum Given<'a> {
    Bytes(Bytes),
    Address(&'a str),
}

fn given<'a>(field: &str, text: &'a str, limit: usize) -> Result<Given<'a>, ApiError> {
    let text = text.trim();
    let scheme = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    if scheme.starts_with("http://") || scheme == "https://" {
        return Ok(Given::Address(text));
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

fn too_large(field: &str, limit: usize) -> ApiError {
    ApiError::too_large(format!("{field} has more than {limit} bytes")).field(field)
}

/// Width, height, and whether it has an alpha channel. The engine reads it the same way later.
fn look_at(bytes: &[u8], limits: &ReadLimits, name: &str) -> Result<(usize, usize, bool), ReadError> {
    let (picture, mask) = read_picture_bytes(bytes, limits, name)?;
    Ok((picture.width(), picture.height(), mask.is_some()))
}

fn unreadable(field: &str, error: &ReadError) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", error.to_string())
        .field(field)
        .hint("give a PNG, JPEG, WebP, GIF or BMP within the server's limits")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, RgbaImage};
    use proptest::prelude::*;

    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        RgbaImage::new(width, height).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    fn status(result: Result<Given<'_>, ApiError>) -> u16 {
        result.map_or_else(|error| error.status().as_u16(), |_| 200)
    }

    #[test]
    fn base64_a_data_url_and_an_address_are_told_apart() {
        let bytes = Given::Bytes(Bytes::from_static(b"picture"));
        for text in ["cGljdHVyZQ==", "cGljdHVyZQ", " cGlj\ndHVyZQ== ", "data:image/png;base64,cGljdHVyZQ=="] {
            assert_eq!(given("init_image", text, 100).unwrap(), bytes, "{text}");
        }
        for text in ["HTTPS://example.com/a.png", "http://a"] {
            assert_eq!(given("init_image", text, 100).unwrap(), Given::Address(text));
        }
    }

    #[test]
    fn what_is_none_of_them_is_422_and_too_much_is_413() {
        for text in ["", "  ", "%%%", "data:image/png,plain", "data:;base64", "file:///etc/passwd", "é"] {
            assert_eq!(status(given("init_image", text, 100)), 422, "{text}");
        }
        assert_eq!(status(given("init_image", &"A".repeat(400), 100)), 413);
    }

    #[test]
    fn a_picture_is_decoded_before_it_is_kept() {
        let limits = ReadLimits { pixels: 128, ..ReadLimits::default() };
        let whole = png(16, 8);
        assert_eq!(look_at(&whole, &limits, "mask").unwrap(), (16, 8, true));
        for broken in [&whole[..whole.len() - 20], &png(16, 9), b"hello", b""] {
            let error = unreadable("mask", &look_at(broken, &limits, "mask").unwrap_err());
            assert_eq!((error.status().as_u16(), error.detail().field.as_deref()), (422, Some("mask")));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            let _ = given("init_image", &text, 100);
        }
    }
}
