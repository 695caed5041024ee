//! Puts a server together from its configuration: store, engine, service, webhooks, HTTP. The one place that knows
//! all parts; `cli::serve` calls it, and so can a program that embeds Darkroom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogError};
use crate::comfy::upstream::{LinkError, WithUpstream};
use crate::comfy::workflows::WorkflowRunner;
use crate::comfy::{Comfy, KeepError, Runner};
use crate::config::Config;
use crate::http;
use crate::metrics::{ByDelivery, Metrics};
use crate::outbound::webhooks::{Deliverer, Delivery, Outbox};
use crate::outbound::{
    Client, OutboundError, SecretError, load_or_create_link_secret, load_or_create_secret,
};
use crate::service::{Service, ServiceError, ServiceParts};
use crate::store::{ImageStore, ImageStoreError, StoreError, TaskStore};
use crate::task::TaskId;
use crate::workflow::{Folders, Workflows};

/// Time for the last answers after everything else has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Why a server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The models folder or the default model.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The task store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image store.
    #[error(transparent)]
    Images(#[from] ImageStoreError),
    /// Settings of outbound requests.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// A secret that is kept in the data folder.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The service.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// ComfyUI's prompts.
    #[error(transparent)]
    Prompts(#[from] KeepError),
    /// ComfyUI's folders.
    #[error("the folders of ComfyUI's files: {0}")]
    Folders(std::io::Error),
    /// It would be open to everyone.
    #[error("{host} can be reached from other machines, and there is no key")]
    Open {
        /// Where it would listen.
        host: std::net::IpAddr,
    },
    /// The ComfyUI behind this server.
    #[error(transparent)]
    Upstream(#[from] LinkError),
    /// The routes.
    #[error(transparent)]
    Routes(#[from] http::SetupError),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] http::listen::TlsError),
    /// The socket.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It was told twice to stop.
    #[error("stopped at once; unfinished tasks go on at the next start")]
    Interrupted,
    /// The socket, later.
    #[error("serving: {0}")]
    Serve(std::io::Error),
}

impl ServerError {
    /// What a person can do about it, where that is not plain from the message.
    pub fn fix(&self) -> Option<&'static str> {
        match self {
            Self::Open { .. } => Some(
                "make a key with `darkroom keys create NAME`, or listen on 127.0.0.1 only, or, where something else \
                 keeps strangers out, set auth.allow_anonymous (--auth-allow-anonymous true)",
            ),
            Self::Listen { .. } => Some("choose another with --port, or stop what listens there"),
            _ => None,
        }
    }
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    /// `http://127.0.0.1:8188`.
    pub url: String,
    /// Another port for ComfyUI's clients, and its address.
    second: Option<(TcpListener, String)>,
    service: Service,
    comfy: Option<http::ComfyParts>,
    config: Arc<Config>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Server {
    /// Opens everything and starts to listen; requests are answered from [`Self::run`] on.
    pub async fn start(config: Config) -> Result<Self, ServerError> {
        let config = Arc::new(config);
        let tls = match (&config.server.tls_cert, &config.server.tls_key) {
            (Some(certificate), Some(key)) => Some(http::listen::tls_config(certificate, key)?),
            // One without the other was refused when the configuration was read.
            _ => None,
        };
        let catalog =
            Catalog::open(config.engine.models_dir.as_deref(), config.engine.default_model.as_deref())?
                .with_tokenizer(config.engine.tokenizer.clone());
        let outbound = Client::new(&config.outbound)?;
        let store = TaskStore::open(&config.storage).await?;
        if !config.server.host.is_loopback() && !config.auth.allow_anonymous && !store.has_keys().await? {
            return Err(ServerError::Open { host: config.server.host });
        }
        let images = ImageStore::open(&config.storage).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (listener, url) = listen(&config, config.server.port, scheme).await?;
        let second = match config.comfy.port.filter(|_| config.comfy.enabled) {
            Some(port) => Some(listen(&config, port, scheme).await?),
            None => None,
        };
        let data_dir = &config.storage.data_dir;
        let metrics = Arc::new(Metrics::default());
        let service = Service::start(ServiceParts {
            config: Arc::clone(&config),
            store: store.clone(),
            images,
            catalog: Arc::new(catalog),
            metrics: Arc::clone(&metrics),
            outbound: outbound.clone(),
            secret: load_or_create_link_secret(data_dir)?,
        })
        .await?;
        let comfy =
            if config.comfy.enabled { Some(start_comfy(&config, &service, &metrics).await?) } else { None };
        let secret = load_or_create_secret(data_dir, config.outbound.webhook_secret.as_deref())?;
        let outbox =
            Arc::new(StoredOutbox { store, service: service.clone(), config: Arc::clone(&config), metrics });
        let attempts = config.outbound.webhook_attempts;
        let deliverer = Deliverer::new(outbound, outbox, secret, attempts, service.webhook_bell());
        tokio::spawn(deliverer.run(service.stopping().clone()));
        Ok(Self { listener, url, second, service, comfy, config, tls })
    }

    /// Where it listens for ComfyUI's clients beside [`Self::url`].
    pub fn second_url(&self) -> Option<&str> {
        self.second.as_ref().map(|(_, url)| url.as_str())
    }

    /// Serves until `stop`, then finishes what it can within the drain timeout. `stop_now` ends that at once.
    pub async fn run(self, stop: CancellationToken, stop_now: CancellationToken) -> Result<(), ServerError> {
        let Self { listener, second, service, comfy, config, tls, .. } = self;
        let closing = CancellationToken::new();
        let router = http::router(service.clone(), Arc::clone(&config), closing.clone(), comfy.clone())?;
        let listeners = std::iter::once(listener).chain(second.map(|(listener, _)| listener));
        let serving = listeners.map(|listener| {
            let (tls, router, limits, closing) =
                (tls.clone(), router.clone(), config.server.clone(), closing.clone());
            tokio::spawn(async move { http::listen::serve(listener, tls, router, &limits, closing).await })
        });
        let serving = futures_util::future::try_join_all(serving.collect::<Vec<_>>());
        stop.cancelled().await;
        tracing::info!("stopping: finishing what is running");
        let patience = Duration::from_secs_f64(config.server.drain_timeout);
        let ended = async {
            let deadline = Instant::now() + patience;
            service.stop_accepting();
            // Prompts first: they run on the engine, which the service stops.
            if let Some(comfy) = &comfy {
                comfy.server.drain(patience).await;
            }
            service.drain(deadline.saturating_duration_since(Instant::now())).await;
            closing.cancel();
            // Connections that do not end by themselves are cut.
            match tokio::time::timeout(LAST_ANSWERS, serving).await {
                Ok(Err(error)) => Err(ServerError::Serve(error.into())),
                Ok(Ok(_)) | Err(_) => Ok(()),
            }
        };
        tokio::select! {
            ended = ended => ended,
            () = stop_now.cancelled() => Err(ServerError::Interrupted),
        }
    }
}

/// Listens at a port; its address for people.
async fn listen(config: &Config, port: u16, scheme: &str) -> Result<(TcpListener, String), ServerError> {
    let address = (config.server.host, port);
    let cannot = |source| ServerError::Listen { address: format!("{}:{}", address.0, address.1), source };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?;
    Ok((listener, format!("{scheme}://{bound}")))
}

/// ComfyUI's side of the server: folders, workflows, prompts.
async fn start_comfy(
    config: &Config,
    service: &Service,
    metrics: &Arc<Metrics>,
) -> Result<http::ComfyParts, ServerError> {
    let [input, output, temp, user] = config.comfy.folders(&config.storage.data_dir);
    let folders = Folders { input, output, temp, user, models: config.engine.models_dir.clone() };
    folders.create().map_err(ServerError::Folders)?;
    folders.clear_temp();
    let (engine, catalog) = (Arc::clone(service.engine()), Arc::clone(service.catalog()));
    let workflows = Arc::new(Workflows::new(engine, catalog, folders, config.comfy.cache_bytes));
    let mut runner: Arc<dyn Runner> =
        Arc::new(WorkflowRunner::new(Arc::clone(&workflows), config.engine.pin.clone()));
    let mut upstream = None;
    if let Some(url) = &config.comfy.upstream {
        let folders = Arc::new(workflows.folders.clone());
        let with = Arc::new(WithUpstream::new(runner, url, folders, Arc::clone(metrics))?);
        upstream = Some(Arc::clone(&with));
        runner = with;
    }
    let (data_dir, settings) = (&config.storage.data_dir, config.comfy.clone());
    let server = Comfy::start(settings, data_dir, runner, Arc::clone(metrics)).await?;
    Ok(http::ComfyParts { server, workflows, upstream })
}

/// Webhooks that the task store owes.
struct StoredOutbox {
    store: TaskStore,
    service: Service,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
}

impl StoredOutbox {
    fn count(&self, outcome: &'static str) {
        self.metrics.webhook_deliveries.get_or_create(&ByDelivery { outcome }).inc();
    }
}

impl Outbox for StoredOutbox {
    type Error = StoreError;

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        let due = self.store.due_deliveries(now, limit).await?;
        let delivery = |owed: crate::store::Delivery| Delivery {
            id: owed.id.to_string(),
            task_id: owed.task,
            url: owed.url,
            event: owed.event,
            attempts: owed.attempts,
        };
        Ok(due.into_iter().map(delivery).collect())
    }

    async fn body(&self, task: &TaskId) -> Result<Option<Bytes>, StoreError> {
        match self.service.task_for_owner(task).await {
            Ok(view) => Ok(view.map(|view| http::webhook_body(&view, &self.config.server))),
            Err(error) => Err(StoreError::Unavailable { message: error.to_string() }),
        }
    }

    async fn done(&self, id: &str) -> Result<(), StoreError> {
        self.count("delivered");
        self.store.delivery_done(&delivery_id(id)?).await
    }

    async fn retry(&self, id: &str, next_at: Timestamp) -> Result<(), StoreError> {
        self.count("failed");
        self.store.delivery_retry(&delivery_id(id)?, next_at).await
    }

    async fn give_up(&self, id: &str) -> Result<(), StoreError> {
        self.count("given_up");
        self.store.delivery_given_up(&delivery_id(id)?).await
    }
}

fn delivery_id(id: &str) -> Result<uuid::Uuid, StoreError> {
    id.parse().map_err(|_| StoreError::Defect { message: format!("'{id}' is not a delivery's id") })
}
