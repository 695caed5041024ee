//! `/userdata`: the front end's own files, workflows above all, in the folder of the one user.

use std::fs::Metadata;
use std::path::{Path as FilePath, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Query};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value as Json, json as object};
use tokio::io::AsyncWriteExt;
use utoipa::IntoParams;

use super::files::{self, Files, Refusal, Refusals};
use super::json;
use crate::workflow::Folders;
use crate::workflow::folders::{FileError, find_below, find_folder_below, place_below, unfinished};

/// The one user's folder.
pub(super) const FOLDER: &str = "default";
/// Most files and folders that are listed, and levels of folders that are looked through.
const MOST_LISTED: usize = 100_000;
const DEPTH: usize = 32;

/// The user's folder, made where it is not there.
pub(super) fn root(user: &FilePath) -> std::io::Result<PathBuf> {
    let root = user.join(FOLDER);
    std::fs::create_dir_all(&root)?;
    root.canonicalize()
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// The folder.
    #[param(required)]
    dir: String,
    /// `true`: folders below it as well.
    recurse: String,
    /// `true`: `{"path", "size", "modified", "created"}` each.
    full_info: String,
    /// `true`: the path and its parts each.
    split: String,
}

/// ComfyUI's yes.
fn yes(text: &str) -> bool {
    text.eq_ignore_ascii_case("true")
}

/// Lists the files of a folder of the front end's.
#[utoipa::path(
    get,
    path = "/userdata",
    tag = super::TAG,
    params(ListParams),
    responses((status = 200, body = Vec<serde_json::Value>, description = "Paths, below the folder"), Refusals)
)]
pub(super) async fn list(files: Files, Query(params): Query<ListParams>) -> Result<Response, Refusal> {
    if params.dir.is_empty() {
        return Err(Refusal::bad("Directory not provided"));
    }
    let work = move |folders: &Folders| {
        let folder = find_folder_below(&root(&folders.user)?, &plain(&params.dir)?);
        let folder = folder.map_err(|error| match Refusal::from(error) {
            Refusal(StatusCode::FORBIDDEN, _) => Refusal(StatusCode::FORBIDDEN, "Invalid directory".into()),
            Refusal(StatusCode::NOT_FOUND, _) => Refusal(StatusCode::NOT_FOUND, "Directory not found".into()),
            other => other,
        })?;
        let mut found = Vec::new();
        let depth = if yes(&params.recurse) { DEPTH } else { 0 };
        // As ComfyUI's patterns do, this passes over names that start with a dot.
        walk(&folder, "", depth, true, &mut found);
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let listed: Vec<Json> = found
            .into_iter()
            .filter(|entry| entry.metadata.is_file())
            .map(|Entry { path, metadata }| {
                if yes(&params.full_info) {
                    info(&path, &metadata)
                } else if yes(&params.split) {
                    std::iter::once(&*path).chain(path.split('/')).collect()
                } else {
                    path.into()
                }
            })
            .collect();
        Ok(json(&listed))
    };
    files.work(work).await
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListAllParams {
    /// The folder; the user's own if nothing is said.
    path: String,
}

/// Lists everything in a folder of the front end's and below it.
#[utoipa::path(
    get,
    path = "/v2/userdata",
    tag = super::TAG,
    params(ListAllParams),
    responses(
        (status = 200, body = Vec<serde_json::Value>, description = "`{\"name\", \"path\", \"type\", \"size\", \"modified\"}` each"),
        Refusals
    )
)]
pub(super) async fn list_all(files: Files, Query(params): Query<ListAllParams>) -> Result<Response, Refusal> {
    let work = move |folders: &Folders| {
        let root = folders.user.join(FOLDER);
        let path = plain(&params.path)?;
        let folder = match find_folder_below(&root, &path) {
            Ok(folder) => folder,
            // A user who has nothing yet.
            Err(FileError::Missing) if !root.exists() && path.is_empty() => {
                return Ok(json(&object!([])));
            }
            Err(FileError::Missing) if find_below(&root, &path).is_ok() => {
                return Err(Refusal::bad("Requested path is not a directory"));
            }
            Err(FileError::Missing) => {
                return Err(Refusal(StatusCode::NOT_FOUND, "Requested path not found".into()));
            }
            Err(FileError::Name(_) | FileError::Outside) => {
                return Err(Refusal::bad("Invalid path requested"));
            }
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        let prefix =
            folder.strip_prefix(root.canonicalize()?).unwrap_or(&folder).to_string_lossy().into_owned();
        let prefix = if prefix.is_empty() { prefix } else { prefix + "/" };
        walk(&folder, &prefix, DEPTH, false, &mut found);
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        found.sort_by_cached_key(|entry| {
            (!entry.metadata.is_dir(), name(&entry.path).to_lowercase(), entry.path.clone())
        });
        let listed: Vec<Json> = found
            .into_iter()
            .map(|Entry { path, metadata }| {
                let name = name(&path);
                if metadata.is_dir() {
                    return object!({ "name": name, "path": path, "type": "directory" });
                }
                let modified = seconds(metadata.modified().ok());
                object!({
                    "name": name, "path": path, "type": "file", "size": metadata.len(), "modified": modified
                })
            })
            .collect();
        Ok(json(&listed))
    };
    files.work(work).await
}

/// Sends a file of the front end's.
#[utoipa::path(
    get,
    path = "/userdata/{file}",
    tag = super::TAG,
    params(("file" = String, Path, description = "Its path, `/` written `%2F`")),
    responses((status = 200, description = "The file"), Refusals)
)]
pub(super) async fn fetch(
    files: Files,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let name = file.clone();
    let find = move |folders: &Folders| Ok(find_below(&root(&folders.user)?, &plain(&file)?)?);
    let path = match files.work(find).await.map_err(silent) {
        // The front end asks for its user's style sheet whether there is one or not; browsers complain about another
        // type more than about its absence.
        Err(Refusal(StatusCode::NOT_FOUND, _)) if files::media_type(&name) == "text/css" => {
            return Ok((StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/css")]).into_response());
        }
        path => path?,
    };
    // The front end has a style sheet of the user's; what else a browser would run is a download.
    let media_type = match files::media_type(&name) {
        "text/css" => "text/css",
        _ => files::harmless_media_type(&name),
    };
    files::send(&headers, &path, media_type, []).await
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct StoreParams {
    /// `false`: a file that is there stays.
    overwrite: String,
    /// `true`: the answer is `{"path", "size", "modified", "created"}`.
    full_info: String,
}

impl StoreParams {
    fn may_replace(&self) -> bool {
        self.overwrite != "false"
    }

    /// What is said of a file that was written.
    fn answer(&self, root: &FilePath, path: &FilePath) -> Result<Response, Refusal> {
        let relative = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
        let answer = if yes(&self.full_info) {
            info(&relative, &std::fs::metadata(path)?)
        } else {
            Json::from(relative)
        };
        Ok(json(&answer))
    }
}

/// Keeps a file of the front end's.
#[utoipa::path(
    post,
    path = "/userdata/{file}",
    tag = super::TAG,
    params(("file" = String, Path, description = "Its path, `/` written `%2F`"), StoreParams),
    request_body(content = String, content_type = "application/octet-stream", description = "Its bytes"),
    responses(
        (status = 200, body = serde_json::Value, description = "Its path, or more"),
        (status = 409, body = String, content_type = "text/plain", description = "It is there already"),
        Refusals
    )
)]
pub(super) async fn store(
    files: Files,
    Path(file): Path<String>,
    Query(params): Query<StoreParams>,
    body: Body,
) -> Result<Response, Refusal> {
    let may_replace = params.may_replace();
    let place = move |folders: &Folders| {
        let root = root(&folders.user)?;
        let path = place_below(&root, &plain(&file)?)?;
        if path.is_dir() {
            return Err(Refusal::bad("there is a folder of this name"));
        }
        if !may_replace && path.exists() {
            return Err(already_there());
        }
        let file = unfinished(&root)?;
        let copy = file.reopen()?;
        Ok((root, path, file, copy))
    };
    let (root, path, file, copy) = files.work(place).await?;
    let mut copy = tokio::fs::File::from_std(copy);
    let mut stream = body.into_data_stream();
    let mut length = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Refusal::bad("the body did not arrive whole"))?;
        length += chunk.len();
        if length > files.body_bytes() {
            let message = format!("Maximum request body size {} exceeded", files.body_bytes());
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        copy.write_all(&chunk).await?;
    }
    copy.flush().await?;
    drop(copy);
    let finish = move |_: &Folders| {
        if may_replace {
            file.persist(&path).map_err(|error| error.error)?;
        } else {
            file.persist_noclobber(&path).map_err(|error| match error.error.kind() {
                std::io::ErrorKind::AlreadyExists => already_there(),
                _ => error.error.into(),
            })?;
        }
        params.answer(&root, &path)
    };
    files.work(finish).await
}

/// Deletes a file of the front end's.
#[utoipa::path(
    delete,
    path = "/userdata/{file}",
    tag = super::TAG,
    params(("file" = String, Path, description = "Its path, `/` written `%2F`")),
    responses((status = 204, description = "It is gone"), Refusals)
)]
pub(super) async fn remove(files: Files, Path(file): Path<String>) -> Result<StatusCode, Refusal> {
    let work = move |folders: &Folders| {
        std::fs::remove_file(find_below(&root(&folders.user)?, &plain(&file)?)?)?;
        Ok(StatusCode::NO_CONTENT)
    };
    files.work(work).await.map_err(silent)
}

/// Moves a file or a folder of the front end's.
#[utoipa::path(
    post,
    path = "/userdata/{file}/move/{dest}",
    tag = super::TAG,
    params(("file" = String, Path, description = "Its path, `/` written `%2F`"), ("dest" = String, Path, description = "Its new path"), StoreParams),
    responses(
        (status = 200, body = serde_json::Value, description = "Its path, or more"),
        (status = 409, body = String, content_type = "text/plain", description = "There is one already"),
        Refusals
    )
)]
pub(super) async fn rename(
    files: Files,
    Path((file, dest)): Path<(String, String)>,
    Query(params): Query<StoreParams>,
) -> Result<Response, Refusal> {
    let work = move |folders: &Folders| {
        let root = root(&folders.user)?;
        let file = plain(&file)?;
        let source = match find_below(&root, &file) {
            Err(FileError::NotAFile) => find_folder_below(&root, &file)?,
            found => found?,
        };
        let dest = place_below(&root, &plain(&dest)?)?;
        if source == root || dest.starts_with(&source) && dest != source {
            return Err(Refusal::bad("a folder cannot be moved into itself"));
        }
        if !params.may_replace() && dest.exists() {
            return Err(already_there());
        }
        if dest.is_dir() {
            return Err(Refusal::bad("there is a folder of this name"));
        }
        std::fs::rename(&source, &dest)?;
        params.answer(&root, &dest)
    };
    files.work(work).await.map_err(silent)
}

fn already_there() -> Refusal {
    Refusal(StatusCode::CONFLICT, "File already exists".into())
}

/// As ComfyUI, these routes say nothing about a name that leads nowhere or outside.
fn silent(refusal: Refusal) -> Refusal {
    match refusal.0 {
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Refusal::of(refusal.0),
        _ => refusal,
    }
}

/// A name of a route, which front ends escape twice.
fn plain(name: &str) -> Result<String, Refusal> {
    files::unquoted(name).ok_or_else(|| Refusal::bad("the name is not UTF-8"))
}

struct Entry {
    /// With folders, `/` between them.
    path: String,
    metadata: Metadata,
}

/// Files and folders below `folder`. Links are listed, and none is followed into a folder.
fn walk(folder: &FilePath, prefix: &str, depth: usize, pass_over_hidden: bool, found: &mut Vec<Entry>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if found.len() >= MOST_LISTED {
            return;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        if (pass_over_hidden && name.starts_with('.')) || name.starts_with(".darkroom-") {
            continue;
        }
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        let path = format!("{prefix}{name}");
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if metadata.is_dir() && !is_link && depth > 0 {
            walk(&entry.path(), &format!("{path}/"), depth - 1, pass_over_hidden, found);
        }
        found.push(Entry { path, metadata });
    }
}

fn info(path: &str, metadata: &Metadata) -> Json {
    object!({
        "path": path,
        "size": metadata.len(),
        "modified": seconds(metadata.modified().ok()),
        "created": created(metadata),
    })
}

fn seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}

/// Python's `getctime`: when the file's entry changed last.
#[cfg(unix)]
fn created(metadata: &Metadata) -> f64 {
    use std::os::unix::fs::MetadataExt;
    metadata.ctime() as f64 + metadata.ctime_nsec() as f64 / 1e9
}

/// Python's `getctime`: when the file was made.
#[cfg(not(unix))]
fn created(metadata: &Metadata) -> f64 {
    seconds(metadata.created().ok())
}
