//! What happened to a prompt, as ComfyUI's clients are told it: JSON in text frames, pictures and texts in binary
//! ones (`server.py`, `execution.py`, `protocol.py`).

use std::io::Cursor;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use image::{ExtendedColorType, RgbImage};
use serde::Serialize;
use serde_json::Value as Json;

use super::progress::{Names, Progress};
use crate::workflow::event::{Event, Failure};

/// Nodes up to which each change is told in a `progress_state` of its own. Each names all nodes that have begun, so
/// those of a graph of 10,000 would together be gigabytes.
const TOLD_AT_ONCE: usize = 256;
/// Time between two of them beyond that.
const BETWEEN: Duration = Duration::from_millis(100);
/// Longest side of a preview, pixels (`--preview-size`).
const PREVIEW_SIDE: u32 = 512;
/// Quality of previews.
const PREVIEW_QUALITY: u8 = 95;

const PREVIEW_IMAGE: u32 = 1;
const TEXT: u32 = 3;
const PREVIEW_IMAGE_WITH_METADATA: u32 = 4;

/// One message on its way to a client; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// UTF-8.
    Text(Bytes),
    /// Starts with a number of four bytes that says what it is.
    Binary(Bytes),
}

impl Frame {
    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let (Self::Text(bytes) | Self::Binary(bytes)) = self;
        bytes.len()
    }
}

/// How a picture is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
}

impl Format {
    /// In `PREVIEW_IMAGE`.
    fn number(self) -> u32 {
        match self {
            Self::Jpeg => 1,
            Self::Png => 2,
        }
    }

    fn mime(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
        }
    }
}

/// Something that happened, ready to be told now or later.
#[derive(Debug, Clone)]
pub(super) struct News {
    pub(super) what: What,
    /// When, milliseconds since 1970.
    pub(super) at: i64,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Started,
    Cached {
        nodes: Vec<String>,
    },
    Executing {
        node: String,
    },
    Progress {
        node: String,
        value: usize,
        max: usize,
    },
    Picture {
        node: String,
        format: Format,
        file: Bytes,
    },
    Text {
        node: String,
        text: String,
    },
    Executed {
        node: String,
        output: Json,
        /// The node that it was when it ran.
        ran_as: String,
    },
    Finished {
        node: String,
    },
    Succeeded,
    /// `nodes`: all of the prompt, which is what ComfyUI says of `current_outputs`.
    Failed {
        failure: Box<Failure>,
        nodes: Vec<String>,
    },
    Interrupted {
        node: String,
        class: String,
        executed: Vec<String>,
    },
}

impl News {
    /// From the executor's words; previews become JPEG here, on the thread of the prompt. `None` if there is nothing
    /// to tell: a preview of no size.
    pub(super) fn new(event: Event, at: i64) -> Option<Self> {
        let what = match event {
            Event::Started => What::Started,
            Event::Cached { nodes } => What::Cached { nodes },
            Event::Executing { node } => What::Executing { node },
            Event::Progress { node, value, max } => What::Progress { node, value, max },
            Event::Preview { node, width, height, rgb } => {
                What::Picture { node, format: Format::Jpeg, file: jpeg(width, height, rgb)? }
            }
            Event::Picture { node, png } => What::Picture { node, format: Format::Png, file: png.into() },
            Event::Text { node, text } => What::Text { node, text },
            Event::Executed { node, output, ran_as } => What::Executed { node, output, ran_as },
            Event::Finished { node } => What::Finished { node },
            Event::Succeeded => What::Succeeded,
            Event::Failed(failure) => What::Failed { failure, nodes: Vec::new() },
            Event::Interrupted { node, class, executed } => What::Interrupted { node, class, executed },
        };
        Some(Self { what, at })
    }

    /// Bytes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        128 + match &self.what {
            What::Picture { file, .. } => file.len(),
            What::Text { text, .. } => text.len(),
            What::Executed { output, .. } => output.to_string().len(),
            What::Cached { nodes } => nodes.iter().map(|node| 32 + node.len()).sum(),
            What::Failed { failure, .. } => failure.message.len() + failure.inputs.to_string().len(),
            _ => 0,
        }
    }

    /// Whether `later`, which follows it, says all that it says.
    pub(super) fn is_outdone_by(&self, later: &Self) -> bool {
        match (&self.what, &later.what) {
            (What::Progress { node, .. }, What::Progress { node: other, .. })
            | (What::Text { node, .. }, What::Text { node: other, .. })
            | (
                What::Picture { node, format: Format::Jpeg, .. },
                What::Picture { node: other, format: Format::Jpeg, .. },
            ) => node == other,
            _ => false,
        }
    }

    /// Whether it is a preview.
    pub(super) fn is_preview(&self) -> bool {
        matches!(self.what, What::Picture { format: Format::Jpeg, .. })
    }

    /// Whether something after it may stand in its place (see [`Self::is_outdone_by`]).
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.what, What::Progress { .. } | What::Text { .. } | What::Picture { .. })
    }

    /// The name and the data of what the history keeps of it (`add_message`).
    pub(super) fn kept(&self, prompt_id: &str) -> Option<(&'static str, String)> {
        let timestamp = self.at;
        let kept = match &self.what {
            What::Started => ("execution_start", to_json(&Marked { prompt_id, timestamp })),
            What::Cached { nodes } => {
                ("execution_cached", to_json(&CachedData { nodes, prompt_id, timestamp }))
            }
            What::Succeeded => ("execution_success", to_json(&Marked { prompt_id, timestamp })),
            What::Failed { failure, nodes } => (
                "execution_error",
                to_json(&ErrorData {
                    prompt_id,
                    node_id: &failure.node,
                    node_type: &failure.class,
                    executed: &failure.executed,
                    exception_message: &failure.message,
                    exception_type: &failure.kind,
                    traceback: [],
                    current_inputs: &failure.inputs,
                    current_outputs: nodes,
                    timestamp,
                }),
            ),
            What::Interrupted { node, class, executed } => (
                "execution_interrupted",
                to_json(&InterruptedData { prompt_id, node_id: node, node_type: class, executed, timestamp }),
            ),
            _ => return None,
        };
        Some(kept)
    }
}

#[derive(Serialize)]
struct Marked<'a> {
    prompt_id: &'a str,
    timestamp: i64,
}

#[derive(Serialize)]
struct CachedData<'a> {
    nodes: &'a [String],
    prompt_id: &'a str,
    timestamp: i64,
}

#[derive(Serialize)]
struct ErrorData<'a> {
    prompt_id: &'a str,
    node_id: &'a str,
    node_type: &'a str,
    executed: &'a [String],
    exception_message: &'a str,
    exception_type: &'a str,
    /// There is no Python to trace.
    traceback: [&'static str; 0],
    current_inputs: &'a Json,
    current_outputs: &'a [String],
    timestamp: i64,
}

#[derive(Serialize)]
struct InterruptedData<'a> {
    prompt_id: &'a str,
    node_id: &'a str,
    node_type: &'a str,
    executed: &'a [String],
    timestamp: i64,
}

#[derive(Serialize)]
struct ExecutingData<'a> {
    node: &'a str,
    display_node: &'a str,
    prompt_id: &'a str,
}

#[derive(Serialize)]
struct ExecutedData<'a> {
    node: &'a str,
    display_node: &'a str,
    output: &'a Json,
    prompt_id: &'a str,
}

#[derive(Serialize)]
struct ProgressData<'a> {
    value: usize,
    max: usize,
    prompt_id: &'a str,
    node: &'a str,
}

/// What a client can take, as it said in its first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// `supports_preview_metadata`.
    pub preview_metadata: bool,
}

/// Tells one prompt's news in ComfyUI's frames, in order.
#[derive(Debug)]
pub(super) struct Teller {
    prompt_id: String,
    progress: Progress,
    /// When the last `progress_state` of a large graph was told, and whether there is news since.
    told: Option<Instant>,
    owed: bool,
    /// Much waits to be sent already: states of all nodes are told now and then alone.
    pub(super) hurried: bool,
    /// The node that runs.
    pub(super) current: Option<String>,
}

impl Teller {
    pub(super) fn new(prompt_id: &str) -> Self {
        Self {
            prompt_id: prompt_id.to_owned(),
            progress: Progress::new(prompt_id),
            told: None,
            owed: false,
            hurried: false,
            current: None,
        }
    }

    /// Takes note of news without telling it: nobody listens.
    pub(super) fn note(&mut self, news: &News) {
        match &news.what {
            What::Executing { node } => {
                self.progress.start(node);
                self.current = Some(node.clone());
            }
            What::Progress { node, value, max } => self.progress.update(node, *value, *max),
            What::Finished { node } => self.progress.finish(node),
            What::Succeeded | What::Failed { .. } | What::Interrupted { .. } => self.current = None,
            _ => {}
        }
    }

    /// The frames of one piece of news.
    pub(super) fn tell(&mut self, news: &News, features: Features, frames: &mut Vec<Frame>) {
        self.note(news);
        let prompt_id = &self.prompt_id.clone();
        if let Some((name, data)) = news.kept(prompt_id) {
            if self.owed {
                self.state_now(frames);
            }
            frames.push(message(name, &data));
            return;
        }
        match &news.what {
            What::Executing { node } => {
                self.state(frames);
                let data = ExecutingData { node, display_node: node, prompt_id };
                frames.push(json_message("executing", &data));
            }
            What::Progress { node, value, max } => {
                self.state(frames);
                let data = ProgressData { value: *value, max: *max, prompt_id, node };
                frames.push(json_message("progress", &data));
            }
            What::Finished { .. } => self.state(frames),
            What::Executed { node, output, .. } => {
                let data = ExecutedData { node, display_node: node, output, prompt_id };
                frames.push(json_message("executed", &data));
            }
            What::Picture { node, format, file } => {
                frames.push(if features.preview_metadata {
                    picture_with_metadata(prompt_id, node, *format, file)
                } else {
                    picture(*format, file)
                });
            }
            What::Text { node, text } => frames.push(progress_text(node, text)),
            _ => {}
        }
    }

    fn state(&mut self, frames: &mut Vec<Frame>) {
        let seldom = self.hurried || self.progress.len() > TOLD_AT_ONCE;
        if seldom && self.told.is_some_and(|at| at.elapsed() < BETWEEN) {
            self.owed = true;
        } else {
            self.state_now(frames);
        }
    }

    fn state_now(&mut self, frames: &mut Vec<Frame>) {
        self.owed = false;
        self.told = Some(Instant::now());
        frames.push(json_message("progress_state", &self.progress));
    }

    /// The last message of a prompt.
    pub(super) fn end(&self) -> Frame {
        #[derive(Serialize)]
        struct Nothing<'a> {
            node: Option<&'a str>,
            prompt_id: &'a str,
        }
        json_message("executing", &Nothing { node: None, prompt_id: &self.prompt_id })
    }
}

/// How much there is to do, for everyone; `sid` for who has just come.
pub(super) fn status(queue_remaining: usize, sid: Option<&str>) -> Frame {
    #[derive(Serialize)]
    struct Status<'a> {
        status: ExecInfo,
        #[serde(skip_serializing_if = "Option::is_none")]
        sid: Option<&'a str>,
    }
    json_message("status", &Status { status: ExecInfo::new(queue_remaining), sid })
}

/// What `GET /prompt` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExecInfo {
    exec_info: Remaining,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Remaining {
    queue_remaining: usize,
}

impl ExecInfo {
    pub(super) fn new(queue_remaining: usize) -> Self {
        Self { exec_info: Remaining { queue_remaining } }
    }
}

/// The node that runs, for a client that comes back.
pub(super) fn still_executing(node: &str) -> Frame {
    #[derive(Serialize)]
    struct Still<'a> {
        node: &'a str,
    }
    json_message("executing", &Still { node })
}

/// A message of any kind.
pub(super) fn json_message<T: Serialize>(name: &str, data: &T) -> Frame {
    message(name, &to_json(data))
}

fn message(name: &str, data: &str) -> Frame {
    Frame::Text(format!(r#"{{"type":"{name}","data":{data}}}"#).into())
}

/// What is written has nothing that JSON lacks.
pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".into())
}

fn picture(format: Format, file: &[u8]) -> Frame {
    let mut frame = BytesMut::with_capacity(8 + file.len());
    frame.put_u32(PREVIEW_IMAGE);
    frame.put_u32(format.number());
    frame.put_slice(file);
    Frame::Binary(frame.freeze())
}

fn picture_with_metadata(prompt_id: &str, node: &str, format: Format, file: &[u8]) -> Frame {
    #[derive(Serialize)]
    struct Metadata<'a> {
        #[serde(flatten)]
        names: Names<'a>,
        image_type: &'static str,
    }
    let metadata = to_json(&Metadata { names: Names::new(prompt_id, node), image_type: format.mime() });
    let mut frame = BytesMut::with_capacity(8 + metadata.len() + file.len());
    frame.put_u32(PREVIEW_IMAGE_WITH_METADATA);
    frame.put_u32(u32::try_from(metadata.len()).unwrap_or_default());
    frame.put_slice(metadata.as_bytes());
    frame.put_slice(file);
    Frame::Binary(frame.freeze())
}

fn progress_text(node: &str, text: &str) -> Frame {
    let mut frame = BytesMut::with_capacity(8 + node.len() + text.len());
    frame.put_u32(TEXT);
    frame.put_u32(u32::try_from(node.len()).unwrap_or_default());
    frame.put_slice(node.as_bytes());
    frame.put_slice(text.as_bytes());
    Frame::Binary(frame.freeze())
}

/// A preview as JPEG, no side longer than [`PREVIEW_SIDE`]; `None` if it has no pixels or not as many as it says.
fn jpeg(width: usize, height: usize, rgb: Vec<u8>) -> Option<Bytes> {
    let picture = RgbImage::from_raw(u32::try_from(width).ok()?, u32::try_from(height).ok()?, rgb)?;
    let (width, height) = picture.dimensions();
    let longest = width.max(height);
    if width == 0 || height == 0 {
        return None;
    }
    let picture = if longest > PREVIEW_SIDE {
        let scaled = |side: u32| (side * PREVIEW_SIDE / longest).max(1);
        resize(&picture, scaled(width), scaled(height), FilterType::Triangle)
    } else {
        picture
    };
    let mut file = Cursor::new(Vec::new());
    let mut encoder = JpegEncoder::new_with_quality(&mut file, PREVIEW_QUALITY);
    encoder.encode(picture.as_raw(), picture.width(), picture.height(), ExtendedColorType::Rgb8).ok()?;
    Some(file.into_inner().into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(teller: &mut Teller, event: Event, features: Features) -> Vec<Frame> {
        let mut frames = Vec::new();
        teller.tell(&News::new(event, 7).unwrap(), features, &mut frames);
        frames
    }

    fn texts(frames: &[Frame]) -> Vec<Json> {
        let text = |frame: &Frame| match frame {
            Frame::Text(text) => serde_json::from_slice(text).unwrap(),
            Frame::Binary(_) => panic!("binary"),
        };
        frames.iter().map(text).collect()
    }

    fn names(frames: &[Frame]) -> Vec<String> {
        texts(frames).iter().map(|message| message["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_node_is_told_as_comfyui_tells_it() {
        let mut teller = Teller::new("p");
        let plain = Features::default();
        let node = || "8".to_owned();
        let frames = told(&mut teller, Event::Started, plain);
        assert_eq!(
            texts(&frames),
            [json!({"type": "execution_start", "data": {"prompt_id": "p", "timestamp": 7}})]
        );
        let frames = told(&mut teller, Event::Executing { node: node() }, plain);
        assert_eq!(names(&frames), ["progress_state", "executing"]);
        assert_eq!(texts(&frames)[1]["data"], json!({"node": "8", "display_node": "8", "prompt_id": "p"}));
        assert_eq!(teller.current.as_deref(), Some("8"));
        let frames = told(&mut teller, Event::Progress { node: node(), value: 1, max: 6 }, plain);
        assert_eq!(names(&frames), ["progress_state", "progress"]);
        assert_eq!(texts(&frames)[1]["data"], json!({"value": 1, "max": 6, "prompt_id": "p", "node": "8"}));
        let output = json!({"images": []});
        let frames = told(&mut teller, Event::Executed { node: node(), output, ran_as: node() }, plain);
        assert_eq!(names(&frames), ["executed"]);
        assert_eq!(names(&told(&mut teller, Event::Finished { node: node() }, plain)), ["progress_state"]);
        assert_eq!(names(&told(&mut teller, Event::Succeeded, plain)), ["execution_success"]);
        assert_eq!(teller.current, None);
        assert_eq!(
            texts(&[teller.end()]),
            [json!({"type": "executing", "data": {"node": null, "prompt_id": "p"}})]
        );
    }

    #[test]
    fn previews_have_the_form_that_the_client_takes() {
        let preview =
            || Event::Preview { node: "3".into(), width: 1024, height: 16, rgb: vec![9; 1024 * 48] };
        let mut teller = Teller::new("p");
        let frames = told(&mut teller, preview(), Features::default());
        let [Frame::Binary(plain)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(plain[..8], [0, 0, 0, 1, 0, 0, 0, 1]);
        let decoded = image::load_from_memory(&plain[8..]).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (512, 8));

        let frames = told(&mut teller, preview(), Features { preview_metadata: true });
        let [Frame::Binary(rich)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(rich[..4], [0, 0, 0, 4]);
        let length = u32::from_be_bytes(rich[4..8].try_into().unwrap()) as usize;
        let metadata: Json = serde_json::from_slice(&rich[8..8 + length]).unwrap();
        assert_eq!(
            metadata,
            json!({"node_id": "3", "prompt_id": "p", "display_node_id": "3", "parent_node_id": null,
                   "real_node_id": "3", "image_type": "image/jpeg"})
        );
        assert_eq!(rich[8 + length..], plain[8..]);
    }

    #[test]
    fn a_preview_that_is_none_is_not_told() {
        for (width, height, bytes) in [(0, 0, 0), (4, 4, 3), (usize::MAX, 2, 6)] {
            let event = Event::Preview { node: "3".into(), width, height, rgb: vec![0; bytes] };
            assert!(News::new(event, 0).is_none());
        }
    }

    #[test]
    fn a_text_carries_the_length_of_its_nodes_name() {
        let frames = told(
            &mut Teller::new("p"),
            Event::Text { node: "12".into(), text: "é".into() },
            Features::default(),
        );
        let expected: &[u8] = &[0, 0, 0, 3, 0, 0, 0, 2, b'1', b'2', 0xc3, 0xa9];
        assert_eq!(frames, [Frame::Binary(Bytes::copy_from_slice(expected))]);
    }

    #[test]
    fn the_state_of_a_very_large_graph_is_told_now_and_then_and_at_the_end() {
        let mut teller = Teller::new("p");
        let mut states = 0;
        let mut bytes = 0;
        for node in 0..5_000 {
            for event in
                [Event::Executing { node: node.to_string() }, Event::Finished { node: node.to_string() }]
            {
                for frame in told(&mut teller, event, Features::default()) {
                    let Frame::Text(text) = &frame else { panic!("{frame:?}") };
                    bytes += text.len();
                    states += usize::from(text.starts_with(br#"{"type":"progress_state""#));
                }
            }
        }
        assert!(states < 4_000 && bytes < 300 << 20, "{states} of {bytes} bytes");
        let last = names(&told(&mut teller, Event::Succeeded, Features::default()));
        assert_eq!(last.last().unwrap(), "execution_success");
    }
}
