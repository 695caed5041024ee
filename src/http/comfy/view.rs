//! `GET /view`: a file of one of the three folders, as it is, as a preview, or one of its channels.

use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::files::{self, Files, Refusal, Refusals};
use crate::picture::{self, MAX_BYTES, ReadLimits, Rgba};
use crate::task::ImageFormat;
use crate::workflow::FileType;
use crate::workflow::folders::{FileError, NameError, annotated};

/// Of previews whose quality is not said.
const QUALITY: u8 = 90;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ViewParams {
    /// Its name; ` [input]`, ` [output]` or ` [temp]` behind it counts before `type`.
    filename: Option<String>,
    /// `input`, `output` (if nothing is said) or `temp`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Folders below that one.
    #[serde(default)]
    subfolder: String,
    /// A smaller file: `webp;90` or `jpeg;90`, with its quality.
    preview: Option<String>,
    /// `rgba`, `rgb` or `a`: what of it.
    channel: Option<String>,
}

/// What is sent instead of the file itself.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Made {
    /// A smaller file.
    Preview { format: ImageFormat, alpha: bool },
    /// Without its transparency.
    Colours,
    /// Its transparency alone.
    Alpha,
}

/// Sends a file.
#[utoipa::path(
    get,
    path = "/view",
    tag = super::TAG,
    params(ViewParams),
    responses((status = 200, description = "The file, or what was made of it"), Refusals)
)]
pub(super) async fn view(
    files: Files,
    Query(params): Query<ViewParams>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Some(filename) = &params.filename else { return Err(Refusal::of(StatusCode::NOT_FOUND)) };
    let (name, kind) = annotated(filename);
    let kind = match (kind, params.kind.as_deref()) {
        (Some(kind), _) => Some(kind),
        (None, None) => Some(FileType::Output),
        (None, Some(name)) => FileType::of_name(name),
    };
    let Some(kind) = kind.filter(|_| !name.is_empty()) else {
        return Err(Refusal::of(StatusCode::BAD_REQUEST));
    };
    let is_trick = name.starts_with('/') || name.split('/').any(|part| part == "..");
    if is_trick {
        return Err(Refusal::of(StatusCode::BAD_REQUEST));
    }
    // Its folder is what `subfolder` says.
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let subfolder = params.subfolder.trim_end_matches('/').to_owned();
    let wanted = if subfolder.is_empty() { name.clone() } else { format!("{subfolder}/{name}") };
    let path = files
        .work(move |folders| {
            folders.find(kind, &wanted).map_err(|error| match error {
                // A folder is no file, and a name that no file can have has none.
                FileError::NotAFile | FileError::Name(NameError::Empty | NameError::TooLong) => {
                    Refusal::of(StatusCode::NOT_FOUND)
                }
                error => error.into(),
            })
        })
        .await?;
    let disposition = files::disposition(&name);
    let Some(made) = params.made() else {
        let more = disposition.map(|value| (header::CONTENT_DISPOSITION, value));
        return files::send(&headers, &path, files::harmless_media_type(&name), more).await;
    };
    let (media_type, bytes) = files
        .picture_work(move |_| {
            let limits = ReadLimits::default();
            if std::fs::metadata(&path)?.len() > MAX_BYTES {
                return Err(Refusal::bad("the file is too large for a preview"));
            }
            let read = picture::read_rgba(&std::fs::read(&path)?, &limits, &name);
            made.of(&read.map_err(|error| Refusal::bad(error.to_string()))?)
        })
        .await?;
    let mut response = ([(header::CONTENT_TYPE, media_type)], bytes).into_response();
    if let Some(value) = disposition {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

impl ViewParams {
    fn made(&self) -> Option<Made> {
        let channel = self.channel.as_deref().unwrap_or_default();
        let Some(preview) = &self.preview else {
            return match channel {
                "rgb" => Some(Made::Colours),
                "a" => Some(Made::Alpha),
                _ => None,
            };
        };
        let format = preview.split(';').next().unwrap_or_default();
        let last = preview.rsplit(';').next().unwrap_or_default();
        let digits = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
        let quality = if digits { last.parse::<u32>().unwrap_or(100).clamp(1, 100) as u8 } else { QUALITY };
        let jpeg = format == "jpeg" && !channel.contains('a');
        let format =
            if jpeg { ImageFormat::Jpeg { quality } } else { ImageFormat::Webp { quality: Some(quality) } };
        Some(Made::Preview { format, alpha: !jpeg && channel != "rgb" })
    }
}

impl Made {
    /// The media type and the bytes.
    fn of(self, picture: &Rgba) -> Result<(&'static str, Vec<u8>), Refusal> {
        let Rgba { width, height, pixels, has_alpha } = picture;
        let colours = || pixels.chunks_exact(4).flat_map(|pixel| &pixel[..3]).copied().collect::<Vec<u8>>();
        let opacity = || pixels.chunks_exact(4).map(|pixel| pixel[3]).collect::<Vec<u8>>();
        match self {
            Self::Preview { format, alpha } => {
                let alpha = (alpha && *has_alpha).then(opacity);
                let bytes = picture::encode(*width, *height, &colours(), alpha.as_deref(), format, None);
                Ok((format.mime(), bytes.map_err(|error| Refusal::bad(error.to_string()))?))
            }
            Self::Colours => png(picture, false, &colours()),
            Self::Alpha => png(
                picture,
                true,
                &opacity().into_iter().flat_map(|alpha| [0, 0, 0, alpha]).collect::<Vec<u8>>(),
            ),
        }
    }
}

fn png(picture: &Rgba, alpha: bool, pixels: &[u8]) -> Result<(&'static str, Vec<u8>), Refusal> {
    picture::encode_png_fast(picture.width, picture.height, alpha, pixels, &[])
        .map(|bytes| ("image/png", bytes))
        .map_err(|error| Refusal::defect(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(preview: Option<&str>, channel: Option<&str>) -> Option<Made> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        ViewParams { preview: text(preview), channel: text(channel), ..ViewParams::default() }.made()
    }

    #[test]
    fn previews_are_read_as_comfyui_reads_them() {
        let webp = |quality, alpha| {
            Some(Made::Preview { format: ImageFormat::Webp { quality: Some(quality) }, alpha })
        };
        let jpeg = |quality| Some(Made::Preview { format: ImageFormat::Jpeg { quality }, alpha: false });
        assert_eq!(made(Some("webp;50"), None), webp(50, true));
        assert_eq!(made(Some("webp"), None), webp(90, true));
        assert_eq!(made(Some("nonsense"), None), webp(90, true));
        assert_eq!(made(Some("70"), None), webp(70, true));
        assert_eq!(made(Some("webp;0"), Some("rgb")), webp(1, false));
        assert_eq!(made(Some("webp;999999999999"), None), webp(100, true));
        assert_eq!(made(Some("jpeg;80"), None), jpeg(80));
        assert_eq!(made(Some("jpeg"), Some("rgb")), jpeg(90));
        assert_eq!(made(Some("jpeg;80"), Some("rgba")), webp(80, true));
        assert_eq!(made(None, Some("a")), Some(Made::Alpha));
        assert_eq!(made(None, Some("rgb")), Some(Made::Colours));
        assert_eq!(made(None, Some("rgba")), None);
        assert_eq!(made(None, None), None);
    }
}
