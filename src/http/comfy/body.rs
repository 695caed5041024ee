//! Bodies of requests as ComfyUI reads them: JSON whatever the request says that it is, keys in order, values as
//! Python would take them.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::extract::read_body;
use crate::workflow::ordered::{Members, Ordered};
use crate::workflow::python;

/// A body as it came.
pub(super) struct Raw {
    pub(super) bytes: Bytes,
    /// The memory that a large body was granted; until the request is answered.
    _share: Option<OwnedSemaphorePermit>,
}

impl FromRequest<App> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (bytes, share) = read_body(request, app).await?;
        Ok(Self { bytes, _share: share })
    }
}

/// A JSON object.
pub(super) struct Object {
    members: Members,
    /// Bytes that it was read from.
    pub(super) bytes: usize,
    _share: Option<OwnedSemaphorePermit>,
}

impl FromRequest<App> for Object {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let Raw { bytes, _share } = Raw::from_request(request, app).await?;
        let Some(members) = object(&bytes)? else {
            return Err(ApiError::malformed("the body is JSON, but no object"));
        };
        Ok(Self { members, bytes: bytes.len(), _share })
    }
}

/// Reads a JSON object; `None`: it is JSON of another kind.
fn object(bytes: &[u8]) -> Result<Option<Members>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Ordered::Object(members)) => Ok(Some(members)),
        Ok(_) => Ok(None),
        Err(error) => Err(ApiError::malformed(format!("the body is not valid JSON: {error}"))),
    }
}

impl Raw {
    /// The object that it is; one without members if it is JSON of another kind.
    pub(super) fn into_object(self) -> Result<Object, ApiError> {
        let Self { bytes, _share } = self;
        let members = object(&bytes)?.unwrap_or_default();
        Ok(Object { members, bytes: bytes.len(), _share })
    }
}

impl Object {
    /// Takes a member out.
    pub(super) fn take(&mut self, name: &str) -> Option<Ordered> {
        self.members.shift_remove(name)
    }

    /// Whether a member is there and neither empty, zero nor nothing.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(python::truth)
    }

    /// A list of ids; what is no text names nothing.
    pub(super) fn take_ids(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Ordered::Array(items)) => {
                Ok(items.iter().filter_map(Ordered::as_str).map(str::to_owned).collect())
            }
            Some(_) => Err(ApiError::malformed(format!("{name} is no list")).field(name)),
        }
    }
}
