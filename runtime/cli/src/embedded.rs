//! What this program runs in its own process: nodes, an engine for `ebb check`, and the signals that end them.

use crate::failure::{Exit, Failure};
use crate::output::Output;
use ebb_domain::port::guest::Engine;
use ebb_engine::{EngineOptions, WasmEngine};
use ebb_server::{Config, Server};
use std::path::Path;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// An engine that keeps what it compiles in this folder, which nobody else uses.
///
/// # Errors
/// The engine can't be set up on this machine.
pub(crate) fn engine(artefacts: &Path) -> Result<Arc<dyn Engine>, Failure> {
    // The secret keeps others from putting artefacts into the folder; this folder lives as long as this process.
    let secret = ebb_domain::digest::Digest::of(uuid::Uuid::new_v4().as_bytes()).0;
    let engine = WasmEngine::new(EngineOptions::new(artefacts.to_owned(), secret))
        .map_err(|error| Failure::new(format!("the engine can't be set up: {error}")))?;
    Ok(Arc::new(engine))
}

/// SIGINT and SIGTERM: both ask for an orderly end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on they no longer end the process by themselves.
    ///
    /// # Errors
    /// The system does not let us.
    pub(crate) fn take() -> Result<Self, Failure> {
        let taken =
            |kind| signal(kind).map_err(|error| Failure::new(format!("signals can't be handled: {error}")));
        Ok(Self { interrupt: taken(SignalKind::interrupt())?, terminate: taken(SignalKind::terminate())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The one line that a script waits for.
pub(crate) fn ready_line(server: &Server, config: &Config) -> String {
    let (http, control) = (server.http_address(), server.control_address());
    // As KEDA takes it: without a scheme.
    let scaler = server.scaler_address().map(|address| format!(" scaler={address}")).unwrap_or_default();
    format!("ebb ready http=http://{http} control=http://{control}{scaler} data={}", config.data.display())
}

/// Shuts a node down in order. A further signal forces the end: what was acknowledged is on disk already.
pub(crate) async fn shut_down(output: Output, server: Server, mut signals: Signals) -> Exit {
    output.note("shutting down; a further signal forces it");
    tokio::select! {
        () = server.shutdown() => Exit::Done,
        () = signals.next() => {
            output.always("forced");
            Exit::Interrupted
        }
    }
}
