//! What waits to be sent to one socket. Bounded: a client that reads slowly, or not at all, is cut when too much
//! waits for it, and costs others nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::messages::Frame;

/// Bytes that may wait for one socket beside the one message that is always taken.
const BYTES: usize = 32 << 20;
/// Messages that may wait for one socket.
const FRAMES: usize = 32_768;
/// Bytes that may wait for all sockets together.
const ALL_BYTES: usize = 256 << 20;
/// What a message costs beside its bytes.
const EACH: usize = 64;

/// Bytes that wait for all sockets.
#[derive(Debug, Default)]
pub(super) struct Waiting(AtomicUsize);

/// Messages for one socket.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    ready: Notify,
    waiting: Arc<Waiting>,
    heard: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    cut: bool,
}

impl Outbox {
    pub(super) fn new(waiting: Arc<Waiting>) -> Self {
        Self { queue: Mutex::default(), ready: Notify::new(), waiting, heard: Mutex::new(Instant::now()) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a message, or cuts the socket if too much waits already.
    pub(super) fn push(&self, frame: Frame) {
        let mut queue = self.lock();
        if queue.cut {
            return;
        }
        let cost = EACH + frame.bytes();
        let all = self.waiting.0.fetch_add(cost, Ordering::Relaxed) + cost;
        queue.bytes += cost;
        queue.frames.push_back(frame);
        let alone = queue.frames.len() == 1;
        if !alone && (queue.bytes > BYTES || queue.frames.len() > FRAMES || all > ALL_BYTES) {
            self.clear(&mut queue);
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().bytes
    }

    /// Sends nothing more.
    pub(super) fn cut(&self) {
        self.clear(&mut self.lock());
        self.ready.notify_one();
    }

    fn clear(&self, queue: &mut Queue) {
        queue.cut = true;
        queue.frames = VecDeque::new();
        self.waiting.0.fetch_sub(std::mem::take(&mut queue.bytes), Ordering::Relaxed);
    }

    /// The next message, as soon as there is one; `None` when the socket is to be closed. To be called by one alone.
    pub async fn next(&self) -> Option<Frame> {
        loop {
            {
                let mut queue = self.lock();
                if queue.cut {
                    return None;
                }
                if let Some(frame) = queue.frames.pop_front() {
                    let cost = EACH + frame.bytes();
                    queue.bytes -= cost;
                    self.waiting.0.fetch_sub(cost, Ordering::Relaxed);
                    return Some(frame);
                }
            }
            self.ready.notified().await;
        }
    }

    /// The client gave a sign of life.
    pub fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When it gave the last one.
    pub fn last_heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.cut();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame::Binary(Bytes::from(vec![0; bytes]))
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_and_holds_no_memory() {
        let waiting = Arc::new(Waiting::default());
        let outbox = Outbox::new(Arc::clone(&waiting));
        for _ in 0..200 {
            outbox.push(frame(1 << 20));
        }
        assert_eq!(waiting.0.load(Ordering::Relaxed), 0);
        assert_eq!(outbox.next().await, None);
        let outbox = Outbox::new(Arc::clone(&waiting));
        for _ in 0..FRAMES + 1 {
            outbox.push(frame(1));
        }
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn one_message_always_fits_and_what_was_read_makes_room() {
        let waiting = Arc::new(Waiting::default());
        let outbox = Outbox::new(Arc::clone(&waiting));
        for _ in 0..3 {
            outbox.push(frame(BYTES + 1));
            assert_eq!(outbox.next().await.unwrap().bytes(), BYTES + 1);
        }
        outbox.push(frame(10));
        drop(outbox);
        assert_eq!(waiting.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_clients_together_are_bounded() {
        let waiting = Arc::new(Waiting::default());
        let outboxes: Vec<Outbox> = (0..100).map(|_| Outbox::new(Arc::clone(&waiting))).collect();
        let shared = frame(1 << 20);
        for outbox in &outboxes {
            for _ in 0..8 {
                outbox.push(shared.clone());
            }
        }
        assert!(waiting.0.load(Ordering::Relaxed) <= ALL_BYTES + (100 << 20));
        let cut = outboxes.iter().filter(|outbox| outbox.lock().cut).count();
        assert!((1..100).contains(&cut), "{cut}");
    }
}
