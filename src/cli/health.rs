//! `darkroom health`: asks a running server whether it is well, for container health checks that have no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use reqwest::redirect::Policy;
use url::Url;

use super::args::HealthArgs;
use super::error::CommandError;
use crate::config::ServerConfig;
use crate::outbound::innermost;

/// How long a healthy server may take.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(args: &HealthArgs) -> Result<(), CommandError> {
    let own = args.url.is_none();
    let url = match &args.url {
        Some(text) => asked(text)?,
        None => own_address(&args.flags.load()?.config.server)?,
    };
    ask(&url, own)
}

/// Asks for `url`; `own` takes the certificate as it is.
fn ask(url: &Url, own: bool) -> Result<(), CommandError> {
    // Fails where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(Policy::none())
        .no_proxy()
        // The server's certificate names its public address, not the loopback one that it is asked at.
        .tls_danger_accept_invalid_certs(own)
        .build()
        .map_err(CommandError::plain)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = async { client.get(url.clone()).send().await };
    let status = runtime.map_err(CommandError::plain)?.block_on(answer).map(|answer| answer.status());
    match status {
        Ok(status) if status.is_success() => Ok(()),
        Ok(status) => Err(CommandError::plain(format!("{url} answers {status}"))),
        Err(error) => Err(CommandError::failure(
            format!("{url} does not answer: {}", innermost(&error)),
            "start it with `darkroom serve`, or pass the address it printed",
        )),
    }
}

/// The address on the command line; one without a path is a server's.
fn asked(text: &str) -> Result<Url, CommandError> {
    let fix = "it looks like http://127.0.0.1:8188 or http://127.0.0.1:8188/ready";
    let mut url = Url::parse(text).map_err(|error| CommandError::usage(format!("'{text}': {error}"), fix))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(CommandError::usage(format!("'{text}' is no http address"), fix));
    }
    if url.path() == "/" {
        url.set_path("/health");
    }
    Ok(url)
}

/// Where a server with this configuration is reached from its own machine.
fn own_address(server: &ServerConfig) -> Result<Url, CommandError> {
    if server.port == 0 {
        return Err(CommandError::usage("port 0 is no address", "pass the address that the server printed"));
    }
    let host = match server.host {
        IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    let address = std::net::SocketAddr::new(host, server.port);
    Url::parse(&format!("{scheme}://{address}/health")).map_err(CommandError::plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_asked_on_loopback() {
        let mut server =
            ServerConfig { host: IpAddr::from([0, 0, 0, 0]), port: 80, ..ServerConfig::default() };
        assert_eq!(own_address(&server).unwrap().as_str(), "http://127.0.0.1/health");
        server.host = "::".parse().unwrap();
        server.port = 8188;
        server.tls_cert = Some("a.pem".into());
        assert_eq!(own_address(&server).unwrap().as_str(), "https://[::1]:8188/health");
        server.port = 0;
        own_address(&server).unwrap_err();
    }

    /// A server that gives one answer.
    fn answering(answer: &'static str) -> Url {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/health", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        Url::parse(&url).unwrap()
    }

    #[test]
    fn only_a_success_is_health() {
        ask(&answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), true).unwrap();
        let sick = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        let message = ask(&sick, true).unwrap_err().lines();
        assert!(message.contains("answers 503"), "{message}");
        let moved = answering("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n");
        ask(&moved, true).unwrap_err();
    }

    #[test]
    fn a_server_that_is_not_there_is_told_apart() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let message = ask(&Url::parse(&format!("http://{free}/")).unwrap(), false).unwrap_err().lines();
        assert!(message.contains("does not answer") && message.contains("refused"), "{message}");
    }

    #[test]
    fn an_address_without_a_path_is_a_servers() {
        assert_eq!(asked("http://a:1").unwrap().as_str(), "http://a:1/health");
        assert_eq!(asked("http://a:1/ready").unwrap().as_str(), "http://a:1/ready");
        asked("ftp://a").unwrap_err();
        asked("a").unwrap_err();
    }
}
