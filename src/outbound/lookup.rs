//! Names to addresses, and the gate between the two: the addresses that the check leaves are the very ones that the
//! connection is made to, so a name that answers differently a second time gains nothing.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::AddressPolicy;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// What a lookup returns.
pub type LookupFuture = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of a name.
pub trait Lookup: Send + Sync + 'static {
    /// Every address of `host`, in the order they should be tried.
    fn lookup(&self, host: &str) -> LookupFuture;
}

/// The operating system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: &str) -> LookupFuture {
        let host = host.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// None of a name's addresses may be asked.
#[derive(Debug, thiserror::Error)]
#[error("no address of '{host}' is public")]
pub(super) struct NoPublicAddress {
    host: String,
}

/// Resolves names to addresses that the policy permits, and to no others.
pub(super) struct CheckedResolver {
    lookup: Arc<dyn Lookup>,
    policy: Arc<AddressPolicy>,
}

impl CheckedResolver {
    /// Asks `lookup`, keeps what `policy` permits.
    pub(super) fn new(lookup: Arc<dyn Lookup>, policy: Arc<AddressPolicy>) -> Self {
        Self { lookup, policy }
    }
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let found = self.lookup.lookup(&host);
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let permitted: Vec<_> = found
                .await?
                .into_iter()
                .filter(|&address| policy.permits(address))
                .take(MAX_ADDRESSES)
                // Port 0: the URL's port.
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            if permitted.is_empty() {
                return Err(NoPublicAddress { host }.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers with the first of its answers, then with the next.
    struct Changing(Mutex<Vec<Vec<IpAddr>>>);

    impl Lookup for Changing {
        fn lookup(&self, _: &str) -> LookupFuture {
            let answer = self.0.lock().unwrap().remove(0);
            Box::pin(async move { Ok(answer) })
        }
    }

    fn resolver(answers: &[&[&str]]) -> CheckedResolver {
        let answers = answers.iter().map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect());
        CheckedResolver::new(Arc::new(Changing(Mutex::new(answers.collect()))), Arc::default())
    }

    async fn resolve(resolver: &CheckedResolver) -> Result<Vec<String>, String> {
        match resolver.resolve("pictures.test".parse().unwrap()).await {
            Ok(addresses) => Ok(addresses.map(|address| address.ip().to_string()).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn of_mixed_answers_only_public_addresses_are_left() {
        let resolver = resolver(&[&["127.0.0.1", "93.184.216.34", "::1", "10.0.0.1", "2606:4700::1111"]]);
        assert_eq!(resolve(&resolver).await.unwrap(), ["93.184.216.34", "2606:4700::1111"]);
    }

    #[tokio::test]
    async fn a_name_that_turns_to_loopback_is_refused_from_then_on() {
        let resolver = resolver(&[&["93.184.216.34"], &["127.0.0.1"], &["::ffff:127.0.0.1"], &[]]);
        assert_eq!(resolve(&resolver).await.unwrap(), ["93.184.216.34"]);
        for _ in 0..3 {
            assert_eq!(resolve(&resolver).await.unwrap_err(), "no address of 'pictures.test' is public");
        }
    }

    #[tokio::test]
    async fn the_system_knows_localhost_and_it_is_refused() {
        let resolver = CheckedResolver::new(Arc::new(SystemLookup), Arc::default());
        let refused = resolver.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(refused.is::<NoPublicAddress>(), "{refused}");
    }
}
