//! Who listens, and what each is told. Prompts of one client may run at once, but the client hears of them one after
//! the other, in the order in which they began, as ComfyUI would have run them: what happens to a later one is held
//! back until the earlier ones have ended.
//!
//! A client is known by its id within its owner (the holder of a key), so nobody hears what others do. Nothing is kept
//! for a client that is not connected, but what its running prompts are up to.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::messages::{Features, Frame, News, Teller, status, still_executing};
use super::outbox::{Outbox, Waiting};
use crate::task::Owner;

/// Bytes of one prompt's news that are held back before its thread waits. All of it goes into the outbox at once.
const HELD: usize = 8 << 20;
/// News of one prompt that are held back whole; beyond that, only the last word on how far a node is. Of previews it is
/// always the last alone.
const HELD_WHOLE: usize = 512;
/// Bytes that wait for a socket from which on it is not told every `progress_state`: a client that catches up, or reads
/// slowly, is not to be cut for what the next one says as well.
const HURRY: usize = 2 << 20;
/// Between two looks of a thread that waits.
const LOOK: Duration = Duration::from_millis(100);
/// A socket that was silent so long may be closed for a new one when all places are taken.
const STALE: Duration = Duration::from_secs(60);
/// Longest client id, characters.
const ID: usize = 256;

type Key = (Owner, Arc<str>);

/// Everyone who listens.
#[derive(Debug)]
pub(super) struct Clients {
    all: Mutex<HashMap<Key, Arc<Client>>>,
    /// Sockets that `status` goes to, by a number of each.
    sockets: Mutex<HashMap<u64, Place>>,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    remaining: Mutex<usize>,
    most: usize,
    open: Gauge,
}

#[derive(Debug)]
struct Place {
    owner: Owner,
    outbox: Arc<Outbox>,
    /// Another socket of the same client has come.
    replaced: bool,
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    key: Key,
    state: Mutex<State>,
    /// Told when a prompt's turn comes.
    turned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<(u64, Arc<Outbox>)>,
    features: Features,
    /// Prompts that it is yet to hear the end of; it hears of the first.
    turns: VecDeque<Turn>,
}

#[derive(Debug)]
struct Turn {
    number: u64,
    teller: Teller,
    held: Vec<News>,
    bytes: usize,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    pub(super) fn new(most: usize, open: Gauge) -> Self {
        Self {
            all: Mutex::default(),
            sockets: Mutex::default(),
            next: AtomicU64::new(0),
            waiting: Arc::default(),
            remaining: Mutex::new(0),
            most,
            open,
        }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A socket of the client with this id, or of a new one; it is told how much there is to do, and what runs of it.
    /// `None` when there are as many as may be.
    pub(super) fn connect(self: &Arc<Self>, owner: Owner, sid: Option<&str>) -> Option<Socket> {
        let sid: Arc<str> = match sid.filter(|sid| !sid.is_empty()) {
            Some(sid) => sid.chars().take(ID).collect::<String>().into(),
            None => Uuid::new_v4().simple().to_string().into(),
        };
        let outbox = Arc::new(Outbox::new(Arc::clone(&self.waiting)));
        let number = self.number();
        {
            let mut sockets = lock(&self.sockets);
            if sockets.len() >= self.most {
                let stalest = sockets.iter().min_by_key(|(_, place)| place.outbox.last_heard());
                let (id, place) = stalest.map(|(id, place)| (*id, Arc::clone(&place.outbox)))?;
                if place.last_heard().elapsed() < STALE {
                    return None;
                }
                place.cut();
                sockets.remove(&id);
            }
            let place = Place { owner: owner.clone(), outbox: Arc::clone(&outbox), replaced: false };
            sockets.insert(number, place);
            self.open.set(i64::try_from(sockets.len()).unwrap_or(i64::MAX));
        }
        let key = (owner, sid);
        let mut all = lock(&self.all);
        let client = Self::client(&mut all, &key);
        let mut state = lock(&client.state);
        outbox.push(status(*lock(&self.remaining), Some(&key.1)));
        if let Some(node) = state.turns.front().and_then(|turn| turn.teller.current.as_deref()) {
            outbox.push(still_executing(node));
        }
        state.features = Features::default();
        if let Some((old, _)) = state.socket.replace((number, Arc::clone(&outbox)))
            && let Some(place) = lock(&self.sockets).get_mut(&old)
        {
            place.replaced = true;
        }
        drop(state);
        Some(Socket { clients: Arc::clone(self), client, number, outbox })
    }

    fn client(all: &mut HashMap<Key, Arc<Client>>, key: &Key) -> Arc<Client> {
        let new = || Arc::new(Client { key: key.clone(), state: Mutex::default(), turned: Condvar::new() });
        Arc::clone(all.entry(key.clone()).or_insert_with(new))
    }

    /// A prompt of this client begins.
    pub(super) fn begin(self: &Arc<Self>, owner: &Owner, sid: &str, prompt_id: &str) -> Listening {
        let key = (owner.clone(), sid.chars().take(ID).collect::<String>().into());
        let number = self.number();
        let mut all = lock(&self.all);
        let client = Self::client(&mut all, &key);
        lock(&client.state).turns.push_back(Turn {
            number,
            teller: Teller::new(prompt_id),
            held: Vec::new(),
            bytes: 0,
            ended: false,
        });
        Listening { clients: Arc::clone(self), client, number }
    }

    /// A prompt of no client begins: ComfyUI tells everyone how far it is. Here that is everyone of the same owner.
    pub(super) fn begin_for_all(self: &Arc<Self>, owner: &Owner, prompt_id: &str) -> Broadcast {
        Broadcast {
            clients: Arc::clone(self),
            owner: owner.clone(),
            teller: Mutex::new(Teller::new(prompt_id)),
        }
    }

    /// Tells everyone how much there is to do.
    pub(super) fn tell_status(&self, remaining: usize) {
        *lock(&self.remaining) = remaining;
        let frame = status(remaining, None);
        for place in lock(&self.sockets).values().filter(|place| !place.replaced) {
            place.outbox.push(frame.clone());
        }
    }

    /// Sends a message to one client, if it is there.
    pub(super) fn send(&self, owner: &Owner, sid: &str, frame: Frame) -> bool {
        let key = (owner.clone(), sid.into());
        let Some(client) = lock(&self.all).get(&key).cloned() else { return false };
        let state = lock(&client.state);
        let Some((_, outbox)) = &state.socket else { return false };
        outbox.push(frame);
        true
    }

    /// Forgets a client of whom nothing is left.
    fn forget(&self, client: &Client) {
        let mut all = lock(&self.all);
        let state = lock(&client.state);
        let gone = state.socket.is_none() && state.turns.is_empty();
        // Who was forgotten before may have come again under the same id, and be another.
        if gone && all.get(&client.key).is_some_and(|known| std::ptr::eq(&**known, client)) {
            all.remove(&client.key);
        }
    }
}

impl State {
    fn tell(&mut self, frames: Vec<Frame>) {
        if let Some((_, outbox)) = &self.socket {
            frames.into_iter().for_each(|frame| outbox.push(frame));
        }
    }

    fn tell_news(&mut self, news: &News) {
        let features = self.features;
        let Some(turn) = self.turns.front_mut() else { return };
        if let Some((_, outbox)) = &self.socket {
            let mut frames = Vec::new();
            turn.teller.hurried = outbox.waiting() > HURRY;
            turn.teller.tell(news, features, &mut frames);
            self.tell(frames);
        } else {
            turn.teller.note(news);
        }
    }

    /// Tells what was held back of prompts whose turn has come.
    fn catch_up(&mut self, remaining: usize) {
        while let Some(turn) = self.turns.front_mut() {
            let held = std::mem::take(&mut turn.held);
            turn.bytes = 0;
            let ended = turn.ended;
            for news in &held {
                self.tell_news(news);
            }
            if !ended {
                return;
            }
            if let Some(turn) = self.turns.pop_front() {
                // It ended while nobody was told: what everyone was told then is told once more, in its place.
                self.tell(vec![status(remaining, None), turn.teller.end()]);
            }
        }
    }
}

/// A prompt that runs, for whoever sent it.
pub(super) struct Listening {
    clients: Arc<Clients>,
    client: Arc<Client>,
    number: u64,
}

impl Listening {
    /// Tells what happened, now or when the prompt's turn has come. Waits, until then or until `interrupt`, if too much
    /// is held back already.
    pub(super) fn tell(&self, news: News, interrupt: &CancellationToken) {
        let mut state = lock(&self.client.state);
        loop {
            let Some(place) = state.turns.iter().position(|turn| turn.number == self.number) else { return };
            if place == 0 {
                state.tell_news(&news);
                return;
            }
            let turn = &mut state.turns[place];
            let collapses = news.is_preview() || turn.held.len() >= HELD_WHOLE;
            let passing = turn.held.iter().rposition(|held| collapses && held.is_outdone_by(&news));
            let in_reach = passing.is_some_and(|at| turn.held[at..].iter().all(News::is_passing));
            if let Some(at) = passing.filter(|_| in_reach) {
                let old = turn.held.remove(at);
                turn.bytes = turn.bytes.saturating_sub(old.bytes());
            }
            if turn.bytes < HELD || interrupt.is_cancelled() {
                turn.bytes += news.bytes();
                turn.held.push(news);
                return;
            }
            let waited = self.client.turned.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether anyone would see previews.
    pub(super) fn is_heard(&self) -> bool {
        lock(&self.client.state).socket.is_some()
    }

    /// The prompt has ended, and all have been told how much is left; the client is told so when its turn has come.
    pub(super) fn end(self) {
        let remaining = *lock(&self.clients.remaining);
        let mut state = lock(&self.client.state);
        let first = state.turns.front().is_some_and(|turn| turn.number == self.number);
        if first {
            if let Some(turn) = state.turns.pop_front() {
                state.tell(vec![turn.teller.end()]);
            }
            state.catch_up(remaining);
            self.client.turned.notify_all();
        } else if let Some(turn) = state.turns.iter_mut().find(|turn| turn.number == self.number) {
            turn.ended = true;
        }
        drop(state);
        self.clients.forget(&self.client);
    }
}

/// A prompt that runs, for everyone.
pub(super) struct Broadcast {
    clients: Arc<Clients>,
    owner: Owner,
    teller: Mutex<Teller>,
}

impl Broadcast {
    /// Tells how far the prompt is; of its nodes and its end nobody hears, but for an interruption.
    pub(super) fn tell(&self, news: &News) {
        let mut teller = lock(&self.teller);
        let sockets = lock(&self.clients.sockets);
        let mut own =
            sockets.values().filter(|place| !place.replaced && place.owner == self.owner).peekable();
        if own.peek().is_none() {
            return teller.note(news);
        }
        let mut frames = Vec::new();
        teller.tell(news, Features::default(), &mut frames);
        frames.retain(|frame| !matches!(frame, Frame::Text(text) if is_for_the_sender(text)));
        for place in own {
            frames.iter().for_each(|frame| place.outbox.push(frame.clone()));
        }
    }
}

/// Whether ComfyUI sends a message only to whom the prompt came from.
fn is_for_the_sender(text: &[u8]) -> bool {
    const NAMES: [&str; 6] = [
        "execution_start",
        "execution_cached",
        "execution_success",
        "execution_error",
        "executing",
        "executed",
    ];
    let name = text.strip_prefix(br#"{"type":""#).and_then(|rest| rest.split(|byte| *byte == b'"').next());
    NAMES.iter().any(|known| name == Some(known.as_bytes()))
}

/// Who hears of a prompt.
pub(super) enum Hearers {
    /// Its client.
    Client(Listening),
    /// It has none.
    Everyone(Broadcast),
}

impl Hearers {
    /// Tells what happened.
    pub(super) fn tell(&self, news: News, interrupt: &CancellationToken) {
        match self {
            Self::Client(listening) => listening.tell(news, interrupt),
            Self::Everyone(broadcast) => broadcast.tell(&news),
        }
    }

    /// Whether anyone would see previews.
    pub(super) fn is_heard(&self) -> bool {
        match self {
            Self::Client(listening) => listening.is_heard(),
            Self::Everyone(broadcast) => !lock(&broadcast.clients.sockets).is_empty(),
        }
    }

    /// The prompt has ended.
    pub(super) fn end(self) {
        if let Self::Client(listening) = self {
            listening.end();
        }
    }
}

/// An open socket of a client.
pub struct Socket {
    clients: Arc<Clients>,
    client: Arc<Client>,
    number: u64,
    outbox: Arc<Outbox>,
}

impl Socket {
    /// What is to be sent.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The client said what it can take; it is answered what the server can.
    pub fn set_features(&self, features: Features, answer: &impl serde::Serialize) {
        let mut state = lock(&self.client.state);
        if state.socket.as_ref().is_some_and(|(number, _)| *number == self.number) {
            state.features = features;
        }
        self.outbox.push(super::messages::json_message("feature_flags", answer));
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        {
            let mut sockets = lock(&self.clients.sockets);
            sockets.remove(&self.number);
            self.clients.open.set(i64::try_from(sockets.len()).unwrap_or(i64::MAX));
        }
        {
            let mut state = lock(&self.client.state);
            if state.socket.as_ref().is_some_and(|(number, _)| *number == self.number) {
                state.socket = None;
            }
        }
        self.clients.forget(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::workflow::event::Event;

    fn clients() -> Arc<Clients> {
        Arc::new(Clients::new(4, Gauge::default()))
    }

    fn news(event: Event) -> News {
        News::new(event, 1).unwrap()
    }

    fn tell(listening: &Listening, event: Event) {
        listening.tell(news(event), &CancellationToken::new());
    }

    /// Everything that waits to be sent: the type of each message, and its prompt or what else tells it apart.
    async fn heard(socket: &Socket) -> Vec<(String, Json)> {
        socket.outbox.push(Frame::Text("null".into()));
        let mut all = Vec::new();
        while let Some(Frame::Text(text)) = socket.outbox.next().await {
            let message: Json = serde_json::from_slice(&text).unwrap();
            if message.is_null() {
                break;
            }
            let data = &message["data"];
            let told = if data["prompt_id"].is_null() { data.clone() } else { data["prompt_id"].clone() };
            all.push((message["type"].as_str().unwrap().to_owned(), told));
        }
        all
    }

    fn names(heard: &[(String, Json)]) -> Vec<&str> {
        heard.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn run_through(listening: &Listening) {
        let node = || "1".to_owned();
        tell(listening, Event::Started);
        tell(listening, Event::Executing { node: node() });
        for value in 1..=5 {
            tell(listening, Event::Progress { node: node(), value, max: 5 });
        }
        tell(listening, Event::Finished { node: node() });
        tell(listening, Event::Succeeded);
    }

    #[tokio::test]
    async fn a_client_that_comes_again_is_not_forgotten_with_the_one_before() {
        let clients = clients();
        let before = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let last_word = Arc::clone(&before.client);
        drop(before);
        let again = clients.connect(Owner::Anyone, Some("a")).unwrap();
        // A prompt of the one before ends only now.
        clients.forget(&last_word);
        let listening = clients.begin(&Owner::Anyone, "a", "prompt");
        run_through(&listening);
        listening.end();
        let heard = heard(&again).await;
        assert_eq!(names(&heard).last(), Some(&"executing"), "{heard:?}");
    }

    #[tokio::test]
    async fn a_later_prompt_is_heard_of_after_the_earlier_one_has_ended() {
        let clients = clients();
        let socket = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let first = clients.begin(&Owner::Anyone, "a", "first");
        let second = clients.begin(&Owner::Anyone, "a", "second");
        tell(&first, Event::Started);
        run_through(&second);
        second.end();
        let so_far = heard(&socket).await;
        assert_eq!(names(&so_far), ["status", "execution_start"]);
        assert_eq!(so_far[1].1, "first");
        tell(&first, Event::Succeeded);
        first.end();
        let then = heard(&socket).await;
        let of = |prompt: &str| {
            let own = then.iter().filter(|(name, told)| *told == prompt || name == "status");
            own.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("first")[..2], ["execution_success", "executing"]);
        assert_eq!(then[2].1, "second");
        assert_eq!(
            of("second"),
            [
                "execution_start",
                "progress_state",
                "executing",
                "progress_state",
                "progress",
                "progress_state",
                "progress",
                "progress_state",
                "progress",
                "progress_state",
                "progress",
                "progress_state",
                "progress",
                "progress_state",
                "execution_success",
                "status",
                "executing"
            ]
        );
        assert!(lock(&clients.all).len() == 1, "the client is still there");
        drop(socket);
        assert!(lock(&clients.all).is_empty());
    }

    #[tokio::test]
    async fn of_very_much_that_is_held_back_the_last_word_is_told() {
        let clients = clients();
        let socket = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let first = clients.begin(&Owner::Anyone, "a", "first");
        let second = clients.begin(&Owner::Anyone, "a", "second");
        let node = || "1".to_owned();
        tell(&second, Event::Executing { node: node() });
        for value in 1..=10_000 {
            tell(&second, Event::Progress { node: node(), value, max: 10_000 });
            tell(&second, Event::Preview { node: node(), width: 1, height: 1, rgb: vec![0; 3] });
        }
        first.end();
        second.end();
        let mut progress = Vec::new();
        let mut pictures = 0;
        loop {
            match socket.outbox.next().await.unwrap() {
                Frame::Binary(_) => pictures += 1,
                Frame::Text(text) => {
                    let message: Json = serde_json::from_slice(&text).unwrap();
                    match message["type"].as_str().unwrap() {
                        "progress" => progress.push(message["data"]["value"].as_u64().unwrap()),
                        "executing"
                            if message["data"]["prompt_id"] == "second"
                                && message["data"]["node"].is_null() =>
                        {
                            break;
                        }
                        _ => {}
                    }
                }
            }
        }
        assert_eq!((pictures, progress.last()), (1, Some(&10_000)));
        assert!(progress.len() <= HELD_WHOLE && progress.is_sorted(), "{}", progress.len());
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_is_told_less_often_how_all_nodes_are() {
        let clients = clients();
        let socket = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let prompt = clients.begin(&Owner::Anyone, "a", "p");
        for node in 0..250 {
            tell(&prompt, Event::Executing { node: node.to_string() });
            tell(&prompt, Event::Finished { node: node.to_string() });
        }
        // All states would be about 12 MB.
        let waiting = socket.outbox.waiting();
        assert!((HURRY..6 << 20).contains(&waiting), "{waiting}");
        prompt.end();
    }

    #[tokio::test]
    async fn nobody_hears_what_others_do_and_keys_have_clients_of_their_own() {
        let clients = clients();
        let (owner, key) = (Owner::Anyone, Owner::Key(crate::task::ApiKeyId::random()));
        let mine = clients.connect(owner.clone(), Some("a")).unwrap();
        let other = clients.connect(owner.clone(), Some("b")).unwrap();
        let namesake = clients.connect(key, Some("a")).unwrap();
        let prompt = clients.begin(&owner, "a", "p");
        run_through(&prompt);
        clients.tell_status(0);
        prompt.end();
        assert!(heard(&mine).await.len() > 8);
        assert_eq!(names(&heard(&other).await), ["status", "status"]);
        assert_eq!(names(&heard(&namesake).await), ["status", "status"]);
    }

    #[tokio::test]
    async fn a_client_that_comes_back_is_told_what_runs_and_its_old_socket_no_more() {
        let clients = clients();
        let old = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let prompt = clients.begin(&Owner::Anyone, "a", "p");
        tell(&prompt, Event::Executing { node: "7".into() });
        heard(&old).await;
        let new = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let told = heard(&new).await;
        assert_eq!(told[0].1, json!({"status": {"exec_info": {"queue_remaining": 0}}, "sid": "a"}));
        assert_eq!(told[1], ("executing".to_owned(), json!({"node": "7"})));
        drop(old);
        tell(&prompt, Event::Succeeded);
        prompt.end();
        assert_eq!(names(&heard(&new).await), ["execution_success", "executing"]);
    }

    #[tokio::test]
    async fn what_is_held_back_of_a_prompt_is_bounded_and_its_thread_waits() {
        let clients = clients();
        let socket = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let first = clients.begin(&Owner::Anyone, "a", "first");
        let second = clients.begin(&Owner::Anyone, "a", "second");
        let sending = std::thread::spawn(move || {
            for _ in 0..20 {
                tell(&second, Event::Picture { node: "1".into(), png: vec![0; 1 << 20] });
            }
            second.end();
        });
        let mut held = 0;
        for _ in 0..50 {
            held = lock(&socket.client.state).turns[1].bytes;
            if held >= HELD {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!((HELD..HELD + (2 << 20)).contains(&held), "{held}");
        assert!(!sending.is_finished());
        first.end();
        let mut pictures = 0;
        loop {
            match socket.outbox.next().await {
                Some(Frame::Binary(_)) => pictures += 1,
                Some(Frame::Text(text)) if text.ends_with(br#""prompt_id":"second"}}"#) => break,
                Some(_) => {}
                // So much at once is too much for a socket that nobody read until now.
                None => break,
            }
        }
        sending.join().unwrap();
        assert!(pictures <= 20);
    }

    #[tokio::test]
    async fn of_a_prompt_of_no_client_everyone_of_the_owner_hears_how_far_it_is() {
        let clients = clients();
        let one = clients.connect(Owner::Anyone, Some("a")).unwrap();
        let other = clients.connect(Owner::Key(crate::task::ApiKeyId::random()), Some("a")).unwrap();
        let prompt = Hearers::Everyone(clients.begin_for_all(&Owner::Anyone, "p"));
        let interrupt = CancellationToken::new();
        for event in [
            Event::Started,
            Event::Executing { node: "1".into() },
            Event::Progress { node: "1".into(), value: 1, max: 2 },
            Event::Executed { node: "1".into(), output: json!({}), ran_as: "1".into() },
            Event::Interrupted { node: "1".into(), class: "A".into(), executed: Vec::new() },
        ] {
            prompt.tell(news(event), &interrupt);
        }
        prompt.end();
        assert_eq!(
            names(&heard(&one).await),
            ["status", "progress_state", "progress_state", "progress", "execution_interrupted"]
        );
        assert_eq!(names(&heard(&other).await), ["status"]);
    }

    #[test]
    fn places_are_bounded() {
        let clients = clients();
        let open: Vec<Socket> = (0..4).map(|_| clients.connect(Owner::Anyone, None).unwrap()).collect();
        assert!(clients.connect(Owner::Anyone, None).is_none());
        drop(open);
        assert!(clients.connect(Owner::Anyone, None).is_some());
    }
}
