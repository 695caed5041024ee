//! One attempt to deliver one webhook, and what is noted afterwards. Logs name the host alone: the rest of a
//! webhook's URL is often its secret.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::backoff::wait_after;
use super::{Clock, Delivery, Outbox};
use crate::outbound::{Client, OutboundError, Secret};

/// First and longest wait until a verdict that could not be stored is stored again.
const STORE_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What every attempt needs.
pub(super) struct Courier<O> {
    pub(super) client: Client,
    pub(super) outbox: Arc<O>,
    pub(super) secret: Secret,
    pub(super) attempts: u32,
    pub(super) clock: Clock,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    Done,
    RetryAt(Timestamp),
    GiveUp,
}

impl<O: Outbox> Courier<O> {
    /// Tries once and notes the outcome; when to try again, if so.
    pub(super) async fn deliver(&self, delivery: Delivery, stop: &CancellationToken) -> Option<Timestamp> {
        let verdict = self.attempt(&delivery).await?;
        self.note(&delivery, verdict, stop).await;
        match verdict {
            Verdict::RetryAt(at) => Some(at),
            Verdict::Done | Verdict::GiveUp => None,
        }
    }

    /// `None` if the store could not be asked for the message: no attempt was made.
    async fn attempt(&self, delivery: &Delivery) -> Option<Verdict> {
        let Delivery { id, task_id, .. } = delivery;
        let url = match self.client.check_url(&delivery.url) {
            Ok(url) => url,
            Err(error) => {
                tracing::warn!(delivery = %id, task = %task_id, %error, "webhook given up: its address is refused");
                return Some(Verdict::GiveUp);
            }
        };
        let body = match self.outbox.body(task_id).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                tracing::info!(delivery = %id, task = %task_id, "webhook given up: its task is gone");
                return Some(Verdict::GiveUp);
            }
            Err(error) => {
                tracing::error!(delivery = %id, task = %task_id, %error, "the store does not give a webhook's message");
                return None;
            }
        };
        let now = (self.clock)();
        let sent = self.client.post_webhook(&url, id, &delivery.event, body, &self.secret, now).await;
        Some(self.judge(delivery, url.host_str().unwrap_or_default(), sent))
    }

    fn judge(&self, delivery: &Delivery, host: &str, sent: Result<(), OutboundError>) -> Verdict {
        let Delivery { id, task_id, .. } = delivery;
        let attempt = delivery.attempts.saturating_add(1);
        let Err(error) = sent else {
            tracing::info!(delivery = %id, task = %task_id, host, attempt, "webhook delivered");
            return Verdict::Done;
        };
        let asked = match error {
            OutboundError::Status { status: 410, .. } => {
                tracing::info!(delivery = %id, task = %task_id, host, attempt, "webhook given up: the receiver is gone (410)");
                return Verdict::GiveUp;
            }
            OutboundError::Status { status: 429 | 503, retry_after, .. } => retry_after,
            _ => None,
        };
        if attempt >= self.attempts {
            tracing::warn!(delivery = %id, task = %task_id, host, attempt, %error, "webhook given up: that was the last attempt");
            return Verdict::GiveUp;
        }
        let wait = wait_after(id, attempt, asked);
        tracing::warn!(
            delivery = %id, task = %task_id, host, attempt, %error, seconds = wait.as_secs_f64(),
            "webhook not delivered; it will be tried again"
        );
        let now = (self.clock)();
        Verdict::RetryAt(now.saturating_add(wait).unwrap_or(now))
    }

    /// Stores the verdict, as often as it takes: until then the delivery counts as on its way, so that a broken
    /// store does not make the server repeat itself to receivers. When the server stops, once is enough.
    async fn note(&self, delivery: &Delivery, verdict: Verdict, stop: &CancellationToken) {
        let (mut pause, longest) = STORE_PAUSES;
        let id = &delivery.id;
        loop {
            let stored = match verdict {
                Verdict::Done => self.outbox.done(id).await,
                Verdict::RetryAt(at) => self.outbox.retry(id, at).await,
                Verdict::GiveUp => self.outbox.give_up(id).await,
            };
            let Err(error) = stored else { return };
            tracing::error!(delivery = %id, ?verdict, %error, "the store does not note what became of a webhook");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(longest),
            }
        }
    }
}
