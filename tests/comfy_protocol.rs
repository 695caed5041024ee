//! ComfyUI's routes and WebSocket, spoken as ComfyUI speaks them: a recorded session of requests gets the same answers,
//! and clients hear the same messages in the same order. Asked of the real program, compared with recordings.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod comfy;
mod server;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfy::{Comfy, Field, difference, form, kind, none_differ, recorded, recorded_bytes, settled};
use futures_util::{SinkExt, StreamExt};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use server::PATIENCE;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

/// Mean distance, in levels, of previews that two encoders have made lossy.
const LOSSY: f64 = 6.0;

#[tokio::test]
async fn every_route_answers_as_comfyui_s() {
    let comfy = Comfy::start(false);
    let mut found = Vec::new();
    for step in recorded("requests.json").as_array().unwrap() {
        let name = step["name"].as_str().unwrap();
        let request = request(&comfy, step);
        let response = request.send().await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.bytes().await.unwrap();
        found.extend(compare(step, status, &headers, &body).map(|said| format!("{name}: {said}")));
        if let Some(prompt) = step["wait"].as_str().filter(|_| status == 200) {
            comfy.finished(prompt).await;
        }
    }
    none_differ(&found);
}

/// A recorded request.
fn request(comfy: &Comfy, step: &Value) -> RequestBuilder {
    let method: Method = step["method"].as_str().unwrap().parse().unwrap();
    let mut request = comfy.request(method, step["path"].as_str().unwrap());
    if let Some(headers) = step["headers"].as_object() {
        for (name, value) in headers {
            request = request.header(name, value.as_str().unwrap());
        }
    }
    if let Some(text) = step["text"].as_str() {
        request = request.body(text.to_owned());
    }
    if let Some(fields) = step["form"].as_object() {
        // A file is its name, and the input file or the text that it holds.
        let files: HashMap<&String, Vec<u8>> = fields
            .iter()
            .filter_map(|(name, value)| Some((name, value[1].as_str()?)))
            .map(|(name, source)| {
                let bytes = if source.ends_with(".png") {
                    recorded_bytes(&format!("input/{source}"))
                } else {
                    source.as_bytes().to_vec()
                };
                (name, bytes)
            })
            .collect();
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| match files.get(name) {
                Some(bytes) => (name.as_str(), Field::File(value[0].as_str().unwrap(), bytes)),
                None => (name.as_str(), Field::Text(value.as_str().unwrap())),
            })
            .collect();
        let (kind, body) = form(&fields);
        request = request.header("Content-Type", kind).body(body);
    }
    request
}

/// How an answer differs from the recorded one, if it does.
fn compare(step: &Value, status: u16, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let text = || String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
    let theirs = step["status"].as_u64().unwrap();
    if theirs == 500 && step["may"] != "serve" {
        // ComfyUI stumbled there: any refusal will do.
        return (!(400..=500).contains(&status)).then(|| format!("theirs 500, ours {status} {}", text()));
    }
    if u64::from(status) != theirs {
        let allowed = match step["may"].as_str() {
            Some("refuse") => (400..500).contains(&status),
            Some("serve") => status == 200,
            _ => false,
        };
        if allowed {
            return None;
        }
        return Some(format!("theirs {theirs}, ours {status} {}", text()));
    }
    if theirs >= 400 && step["answer"]["json"].is_null() {
        return None; // that it is refused, and how, is what clients look at
    }
    for name in ["content-type", "content-disposition"] {
        let Some(wanted) = step["answered"][name].as_str() else { continue };
        // Python read the bytes as Latin-1. JSON is UTF-8 whether or not it is said.
        let wanted: Vec<u8> =
            wanted.trim_end_matches("; charset=utf-8").chars().map(|one| one as u8).collect();
        let ours = headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
        let ours = ours.strip_suffix(b"; charset=utf-8").unwrap_or(ours);
        if ours != wanted {
            let [wanted, ours] = [&wanted, ours].map(String::from_utf8_lossy);
            return Some(format!("{name}: theirs {wanted:?}, ours {ours:?}"));
        }
    }
    match step["compare"].as_str().unwrap() {
        "status" => None,
        "bytes" => (hex::encode(Sha256::digest(body)) != step["answer"]["sha256"].as_str().unwrap())
            .then(|| format!("other bytes, {} of them", body.len())),
        "picture" => pictures(&STANDARD.decode(step["answer"]["base64"].as_str().unwrap()).unwrap(), body),
        "json" | "shape" | "holds" => {
            let Some(theirs) = step["answer"].get("json") else {
                return (step["answer"]["text"] != *text())
                    .then(|| format!("theirs {}, ours {:?}", step["answer"]["text"], text()));
            };
            let Ok(ours) = serde_json::from_slice::<Value>(body) else {
                return Some(format!("not JSON: {}", text()));
            };
            if step["compare"] == "shape" {
                return shapes("", theirs, &ours);
            }
            if step["compare"] == "holds" {
                let ours = ours.as_array().cloned().unwrap_or_default();
                let missing = theirs.as_array().unwrap().iter().find(|item| !ours.contains(item));
                return missing.map(|item| format!("{item} is missing"));
            }
            let order = |value: &Value| {
                let mut value = settled(value);
                if step["unordered"] == true
                    && let Some(items) = value.as_array_mut()
                {
                    items.sort_by_key(Value::to_string);
                }
                value
            };
            difference("", &order(theirs), &order(&ours))
        }
        other => panic!("no comparison {other}"),
    }
}

/// Whether everything is there that was recorded as `"string"`, `"number"`, ...; of lists, whether all items are alike.
fn shapes(path: &str, theirs: &Value, ours: &Value) -> Option<String> {
    match (theirs, ours) {
        (Value::Object(members), Value::Object(_)) => members.iter().find_map(|(name, inner)| {
            let path = format!("{path}.{name}");
            ours.get(name)
                .map_or_else(|| Some(format!("{path} is missing")), |other| shapes(&path, inner, other))
        }),
        (Value::Array(items), Value::Array(others)) => {
            let first = items.first()?;
            others
                .iter()
                .enumerate()
                .find_map(|(index, other)| shapes(&format!("{path}[{index}]"), first, other))
        }
        (Value::String(wanted), other) if wanted == kind(other) => None,
        (Value::Null, Value::Null) => None,
        _ => Some(format!("{path}: theirs {theirs}, ours {ours}")),
    }
}

fn pictures(theirs: &[u8], ours: &[u8]) -> Option<String> {
    let kind = image::guess_format(theirs).unwrap();
    if image::guess_format(ours).ok() != Some(kind) {
        return Some(format!("ours is no {kind:?}"));
    }
    let [theirs, ours] =
        [theirs, ours].map(|bytes| image::load_from_memory_with_format(bytes, kind).unwrap());
    if (theirs.color(), theirs.width(), theirs.height()) != (ours.color(), ours.width(), ours.height()) {
        let shape = |picture: &image::DynamicImage| (picture.color(), picture.width(), picture.height());
        return Some(format!("theirs is {:?}, ours {:?}", shape(&theirs), shape(&ours)));
    }
    let values = theirs.as_bytes().iter().zip(ours.as_bytes());
    let mean = values.map(|(left, right)| f64::from(left.abs_diff(*right))).sum::<f64>()
        / theirs.as_bytes().len() as f64;
    let most = if kind == image::ImageFormat::Png { 0.0 } else { LOSSY };
    (mean > most).then(|| format!("{mean:.2} levels off in the mean"))
}

/// A client: every frame that it has heard, and a way to make it say something or leave.
struct Client {
    heard: Arc<Mutex<Vec<Value>>>,
    say: Option<mpsc::UnboundedSender<String>>,
}

impl Client {
    async fn connect(comfy: &Comfy, client: Option<&str>) -> Self {
        let query = client.map(|id| format!("?clientId={id}")).unwrap_or_default();
        let url = format!("{}/ws{query}", comfy.url.replacen("http", "ws", 1));
        let (mut socket, _) = connect_async(url).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (say, mut said) = mpsc::unbounded_channel::<String>();
        let keep = Arc::clone(&heard);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = socket.next() => match message {
                        Some(Ok(Message::Text(text))) => {
                            keep.lock().unwrap().push(serde_json::from_str::<Value>(&text).unwrap());
                        }
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => break,
                    },
                    text = said.recv() => match text {
                        Some(text) => socket.send(Message::text(text)).await.unwrap(),
                        None => {
                            let _ = socket.close(None).await;
                            break;
                        }
                    },
                }
            }
        });
        let made = Self { heard, say: Some(say) };
        made.until("status", |frames| !frames.is_empty()).await;
        made
    }

    fn frames(&self) -> Vec<Value> {
        self.heard.lock().unwrap().clone()
    }

    async fn until(&self, what: &str, condition: impl Fn(&[Value]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.frames()) {
            assert!(Instant::now() < deadline, "no {what} among {:?}", self.frames());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_end(frame: &Value, prompt: &str) -> bool {
    frame["type"] == "executing" && frame["data"]["node"].is_null() && frame["data"]["prompt_id"] == prompt
}

#[tokio::test]
async fn clients_hear_what_comfyui_tells_them() {
    let comfy = Comfy::start(true);
    comfy.upload("broken.png", b"\x89PNG\r\n\x1a\n but then nothing").await;
    let mut found = Vec::new();
    let conversations = recorded("conversations.json");
    for name in [
        "first run",
        "all cached",
        "one input changed",
        "two prompts in a row",
        "interrupted",
        "a client comes back",
        "another client listens",
        "a prompt of no client",
        "feature flags",
        "a client without a name",
        "a text",
        "failing",
    ] {
        let conversation = &conversations[name];
        let clients = converse(&comfy, conversation).await;
        for (client, theirs) in conversation["frames"].as_object().unwrap() {
            let ours = clients[client].frames();
            let said = hear(theirs.as_array().unwrap(), &ours);
            found.extend(said.into_iter().map(|said| format!("{name}, {client}: {said}")));
        }
    }
    assert_eq!(conversations.as_object().unwrap().len(), 12);
    none_differ(&found);
}

/// Does what the recorded clients did.
async fn converse(comfy: &Comfy, conversation: &Value) -> HashMap<String, Client> {
    let mut clients = HashMap::new();
    for step in conversation["steps"].as_array().unwrap() {
        let text = |index: usize| step[index].as_str().unwrap();
        match text(0) {
            "connect" => {
                clients.insert(text(1).to_owned(), Client::connect(comfy, step[2].as_str()).await);
            }
            "post" => {
                let response = comfy.send(Method::POST, text(1), text(2)).await;
                assert_eq!(response.status(), 200, "{}: {}", text(1), response.text().await.unwrap());
            }
            "progressed" => {
                let progress = |frames: &[Value]| frames.iter().any(|frame| frame["type"] == "progress");
                clients[text(1)].until("progress", progress).await;
            }
            "close" => clients.get_mut(text(1)).unwrap().say = None,
            "send" => {
                clients[text(1)].say.as_ref().unwrap().send(step[2].to_string()).unwrap();
                clients[text(1)].until("answer", |frames| frames.len() > 1).await;
            }
            "ended" => {
                if let Some(client) = clients.get(text(2)) {
                    client.until("end", |frames| frames.iter().any(|frame| is_end(frame, text(1)))).await;
                }
                comfy.finished(text(1)).await;
            }
            other => panic!("no step {other}"),
        }
    }
    // Messages that should not come would come by now.
    tokio::time::sleep(Duration::from_millis(300)).await;
    clients
}

/// How what a client heard differs from what the recorded one heard: of each prompt the same messages in the same order,
/// and the rest. Where prompts run beside each other their messages mix, and how often the queue is told varies.
fn hear(theirs: &[Value], ours: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    let sid = |frames: &[Value]| {
        let sid = frames[0]["data"]["sid"].as_str().unwrap_or("none");
        // A name that the server gives has 32 digits.
        if sid.len() == 32 { "given".to_owned() } else { sid.to_owned() }
    };
    if ours[0]["type"] != "status" || sid(ours) != sid(theirs) {
        found.push(format!("began with {}", ours[0]));
    }
    if ours[1..].iter().any(|frame| frame["type"] == "status" && frame["data"].get("sid").is_some()) {
        found.push("was told its name again".to_owned());
    }
    let left = |frames: &[Value]| {
        let last = frames.iter().rfind(|frame| frame["type"] == "status").unwrap();
        last["data"]["status"].clone()
    };
    found.extend(difference("the last status", &left(theirs), &left(ours)));
    let prompts = |frames: &[Value]| -> BTreeSet<String> {
        frames.iter().filter_map(|frame| frame["data"]["prompt_id"].as_str().map(str::to_owned)).collect()
    };
    let none = String::new();
    for prompt in prompts(theirs).union(&prompts(ours)).chain([&none]) {
        let of_it = |frames: &[Value]| -> Vec<Value> {
            let of_it = frames
                .iter()
                .filter(|frame| frame["data"]["prompt_id"].as_str().unwrap_or_default() == *prompt);
            of_it.filter(|frame| frame["type"] != "status" && !is_on_the_way(frame)).map(plain).collect()
        };
        let (theirs, ours) = (of_it(theirs), of_it(ours));
        let of = if prompt.is_empty() { "no prompt" } else { prompt };
        for (index, (left, right)) in theirs.iter().zip(&ours).enumerate() {
            if let Some(said) = difference(&format!("{of}[{index}]"), left, right) {
                found.push(said);
                break;
            }
        }
        if theirs.len() != ours.len() {
            let kinds = |frames: &[Value]| {
                frames.iter().map(|frame| frame["type"].to_string()).collect::<Vec<_>>().join(" ")
            };
            found.push(format!("{of}: theirs {}, ours {}: {}", theirs.len(), ours.len(), kinds(&ours)));
        }
    }
    found
}

/// Whether it tells of a step that is not a node's first or last: those may be told several at once.
fn is_on_the_way(frame: &Value) -> bool {
    let value = |data: &Value| (data["value"].as_f64().unwrap(), data["max"].as_f64().unwrap());
    match frame["type"].as_str().unwrap() {
        "progress" => value(&frame["data"]).0 < value(&frame["data"]).1,
        "progress_state" => {
            let mut nodes = frame["data"]["nodes"].as_object().unwrap().values();
            nodes.any(|node| node["state"] == "running" && value(node).0 > 0.0)
        }
        _ => false,
    }
}

/// A frame without times, exceptions' words, and the counters in files' names.
fn plain(frame: &Value) -> Value {
    let mut frame = settled(frame);
    for word in ["exception_message", "exception_type"] {
        if let Some(text) = frame["data"].get_mut(word) {
            assert!(text.as_str().is_some_and(|text| !text.is_empty()), "{word}: {text}");
            *text = "of Python".into();
        }
    }
    if let Some(images) = frame["data"]["output"]["images"].as_array_mut() {
        for image in images {
            let name = image["filename"].as_str().unwrap();
            let counter = name.len().checked_sub("00001_.png".len()).filter(|at| name.is_char_boundary(*at));
            assert!(
                counter.is_some_and(|at| name[at..at + 5].bytes().all(|digit| digit.is_ascii_digit())),
                "{name}"
            );
            image["filename"] = json!(format!("{}#####_.png", &name[..counter.unwrap()]));
        }
    }
    frame
}
