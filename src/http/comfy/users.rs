//! `/users`: there is one user, as in ComfyUI without `--multi-user`; names that are added are written down and mean
//! nothing more.

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value as Json, json as object};
use uuid::Uuid;

use super::files::{Files, Refusal, Refusals};
use super::userdata::FOLDER;
use super::{json, json_text};
use crate::workflow::Folders;
use crate::workflow::folders::{find_below, write_whole};

/// The file of names.
const FILE: &str = "users.json";
/// Most users, and most characters of a name.
const MOST_USERS: usize = 1000;
const MOST_CHARACTERS: usize = 100;

/// Says where settings are kept.
#[utoipa::path(
    get,
    path = "/users",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "`{\"storage\": \"server\", \"migrated\": true}`"))
)]
pub(super) async fn list(files: Files) -> Result<Response, Refusal> {
    let migrated = files.work(|folders| Ok(folders.user.join(FOLDER).exists())).await?;
    Ok(json(&object!({ "storage": "server", "migrated": migrated })))
}

/// Adds a name.
#[utoipa::path(
    post,
    path = "/users",
    tag = super::TAG,
    request_body(content = Object, description = "`{\"username\": \"…\"}`"),
    responses((status = 200, body = String, description = "Its id"), Refusals)
)]
pub(super) async fn add(files: Files, body: Bytes) -> Result<Response, Refusal> {
    let body: Json = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad(format!("the body is no JSON: {error}")))?;
    let name = body.get("username").and_then(Json::as_str).map(str::trim).unwrap_or_default().to_owned();
    if name.is_empty() || name.chars().count() > MOST_CHARACTERS {
        return Err(Refusal::bad(format!("username is a text of 1 to {MOST_CHARACTERS} characters")));
    }
    let _one_at_a_time = files.app.user_changes.lock().await;
    files
        .work(move |folders| {
            let mut users = load(folders);
            if users.values().any(|known| known.as_str() == Some(&name)) {
                return Ok(json_text(StatusCode::BAD_REQUEST, r#"{"error": "Duplicate username."}"#));
            }
            if users.len() >= MOST_USERS {
                return Err(Refusal::bad(format!("there are {MOST_USERS} users already")));
            }
            let id = format!("{}_{}", plain(&name), Uuid::new_v4());
            users.insert(id.clone(), name.into());
            std::fs::create_dir_all(&folders.user)?;
            write_whole(&folders.user.join(FILE), Json::Object(users).to_string().as_bytes())?;
            Ok(json(&id))
        })
        .await
}

fn load(folders: &Folders) -> Map<String, Json> {
    let path = find_below(&folders.user, FILE).ok();
    let users = path.and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
    users.unwrap_or_else(|| Map::from_iter([(FOLDER.to_owned(), FOLDER.into())]))
}

/// Letters and digits of ASCII, `-` and `_`; a `-` for each run of anything else.
fn plain(name: &str) -> String {
    let mut plain = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
            plain.push(c);
        } else if !plain.ends_with('-') {
            plain.push('-');
        }
    }
    plain
}
