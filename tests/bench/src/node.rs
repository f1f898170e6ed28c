//! `ebb serve` as a child process.

use crate::http::Client;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// A folder of this repository.
pub fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A server to measure.
pub struct Server {
    child: Child,
    /// The address of its data plane.
    pub address: String,
    /// The address of its control plane, if it has one.
    pub control: String,
    pub pid: u32,
    /// From its start to the line that says it is ready.
    pub ready: Duration,
}

impl Server {
    /// Starts a program, on the cores that are left for servers, and waits for its line with `http=` and `control=`.
    pub async fn start(program: &str, arguments: &[&str]) -> Self {
        Self::start_with(program, arguments, &[]).await
    }

    async fn start_with(program: &str, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = crate::cores::server_command(program);
        command.args(arguments).envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self::ready(
            command,
            |child| Box::new(child.stdout.take().expect("stdout")),
            |line| {
                let part = |key: &str| {
                    let rest = line.split(&format!("{key}=http://")).nth(1)?;
                    rest.split(' ').next().map(str::to_owned)
                };
                Some((part("http")?, part("control").unwrap_or_default()))
            },
        )
        .await
    }

    /// Starts `wasmtime serve` with a component.
    pub async fn wasmtime(wasmtime: &str, options: &[&str], module: &Path) -> Self {
        let mut command = crate::cores::server_command(wasmtime);
        command
            .args(["serve", "-Scli,http,p3", "-Wcomponent-model-async", "--addr", "127.0.0.1:0"])
            .args(options)
            .arg(module)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self::ready(
            command,
            |child| Box::new(child.stderr.take().expect("stderr")),
            |line| {
                let address = line.split("http://").nth(1)?;
                Some((address.trim_end_matches('/').to_owned(), String::new()))
            },
        )
        .await
    }

    /// Waits for the line in which a server says its addresses.
    async fn ready(
        mut command: Command,
        talks: impl FnOnce(&mut Child) -> Box<dyn AsyncRead + Unpin + Send>,
        addresses: impl Fn(&str) -> Option<(String, String)>,
    ) -> Self {
        let started = Instant::now();
        let mut child = command.kill_on_drop(true).spawn().expect("the server starts");
        let mut lines = BufReader::new(talks(&mut child)).lines();
        let (address, control) = loop {
            let line = lines.next_line().await.expect("a line").expect("the ready line");
            if let Some(addresses) = addresses(&line) {
                break addresses;
            }
        };
        let (pid, ready) = (child.id().expect("a process"), started.elapsed());
        // A server that nobody listens to would fail, or stop, in talking.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, address, control, pid, ready }
    }

    /// Starts `ebb serve` on a data folder.
    pub async fn ebb(ebb: &str, data: &Path) -> Self {
        Self::ebb_with(ebb, data, &[]).await
    }

    /// The same, with settings from the environment.
    pub async fn ebb_with(ebb: &str, data: &Path, env: &[(&str, &str)]) -> Self {
        let data = data.to_str().expect("UTF-8");
        let arguments = ["serve", "--http", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data", data];
        Self::start_with(ebb, &arguments, env).await
    }

    /// Deploys an app from its folder.
    pub async fn deploy(&self, ebb: &str, app: &Path) {
        run(ebb, &["deploy", app.to_str().expect("UTF-8"), "--server", &format!("http://{}", self.control)])
            .await;
    }

    /// Ends it as an operator would.
    pub async fn stop(mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid as i32).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        self.child.wait().await.expect("an end");
    }

    /// Ends it with `kill -9`.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("an end");
    }

    /// Builds a projection's rows again, and tells the CPU seconds of the whole process and the time that took.
    pub async fn rebuild(&self, app: &str, projection: &str) -> (f64, Duration) {
        let (cpu, started) = (crate::cpu_seconds(self.pid), Instant::now());
        let mut client = Client::connect(&self.control).await;
        let before = client.projection(projection).await;
        let answer =
            client.request("POST", &format!("/apps/{app}/projections/{projection}/rebuild"), "").await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        loop {
            let now = client.projection(projection).await;
            if now["building"].is_null() && now["version"] != before["version"] {
                return (crate::cpu_seconds(self.pid) - cpu, started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What `/proc` says of its memory, in MiB: `VmRSS`, `VmHWM`.
    pub fn memory(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }
}

impl Client {
    async fn projection(&mut self, name: &str) -> Value {
        let mut page = self.json("/projections").await;
        let found = page["projections"].as_array_mut().expect("a list").iter_mut();
        found.into_iter().find(|one| one["projection"] == name).expect("a projection").take()
    }
}

/// Runs `ebb` as a client, and gives what it wrote.
pub async fn run(ebb: &str, arguments: &[&str]) -> String {
    let output = Command::new(ebb).args(arguments).output().await.expect("ebb runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ebb {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("UTF-8")
}
