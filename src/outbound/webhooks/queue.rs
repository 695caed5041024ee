//! Which delivery goes next: the one that has waited longest among those whose host has room, so that a slow
//! receiver holds up nobody but itself.

use std::collections::{HashMap, HashSet, VecDeque};

use url::Url;

use super::Delivery;

/// Deliveries at once.
pub(super) const AT_ONCE: usize = 8;
/// Deliveries at once to one host.
pub(super) const AT_ONCE_PER_HOST: usize = 2;
/// Deliveries that are asked of the store beyond those that are known.
pub(super) const PAGE: usize = 256;
/// Deliveries that are held; the rest stays in the store.
const MOST_HELD: usize = 4096;

/// Deliveries that are due, and how many are on their way to which host.
#[derive(Default)]
pub(super) struct Queue {
    /// With the host of each.
    waiting: VecDeque<(Delivery, String)>,
    /// Ids of the waiting and of those on their way: the store names them again.
    known: HashSet<String>,
    flying: HashMap<String, usize>,
}

impl Queue {
    /// Deliveries to ask the store for: enough that some are new, if it has new ones.
    pub(super) fn page(&self) -> usize {
        self.known.len() + PAGE
    }

    /// Whether more deliveries could start than are known.
    pub(super) fn wants_more(&self) -> bool {
        self.in_flight() < AT_ONCE && self.known.len() + PAGE <= MOST_HELD
    }

    /// Whether any is known.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes in what the store says is due.
    pub(super) fn add(&mut self, due: Vec<Delivery>) {
        for delivery in due {
            if self.known.insert(delivery.id.clone()) {
                let host = host(&delivery);
                self.waiting.push_back((delivery, host));
            }
        }
    }

    /// The next to start, and its host, which has one more on its way from now on.
    pub(super) fn start(&mut self) -> Option<(Delivery, String)> {
        if self.in_flight() >= AT_ONCE {
            return None;
        }
        let has_room = |(_, host): &(Delivery, String)| {
            self.flying.get(host).is_none_or(|&flying| flying < AT_ONCE_PER_HOST)
        };
        let place = self.waiting.iter().position(has_room)?;
        let (delivery, host) = self.waiting.remove(place)?;
        *self.flying.entry(host.clone()).or_default() += 1;
        Some((delivery, host))
    }

    /// The delivery `id` to `host` is no longer on its way.
    pub(super) fn landed(&mut self, id: &str, host: &str) {
        self.known.remove(id);
        if let Some(flying) = self.flying.get_mut(host) {
            *flying -= 1;
            if *flying == 0 {
                self.flying.remove(host);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.flying.values().sum()
    }
}

/// What counts as one receiver. Text that is no URL counts as one host together; it is given up at once.
fn host(delivery: &Delivery) -> String {
    Url::parse(&delivery.url).ok().and_then(|url| Some(url.host_str()?.to_owned())).unwrap_or_default()
}
