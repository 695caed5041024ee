//! Who asks: the key in the request, what it may do, and how often. One layer before all handlers, so that a new
//! route is closed until it is said to be open.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{FromRequestParts, MatchedPath, OptionalFromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lru::LruCache;

use super::app::App;
use super::error::ApiError;
use crate::service::ApiKey;
use crate::task::{ApiKeyId, Owner};

/// Keys whose recent requests are remembered; the one that was quiet longest is forgotten first.
const REMEMBERED_KEYS: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
/// Longest secret that is looked up, bytes.
const SECRET_BYTES: usize = 256;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    /// Whose tasks and pictures these are.
    pub(super) owner: Owner,
    /// May load and unload models.
    pub(super) admin: bool,
}

/// What a route asks of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Nothing.
    Open,
    /// A key, or another proof that the handler checks itself.
    Handler,
    /// A key.
    Key,
    /// An admin's key.
    Admin,
}

fn access(method: &Method, route: Option<&str>, loopback: bool) -> Access {
    match route {
        // No route: the answer is 404 whoever asks.
        None => Access::Open,
        Some("/" | "/darkroom" | "/assets/{file}" | "/health" | "/ready" | "/openapi.json") => Access::Open,
        Some(docs) if docs == "/docs" || docs.starts_with("/docs/") => Access::Open,
        Some("/metrics") if loopback => Access::Open,
        Some("/v1/tasks/ws" | "/ws" | "/api/ws") => Access::Handler,
        Some("/v1/images/{id}") if matches!(*method, Method::GET | Method::HEAD) => Access::Handler,
        Some("/v1/models/{id}/load" | "/v1/models/{id}/unload" | "/free" | "/api/free") => Access::Admin,
        Some(internal) if internal.starts_with("/internal/") => Access::Admin,
        Some(_) => Access::Key,
    }
}

/// The layer: finds out who asks, and stops who may not.
pub(super) async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let access = access(request.method(), route.as_deref(), app.config.server.host.is_loopback());
    if access == Access::Open {
        return next.run(request).await;
    }
    let secret = secret(request.headers());
    match admit(&app, access, secret.as_deref()).await {
        Ok(client) => {
            if let Some(client) = client {
                request.extensions_mut().insert(client);
            }
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn admit(app: &App, access: Access, secret: Option<&str>) -> Result<Option<Client>, ApiError> {
    let keys_exist = app.service.keys_exist().await?;
    let key = match secret {
        Some(secret) if keys_exist && secret.len() <= SECRET_BYTES => {
            app.service.authenticate(secret).await?
        }
        _ => None,
    };
    let client = decide(access, keys_exist, secret.is_some(), key.as_ref())?;
    if let Some(key) = &key {
        app.rate_limits.check(key)?;
    }
    Ok(client)
}

/// Who asks by this secret (`dk_…`, with or without `Bearer` before it), for handlers that check it themselves.
pub(super) async fn client_by_secret(app: &App, text: &str) -> Result<Client, ApiError> {
    let secret = strip_bearer(text).unwrap_or(text).trim();
    let client = admit(app, Access::Key, Some(secret)).await?;
    client.ok_or_else(|| ApiError::unauthorized("this needs an API key"))
}

fn decide(
    access: Access,
    keys_exist: bool,
    secret_given: bool,
    key: Option<&ApiKey>,
) -> Result<Option<Client>, ApiError> {
    if !keys_exist {
        return Ok(Some(Client { owner: Owner::Anyone, admin: true }));
    }
    match key {
        None if secret_given => Err(ApiError::unauthorized("the API key is not known")),
        None if access == Access::Handler => Ok(None),
        None => Err(ApiError::unauthorized("this needs an API key")),
        Some(key) if access == Access::Admin && !key.admin => {
            Err(ApiError::forbidden("this needs an admin's key")
                .hint("make one with 'darkroom keys create --admin'"))
        }
        Some(key) => Ok(Some(Client { owner: Owner::Key(key.id.clone()), admin: key.admin })),
    }
}

/// The secret that a request carries: `Authorization: Bearer …` or `X-API-Key: …`.
fn secret(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        // Another scheme is a wrong key, not none: the answer then says so.
        let text = value.to_str().unwrap_or_default();
        return Some(strip_bearer(text).unwrap_or_default().trim().to_owned());
    }
    headers.get("x-api-key").map(|value| value.to_str().unwrap_or_default().trim().to_owned())
}

fn strip_bearer(text: &str) -> Option<&str> {
    let (scheme, rest) = text.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(rest)
}

impl FromRequestParts<App> for Client {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let found = <Self as OptionalFromRequestParts<App>>::from_request_parts(parts, app).await?;
        found.ok_or_else(|| ApiError::unauthorized("this needs an API key"))
    }
}

impl OptionalFromRequestParts<App> for Client {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Option<Self>, ApiError> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// How often each key has asked lately.
pub(super) struct RateLimits {
    /// Requests a minute of keys without a limit of their own; 0 is no limit.
    default_per_minute: u32,
    keys: Mutex<LruCache<ApiKeyId, (NonZeroU32, Arc<DefaultDirectRateLimiter>)>>,
}

impl RateLimits {
    pub(super) fn new(default_per_minute: u32) -> Self {
        Self { default_per_minute, keys: Mutex::new(LruCache::new(REMEMBERED_KEYS)) }
    }

    /// Counts a request; refuses it when the key has had its share of this minute.
    pub(super) fn check(&self, key: &ApiKey) -> Result<(), ApiError> {
        let limit = key.requests_per_minute.unwrap_or(self.default_per_minute);
        let Some(limit) = NonZeroU32::new(limit) else { return Ok(()) };
        let limiter = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            match keys.get(&key.id) {
                Some((known, limiter)) if *known == limit => Arc::clone(limiter),
                _ => {
                    let limiter = Arc::new(RateLimiter::direct(Quota::per_minute(limit)));
                    keys.put(key.id.clone(), (limit, Arc::clone(&limiter)));
                    limiter
                }
            }
        };
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            ApiError::too_many(
                "rate_limited",
                format!("this key may make {limit} requests a minute"),
                wait.as_secs_f64().ceil() as u64,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn key(admin: bool, requests_per_minute: Option<u32>) -> ApiKey {
        ApiKey {
            id: ApiKeyId::random(),
            name: "gateway".into(),
            admin,
            requests_per_minute,
            max_tasks: None,
            created_at: Timestamp::UNIX_EPOCH,
            last_used_at: None,
            revoked_at: None,
        }
    }

    fn status(result: Result<Option<Client>, ApiError>) -> u16 {
        result.map_or_else(|error| error.status().as_u16(), |_| 200)
    }

    #[test]
    fn without_keys_everyone_is_the_same_and_may_do_all() {
        for access in [Access::Key, Access::Admin, Access::Handler] {
            let client = decide(access, false, true, None).unwrap().unwrap();
            assert_eq!(client, Client { owner: Owner::Anyone, admin: true });
        }
    }

    #[test]
    fn with_keys_none_or_a_wrong_one_is_401_and_a_plain_one_on_admin_routes_403() {
        assert_eq!(status(decide(Access::Key, true, false, None)), 401);
        assert_eq!(status(decide(Access::Key, true, true, None)), 401);
        assert_eq!(status(decide(Access::Handler, true, true, None)), 401);
        assert_eq!(status(decide(Access::Admin, true, true, Some(&key(false, None)))), 403);
        assert_eq!(status(decide(Access::Admin, true, true, Some(&key(true, None)))), 200);
        assert_eq!(decide(Access::Handler, true, false, None), Ok(None));
        let known = key(false, None);
        let client = decide(Access::Key, true, true, Some(&known)).unwrap().unwrap();
        assert_eq!(client.owner, Owner::Key(known.id));
    }

    #[test]
    fn every_route_is_closed_but_the_ones_that_are_named() {
        let of = |route| access(&Method::GET, Some(route), false);
        for open in ["/", "/assets/{file}", "/health", "/ready", "/openapi.json", "/docs", "/docs/{*rest}"] {
            assert_eq!(of(open), Access::Open, "{open}");
        }
        for closed in ["/metrics", "/v1/tasks", "/v1/queue", "/v1/models", "/documents", "/a/new/route"] {
            assert_eq!(of(closed), Access::Key, "{closed}");
        }
        assert_eq!(access(&Method::GET, Some("/metrics"), true), Access::Open);
        assert_eq!(access(&Method::DELETE, Some("/v1/images/{id}"), true), Access::Key);
        for admin in ["/v1/models/{id}/load", "/free", "/api/free", "/internal/logs"] {
            assert_eq!(access(&Method::POST, Some(admin), true), Access::Admin, "{admin}");
        }
        for socket in ["/ws", "/api/ws"] {
            assert_eq!(of(socket), Access::Handler, "{socket}");
        }
    }

    #[test]
    fn a_secret_is_found_in_either_header() {
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            secret(&headers)
        };
        assert_eq!(with("authorization", "Bearer dk_1").as_deref(), Some("dk_1"));
        assert_eq!(with("authorization", "bearer  dk_1 ").as_deref(), Some("dk_1"));
        assert_eq!(with("x-api-key", "dk_1").as_deref(), Some("dk_1"));
        assert_eq!(with("authorization", "Basic dXNlcg==").as_deref(), Some(""));
        assert_eq!(secret(&HeaderMap::new()), None);
    }

    #[test]
    fn a_key_that_asks_too_often_is_told_when_to_come_back_and_others_are_not_held_up() {
        let limits = RateLimits::new(2);
        let (one, other, free) = (key(false, None), key(false, Some(1)), key(false, Some(0)));
        assert!(limits.check(&one).is_ok() && limits.check(&one).is_ok());
        let refused = limits.check(&one).unwrap_err();
        assert_eq!(refused.status().as_u16(), 429);
        let response = refused.into_response();
        let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert!(limits.check(&other).is_ok());
        assert!(limits.check(&other).is_err());
        assert!((0..100).all(|_| limits.check(&free).is_ok()));
    }

    #[test]
    fn a_changed_limit_counts_from_then_on() {
        let limits = RateLimits::new(0);
        let mut key = key(false, Some(1));
        assert!(limits.check(&key).is_ok());
        assert!(limits.check(&key).is_err());
        key.requests_per_minute = Some(5);
        assert!(limits.check(&key).is_ok());
    }

    #[test]
    fn memory_of_rate_limits_is_bounded() {
        let limits = RateLimits::new(1);
        for _ in 0..REMEMBERED_KEYS.get() + 10 {
            limits.check(&key(false, None)).unwrap();
        }
        assert_eq!(limits.keys.lock().unwrap().len(), REMEMBERED_KEYS.get());
    }
}
