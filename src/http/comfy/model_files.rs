//! Files of models by ComfyUI's names of their folders. Clients are told names, and not where the server keeps them.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path as PathParams, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use darkroom_models::weights::WeightFile;
use serde::Deserialize;
use serde_json::{Value, json};

use super::information::looked;
use super::json as json_answer;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::extract::{Name, Params};
use crate::picture::{ReadLimits, thumbnail};
use crate::workflow::Folders;

/// Folders that are not of models.
const NOT_MODELS: [&str; 2] = ["configs", "custom_nodes"];
/// Endings of the pictures that lie beside models.
const PICTURES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Bytes of such a picture.
const PICTURE_BYTES: u64 = 32 << 20;
/// Widest preview, pixels.
const PREVIEW_SIDE: u32 = 1024;

fn missing() -> Response {
    StatusCode::NOT_FOUND.into_response()
}

/// Lists embeddings.
#[utoipa::path(
    get,
    path = "/embeddings",
    tag = super::TAG,
    responses((status = 200, body = Vec<String>, description = "Their names, without extensions"))
)]
pub(super) async fn embeddings(State(app): State<App>) -> Result<Response, ApiError> {
    let names = looked(app.comfy()?, |comfy| {
        let files = comfy.workflows.folders.model_files("embeddings").unwrap_or_default();
        files.iter().map(|file| stem(file).to_owned()).collect::<Vec<String>>()
    });
    Ok(json_answer(&names.await?))
}

/// A path without its extension.
fn stem(file: &str) -> &str {
    let name = file.rfind('/').map_or(0, |slash| slash + 1);
    match file[name..].rfind('.') {
        Some(dot) if dot > 0 => &file[..name + dot],
        _ => file,
    }
}

/// Lists the folders of models.
#[utoipa::path(
    get,
    path = "/models",
    tag = super::TAG,
    responses((status = 200, body = Vec<String>, description = "Their names: `checkpoints`, `loras`, …"))
)]
pub(super) async fn folders() -> Response {
    json_answer(&Folders::model_folders().collect::<Vec<_>>())
}

/// Lists the files of a folder of models.
#[utoipa::path(
    get,
    path = "/models/{folder}",
    tag = super::TAG,
    params(("folder" = String, Path, description = "`checkpoints`, `loras`, …")),
    responses(
        (status = 200, body = Vec<String>, description = "Their names"),
        (status = 404, description = "There is no such folder")
    )
)]
pub(super) async fn files(State(app): State<App>, Name(folder): Name) -> Result<Response, ApiError> {
    let files = looked(app.comfy()?, move |comfy| {
        known(&folder)?;
        comfy.workflows.folders.model_files(&folder)
    });
    Ok(files.await?.map_or_else(missing, |files| json_answer(&files)))
}

/// Lists the folders of models, and where they are.
#[utoipa::path(
    get,
    path = "/experiment/models",
    tag = super::TAG,
    responses((status = 200, body = Vec<Object>, description = "`[{\"name\", \"folders\"}]`"))
)]
pub(super) async fn folders_in_full(State(app): State<App>) -> Result<Response, ApiError> {
    let comfy = app.comfy()?;
    let names = Folders::model_folders().filter(|name| !NOT_MODELS.contains(name));
    let all: Vec<Value> = names
        .map(|name| json!({ "name": name, "folders": places(&comfy.workflows.folders, name) }))
        .collect();
    Ok(json_answer(&all))
}

/// Where the files of a folder of models are, below the models folder.
pub(super) fn places(folders: &Folders, name: &str) -> Vec<String> {
    let paths = folders.model_paths(name).unwrap_or_default();
    let shown = |path: &PathBuf| {
        let below = folders.models.as_ref().and_then(|models| path.strip_prefix(models).ok());
        Path::new("models").join(below.unwrap_or(Path::new(name))).display().to_string()
    };
    paths.iter().map(shown).collect()
}

/// Lists the files of a folder of models, with sizes and times.
#[utoipa::path(
    get,
    path = "/experiment/models/{folder}",
    tag = super::TAG,
    params(("folder" = String, Path, description = "`checkpoints`, `loras`, …")),
    responses(
        (status = 200, body = Vec<Object>, description = "`[{\"name\", \"pathIndex\", \"modified\", \"created\", \"size\"}]`"),
        (status = 404, description = "There is no such folder")
    )
)]
pub(super) async fn files_in_full(State(app): State<App>, Name(folder): Name) -> Result<Response, ApiError> {
    let files = looked(app.comfy()?, move |comfy| described(&comfy.workflows.folders, &folder)).await?;
    Ok(files.map_or_else(missing, |files| json_answer(&files)))
}

/// The files that lie on disk.
fn described(folders: &Folders, folder: &str) -> Option<Vec<Value>> {
    known(folder)?;
    let roots = folders.model_paths(folder)?;
    let files = folders.model_files(folder)?;
    let described = files.iter().filter_map(|name| {
        let path = folders.model_file(folder, name)?;
        let metadata = std::fs::metadata(&path).ok()?;
        let index = roots.iter().position(|root| path.starts_with(root)).unwrap_or_default();
        let modified = metadata.modified().ok();
        Some(json!({
            "name": name,
            "pathIndex": index,
            "modified": seconds(modified),
            "created": seconds(metadata.created().ok().or(modified)),
            "size": metadata.len(),
        }))
    });
    Some(described.collect())
}

fn seconds(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// ComfyUI knows these under these names alone.
fn known(folder: &str) -> Option<()> {
    Folders::model_folders().any(|name| name == folder).then_some(())
}

/// Sends the picture that lies beside a model.
#[utoipa::path(
    get,
    path = "/experiment/models/preview/{folder}/{path_index}/{filename}",
    tag = super::TAG,
    params(
        ("folder" = String, Path, description = "`checkpoints`, `loras`, …"),
        ("path_index" = usize, Path, description = "Which of the folder's places"),
        ("filename" = String, Path, description = "The model's name, with its folders")
    ),
    responses(
        (
            status = 200,
            description = "The picture, at most 1024 pixels wide",
            content((Vec<u8> = "image/webp"), (Vec<u8> = "image/png"), (Vec<u8> = "image/jpeg"))
        ),
        (status = 404, description = "There is none")
    )
)]
pub(super) async fn preview(
    State(app): State<App>,
    path: Result<PathParams<(String, String, String)>, axum::extract::rejection::PathRejection>,
) -> Result<Response, ApiError> {
    let Ok(PathParams((folder, _, name))) = path else { return Ok(missing()) };
    let picture = looked(app.comfy()?, move |comfy| {
        let model = comfy.workflows.folders.model_file(&folder, &name)?;
        beside(&model).find_map(|path| small(&path))
    });
    Ok(picture.await?.map_or_else(missing, |(file, kind)| {
        ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], file).into_response()
    }))
}

/// Where a model's picture would be: `name.png`, `name.preview.png`, …
fn beside(model: &Path) -> impl Iterator<Item = PathBuf> {
    let base = model.with_extension("");
    ["", ".preview"].into_iter().flat_map(move |middle| {
        let base = base.clone();
        PICTURES.into_iter().map(move |ending| {
            let mut path = base.clone().into_os_string();
            path.push(format!("{middle}.{ending}"));
            path.into()
        })
    })
}

fn small(path: &Path) -> Option<(Vec<u8>, &'static str)> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > PICTURE_BYTES {
        return None;
    }
    thumbnail(&std::fs::read(path).ok()?, PREVIEW_SIDE, &ReadLimits::default()).ok()
}

/// Which file.
#[derive(Debug, Deserialize)]
pub(super) struct Of {
    filename: Option<String>,
}

/// Shows the metadata of a model's file.
#[utoipa::path(
    get,
    path = "/view_metadata/{folder}",
    tag = super::TAG,
    params(
        ("folder" = String, Path, description = "`checkpoints`, `loras`, …"),
        ("filename" = Option<String>, Query, description = "The file's name, `.safetensors`")
    ),
    responses(
        (status = 200, body = Object, description = "What its header says under `__metadata__`"),
        (status = 404, description = "There is no such file, or it has none")
    )
)]
pub(super) async fn metadata(
    State(app): State<App>,
    Name(folder): Name,
    Params(of): Params<Of>,
) -> Result<Response, ApiError> {
    let Some(name) = of.filename.filter(|name| name.ends_with(".safetensors")) else { return Ok(missing()) };
    let found = looked(app.comfy()?, move |comfy| {
        let path = comfy.workflows.folders.model_file(&folder, &name)?;
        let file = WeightFile::open(&path).ok()?;
        let metadata = &file.header().metadata;
        (!metadata.is_empty()).then(|| json!(metadata))
    });
    Ok(found.await?.map_or_else(missing, |metadata| json_answer(&metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_loses_its_extension_alone() {
        assert_eq!(stem("a.b/c.d.safetensors"), "a.b/c.d");
        assert_eq!(stem("a.b/c"), "a.b/c");
        assert_eq!(stem(".hidden"), ".hidden");
    }

    #[test]
    fn clients_are_not_told_where_models_are() {
        let folder = tempfile::TempDir::new().unwrap();
        let folders = Folders::below(folder.path(), Some(folder.path().join("secret")));
        assert_eq!(places(&folders, "text_encoders"), ["models/text_encoders", "models/clip"]);
        assert!(described(&folders, "nothing").is_none());
        assert_eq!(described(&folders, "checkpoints"), Some(Vec::new()), "what is built in is no file");
    }

    #[test]
    fn a_models_picture_is_the_one_beside_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let model = folder.path().join("a.safetensors");
        image::RgbImage::new(2000, 10).save(folder.path().join("a.preview.png")).unwrap();
        let (file, _) = beside(&model).find_map(|path| small(&path)).unwrap();
        let picture = image::load_from_memory(&file).unwrap();
        assert_eq!((picture.width(), picture.height()), (1024, 5));
        assert!(beside(&folder.path().join("b.safetensors")).find_map(|path| small(&path)).is_none());
    }
}
