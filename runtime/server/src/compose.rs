//! The composition root: puts storage, engine, node and edges together, and takes them apart again in order.

use crate::config::Config;
use crate::control::{ControlPlane, Functions};
use crate::data::DataPlane;
use crate::metrics::{InFlight, Metrics};
use crate::scaler::{NodeScaling, Scaler};
use crate::secrets::NodeSecrets;
use crate::serve::{Port, PortCounts, PortLimits};
use crate::traces::{TraceCounts, Traces};
use ebb_app::node::{Node, NodeDeps, NodeError, NodeOptions};
use ebb_bus::Kafka;
use ebb_domain::digest::Digest;
use ebb_domain::port::Clock;
use ebb_domain::port::bus::Bus;
use ebb_domain::port::storage::{Storage, StorageError};
use ebb_domain::time::Timestamp;
use ebb_engine::{EngineOptions, Observer, WasmEngine};
use ebb_store::models::SqliteModels;
use ebb_store::storage::{DiskStorage, StorageOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Connections of the control port: operators, probes and scrapers; and of the scaler's.
const CONTROL_CONNECTIONS: usize = 256;

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("`{setting}` {address} can't be listened on: {error}; take another address, or stop who has it")]
    Bind {
        /// `http.address`, `control.address` or `scaler.address`.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The data folder, the logs, the read models.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The engine.
    #[error("the engine could not be started: {0}")]
    Engine(String),
    /// What sends traces.
    #[error("traces can't be sent: {0}")]
    Traces(String),
    /// The node's own log.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A running node with its two ports.
pub struct Server {
    node: Arc<Node>,
    storage: Arc<DiskStorage>,
    data: Port,
    control: Port,
    scaler: Option<Port>,
    stop: watch::Sender<bool>,
    keys: JoinHandle<()>,
    traces: Option<Arc<Traces>>,
    drain: Duration,
}

impl Server {
    /// Starts a node. When this returns, both ports answer; an app is opened by its first use.
    ///
    /// # Errors
    /// An address is taken, the data folder is in use or damaged, or the engine does not run here.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        // Bound first, so that a taken port is known at once, and callers that come early wait in the backlog instead
        // of being refused.
        let data_listener = bind("http.address", config.http).await?;
        let control_listener = bind("control.address", config.control.address).await?;
        let scaler_listener = match config.scaler {
            Some(address) => Some(bind("scaler.address", address).await?),
            None => None,
        };

        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let options =
            StorageOptions { index_cache_bytes: config.index_cache, ..StorageOptions::new(clock.clone()) };
        let folder = config.data.clone();
        let storage = blocking(move || DiskStorage::open(&folder, options)).await??;
        let models = SqliteModels::new(&config.data);
        let modules = storage.clone();
        let functions = config.functions;
        let trace_counts = Arc::new(TraceCounts::default());
        let traces = match &config.traces {
            Some(config) => Some(Traces::start(config, trace_counts.clone()).map_err(StartError::Traces)?),
            None => None,
        };
        let options = EngineOptions {
            observer: traces.clone().map(|traces| traces as Arc<dyn Observer>),
            concurrency: functions.concurrency,
            memory_bytes: functions.memory,
            module_idle: functions.idle,
            compile_time: functions.compile,
            weights: functions.weights,
            most: functions.most,
            ..EngineOptions::new(config.data.join("artefacts"), *storage.secret())
        };
        let engine = options
            // An artefact that is damaged or another engine's is compiled again from the module that was deployed.
            .with_fetch(move |digest| modules.blob(digest).ok());
        let engine = WasmEngine::new(engine).map_err(|error| StartError::Engine(error.to_string()))?;
        let engine = Arc::new(engine);
        let since = clock.now();
        let bus = config.kafka.clone().map(|settings| {
            // The same for as long as the data folder is: a restart is no other member of a group.
            let node = Digest::of_parts([&b"kafka member"[..], storage.secret()]).short();
            Kafka::new(ebb_bus::Settings { node, ..settings }) as Arc<dyn Bus>
        });
        let deps = NodeDeps {
            storage: storage.clone(),
            models,
            engine: engine.clone(),
            secrets: Arc::new(NodeSecrets::new(functions.secrets)),
            clock: clock.clone(),
            bus,
        };
        let node = Node::open(deps, NodeOptions { idle: config.app_idle, open: config.apps_open }).await?;

        let (stop, stopping) = watch::channel(false);
        let metrics = Arc::new(Metrics::new(config.scaler.map(|_| InFlight::default())));
        let counts = Arc::new(PortCounts::default());
        let header_timeout = config.limits.header_timeout;
        let connections = config.limits.connections;
        let data = DataPlane::new(
            node.clone(),
            config.auth.clone(),
            config.limits,
            storage.secret(),
            metrics.clone(),
            traces.clone(),
            stopping.clone(),
        );
        let data = Arc::new(data);
        let (status, usage, census) = (engine.clone(), engine.clone(), engine);
        let functions = Functions {
            status: Box::new(move || status.status()),
            usage: Box::new(move || usage.usage()),
            census: Box::new(move || census.census()),
            since,
            traces: trace_counts,
        };
        let source = Arc::new(NodeScaling { node: node.clone(), metrics: metrics.clone() });
        let scaler = Arc::new(Scaler::new(source, clock, stopping.clone()));
        let control = ControlPlane::new(
            node.clone(),
            data.clone(),
            &config.control,
            metrics,
            counts.clone(),
            functions,
            stopping,
        );
        let serving = |setting, address| move |error| StartError::Bind { setting, address, error };
        let data = Port::serve(data_listener, data, PortLimits { connections, header_timeout }, counts)
            .map_err(serving("http.address", config.http))?;
        let control_limits = PortLimits { connections: CONTROL_CONNECTIONS, header_timeout };
        let control = Port::serve(control_listener, Arc::new(control), control_limits, Arc::default())
            .map_err(serving("control.address", config.control.address))?;
        let scaler = match scaler_listener.zip(config.scaler) {
            Some((listener, address)) => {
                let port = Port::serve(listener, scaler, control_limits, Arc::default());
                Some(port.map_err(serving("scaler.address", address))?)
            }
            None => None,
        };
        let auth = config.auth;
        let keys = tokio::spawn(async move { auth.keep_fresh().await });
        tracing::info!(http = %data.address, control = %control.address, data = %config.data.display(), "node started");
        Ok(Self { node, storage, data, control, scaler, stop, keys, traces, drain: config.drain })
    }

    /// Where the data plane listens.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.data.address
    }

    /// Where the control plane listens.
    #[must_use]
    pub fn control_address(&self) -> SocketAddr {
        self.control.address
    }

    /// Where KEDA's external scaler listens, if there is one.
    #[must_use]
    pub fn scaler_address(&self) -> Option<SocketAddr> {
        self.scaler.as_ref().map(|port| port.address)
    }

    /// The node, for whoever embeds it.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Stops in order: `/readyz` fails and live streams end, requests in flight finish within `drain`, commands and
    /// projections come to their end, the control port closes, the logs are closed.
    pub async fn shutdown(self) {
        let started = Instant::now();
        self.stop.send_replace(true);
        self.keys.abort();
        self.data.drain(started + self.drain).await;
        self.node.shutdown().await;
        if let Some(traces) = self.traces {
            traces.shutdown(Instant::now() + Duration::from_secs(2)).await;
        }
        if let Some(scaler) = self.scaler {
            scaler.drain(Instant::now() + Duration::from_secs(1)).await;
        }
        // Until here it has said 503 to probes, and had metrics.
        self.control.drain(Instant::now() + Duration::from_secs(1)).await;
        let storage = self.storage;
        if let Err(error) = tokio::task::spawn_blocking(move || storage.close()).await {
            tracing::error!(%error, "the logs were not closed");
        }
        tracing::info!(millis = started.elapsed().as_millis() as u64, "node stopped");
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { setting, address, error })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StorageError(error.to_string()))
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = since.as_micros() as u64;
        #[cfg(debug_assertions)]
        let micros = micros.saturating_add_signed(ebb_faults::clock_offset_micros());
        Timestamp(micros)
    }
}
