//! A real Kafka: one KRaft node of Apache Kafka as a child process, on free ports, in a temporary folder.
//!
//! Tests that only need a broker share one, with topics and groups of their own ([`Kafka::shared`]); those that kill it, or
//! want its other listeners, start their own ([`Kafka::start`]). Whatever ends the test process ends the broker too.

mod broker;
mod records;
mod stranger;

pub use broker::{KafkaOptions, PASSWORD};
pub use records::{Isolation, Received, Record};
pub use stranger::Stranger;

use broker::{Broker, Installation};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How long anything asked of a broker may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker, and what tests ask of one. Dropping it ends it, and shows its log if the test is failing.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    /// None: somebody else's.
    own: Option<Broker>,
}

impl Kafka {
    /// The broker that the tests of this process share: the one at `EBB_TEST_KAFKA`, or one of our own.
    ///
    /// None where there is no Kafka and none can be installed: that is said, and with `CI` set it is a failure.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn shared() -> Option<&'static Self> {
        static SHARED: OnceCell<Option<Kafka>> = OnceCell::const_new();
        let shared = SHARED.get_or_init(async || match std::env::var("EBB_TEST_KAFKA") {
            Ok(brokers) => {
                let kafka = Self { brokers, own: None };
                kafka.ready().await.unwrap_or_else(|problem| panic!("EBB_TEST_KAFKA: {problem}"));
                Some(kafka)
            }
            Err(_) => Self::start(KafkaOptions::default()).await,
        });
        shared.await.as_ref()
    }

    /// A broker of the test's own.
    ///
    /// None where there is no Kafka and none can be installed: that is said, and with `CI` set it is a failure.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start(options: KafkaOptions) -> Option<Self> {
        let installation = Installation::find().await?;
        let broker = Broker::format(installation, options).await;
        let mut kafka = Self { brokers: broker.plaintext(), own: Some(broker) };
        kafka.restart().await;
        Some(kafka)
    }

    /// What clients are given to find it: `HOST:PORT`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The listener with SASL, PLAIN or SCRAM, for [`KafkaOptions::secure`]: users `app`, who may do everything, and
    /// `guest`, who may do nothing, both with [`PASSWORD`].
    #[must_use]
    pub fn sasl(&self) -> String {
        self.own().sasl()
    }

    /// The listener with TLS, for [`KafkaOptions::secure`]; its certificate is [`Kafka::ca`]'s.
    #[must_use]
    pub fn tls(&self) -> String {
        self.own().tls()
    }

    /// The listener with SASL over TLS, for [`KafkaOptions::secure`].
    #[must_use]
    pub fn sasl_tls(&self) -> String {
        self.own().sasl_tls()
    }

    /// The file with the certificate of the authority that signed the broker's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.own().ca()
    }

    /// Ends it as a power cut would, but for what the system has not written yet: SIGKILL.
    ///
    /// # Panics
    /// It is not running, or not ours.
    pub fn kill(&mut self) {
        self.own_mut().kill();
    }

    /// Ends it in order: SIGTERM.
    ///
    /// # Panics
    /// It is not running, is not ours, or does not end.
    pub async fn stop(&mut self) {
        self.own_mut().stop().await;
    }

    /// Starts it again, on the same ports and data.
    ///
    /// # Panics
    /// It is running, is not ours, or does not become ready.
    pub async fn restart(&mut self) {
        self.own_mut().spawn();
        let ready = self.ready().await;
        ready.unwrap_or_else(|problem| panic!("the broker did not become ready: {problem}"));
    }

    /// A name for a topic or a group that nobody else has: tests share the broker, and the broker may be older than they
    /// are.
    #[must_use]
    pub fn unique(&self, word: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is later than 1970");
        format!("{word}-{:x}-{}", since_epoch.as_micros(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs one of Kafka's own tools, by its main class, with this on its stdin; gives back its stdout.
    ///
    /// # Panics
    /// It fails, or does not end.
    pub async fn tool(&self, class: &str, arguments: &[&str], stdin: &str) -> String {
        let installation = Installation::find().await.expect("Kafka's tools are installed");
        let mut java = Command::from(installation.java(class));
        java.args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = java.spawn().expect("java can be run");
        let mut input = child.stdin.take().expect("stdin is a pipe");
        input.write_all(stdin.as_bytes()).await.expect("the tool reads its stdin");
        drop(input);
        let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output =
            ended.unwrap_or_else(|_| panic!("{class} did not end")).expect("a child can be waited for");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{class} {arguments:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).expect("tools write UTF-8")
    }

    /// The folder of a broker of our own, with its log (`broker.log`) and its data.
    ///
    /// # Panics
    /// It is not ours.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.own().folder()
    }

    fn own(&self) -> &Broker {
        self.own.as_ref().expect("this broker is ours")
    }

    fn own_mut(&mut self) -> &mut Broker {
        self.own.as_mut().expect("this broker is ours")
    }
}
