//! HTTP by hand, for requests that no client library would send.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::{PATIENCE, Server};

/// A connection to a server.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn open(server: &Server) -> Self {
        Self(TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap())
    }

    /// One that has sent `bytes`, or as many of them as the server took.
    pub(crate) async fn sending(server: &Server, bytes: &[u8]) -> Self {
        let mut raw = Self::open(server).await;
        let _ = raw.0.write_all(bytes).await;
        raw
    }

    /// Everything until the server closes; a reset is a close that came while bytes were under way.
    pub(crate) async fn rest(mut self) -> String {
        let mut bytes = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "the server does not close; it said {:?}", String::from_utf8_lossy(&bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One answer's head and what came with it.
    pub(crate) async fn some(&mut self) -> String {
        let mut bytes = vec![0; 1 << 16];
        let read = timeout(PATIENCE, self.0.read(&mut bytes)).await.expect("no answer").unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Sends `bytes` again and again, a pause between, until the server has closed; all that it said.
    pub(crate) async fn trickle(self, bytes: &'static [u8], pause: Duration) -> String {
        let (mut reader, mut writer) = self.0.into_split();
        let sending = tokio::spawn(async move {
            while writer.write_all(bytes).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        });
        let mut said = Vec::new();
        let read = timeout(PATIENCE, reader.read_to_end(&mut said)).await;
        sending.abort();
        assert!(read.is_ok(), "the server does not close; it said {:?}", String::from_utf8_lossy(&said));
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// `POST /v1/images` with a declared length.
pub(crate) fn post_head(length: usize) -> String {
    format!(
        "POST /v1/images HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}
