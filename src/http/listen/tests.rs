//! Real sockets against a small router. Times are short and only bound how long a test may hang; nothing is
//! asserted about them.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, State};
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::*;

/// Long enough for anything that does happen.
const HANG: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to show.
const MOMENT: Duration = Duration::from_millis(300);

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    /// Lets the slow handler answer.
    go: Arc<Notify>,
    /// Says that the slow handler has begun.
    begun: Arc<Notify>,
}

fn limits() -> ServerConfig {
    ServerConfig { header_timeout: 5.0, body_timeout: 5.0, ..ServerConfig::default() }
}

async fn start(limits: ServerConfig, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
    let (go, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = |State((go, begun)): State<(Arc<Notify>, Arc<Notify>)>| async move {
        begun.notify_one();
        go.notified().await;
        "slow"
    };
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    break;
                }
            }
        })
    };
    let router = Router::new()
        .route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
        .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/slow", get(slow))
        .route("/echo", any(echo))
        .with_state((Arc::clone(&go), Arc::clone(&begun)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let running = tokio::spawn(async move { serve(listener, tls, router, &limits, stop).await });
    Server { address, shutdown, running, go, begun }
}

/// A connection that has sent `text`.
async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// All that comes until the server closes.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut text = Vec::new();
    // A reset is a close that came while bytes were under way.
    let _ = timeout(HANG, stream.read_to_end(&mut text)).await.expect("the server does not close");
    String::from_utf8(text).unwrap()
}

/// The next bytes, as many as a small answer has.
async fn some(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = [0; 4096];
    let read = timeout(HANG, stream.read(&mut bytes)).await.expect("no answer").unwrap();
    String::from_utf8(bytes[..read].to_vec()).unwrap()
}

#[tokio::test]
async fn handlers_learn_the_peers_address() {
    let server = start(limits(), None).await;
    let mut stream = send(server.address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let local = stream.local_addr().unwrap();
    assert!(rest(&mut stream).await.ends_with(&local.to_string()));
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_half_a_head_is_cut() {
    let server = start(ServerConfig { header_timeout: 0.2, ..limits() }, None).await;
    for beginning in
        ["", "PRI * HTTP/2", "GET / HTTP/1.1\r\nhost: a\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"]
    {
        let mut stream = send(server.address, beginning).await;
        let answered = rest(&mut stream).await.starts_with("HTTP/1.1 200");
        assert_eq!(answered, beginning.ends_with("\r\n\r\n"), "{beginning:?}");
    }
}

#[tokio::test]
async fn an_http2_connection_without_requests_is_cut() {
    let server = start(ServerConfig { header_timeout: 0.2, ..limits() }, None).await;
    let mut stream = send(server.address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // an empty SETTINGS frame
    let mut bytes = Vec::new();
    let _ = timeout(HANG, stream.read_to_end(&mut bytes)).await.expect("the server does not close");
    assert!(!bytes.is_empty());
}

#[tokio::test]
async fn a_request_is_not_idle_however_long_its_answer_takes() {
    let server = start(ServerConfig { header_timeout: 0.1, ..limits() }, None).await;
    let mut stream = send(server.address, "GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    tokio::time::sleep(MOMENT).await;
    server.go.notify_one();
    assert!(rest(&mut stream).await.ends_with("slow"));
}

#[tokio::test]
async fn a_slow_body_ends_with_408_though_bytes_keep_coming() {
    let server = start(ServerConfig { body_timeout: 0.3, ..limits() }, None).await;
    let head = "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
    let (mut reader, mut writer) = send(server.address, head).await.into_split();
    let trickle = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut text = some(&mut reader).await;
    if !text.contains("request_timeout") {
        text.push_str(&some(&mut reader).await);
    }
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(text.contains("connection: close"), "{text}");
    assert!(text.contains("\"type\":\"request_timeout\""), "{text}");
    rest(&mut reader).await;
    timeout(HANG, trickle).await.expect("the server still takes bytes").unwrap();
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_sends_its_whole_body_first() {
    let server = start(limits(), None).await;
    // More than the route takes.
    let body = vec![b'x'; 8 << 20];
    for _ in 0..5 {
        let head = format!("POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut stream = send(server.address, &head).await;
        timeout(HANG, stream.write_all(&body)).await.expect("nobody reads").expect("the server closed");
        assert!(some(&mut stream).await.starts_with("HTTP/1.1 413 "));
        // The connection is as good as before.
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(rest(&mut stream).await.contains("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_not_asked_by_a_refusal() {
    let server = start(limits(), None).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
    let mut stream = send(server.address, head).await;
    let text = rest(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 405 ") && !text.contains(" 100 "), "{text}");
}

#[tokio::test]
async fn a_body_in_time_arrives_whole() {
    let server = start(limits(), None).await;
    let request = format!(
        "POST /length HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 300000\r\n\r\n{}",
        "x".repeat(300_000)
    );
    let mut stream = send(server.address, &request).await;
    assert!(rest(&mut stream).await.ends_with("300000"));
}

#[tokio::test]
async fn too_large_a_head_is_refused() {
    let server = start(limits(), None).await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    for head in [long, many] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The server may refuse and close before all is sent.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = [0; 12];
        if timeout(HANG, stream.read_exact(&mut answer)).await.expect("no answer").is_ok() {
            assert_eq!(&answer, b"HTTP/1.1 431");
        }
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_one_ends() {
    let server = start(ServerConfig { max_connections: 1, ..limits() }, None).await;
    let mut first = send(server.address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(some(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = send(server.address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(timeout(MOMENT, second.readable()).await.is_err(), "served beyond the limit");
    drop(first);
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_websocket_works_and_keeps_its_place() {
    let server = start(ServerConfig { max_connections: 1, ..limits() }, None).await;
    let url = format!("ws://{}/echo", server.address);
    let (mut socket, _) = timeout(HANG, tokio_tungstenite::connect_async(url)).await.unwrap().unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let answer = timeout(HANG, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer, Message::text("hello"));

    let mut second = send(server.address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(timeout(MOMENT, second.readable()).await.is_err(), "served beyond the limit");
    drop(socket);
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn at_shutdown_a_response_is_finished_and_nobody_new_is_let_in() {
    let server = start(limits(), None).await;
    let idle = send(server.address, "").await;
    let mut slow = send(server.address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    timeout(HANG, server.begun.notified()).await.unwrap();
    server.shutdown.cancel();
    let refused = async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, refused).await.expect("still accepting");
    assert!(!server.running.is_finished());
    server.go.notify_one();
    let answer = rest(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("slow"), "{answer}");
    timeout(HANG, server.running).await.expect("does not end").unwrap();
    drop(idle);
}

#[tokio::test]
async fn giving_up_on_the_server_cuts_what_is_left() {
    let server = start(limits(), None).await;
    let mut slow = send(server.address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    timeout(HANG, server.begun.notified()).await.unwrap();
    server.running.abort();
    assert_eq!(rest(&mut slow).await, "");
}

fn pem(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/data/tls", name].iter().collect()
}

#[tokio::test]
async fn tls_serves_http2_and_http1() {
    let server = start(limits(), Some(tls_config(&pem("cert.pem"), &pem("key.pem")).unwrap())).await;
    let certificate = std::fs::read(pem("cert.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_certificates(&certificate) {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let url = format!("https://localhost:{}/", server.address.port());
    for (protocol, version) in [("h2", reqwest::Version::HTTP_2), ("http/1.1", reqwest::Version::HTTP_11)] {
        let mut tls = client.clone();
        tls.alpn_protocols = vec![protocol.into()];
        let client =
            reqwest::Client::builder().no_proxy().timeout(HANG).tls_backend_preconfigured(tls).build();
        let answer = client.unwrap().get(&url).send().await.unwrap();
        assert_eq!((answer.version(), answer.status().as_u16()), (version, 200));
    }
}

fn rustls_certificates(bytes: &[u8]) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(bytes).map(Result::unwrap).collect()
}

#[tokio::test]
async fn a_peer_that_does_not_finish_its_tls_handshake_is_cut() {
    let tls = tls_config(&pem("cert.pem"), &pem("key.pem")).unwrap();
    let server = start(ServerConfig { header_timeout: 0.2, ..limits() }, Some(tls)).await;
    let mut stream = send(server.address, "\u{16}\u{3}\u{1}").await;
    rest(&mut stream).await;
}

#[test]
fn pem_files_that_cannot_be_used_are_named_with_the_reason() {
    let (certificate, key) = (pem("cert.pem"), pem("key.pem"));
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
    let missing = folder.path().join("missing.pem");
    for (certificate, key, parts) in [
        (&missing, &key, ["missing.pem", "cannot be read"]),
        (&certificate, &missing, ["missing.pem", "cannot be read"]),
        (&key, &key, ["key.pem", "has no certificate"]),
        (&certificate, &certificate, ["cert.pem", "has no private key"]),
        (&broken, &key, ["broken.pem", "PEM"]),
    ] {
        let message = tls_config(certificate, key).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}
