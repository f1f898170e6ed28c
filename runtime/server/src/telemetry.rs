//! What the node writes about itself: one line an event on stderr (stdout belongs to the command line), as text or
//! JSON.

use crate::config::{LogConfig, LogFormat};
use std::io::IsTerminal as _;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Starts logging for the whole process. Once; an embedded node leaves that to its host.
///
/// # Errors
/// Logging was started before.
pub fn init(config: &LogConfig) -> Result<(), TryInitError> {
    // `Targets`, not `EnvFilter`: it decides by level and target alone, without regular expressions.
    let filter: Targets =
        config.level.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    let layer = match config.format {
        LogFormat::Text => {
            fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).boxed()
        }
        LogFormat::Json => fmt::layer().with_writer(std::io::stderr).json().flatten_event(true).boxed(),
    };
    let kept = crate::logs::Keep.with_filter(filter.clone());
    tracing_subscriber::registry().with(layer.with_filter(filter)).with(kept).try_init()
}
