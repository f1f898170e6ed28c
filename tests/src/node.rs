//! A node: `ebb serve` as a child process on a data folder of its own.

use crate::app::App;
use crate::binary::{Finished, command, run};
use crate::client::{Client, Reply};
use http::Method;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout};

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(60);
/// How much of the node's log a failed test shows.
const SHOWN_LINES: usize = 120;

/// What a node is started with.
#[derive(Debug, Default)]
pub struct NodeBuilder {
    settings: String,
    files: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    ports: Option<(u16, u16)>,
    faults: bool,
    data: Option<PathBuf>,
}

impl NodeBuilder {
    /// With an `ebbtide.toml`.
    #[must_use]
    pub fn settings(mut self, text: &str) -> Self {
        self.settings = text.to_owned();
        self
    }

    /// With a file beside the settings, by a path that they can name.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// With a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With addresses that outlive a restart, for clients that come back by themselves.
    #[must_use]
    pub fn lasting_addresses(mut self) -> Self {
        self.ports = Some((lasting_port(), lasting_port()));
        self
    }

    /// With faults that [`Node::fault`] asks for while it runs.
    #[must_use]
    pub fn faults(mut self) -> Self {
        self.faults = true;
        self
    }

    /// With its data in another place than beside the test's own files: on a disk that is full, say.
    #[must_use]
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// Starts it on a fresh folder.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start(self) -> Node {
        let home = tempfile::Builder::new().prefix("ebb-test-").tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("ebbtide.toml"), &self.settings).expect("a file");
        for (name, text) in &self.files {
            std::fs::write(home.path().join(name), text).expect("a file");
        }
        let nowhere = Client::new("http://127.0.0.1:1");
        let mut node = Node {
            process: None,
            data: nowhere.clone(),
            control: nowhere,
            scaler: None,
            home,
            settings: self,
            life: 0,
        };
        node.start().await;
        node
    }
}

/// A node. Dropping it kills it, and shows its log if the test is failing.
#[derive(Debug)]
pub struct Node {
    process: Option<Process>,
    /// The data plane.
    pub data: Client,
    /// The control plane.
    pub control: Client,
    scaler: Option<String>,
    home: TempDir,
    settings: NodeBuilder,
    life: u32,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// Kept open: a node whose stdout has no reader would fail in writing to it.
    _stdout: BufReader<ChildStdout>,
}

impl Node {
    /// A node as it comes.
    pub async fn start_fresh() -> Self {
        NodeBuilder::default().start().await
    }

    /// A node with settings.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// A fresh node with this app.
    pub async fn with(app: &App) -> Self {
        let node = Self::start_fresh().await;
        node.deploy(app).await;
        node
    }

    /// Starts it again on the folder that it had, and gives back how long that took.
    ///
    /// # Panics
    /// It is running, or does not become ready.
    pub async fn start(&mut self) -> Duration {
        self.try_start()
            .await
            .unwrap_or_else(|said| panic!("the node did not become ready: it said `{said}`"))
    }

    /// Starts it again on the folder that it had, and gives back how long that took; or what it said instead of being
    /// ready.
    ///
    /// # Errors
    /// It did not become ready.
    ///
    /// # Panics
    /// It is running, or can't be run.
    pub async fn try_start(&mut self) -> Result<Duration, String> {
        assert!(self.process.is_none(), "the node is running");
        let started = Instant::now();
        self.life += 1;
        let (http, control) = self.settings.ports.unwrap_or_default();
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a file");
        let mut serve = command(self.home.path(), &["serve"]);
        serve
            .env("EBB_DATA", self.data_folder())
            .env("EBB_HTTP", format!("127.0.0.1:{http}"))
            .env("EBB_CONTROL", format!("127.0.0.1:{control}"))
            .envs(self.settings.environment.iter().map(|(name, value)| (name, value)))
            .envs(self.settings.faults.then(|| ("EBB_FAULTS", self.faults_path())))
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = serve.spawn().expect("ebb can be run");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut line = String::new();
        let read = tokio::time::timeout(START, stdout.read_line(&mut line)).await;
        let is_ready = matches!(read, Ok(Ok(1..))) && line.starts_with("ebb ready ");
        self.process = Some(Process { child, _stdout: stdout });
        if !is_ready {
            return Err(line);
        }
        let said =
            |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let address =
            |name: &str| Client::new(said(name).unwrap_or_else(|| panic!("no {name}= in `{line}`")));
        self.scaler = said("scaler").map(str::to_owned);
        (self.data, self.control) = (address("http"), address("control"));
        Ok(started.elapsed())
    }

    /// Asks for faults, in the words of `ebb-faults`; none for an empty text.
    ///
    /// # Panics
    /// The file can't be written.
    pub fn fault(&self, text: &str) {
        // In one step: the node may read it at any moment.
        let path = self.faults_path();
        std::fs::write(path.with_extension("new"), text).expect("a file");
        std::fs::rename(path.with_extension("new"), path).expect("a file");
    }

    fn faults_path(&self) -> PathBuf {
        self.home.path().join("faults")
    }

    /// Waits until it has ended by itself, and tells the signal that ended it, 0 where it ended in order; none if that
    /// takes too long.
    ///
    /// # Panics
    /// It was ended already, or with an error.
    pub async fn died(&mut self, patience: Duration) -> Option<i32> {
        let process = self.process.as_mut().expect("the node was started");
        let ended = tokio::time::timeout(patience, process.child.wait()).await.ok()?;
        self.process = None;
        let status = ended.expect("a child can be waited for");
        // In order, and so not as it was to.
        if status.success() {
            return Some(0);
        }
        Some(status.signal().unwrap_or_else(|| panic!("the node ended by itself: {status}")))
    }

    /// Waits until it has ended by itself, and gives its exit code.
    ///
    /// # Panics
    /// It was ended already, or does not end.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut process = self.process.take().expect("the node was started");
        let ended = tokio::time::timeout(START, process.child.wait()).await.expect("the node ends");
        ended.expect("a child can be waited for").code()
    }

    /// Ends it as a power cut would: SIGKILL.
    ///
    /// # Panics
    /// It is not running.
    pub async fn kill(&mut self) {
        let mut process = self.process.take().expect("the node is running");
        process.child.kill().await.expect("a child can be killed");
    }

    /// Ends it as an operator would: SIGTERM; gives back its exit code.
    ///
    /// # Panics
    /// It is not running, or does not end.
    pub async fn stop(&mut self) -> Option<i32> {
        self.ask_to_stop();
        let mut process = self.process.take().expect("the node is running");
        let ended =
            tokio::time::timeout(START, process.child.wait()).await.expect("the node ends when asked to");
        ended.expect("a child can be waited for").code()
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// It is not running.
    pub fn ask_to_stop(&self) {
        let sent =
            std::process::Command::new("kill").args(["-TERM", &self.process_id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIGTERM could not be sent");
    }

    /// The process's id.
    ///
    /// # Panics
    /// It is not running.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        let process = self.process.as_ref().expect("the node is running");
        process.child.id().expect("the node has not ended by itself")
    }

    /// Whether the process is still there.
    ///
    /// # Panics
    /// It can't be looked at.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.child.try_wait().expect("a child").is_none())
    }

    /// A folder for the test's own files, gone with the node.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The data folder.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.settings.data.clone().unwrap_or_else(|| self.home.path().join("data"))
    }

    /// The file with everything that the node said.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("node.log")
    }

    /// Where KEDA finds the scaler of a node that has one: `HOST:PORT`.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn scaler(&self) -> String {
        self.scaler.clone().expect("the node has a scaler")
    }

    /// An app's data plane.
    #[must_use]
    pub fn app(&self, name: &str) -> Client {
        self.data.below(&format!("/apps/{name}"))
    }

    /// Sends a bundle.
    pub async fn put(&self, app: &App) -> Reply {
        let path = format!("/apps/{}", app.name());
        self.control.request(Method::PUT, &path).body("application/x-tar", app.tar()).await
    }

    /// Deploys an app; gives back the deployment's number.
    ///
    /// # Panics
    /// The node does not take it.
    pub async fn deploy(&self, app: &App) -> u64 {
        let reply = self.put(app).await;
        let deployment = reply.ok();
        deployment["number"].as_u64().unwrap_or_else(|| panic!("no number in {deployment}"))
    }

    /// Runs a command of `ebb` on the data plane.
    pub async fn ebb<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Finished {
        self.ebb_at(self.data.base(), arguments).await
    }

    /// Runs a command of `ebb` on the control plane.
    pub async fn ebb_control<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Finished {
        self.ebb_at(self.control.base(), arguments).await
    }

    async fn ebb_at<S: AsRef<OsStr>>(&self, server: &str, arguments: &[S]) -> Finished {
        let mut all: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        all.extend([OsStr::new("--server"), OsStr::new(server)]);
        run(self.home.path(), &all).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // By our own handle; the runtime reaps it.
            let _ = process.child.start_kill();
        }
        if std::thread::panicking() {
            show_end_of(&self.log_path());
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test harness, for a test that fails")]
pub(crate) fn show_end_of(path: &Path) {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    eprintln!("--- {} ({} lines)", path.display(), lines.len());
    for line in &lines[from..] {
        eprintln!("{}", line.chars().take(400).collect::<String>());
    }
}

/// A port that is free, below those that the system hands out to outgoing connections, so that none of those takes it
/// while the node, or the broker, is down.
pub(crate) fn lasting_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
