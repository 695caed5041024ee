//! Files of pictures and uploads: in a folder, or in a bucket of an S3-compatible store. Each appears whole or not at
//! all, and is on disk (or acknowledged by the bucket) when a call returns.

use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use url::Url;

use super::StorageError;
use crate::config::StorageConfig;
use crate::task::{BlobId, ImageFormat, ImageId};

const SETTING: &str = "storage.images_url";
/// Folders of pictures and of uploads.
const IMAGES: &str = "images";
const BLOBS: &str = "blobs";
/// Bytes of the file that shows whether files can be written.
const PING_BYTES: usize = 64 << 10;
/// An S3 store that does not answer is unavailable after this long, repetitions included.
const S3_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a file could not be stored or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageStoreError {
    /// There is no such file.
    #[error("there is no stored file {path}")]
    NotFound {
        /// Its path in the store.
        path: String,
    },
    /// The folder or bucket cannot be reached, written or read, or is full.
    #[error("the image store is not available: {message}")]
    Unavailable {
        /// What it said, with folders and addresses.
        message: String,
        /// What the system said, without them, where it is the system that refuses.
        reason: Option<String>,
    },
    /// A setting cannot be used.
    #[error("{setting}: {message}")]
    Config {
        /// Its name in the config.
        setting: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

impl From<object_store::Error> for ImageStoreError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => Self::NotFound { path },
            other => Self::Unavailable { message: other.to_string(), reason: system_reason(&other) },
        }
    }
}

impl StorageError for ImageStoreError {
    fn for_clients(&self) -> String {
        match self {
            Self::Unavailable { reason, .. } => {
                let reason = reason.as_deref().unwrap_or("the server's log says why");
                format!("the image store is not available: {reason}")
            }
            other => other.to_string(),
        }
    }
}

/// What the operating system said, if an error goes back to it. Such words name no files.
fn system_reason(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut systems = causes.filter_map(|error| error.downcast_ref::<std::io::Error>());
    systems.find(|error| error.raw_os_error().is_some()).map(ToString::to_string)
}

/// Where pictures and uploads are kept; cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore {
    files: Arc<dyn ObjectStore>,
}

impl ImageStore {
    /// Opens the folder or bucket of `images_url`; without one, the data folder. A folder is made if need be, and
    /// what a crash left half-written in it is deleted: it must belong to this server alone.
    pub async fn open(config: &StorageConfig) -> Result<Self, ImageStoreError> {
        let refused = |message: String| ImageStoreError::Config { setting: SETTING, message };
        let Some(text) = &config.images_url else {
            return Self::in_folder(config.data_dir.clone()).await;
        };
        let url = Url::parse(text).map_err(|e| refused(format!("'{text}': {e}")))?;
        match url.scheme() {
            "file" => {
                let folder = url
                    .to_file_path()
                    .map_err(|()| refused(format!("'{text}' is no local folder; write file:///path")))?;
                Self::in_folder(folder).await
            }
            // Credentials and region come from the usual `AWS_…` variables.
            "s3" => Self::in_bucket(&url, config.s3_endpoint.as_deref(), AmazonS3Builder::from_env()),
            _ => Err(refused("it must begin with 'file:///' or 's3://'".into())),
        }
    }

    async fn in_folder(folder: PathBuf) -> Result<Self, ImageStoreError> {
        let unavailable = |e: std::io::Error| ImageStoreError::Unavailable {
            message: format!("{}: {e}", folder.display()),
            reason: system_reason(&e),
        };
        let prepared = folder.clone();
        tokio::task::spawn_blocking(move || {
            for kind in [IMAGES, BLOBS] {
                std::fs::create_dir_all(prepared.join(kind))?;
                delete_half_written(&prepared.join(kind))?;
            }
            Ok(())
        })
        .await
        .map_err(|e| unavailable(e.into()))?
        .map_err(unavailable)?;
        // Staged beside its place, synced, then renamed.
        let files = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true);
        Ok(Self { files: Arc::new(files) })
    }

    /// `account` says who asks.
    pub(super) fn in_bucket(
        url: &Url,
        endpoint: Option<&str>,
        account: AmazonS3Builder,
    ) -> Result<Self, ImageStoreError> {
        let refused = |message: String| ImageStoreError::Config { setting: SETTING, message };
        let bucket = url.host_str().ok_or_else(|| refused("an s3:// URL begins with a bucket".into()))?;
        let prefix = Path::from_url_path(url.path()).map_err(|e| refused(e.to_string()))?;
        // reqwest is built without a default; whoever was first has set the same.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let mut client =
            ClientOptions::new().with_timeout(S3_TIMEOUT).with_connect_timeout(Duration::from_secs(5));
        for format in FORMATS {
            client = client.with_content_type_for_suffix(format.extension(), format.mime());
        }
        let retry = RetryConfig { max_retries: 3, retry_timeout: S3_TIMEOUT, ..RetryConfig::default() };
        let mut builder =
            account.with_bucket_name(bucket).with_virtual_hosted_style_request(false).with_retry(retry);
        if let Some(endpoint) = endpoint {
            client = client.with_allow_http(endpoint.starts_with("http://"));
            builder = builder.with_endpoint(endpoint);
        }
        let bucket = builder.with_client_options(client).build().map_err(|e| refused(e.to_string()))?;
        let files: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() {
            Arc::new(bucket)
        } else {
            Arc::new(PrefixStore::new(bucket, prefix))
        };
        Ok(Self { files })
    }

    /// Stores a picture's file, in place of one that was there.
    pub async fn put_image(
        &self,
        id: &ImageId,
        format: ImageFormat,
        bytes: Bytes,
    ) -> Result<(), ImageStoreError> {
        self.put(&image_path(id, format), bytes).await
    }

    /// A picture's file.
    pub async fn get_image(&self, id: &ImageId, format: ImageFormat) -> Result<Bytes, ImageStoreError> {
        self.get(&image_path(id, format)).await
    }

    /// Some bytes of a picture's file; fewer where it ends before.
    pub async fn get_image_range(
        &self,
        id: &ImageId,
        format: ImageFormat,
        range: Range<u64>,
    ) -> Result<Bytes, ImageStoreError> {
        Ok(self.files.get_range(&image_path(id, format), range).await?)
    }

    /// Deletes a picture's file, if it is there.
    pub async fn delete_image(&self, id: &ImageId, format: ImageFormat) -> Result<(), ImageStoreError> {
        self.delete(&image_path(id, format)).await
    }

    /// Stores an upload's file.
    pub async fn put_blob(&self, id: &BlobId, bytes: Bytes) -> Result<(), ImageStoreError> {
        self.put(&blob_path(id), bytes).await
    }

    /// An upload's file.
    pub async fn get_blob(&self, id: &BlobId) -> Result<Bytes, ImageStoreError> {
        self.get(&blob_path(id)).await
    }

    /// Deletes an upload's file, if it is there.
    pub async fn delete_blob(&self, id: &BlobId) -> Result<(), ImageStoreError> {
        self.delete(&blob_path(id)).await
    }

    /// Whether the folder or bucket can be written: writes a file as large as a small picture, and deletes it.
    pub async fn ping(&self) -> Result<(), ImageStoreError> {
        // Its name is no picture's; among pictures, so that what a crash leaves half-written is found.
        let path = Path::from(format!("{IMAGES}/00/ping"));
        self.put(&path, Bytes::from_static(&[0; PING_BYTES])).await?;
        self.delete(&path).await
    }

    /// Pictures whose ids begin with these two digits, with their files' extensions.
    pub(super) async fn list_images(&self, prefix: &str) -> Result<Vec<(ImageId, String)>, ImageStoreError> {
        let mut images = Vec::new();
        for name in self.list(IMAGES, prefix).await? {
            if let Some((stem, extension)) = name.split_once('.')
                && let Ok(id) = stem.parse()
            {
                images.push((id, extension.to_owned()));
            }
        }
        Ok(images)
    }

    /// Uploads whose ids begin with these two digits.
    pub(super) async fn list_blobs(&self, prefix: &str) -> Result<Vec<BlobId>, ImageStoreError> {
        Ok(self.list(BLOBS, prefix).await?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Deletes a picture that was listed.
    pub(super) async fn delete_listed_image(
        &self,
        id: &ImageId,
        extension: &str,
    ) -> Result<(), ImageStoreError> {
        self.delete(&placed(IMAGES, id.as_str(), &format!(".{extension}"))).await
    }

    async fn list(&self, kind: &str, prefix: &str) -> Result<Vec<String>, ImageStoreError> {
        let folder = Path::from(format!("{kind}/{prefix}"));
        let objects: Vec<_> = self.files.list(Some(&folder)).try_collect().await?;
        Ok(objects.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect())
    }

    async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), ImageStoreError> {
        self.files.put(path, bytes.into()).await?;
        Ok(())
    }

    async fn get(&self, path: &Path) -> Result<Bytes, ImageStoreError> {
        Ok(self.files.get(path).await?.bytes().await?)
    }

    async fn delete(&self, path: &Path) -> Result<(), ImageStoreError> {
        match self.files.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// One of each, for what depends on the kind of file alone.
const FORMATS: [ImageFormat; 3] =
    [ImageFormat::Png, ImageFormat::Webp { quality: None }, ImageFormat::Jpeg { quality: 90 }];

fn image_path(id: &ImageId, format: ImageFormat) -> Path {
    placed(IMAGES, id.as_str(), &format!(".{}", format.extension()))
}

fn blob_path(id: &BlobId) -> Path {
    placed(BLOBS, id.as_str(), "")
}

/// `images/ab/abcd….png`: 256 folders, so that none holds too many files. Ids are hexadecimal digits.
fn placed(kind: &str, id: &str, ending: &str) -> Path {
    Path::from(format!("{kind}/{}/{id}{ending}", &id[..2]))
}

/// Deletes the files that `LocalFileSystem` stages (`NAME#1`) and a crash left.
fn delete_half_written(folder: &FilePath) -> std::io::Result<()> {
    for shelf in std::fs::read_dir(folder)? {
        let shelf = shelf?;
        if !shelf.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(shelf.path())? {
            let file = file?;
            if file.file_name().to_string_lossy().contains('#') {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}
