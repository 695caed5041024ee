//! Addresses that clients name: the server asks no machine that it was not told to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::any;
use tokio::net::TcpListener;

use crate::server::{PATIENCE, Server, data, small};
use crate::{PAUSE, refusal};

/// Time for a request that must not be made to be made.
const WATCHED: Duration = Duration::from_secs(2);

/// Counts who connects.
struct Canary {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Canary {
    async fn on(address: impl Into<IpAddr>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::new(address.into(), 0)).await?;
        let canary = Self { port: listener.local_addr()?.port(), connections: Arc::default() };
        let connections = Arc::clone(&canary.connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Relaxed);
                drop(stream);
            }
        });
        Ok(canary)
    }

    fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

fn png() -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(64, 64).write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// A web server on 127.0.0.1: `/picture.png` is one, everything else leads to `target`. Its address, and how often it
/// was asked.
async fn web(target: String) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let elsewhere = move || {
        count.fetch_add(1, Relaxed);
        let target = target.clone();
        async move { (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response() }
    };
    let router = Router::new().route("/picture.png", any(|| async { png() })).fallback(elsewhere);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

async fn refused(server: &Server, field: &str, url: &str) {
    let mut body = small(1);
    body[field] = url.into();
    let (status, error) = refusal(server.post("/v1/images", &body).await).await;
    assert_eq!((status, error["field"].as_str()), (422, Some(field)), "{url}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_private_address_is_asked() {
    let data = data();
    let server = Server::start(data.path(), [""; 0]);
    let canary = Canary::on([0, 0, 0, 0]).await.unwrap();
    let port = canary.port;
    let hosts = [
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "x.localhost",
        "１２７.０.０.１",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "[fd00::1]",
        "[fe80::1]",
    ];
    for host in hosts {
        for field in ["init_image", "webhook_url"] {
            refused(&server, field, &format!("http://{host}:{port}/")).await;
        }
    }
    for url in
        [format!("http://user:pass@127.0.0.1:{port}/"), format!("http://example.com@127.0.0.1:{port}/")]
    {
        refused(&server, "init_image", &url).await;
    }
    tokio::time::sleep(WATCHED).await;
    assert_eq!(canary.connections(), 0, "the server was made to ask its own machine");
    // The canary does sing.
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while canary.connections() == 0 {
        assert!(Instant::now() < deadline, "the canary is deaf");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_home_is_not_asked() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let found = tokio::net::lookup_host((name.as_str(), 80)).await.map(Iterator::collect::<Vec<_>>);
    let Some(private) = found.ok().filter(|found| found.iter().all(|address| address.ip().is_loopback()))
    else {
        eprintln!("NOT TESTED: this machine's own name, '{name}', does not lead to its loopback");
        return;
    };
    println!("{name} is {private:?}");
    let data = data();
    let server = Server::start(data.path(), ["--outbound-webhook-attempts", "1"]);
    let canary = Canary::on([0, 0, 0, 0]).await.unwrap();
    let url = format!("http://{name}:{}/", canary.port);
    refused(&server, "init_image", &url).await;
    // A webhook's name is looked up when it is due.
    let mut body = small(1);
    body["webhook_url"] = url.into();
    server.completed(&server.submit("/v1/images", &body).await).await;
    tokio::time::sleep(WATCHED).await;
    assert_eq!(canary.connections(), 0, "the server was made to ask its own machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_from_an_allowed_address_to_another_is_not_followed() {
    let data = data();
    let server = Server::start(data.path(), ["--outbound-allow-networks", "127.0.0.1/32"]);
    let canary = Canary::on([127, 0, 0, 2]).await.unwrap();
    for target in
        [format!("http://127.0.0.2:{}/", canary.port), format!("http://[::ffff:127.0.0.2]:{}/", canary.port)]
    {
        let (web, asked) = web(target).await;
        let mut allowed = small(1);
        allowed["init_image"] = format!("{web}/picture.png").into();
        server.completed(&server.submit("/v1/images", &allowed).await).await;

        refused(&server, "init_image", &format!("{web}/elsewhere.png")).await;
        assert_eq!(asked.load(Relaxed), 1, "the allowed address was asked");
        let mut told = small(1);
        told["webhook_url"] = format!("{web}/hook").into();
        server.completed(&server.submit("/v1/images", &told).await).await;
        let deadline = Instant::now() + PATIENCE;
        while asked.load(Relaxed) < 2 {
            assert!(Instant::now() < deadline, "no webhook came");
            tokio::time::sleep(PAUSE).await;
        }
    }
    tokio::time::sleep(WATCHED).await;
    assert_eq!(canary.connections(), 0, "the server followed a redirect to its own machine");
}
