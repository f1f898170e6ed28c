//! `ebb serve`: a node, until a signal ends it.

use crate::args::Serve;
use crate::embedded::{Signals, ready_line, shut_down};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use ebb_server::{Config, Server, telemetry};

/// Runs a node.
pub(crate) async fn run(output: Output, args: Serve) -> Result<Exit, Failure> {
    let config = Config::load(args.config.as_deref(), &flags(&args)?)
        .map_err(|problems| Failure::new("the settings are wrong").details(problems))?;
    // Started before the node, so that what it says while it opens its logs is heard.
    telemetry::init(&config.log)
        .map_err(|error| Failure::new(format!("logging can't be started: {error}")))?;
    let mut signals = Signals::take()?;
    let server = tokio::select! {
        server = Server::start(config.clone()) => server.map_err(Failure::new)?,
        () = signals.next() => return Ok(Exit::Interrupted),
    };
    output.line(ready_line(&server, &config))?;
    signals.next().await;
    Ok(shut_down(output, server, signals).await)
}

/// Flags as settings: they come last, and win.
fn flags(args: &Serve) -> Result<Vec<(&str, String)>, Failure> {
    let mut flags = Vec::new();
    for setting in &args.settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            Failure::new(format!("`--set {setting}` has no value")).hint("write --set limits.body=2MiB")
        })?;
        flags.push((key, value.to_owned()));
    }
    flags.extend(args.data.as_ref().map(|data| ("data", data.display().to_string())));
    flags.extend(args.http.clone().map(|address| ("http.address", address)));
    flags.extend(args.control.clone().map(|address| ("control.address", address)));
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_settings_of_the_operators_file() {
        let args = Serve {
            config: None,
            data: Some("data".into()),
            http: Some("127.0.0.1:0".into()),
            control: None,
            settings: vec!["limits.body=2MiB".into()],
        };
        let flags = flags(&args).unwrap();
        assert_eq!(
            flags,
            [
                ("limits.body", "2MiB".to_owned()),
                ("data", "data".to_owned()),
                ("http.address", "127.0.0.1:0".to_owned())
            ]
        );
        assert!(Config::parse(None, |_| None, &flags).is_ok());
    }
}
