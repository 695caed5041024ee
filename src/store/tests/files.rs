//! The image store, in a folder always and in a bucket too when `DARKROOM_TEST_S3` names an endpoint.

use object_store::aws::AmazonS3Builder;
use url::Url;

use super::*;
use crate::store::{ImageStore, ImageStoreError, StorageError};
use crate::task::ImageId;

const WEBP: ImageFormat = ImageFormat::Webp { quality: Some(80) };

async fn each_image_store() -> Vec<(ImageStore, TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let mut configs = vec![(in_folder(folder.path()), folder)];
    if let Ok(endpoint) = std::env::var("DARKROOM_TEST_S3") {
        let folder = tempfile::tempdir().unwrap();
        let config = StorageConfig {
            images_url: Some(format!("s3://darkroom-test/{}/deep", Uuid::new_v4())),
            s3_endpoint: Some(endpoint),
            ..in_folder(folder.path())
        };
        configs.push((config, folder));
    }
    let mut stores = Vec::new();
    for (config, folder) in configs {
        stores.push((ImageStore::open(&config).await.unwrap(), folder));
    }
    stores
}

fn some_image() -> ImageId {
    TaskId::new(TaskKind::Images).image(0)
}

#[tokio::test]
async fn what_is_stored_reads_back_whole_and_in_part_until_it_is_deleted() {
    for (files, _folder) in each_image_store().await {
        files.ping().await.unwrap();
        let image = some_image();
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let missing = files.get_image(&image, WEBP).await;
        assert!(matches!(missing, Err(ImageStoreError::NotFound { .. })), "{missing:?}");
        files.put_image(&image, WEBP, "first".into()).await.unwrap();
        files.put_image(&image, WEBP, bytes.clone().into()).await.unwrap();
        assert_eq!(files.get_image(&image, WEBP).await.unwrap(), bytes);
        assert_eq!(files.get_image_range(&image, WEBP, 10..20).await.unwrap(), bytes[10..20]);
        assert_eq!(files.get_image_range(&image, WEBP, 99_990..200_000).await.unwrap(), bytes[99_990..]);
        files.delete_image(&image, WEBP).await.unwrap();
        files.delete_image(&image, WEBP).await.unwrap();
        assert!(files.get_image(&image, WEBP).await.is_err());
    }
}

#[tokio::test]
async fn uploads_and_pictures_are_listed_by_what_they_begin_with() {
    for (files, _folder) in each_image_store().await {
        let (image, blob) = (some_image(), BlobId::of(b"upload"));
        files.put_image(&image, WEBP, "picture".into()).await.unwrap();
        files.put_blob(&blob, "upload".into()).await.unwrap();
        assert_eq!(files.list_images(&image.as_str()[..2]).await.unwrap(), [(image.clone(), "webp".into())]);
        assert_eq!(files.list_blobs(&blob.as_str()[..2]).await.unwrap(), [blob]);
        let other = if image.as_str().starts_with("00") { "01" } else { "00" };
        assert_eq!(files.list_images(other).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_look_at_a_store_writes_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let files = ImageStore::open(&in_folder(folder.path())).await.unwrap();
    files.ping().await.unwrap();
    assert!(std::fs::read_dir(folder.path().join("images/00")).unwrap().next().is_none());
    std::fs::remove_dir_all(folder.path().join("images")).unwrap();
    std::fs::write(folder.path().join("images"), "no folder").unwrap();
    assert!(matches!(files.ping().await, Err(ImageStoreError::Unavailable { .. })));
}

#[tokio::test]
async fn clients_are_told_why_a_store_refuses_and_not_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let files = ImageStore::open(&in_folder(folder.path())).await.unwrap();
    std::fs::remove_dir_all(folder.path().join("images")).unwrap();
    std::fs::write(folder.path().join("images"), "no folder").unwrap();
    let error = files.put_image(&some_image(), WEBP, "x".into()).await.unwrap_err();
    let place = folder.path().file_name().unwrap().to_str().unwrap();
    assert!(error.to_string().contains(place), "the log says where: {error}");
    let told = error.for_clients();
    assert!(told.starts_with("the image store is not available: ") && !told.contains(place), "{told}");
    assert!(told.contains("os error"), "{told}");
    let unknown = ImageStoreError::Unavailable { message: place.into(), reason: None }.for_clients();
    assert_eq!(unknown, "the image store is not available: the server's log says why");
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_deleted_and_the_rest_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let config = in_folder(folder.path());
    let files = ImageStore::open(&config).await.unwrap();
    let image = some_image();
    files.put_image(&image, WEBP, "whole".into()).await.unwrap();
    let whole = folder.path().join(format!("images/{}/{image}.webp", &image.as_str()[..2]));
    assert_eq!(std::fs::read(&whole).unwrap(), b"whole");
    let half = whole.with_extension("webp#1");
    std::fs::write(&half, b"ha").unwrap();
    let files = ImageStore::open(&config).await.unwrap();
    assert!(!half.exists());
    assert_eq!(files.get_image(&image, WEBP).await.unwrap(), "whole");
}

#[tokio::test]
async fn a_folder_by_url_is_used_and_what_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("else where");
    let open = async |url: &str| {
        let config = StorageConfig { images_url: Some(url.into()), ..in_folder(folder.path()) };
        ImageStore::open(&config).await
    };
    let url = Url::from_directory_path(&elsewhere).unwrap();
    open(url.as_str()).await.unwrap().put_blob(&BlobId::of(b""), "".into()).await.unwrap();
    assert!(elsewhere.join("blobs").is_dir());
    for wrong in ["", "pictures", "gs://bucket", "http://host/x", "file://host/x", "s3:///prefix"] {
        let refused = open(wrong).await;
        assert!(matches!(refused, Err(ImageStoreError::Config { .. })), "{wrong}: {refused:?}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let refused = ImageStore::open(&in_folder(&file.join("below"))).await;
    assert!(matches!(refused, Err(ImageStoreError::Unavailable { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_bucket_that_does_not_answer_is_unavailable() {
    // A port that was free a moment ago; nothing listens on it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let account = AmazonS3Builder::new().with_access_key_id("key").with_secret_access_key("secret");
    let endpoint = format!("http://127.0.0.1:{port}");
    let bucket = Url::parse("s3://bucket").unwrap();
    let files = ImageStore::in_bucket(&bucket, Some(&endpoint), account).unwrap();
    let refused = files.put_blob(&BlobId::of(b""), "".into()).await;
    assert!(matches!(refused, Err(ImageStoreError::Unavailable { .. })), "{refused:?}");
}
