//! The client against real servers on loopback, which stands in for the public internet where it is allowed.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use futures_util::stream;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::outbound::test_server::{Names, TestServer};

/// Tests that expect no timeout have this one, seconds.
const AMPLE: f64 = 30.0;

fn config(allow: &[&str]) -> OutboundConfig {
    let allow_networks = allow.iter().map(ToString::to_string).collect();
    OutboundConfig { allow_networks, timeout: AMPLE, ..OutboundConfig::default() }
}

/// May ask 127.0.0.1, and no other address of loopback.
fn client() -> Client {
    Client::new(&config(&["127.0.0.1/32"])).unwrap()
}

/// May ask what everyone may.
fn strict() -> Client {
    Client::new(&config(&[])).unwrap()
}

/// Every name ending in `first.test` is 127.0.0.1, every other is 127.0.0.2.
fn client_with_names() -> Client {
    let names =
        Names(|host: &str| Ipv4Addr::new(127, 0, 0, if host.ends_with("first.test") { 1 } else { 2 }).into());
    Client::with_lookup(&config(&["127.0.0.1/32"]), names).unwrap()
}

async fn download(client: &Client, url: &str) -> Result<Bytes, OutboundError> {
    client.download(&Url::parse(url).unwrap(), 1000).await
}

async fn post(client: &Client, url: &str) -> Result<(), OutboundError> {
    let secret = Secret::new("0123456789abcdef", "the test").unwrap();
    let url = Url::parse(url).unwrap();
    let body = Bytes::from_static(b"{}");
    client.post_webhook(&url, "d1", "task.completed", body, &secret, Timestamp::now()).await
}

/// Answers every request with `status` and `location`.
fn redirecting(status: u16, location: String) -> Router {
    let answer = move || async move {
        (StatusCode::from_u16(status).unwrap(), [(header::LOCATION, location)]).into_response()
    };
    Router::new().fallback(any(answer))
}

/// Answers 200, and counts.
fn counting(requests: &Arc<AtomicUsize>) -> Router {
    let requests = Arc::clone(requests);
    let answer = move || async move {
        requests.fetch_add(1, Ordering::SeqCst);
        "a picture"
    };
    Router::new().fallback(any(answer))
}

#[test]
fn an_address_that_is_not_public_is_refused_in_every_spelling() {
    for url in [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://１２７.０.０.１/",
        "http://0/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.100.100.200/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "https://localhost/",
        "https://LocalHost:8443/",
        "http://localhost./",
        "http://a.localhost/",
        "http:127.0.0.1",
        "http:\\\\127.0.0.1\\",
        " http://127.0.\n0.1/",
    ] {
        let refused = strict().check_url(url).unwrap_err();
        assert!(matches!(refused, OutboundError::NotPublic { .. }), "{url}: {refused:?}");
        assert!(refused.is_refused_address());
    }
}

#[test]
fn what_is_no_web_address_is_refused() {
    for (url, reason) in [
        ("", "relative"),
        ("example.com", "relative"),
        ("/v1/images", "relative"),
        ("file:///etc/passwd", "http://"),
        ("ftp://example.com/", "http://"),
        ("gopher://example.com/", "http://"),
        ("data:image/png;base64,AA", "http://"),
        ("unix:/run/docker.sock", "http://"),
        ("http://user@example.com/", "password"),
        ("http://:pass@example.com/", "password"),
        ("https://example.com@127.0.0.1/", "password"),
        ("http://", "host"),
        ("http://1.2.3.256/", "IPv4"),
        ("http://[fe80::1%25eth0]/", "IPv6"),
        ("http://example.com:99999/", "port"),
    ] {
        let refused = strict().check_url(url).unwrap_err();
        let OutboundError::InvalidUrl { reason: said } = &refused else { panic!("{url}: {refused:?}") };
        assert!(said.contains(reason), "{url}: {said}");
    }
}

#[test]
fn a_url_is_accepted_up_to_2048_bytes_as_written_and_as_sent() {
    let of_length = |bytes: usize| format!("https://example.com/{}", "a".repeat(bytes - 20));
    assert_eq!(strict().check_url(&of_length(2048)).unwrap().as_str().len(), 2048);
    assert!(strict().check_url(&of_length(2049)).is_err());
    // Each of these becomes six bytes.
    assert!(strict().check_url(&format!("https://example.com/{}", "é".repeat(1000))).is_err());
}

#[test]
fn public_hosts_and_excepted_networks_are_accepted() {
    for url in ["https://example.com/hook?token=1", "http://93.184.216.34:8080/", "http://[2606:4700::1111]/"]
    {
        assert_eq!(strict().check_url(url).unwrap().as_str(), url);
    }
    assert!(client().check_url("http://127.0.0.1:9/").is_ok());
    assert!(client().check_url("http://localhost:9/").is_ok());
    assert!(client().check_url("http://127.0.0.2:9/").is_err());
}

#[test]
fn a_timeout_that_is_no_time_is_a_config_error() {
    for timeout in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        let refused = Client::new(&OutboundConfig { timeout, ..OutboundConfig::default() }).err().unwrap();
        assert!(refused.to_string().contains("outbound.timeout"), "{refused}");
    }
}

#[tokio::test]
async fn a_picture_arrives_whole() {
    let server = TestServer::start(Router::new().route("/a", get(|| async { vec![7_u8; 1000] }))).await;
    assert_eq!(download(&client(), &server.url("/a")).await.unwrap(), vec![7; 1000]);
}

#[tokio::test]
async fn loopback_is_refused_before_anything_is_sent() {
    let requests = Arc::default();
    let server = TestServer::start(counting(&requests)).await;
    for url in [server.url("/"), server.url_as("localhost", "/"), server.url_as("second.test", "/")] {
        let names = Names(|_: &str| IpAddr::from([127, 0, 0, 1]));
        let strict = Client::with_lookup(&config(&[]), names).unwrap();
        let refused = download(&strict, &url).await.unwrap_err();
        assert!(matches!(refused, OutboundError::NotPublic { .. }), "{url}: {refused:?}");
        assert!(matches!(post(&strict, &url).await.unwrap_err(), OutboundError::NotPublic { .. }));
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_redirect_is_followed_and_may_be_relative() {
    let target = TestServer::start(Router::new().route("/picture", get(|| async { "a picture" }))).await;
    let relay = TestServer::start(redirecting(302, target.url("/picture"))).await;
    assert_eq!(download(&client(), &relay.url("/")).await.unwrap(), "a picture");
    let router = Router::new()
        .route("/a/b", get(|| async { (StatusCode::SEE_OTHER, [(header::LOCATION, "../c")]) }))
        .route("/c", get(|| async { "another" }));
    let server = TestServer::start(router).await;
    assert_eq!(download(&client(), &server.url("/a/b")).await.unwrap(), "another");
}

#[tokio::test]
async fn a_redirect_to_a_refused_address_is_refused_and_never_asked() {
    let requests = Arc::default();
    let hidden = TestServer::start_on(Ipv4Addr::new(127, 0, 0, 2), counting(&requests)).await;
    let by_name = hidden.url_as("second.test", "/");
    for location in
        [hidden.url("/"), by_name.clone(), "file:///etc/passwd".into(), "http://u:p@127.0.0.1/".into()]
    {
        for status in [302, 307] {
            let relay = TestServer::start(redirecting(status, location.clone())).await;
            let refused = download(&client_with_names(), &relay.url("/")).await.unwrap_err();
            if location == by_name {
                assert_eq!(refused, OutboundError::NotPublic { host: "second.test".into() });
            } else {
                assert!(matches!(refused, OutboundError::Redirect { .. }), "{location}: {refused:?}");
            }
        }
        let relay = TestServer::start(redirecting(308, location.clone())).await;
        assert!(post(&client_with_names(), &relay.url("/")).await.is_err(), "{location}");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_moves_to_loopback_between_two_connections_is_refused_at_the_second() {
    // 127.0.0.1 stands for a public address here; 127.0.0.2 is loopback as everyone's.
    let lookups = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lookups);
    let names = Names(move |_: &str| {
        Ipv4Addr::new(127, 0, 0, if count.fetch_add(1, Ordering::SeqCst) == 0 { 1 } else { 2 }).into()
    });
    let client = Client::with_lookup(&config(&["127.0.0.1/32"]), names).unwrap();
    let requests = Arc::default();
    let hidden = TestServer::start_on(Ipv4Addr::new(127, 0, 0, 2), counting(&requests)).await;
    let relay = TestServer::start(redirecting(307, hidden.url_as("changing.test", "/"))).await;
    let refused = download(&client, &relay.url_as("changing.test", "/")).await.unwrap_err();
    assert_eq!(refused, OutboundError::NotPublic { host: "changing.test".into() });
    assert_eq!(lookups.load(Ordering::SeqCst), 2, "the name is looked up for each connection");
    assert_eq!(requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn redirects_end() {
    let hops = |hop: usize| async move { (StatusCode::FOUND, [(header::LOCATION, format!("/{}", hop + 1))]) };
    let answer = move |Path(hop): Path<usize>| async move {
        if hop == 4 { "there".into_response() } else { hops(hop).await.into_response() }
    };
    let server = TestServer::start(Router::new().route("/{hop}", get(answer))).await;
    assert_eq!(download(&client(), &server.url("/1")).await.unwrap(), "there", "three are followed");
    let refused = download(&client(), &server.url("/0")).await.unwrap_err();
    assert!(refused.to_string().contains("no more than 3 redirects"), "{refused}");
}

#[tokio::test]
async fn a_webhook_is_carried_on_by_307_and_308_alone() {
    let requests = Arc::default();
    let target = TestServer::start(counting(&requests)).await;
    for status in [301, 302, 303] {
        let relay = TestServer::start(redirecting(status, target.url("/"))).await;
        let failed = post(&client(), &relay.url("/")).await.unwrap_err();
        assert!(matches!(failed, OutboundError::Status { status: said, .. } if said == status), "{failed:?}");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    let echo = Router::new().fallback(|request: axum::extract::Request| async move {
        let is_whole = request.method() == Method::POST && request.headers().contains_key(SIGNATURE_HEADER);
        let body = axum::body::to_bytes(request.into_body(), 100).await.unwrap();
        if is_whole && body == "{}" { StatusCode::OK } else { StatusCode::BAD_REQUEST }
    });
    let target = TestServer::start(echo).await;
    for status in [307, 308] {
        let relay = TestServer::start(redirecting(status, target.url("/"))).await;
        assert_eq!(post(&client(), &relay.url("/")).await, Ok(()));
    }
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let endless = || async {
        Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[0; 100]))))
    };
    let server = TestServer::start(Router::new().route("/", get(endless))).await;
    let refused = download(&client(), &server.url("/")).await.unwrap_err();
    assert_eq!(refused, OutboundError::TooLarge { host: "127.0.0.1".into(), limit: 1000 });
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_not_read() {
    // Sends its head alone and keeps the connection: whoever waits for the body runs into the timeout.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        let _ = socket.read(&mut head).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n").await.unwrap();
        let _ = socket.read(&mut head).await;
    });
    let refused = download(&client(), &format!("http://{address}/")).await.unwrap_err();
    assert_eq!(refused, OutboundError::TooLarge { host: "127.0.0.1".into(), limit: 1000 });
    server.abort();
}

#[tokio::test]
async fn a_server_that_never_ends_times_out() {
    let impatient = OutboundConfig { timeout: 0.2, ..config(&["127.0.0.1/32"]) };
    let client = Client::new(&impatient).unwrap();
    let drip = || async {
        let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"a")) });
        Body::from_stream(futures_util::StreamExt::chain(first, stream::pending()))
    };
    let router = Router::new().route("/silent", any(std::future::pending::<()>)).route("/drip", get(drip));
    let server = TestServer::start(router).await;
    let expected = OutboundError::Timeout { host: "127.0.0.1".into(), seconds: 0.2 };
    assert_eq!(download(&client, &server.url("/silent")).await.unwrap_err(), expected);
    assert_eq!(download(&client, &server.url("/drip")).await.unwrap_err(), expected);
    assert_eq!(post(&client, &server.url("/silent")).await.unwrap_err(), expected);
}

#[tokio::test]
async fn errors_tell_the_host_and_never_the_path() {
    let server = TestServer::start(Router::new()).await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let missing = download(&client(), &server.url("/token?token=1")).await.unwrap_err();
    assert_eq!(missing, OutboundError::Status { host: "127.0.0.1".into(), status: 404, retry_after: None });
    let unreachable = download(&client(), &format!("http://{closed}/token?token=1")).await.unwrap_err();
    let not_tls = download(&client(), &server.url("/token").replace("http:", "https:")).await.unwrap_err();
    for error in [&unreachable, &not_tls] {
        assert!(matches!(error, OutboundError::Unreachable { .. }), "{error:?}");
    }
    for error in [missing, unreachable, not_tls] {
        let text = error.to_string();
        assert!(text.contains("127.0.0.1") && !text.contains("token"), "{text}");
    }
}

#[tokio::test]
async fn the_server_says_who_it_is() {
    let agent = |headers: HeaderMap| async move { headers[header::USER_AGENT].to_str().unwrap().to_owned() };
    let server = TestServer::start(Router::new().route("/", get(agent))).await;
    let said = download(&client(), &server.url("/")).await.unwrap();
    assert_eq!(said, format!("darkroom/{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = "1994-11-06T08:49:00Z".parse().unwrap();
    assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
    assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(37)));
    assert_eq!(retry_after("Sun, 06 Nov 1994 08:48:37 GMT", now), Some(Duration::ZERO));
    for nonsense in ["", "soon", "-1", "1.5"] {
        assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_check_panic_or_passes_a_literal_private_address(text in "\\PC{0,80}", bits: u32) {
        let client = strict();
        let _ = client.check_url(&text);
        let address = Ipv4Addr::from_bits(0x0a00_0000 | bits >> 8);
        let [a, b, c, d] = address.octets();
        for host in [
            format!("{address}"), format!("{}", address.to_bits()), format!("{:#x}", address.to_bits()),
            format!("{a:#o}.{b}.{c}.{d}").replace("0o", "0"), format!("{a}.{}", u32::from(b) << 16 | u32::from(c) << 8 | u32::from(d)),
            format!("[::ffff:{address}]"), format!("[64:ff9b::{address}]"),
        ] {
            prop_assert!(client.check_url(&format!("http://{host}/")).is_err(), "{host}");
        }
    }
}
