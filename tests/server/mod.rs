//! Starts the real server on a free port of the loopback, with a data folder of its own, and speaks HTTP to it.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub(crate) url: String,
    pub(crate) client: Client,
    key: Option<String>,
}

/// A data folder that outlives servers.
pub(crate) fn data() -> TempDir {
    TempDir::new().unwrap()
}

/// One server for those tests of a file that do not disturb each other; with the flags of whoever comes first. It ends
/// with the last test that holds it.
pub(crate) fn shared(more: &[&str]) -> Arc<Shared> {
    static RUNNING: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = running.upgrade() {
        return server;
    }
    let folder = data();
    let mut server = Server::start(folder.path(), more);
    server.client = lone_client();
    let server = Arc::new(Shared { server, _folder: folder });
    *running = Arc::downgrade(&server);
    server
}

/// A server of several tests, and its data.
pub(crate) struct Shared {
    server: Server,
    _folder: TempDir,
}

impl std::ops::Deref for Shared {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

/// The program, with nothing of the outer environment that could change what it does.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_darkroom"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("DARKROOM_")) {
            command.env_remove(name);
        }
    }
    command
        .env_remove("RUST_LOG")
        .env("HF_ENDPOINT", "http://127.0.0.1:9") // nothing listens there: no test asks a network
        .env("HF_HOME", std::env::temp_dir().join("darkroom-tests-no-hub"));
    command
}

pub(crate) fn client() -> Client {
    client_builder().build().unwrap()
}

/// One for tests that share a server: every test has a runtime of its own, and a kept connection would end with the
/// runtime that opened it.
pub(crate) fn lone_client() -> Client {
    client_builder().pool_max_idle_per_host(0).build().unwrap()
}

fn client_builder() -> ClientBuilder {
    static TLS: Once = Once::new();
    TLS.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder().no_proxy().timeout(PATIENCE)
}

impl Server {
    /// Starts one on `data` with more flags.
    pub(crate) fn start<A: AsRef<OsStr>>(data: &Path, more: impl IntoIterator<Item = A>) -> Self {
        Self::start_logging_to(data, more, Stdio::null())
    }

    /// The same with its log to a file or a pipe.
    pub(crate) fn start_logging_to<A: AsRef<OsStr>>(
        data: &Path,
        more: impl IntoIterator<Item = A>,
        log: Stdio,
    ) -> Self {
        let mut command = program();
        command.args(["serve", "--port", "0", "--data-dir"]).arg(data).args(more).stderr(log);
        Self::start_command(command)
    }

    /// Starts one by a command of the caller's, which ends in `darkroom serve`.
    pub(crate) fn start_command(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(url) = line.trim().strip_prefix("listening on ") else {
            let _ = child.kill();
            panic!("the server did not start; it said: {line:?}, {:?}", child.wait());
        };
        Self { url: url.to_owned(), child, client: client(), key: None }
    }

    /// Sends this key with every request from now on.
    pub(crate) fn with_key(mut self, secret: &str) -> Self {
        self.key = Some(secret.to_owned());
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that it holds.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) -> Response {
        self.request(Method::DELETE, path).send().await.unwrap()
    }

    /// The JSON at `path`, which must answer 200.
    #[track_caller]
    pub(crate) fn json(&self, path: &str) -> impl Future<Output = Value> + use<'_> {
        let path = path.to_owned();
        async move {
            let response = self.get(&path).await;
            let status = response.status();
            let body = response.text().await.unwrap();
            assert_eq!(status, StatusCode::OK, "{path}: {body}");
            serde_json::from_str(&body).unwrap()
        }
    }

    /// Submits a task, which must be accepted; its id.
    pub(crate) async fn submit(&self, path: &str, body: &Value) -> String {
        let response = self.post(path, body).await;
        let status = response.status();
        let answer = response.text().await.unwrap();
        assert!(status.is_success(), "{path} {body}: {status} {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["task_id"].as_str().unwrap().to_owned()
    }

    /// Waits until a task is final; its JSON.
    pub(crate) async fn finished(&self, task: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.json(&format!("/v1/tasks/{task}")).await;
            match state["status"].as_str().unwrap() {
                "queued" | "processing" => {}
                _ => return state,
            }
            assert!(Instant::now() < deadline, "{task} did not end: {state}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same, and it must have been completed.
    pub(crate) async fn completed(&self, task: &str) -> Value {
        let state = self.finished(task).await;
        assert_eq!(state["status"], "completed", "{state}");
        state
    }

    /// The bytes of a finished task's picture number `index`.
    pub(crate) async fn picture(&self, state: &Value, index: usize) -> Vec<u8> {
        let url = state["images"][index]["url"].as_str().unwrap();
        let response = self.get(url).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.bytes().await.unwrap().to_vec()
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop; its exit status.
    pub(crate) fn stop(self) -> Option<i32> {
        terminate(self.child.id());
        self.exited()
    }

    /// Waits until it has ended; its exit status.
    #[allow(clippy::disallowed_methods, reason = "std waits for a process without a limit or not at all")]
    pub(crate) fn exited(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The answer's status and JSON.
pub(crate) async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: not JSON: {text}")))
}

/// A refusal in the shape of the contract, with this status and this word for programs; its `error`.
pub(crate) async fn refused(response: Response, status: u16, kind: &str) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    let (got, body) = answer(response).await;
    assert_eq!((got, body["error"]["type"].as_str()), (status, Some(kind)), "{body}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    let error = body["error"].as_object().unwrap();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    for (name, value) in error {
        assert!(["type", "message", "field", "hint"].contains(&name.as_str()) && value.is_string(), "{body}");
    }
    body["error"].clone()
}

/// SIGTERM.
pub(crate) fn terminate(pid: u32) {
    let status = Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A small picture: 64 x 64, few steps, with the built-in model.
pub(crate) fn small(seed: u64) -> Value {
    json!({"prompt": "1girl, blonde hair, smile", "width": 64, "height": 64, "steps": 2, "seed": seed})
}

/// A request that keeps the server busy for a while.
pub(crate) fn long(seed: u64) -> Value {
    json!({"prompt": "1girl, blonde hair, smile", "width": 128, "height": 128, "steps": 150, "seed": seed})
}

/// Makes a key; its secret.
pub(crate) fn create_key(data: &Path, name: &str, more: &[&str]) -> String {
    let output =
        program().args(["keys", "create", name]).args(more).arg("--data-dir").arg(data).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let secret = text.split_whitespace().find(|word| word.starts_with("dk_"));
    secret.unwrap_or_else(|| panic!("no secret in: {text}")).to_owned()
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
