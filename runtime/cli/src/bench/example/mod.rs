//! The app that `ebb bench` measures a machine with, and the node that it runs on. Its modules come as WebAssembly text
//! (docs/decisions/0030-bench-brings-its-modules-as-text.md), so that the binary needs no compiler to have them.

use crate::client::Server;
use crate::commands::deploy;
use crate::failure::Failure;
use bytes::Bytes;
use ebb_app::bundle::Bundle;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The app's name.
pub(super) const APP: &str = "bench";

const MANIFEST: &str = r#"[app]
name = "bench"

[aggregate.counter]
module = "counter.wasm"
commands = { count = {} }
events = { Counted = {} }

[model.counts]
key = "counter"
columns = { counter = "text", count = "integer" }

[projection.counts]
module = "counts.wasm"
models = ["counts"]
source = { aggregates = ["counter"] }
"#;

/// Manifest and modules.
pub(super) fn bundle() -> Result<Bundle, Failure> {
    let mut bundle = Bundle::default();
    bundle.files.insert("ebb.toml".into(), Bytes::from_static(MANIFEST.as_bytes()));
    bundle.files.insert("counter.wasm".into(), component(include_str!("counter.wat"), "command")?);
    bundle.files.insert("counts.wasm".into(), component(include_str!("counts.wat"), "projection")?);
    Ok(bundle)
}

/// A core module's text as a component of one of our worlds.
fn component(text: &str, world: &str) -> Result<Bytes, Failure> {
    let failure = |error: &dyn std::fmt::Display| {
        Failure::new(format!("the built-in {world} module can't be assembled: {error:#}"))
    };
    let mut resolve = Resolve::default();
    let wit = include_str!("../../../../../wit/functions.wit");
    let package = resolve.push_str("functions.wit", wit).map_err(|error| failure(&error))?;
    let world_id = resolve.select_world(&[package], Some(world)).map_err(|error| failure(&error))?;
    let mut module = wat::parse_str(text).map_err(|error| failure(&error))?;
    embed_component_metadata(&mut module, &resolve, world_id, StringEncoding::UTF8)
        .map_err(|error| failure(&error))?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| failure(&error))?;
    Ok(component.into())
}

/// A node of its own for the measurement, in a process of its own as in service.
pub(super) struct Node {
    /// Its data plane.
    pub(super) http: String,
    /// Its control plane.
    control: String,
    child: Child,
}

impl Node {
    /// Starts a node, and deploys the app.
    pub(super) async fn start(folder: &Path) -> Result<Self, Failure> {
        let ebb = std::env::current_exe()
            .map_err(|error| Failure::new(format!("the path of this program can't be told: {error}")))?;
        let log_path = folder.join("node.log");
        let log = std::fs::File::create(&log_path)
            .map_err(|error| Failure::new(format!("{} can't be written: {error}", log_path.display())))?;
        let mut command = Command::new(ebb);
        for (name, _) in std::env::vars_os() {
            // What the environment says is about other nodes.
            if name.to_str().is_some_and(|name| name.starts_with("EBB_")) {
                command.env_remove(name);
            }
        }
        command
            .args(["serve", "--http", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data"])
            .arg(folder.join("node"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for this process: the node is to answer what is under way.
            .process_group(0)
            .kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|error| Failure::new(format!("a node can't be started: {error}")))?;
        let ready = match child.stdout.take() {
            Some(stdout) => BufReader::new(stdout).lines().next_line().await.ok().flatten(),
            None => None,
        };
        let address = |key: &str| {
            let rest = ready.as_ref()?.split(&format!("{key}=")).nth(1)?;
            rest.split(' ').next().map(str::to_owned)
        };
        let (Some(http), Some(control)) = (address("http"), address("control")) else {
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            return Err(Failure::new("the node for the measurement did not start").details(said));
        };
        let node = Self { http, control, child };
        let plane = crate::args::ControlPlane { server: node.control.clone(), token: None };
        deploy::send_bundle(&Server::control(&plane)?, APP, &bundle()?, None).await?;
        Ok(node)
    }

    /// Ends it; its data is of no further use.
    pub(super) async fn end(mut self) {
        drop(self.child.kill().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_modules_are_components_and_the_same_each_time() {
        let (bundle, again) = (bundle().unwrap(), bundle().unwrap());
        assert_eq!(bundle.files, again.files);
        for module in ["counter.wasm", "counts.wasm"] {
            assert_eq!(bundle.files[module][4..8], [0x0d, 0, 1, 0], "{module} is a component");
            assert!(bundle.files[module].len() < 16 << 10, "{module}");
        }
    }
}
