//! The broker's process: where Kafka is, how it is configured, how it starts and ends.

use super::PATIENCE;
use crate::guests::repository;
use crate::node::{lasting_port, show_end_of};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The password of every user that a secure broker knows.
pub const PASSWORD: &str = "open sesame";

/// What a broker is started with.
#[derive(Debug, Default, Clone)]
pub struct KafkaOptions {
    secure: bool,
    settings: Vec<(String, String)>,
}

impl KafkaOptions {
    /// With listeners for SASL, TLS and both beside the plain one, which stays open to everybody.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.secure = true;
        self
    }

    /// With a line of `server.properties`.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Where Kafka's jars are.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    lib: PathBuf,
}

impl Installation {
    /// Finds it, or installs it, once a process.
    #[expect(clippy::print_stderr, reason = "shown by the test harness")]
    pub(super) async fn find() -> Option<Self> {
        static FOUND: OnceCell<Option<Installation>> = OnceCell::const_new();
        let found = FOUND.get_or_init(async || {
            let script = ". scripts/lib/kafka.sh && ensure_kafka && printf %s \"$KAFKA_LIB\"";
            let mut bash = tokio::process::Command::new("bash");
            bash.args(["-c", script]).current_dir(repository()).stdin(Stdio::null());
            let output = bash.output().await.expect("bash can be run");
            if output.status.success() {
                let lib = String::from_utf8(output.stdout).expect("the path is UTF-8");
                return Some(Self { lib: lib.into() });
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                std::env::var_os("CI").is_none(),
                "there is no Kafka, and none can be installed:\n{said}"
            );
            eprintln!("NOT TESTED: there is no Kafka, and none can be installed:\n{said}");
            None
        });
        found.await.clone()
    }

    /// Java on this main class.
    pub(super) fn java(&self, class: &str) -> Command {
        let mut java = Command::new("java");
        // Serial collection and the first compiler only: a broker for tests starts often, and works little.
        java.args(["-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]);
        // Which classes a start loads is known from the installation on; another Java than that goes without.
        let classes = self.lib.with_file_name("classes.jsa");
        if classes.exists() {
            java.arg(format!("-XX:SharedArchiveFile={}", classes.display())).arg("-Xlog:cds=off");
        }
        let quiet = repository().join("tests/kafka/log4j2.properties");
        java.arg(format!("-Dlog4j2.configurationFile={}", quiet.display()));
        java.arg("-classpath").arg(self.lib.join("*")).arg(class);
        java
    }
}

/// A broker of our own.
#[derive(Debug)]
pub(super) struct Broker {
    installation: Installation,
    folder: TempDir,
    ports: Ports,
    process: Option<Child>,
    heir: Heir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    plaintext: u16,
    controller: u16,
    sasl: u16,
    tls: u16,
    sasl_tls: u16,
}

impl Broker {
    /// A formatted broker, not started yet.
    pub(super) async fn format(installation: Installation, options: KafkaOptions) -> Self {
        tokio::task::spawn_blocking(move || {
            let folder = tempfile::Builder::new().prefix("ebb-kafka-").tempdir().expect("a temporary folder");
            let ports = Ports {
                plaintext: lasting_port(),
                controller: lasting_port(),
                sasl: lasting_port(),
                tls: lasting_port(),
                sasl_tls: lasting_port(),
            };
            if options.secure {
                make_certificates(folder.path());
            }
            let settings = folder.path().join("server.properties");
            std::fs::write(&settings, properties(folder.path(), ports, &options)).expect("a file");
            let mut format = installation.java("kafka.tools.StorageTool");
            format.args(["format", &format!("--cluster-id={}", random_id()), "--config"]).arg(&settings);
            if options.secure {
                for (mechanism, user) in [
                    ("SCRAM-SHA-256", "app"),
                    ("SCRAM-SHA-512", "app"),
                    ("SCRAM-SHA-256", "guest"),
                    ("SCRAM-SHA-512", "guest"),
                ] {
                    format.arg("--add-scram");
                    format.arg(format!("{mechanism}=[name={user},password={PASSWORD}]"));
                }
            }
            run(&mut format);
            let heir = Heir::of(folder.path());
            Self { installation, folder, ports, process: None, heir }
        })
        .await
        .expect("formatting does not panic")
    }

    pub(super) fn plaintext(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plaintext)
    }

    pub(super) fn sasl(&self) -> String {
        format!("127.0.0.1:{}", self.ports.sasl)
    }

    pub(super) fn tls(&self) -> String {
        // By name: certificates are for names.
        format!("localhost:{}", self.ports.tls)
    }

    pub(super) fn sasl_tls(&self) -> String {
        format!("localhost:{}", self.ports.sasl_tls)
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn spawn(&mut self) {
        assert!(self.process.is_none(), "the broker is running");
        let mut java = self.installation.java("kafka.Kafka");
        let log = OpenOptions::new().create(true).append(true).open(self.log()).expect("a file");
        java.arg(self.folder.path().join("server.properties"));
        java.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        // Ctrl-C is for the test; its end is the broker's.
        java.process_group(0);
        let child = java.spawn().expect("java can be run");
        self.heir.is_to_kill(Some(child.id()));
        self.process = Some(child);
    }

    pub(super) fn kill(&mut self) {
        let mut child = self.process.take().expect("the broker is running");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
        self.heir.is_to_kill(None);
    }

    pub(super) async fn stop(&mut self) {
        let mut child = self.process.take().expect("the broker is running");
        run(Command::new("kill").args(["-TERM", &child.id().to_string()]));
        crate::within(PATIENCE, "the broker's end", async || child.try_wait().expect("a child")).await;
        self.heir.is_to_kill(None);
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("broker.log")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            show_end_of(&self.log());
        }
    }
}

/// A process that outlives the test's by a moment: it kills the broker and clears its folder away, however the test has
/// ended. It learns of that from its stdin, whose other end nobody else has.
#[derive(Debug)]
struct Heir {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Heir {
    fn of(folder: &Path) -> Self {
        let script = r#"broker=; while read -r line; do broker="$line"; done
            [ -z "$broker" ] || kill -KILL "$broker"
            for try in 1 2 3 4 5 6 7 8 9; do rm -rf "$1" && break; sleep 0.1; done"#;
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = sh.process_group(0).spawn().expect("sh can be run");
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    fn is_to_kill(&mut self, process: Option<u32>) {
        let line = process.map(|id| id.to_string()).unwrap_or_default();
        let stdin = self.stdin.as_mut().expect("it is open until the end");
        writeln!(stdin, "{line}").expect("the broker's heir reads");
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

fn properties(folder: &Path, ports: Ports, options: &KafkaOptions) -> String {
    let Ports { plaintext, controller, sasl, tls, sasl_tls } = ports;
    let folder = folder.display();
    let mut listeners = vec![("PLAINTEXT", format!("127.0.0.1:{plaintext}"))];
    if options.secure {
        listeners.push(("SASL_PLAINTEXT", format!("127.0.0.1:{sasl}")));
        listeners.push(("SSL", format!("localhost:{tls}")));
        listeners.push(("SASL_SSL", format!("localhost:{sasl_tls}")));
    }
    let listeners: Vec<_> = listeners.iter().map(|(name, address)| format!("{name}://{address}")).collect();
    let listeners = listeners.join(",");
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners={listeners},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
"
    );
    // One of everything that a cluster has several of.
    text.push_str(
        "offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
",
    );
    // What a test would wait for: a broker that was killed comes back once its session has ended.
    text.push_str(
        "broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
",
    );
    if options.secure {
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        text.push_str("sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n");
        for listener in ["sasl_plaintext", "sasl_ssl"] {
            let name = format!("listener.name.{listener}");
            let users = format!("user_app=\"{PASSWORD}\" user_guest=\"{PASSWORD}\"");
            writeln!(text, "{name}.plain.sasl.jaas.config={plain} {users};").expect("a string grows");
            for mechanism in ["scram-sha-256", "scram-sha-512"] {
                writeln!(text, "{name}.{mechanism}.sasl.jaas.config={scram}").expect("a string grows");
            }
        }
        write!(
            text,
            "ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:app
"
        )
        .expect("a string grows");
    }
    for (name, value) in &options.settings {
        writeln!(text, "{name}={value}").expect("a string grows");
    }
    text
}

/// An id as Kafka writes them.
fn random_id() -> String {
    let mut bytes = [0; 16];
    let mut source = File::open("/dev/urandom").expect("a source of random bytes");
    source.read_exact(&mut bytes).expect("as many random bytes as one wants");
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// An authority of its own (`ca.pem`), and a key with a certificate for localhost (`broker.pem`).
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        run(Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30";
    openssl(&format!("req -x509 {key} -subj /CN=tests -keyout ca.key -out ca.pem"));
    openssl(&format!(
        "req -x509 {key} -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
         -addext basicConstraints=critical,CA:FALSE -CA ca.pem -CAkey ca.key -keyout broker.key -out broker.crt"
    ));
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("openssl has written it");
    std::fs::write(folder.join("broker.pem"), read("broker.key") + &read("broker.crt")).expect("a file");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let wrote = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {}\n{wrote}{said}", output.status);
}
