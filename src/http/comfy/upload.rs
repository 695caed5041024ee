//! `POST /upload/image` and `POST /upload/mask`: files from clients, written to disk as they arrive.

use std::io::Write;

use axum::extract::multipart::{Field, Multipart, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use utoipa::ToSchema;

use super::files::{Files, Refusal, Refusals};
use super::json;
use crate::picture::{self, MAX_BYTES, ReadLimits, TextChunk};
use crate::workflow::folders::{Taken, annotated};
use crate::workflow::{FileType, Folders};

/// Fields of a form that are looked at.
const MOST_FIELDS: usize = 64;
/// Bytes of a field that is no file.
const TEXT_BYTES: usize = 64 << 10;

/// The form, for the description.
#[derive(ToSchema)]
#[expect(dead_code, reason = "described, not made")]
pub(super) struct ImageForm {
    /// The file.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// `true` or `1`: a file of this name is replaced. Else one with the same bytes is kept, and one with others makes
    /// this one be called `name (1).png`.
    overwrite: Option<String>,
    /// `input` (if nothing is said), `output` or `temp`.
    r#type: Option<String>,
    /// Folders below that one.
    subfolder: Option<String>,
}

/// The form, for the description.
#[derive(ToSchema)]
#[expect(dead_code, reason = "described, not made")]
pub(super) struct MaskForm {
    /// The mask: its transparency counts.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// `{"filename", "subfolder", "type"}` of the picture that gets it, as JSON.
    original_ref: String,
    /// As of `/upload/image`.
    overwrite: Option<String>,
    /// As of `/upload/image`.
    r#type: Option<String>,
    /// As of `/upload/image`.
    subfolder: Option<String>,
}

/// A form as it came.
#[derive(Default)]
struct Form {
    image: Option<(String, NamedTempFile)>,
    overwrite: Option<String>,
    kind: Option<String>,
    subfolder: Option<String>,
    original_ref: Option<String>,
}

/// What a mask belongs to.
#[derive(Deserialize)]
struct OriginalRef {
    filename: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    subfolder: String,
}

/// Keeps a file that workflows load.
#[utoipa::path(
    post,
    path = "/upload/image",
    tag = super::TAG,
    request_body(content = ImageForm, content_type = "multipart/form-data"),
    responses((status = 200, body = Object, description = "`{\"name\", \"subfolder\", \"type\"}`"), Refusals)
)]
pub(super) async fn image(files: Files, request: Request) -> Result<Response, Refusal> {
    let form = Form::read(&files, request).await?;
    files.work(move |folders| form.keep(folders, Taken::Reuse)).await
}

/// Keeps a picture with another's colours and the transparency of this one.
#[utoipa::path(
    post,
    path = "/upload/mask",
    tag = super::TAG,
    request_body(content = MaskForm, content_type = "multipart/form-data"),
    responses((status = 200, body = Object, description = "As `/upload/image`"), Refusals)
)]
pub(super) async fn mask(files: Files, request: Request) -> Result<Response, Refusal> {
    let mut form = Form::read(&files, request).await?;
    let work = move |folders: &Folders| {
        if let Some((name, upload)) = form.image.take() {
            let original = form.original_ref.as_deref().unwrap_or_default();
            let whole = with_alpha(folders, original, &upload)?;
            let mut file = folders.incoming()?;
            file.write_all(&whole)?;
            form.image = Some((name, file));
        }
        form.keep(folders, Taken::Rename)
    };
    files.picture_work(work).await
}

impl Form {
    async fn read(files: &Files, mut request: Request) -> Result<Self, Refusal> {
        DefaultBodyLimit::max(files.body_bytes()).apply(&mut request);
        let form = Multipart::from_request(request, &()).await;
        let mut parts =
            form.map_err(|error: MultipartRejection| Refusal(error.status(), error.body_text()))?;
        let mut form = Self::default();
        for _ in 0..MOST_FIELDS {
            let field = parts.next_field().await.map_err(unread)?;
            let Some(field) = field else { return Ok(form) };
            match field.name() {
                Some("image") if form.image.is_none() => {
                    let name = field.file_name().unwrap_or_default().to_owned();
                    if !name.is_empty() {
                        form.image = Some((name, store(files, field).await?));
                    }
                }
                Some("overwrite") => form.overwrite = Some(text(field).await?),
                Some("type") => form.kind = Some(text(field).await?),
                Some("subfolder") => form.subfolder = Some(text(field).await?),
                Some("original_ref") => form.original_ref = Some(text(field).await?),
                // What is not asked for is passed over by the next call.
                _ => {}
            }
        }
        Err(Refusal::bad(format!("the form has more than {MOST_FIELDS} fields")))
    }

    /// Gives the file its place; `taken` is what happens unless the form says `overwrite`.
    fn keep(self, folders: &Folders, taken: Taken) -> Result<Response, Refusal> {
        let Some((filename, file)) = self.image else {
            return Err(Refusal::bad("the form has no file in the field 'image'"));
        };
        let kind = match self.kind.as_deref() {
            None => FileType::Input,
            Some(name) => FileType::of_name(name)
                .ok_or_else(|| Refusal::bad("type is none of 'input', 'temp' and 'output'"))?,
        };
        let overwrite = matches!(self.overwrite.as_deref(), Some("true" | "1"));
        let taken = if overwrite { Taken::Replace } else { taken };
        let subfolder = self.subfolder.unwrap_or_default();
        let kept = folders.keep(file, kind, &subfolder, &filename, taken);
        let name = kept.map_err(|error| match Refusal::from(error) {
            // Which way a name is wrong is the same to ComfyUI.
            Refusal(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND, message) => Refusal::bad(message),
            other => other,
        })?;
        let answer = serde_json::json!({ "name": name, "subfolder": subfolder, "type": kind.name() });
        Ok(json(&answer))
    }
}

async fn store(files: &Files, mut field: Field<'_>) -> Result<NamedTempFile, Refusal> {
    let (file, copy) = files
        .work(|folders| {
            let file = folders.incoming()?;
            let copy = file.reopen()?;
            Ok((file, copy))
        })
        .await?;
    let mut copy = tokio::fs::File::from_std(copy);
    while let Some(chunk) = field.chunk().await.map_err(unread)? {
        copy.write_all(&chunk).await?;
    }
    copy.flush().await?;
    Ok(file)
}

async fn text(mut field: Field<'_>) -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(unread)? {
        if bytes.len() + chunk.len() > TEXT_BYTES {
            return Err(Refusal::bad(format!("a field of the form has more than {TEXT_BYTES} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Refusal::bad("a field of the form is not UTF-8"))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unread(error: axum::extract::multipart::MultipartError) -> Refusal {
    Refusal(error.status(), error.body_text())
}

/// The original's colours and texts with the alpha of the upload, as PNG.
fn with_alpha(folders: &Folders, original_ref: &str, upload: &NamedTempFile) -> Result<Vec<u8>, Refusal> {
    let original: OriginalRef = serde_json::from_str(original_ref)
        .map_err(|error| Refusal::bad(format!("original_ref is no reference to a picture: {error}")))?;
    let (filename, kind) = annotated(&original.filename);
    let kind = match (kind, original.kind.as_deref()) {
        (Some(kind), _) => Some(kind),
        (None, None) => Some(FileType::Output),
        (None, Some(name)) => FileType::of_name(name),
    };
    let kind =
        kind.ok_or_else(|| Refusal::bad("original_ref.type is none of 'input', 'temp' and 'output'"))?;
    let name = match &*original.subfolder {
        "" => filename.to_owned(),
        subfolder => format!("{}/{filename}", subfolder.trim_end_matches('/')),
    };
    let annotated = format!("{name} [{}]", kind.name());
    let path = folders.find_annotated(&annotated)?;
    let limits = ReadLimits::default();
    let decode = |bytes: &[u8], name: &str| {
        picture::read_rgba(bytes, &limits, name).map_err(|error| Refusal::bad(error.to_string()))
    };
    let mut picture = decode(&folders.read_annotated(&annotated, MAX_BYTES)?, "original_ref")?;
    let mask = decode(&std::fs::read(upload.path())?, "image")?;
    if (picture.width, picture.height) != (mask.width, mask.height) {
        return Err(Refusal::bad(format!(
            "the mask has {}x{} pixels, the original {}x{}",
            mask.width, mask.height, picture.width, picture.height
        )));
    }
    for (pixel, mask) in picture.pixels.chunks_exact_mut(4).zip(mask.pixels.chunks_exact(4)) {
        pixel[3] = mask[3];
    }
    // Only PNGs have such texts.
    let texts: Vec<TextChunk> = picture::read_text_chunks(&path).unwrap_or_default();
    picture::encode_png_fast(picture.width, picture.height, true, &picture.pixels, &texts)
        .map_err(|error| Refusal::defect(&error))
}
