//! What a node promises of its apps, on storage in memory.

mod deploy;
mod life;

use super::*;
use crate::commands::{CommandError, CommandReply, CommandRequest};
use crate::testing::{ManualClock, MemoryModels, MemoryStorage, NoSecrets, ScriptedProjection};
use bytes::Bytes;
use ebb_domain::name::ModelName;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    Aggregate, CallError, CommandModule, CompileError, DecidedEvent, Decision, FunctionSpec, GuestCommand,
    HttpFunction, ModuleKind, PastEvent, ProjectionModule,
};
use std::sync::atomic::AtomicU32;

const MANIFEST: &str = r#"
[app]
name = "bank"
hosts = ["bank.example"]

[aggregate.account]
module = "account.wasm"
commands = { open = { schema = "open.json" } }
events = { Opened = {} }

[model.balances]
key = "account"
columns = { account = "text", events = "integer" }

[projection.balances]
module = "balances.wasm"
models = ["balances"]
source = { aggregates = ["account"] }
"#;

/// Takes every module: one that opens accounts, and one that counts what happens to each.
struct AnyModule(Kept);

impl Engine for AnyModule {
    fn compile(&self, wasm: Bytes, _: ModuleKind) -> Future<'_, Result<Digest, CompileError>> {
        self.0.compiled.fetch_add(1, Ordering::SeqCst);
        Box::pin(ready(Ok(Digest::of(&wasm))))
    }

    fn commands(&self, _: FunctionSpec) -> Result<Arc<dyn CommandModule>, CallError> {
        self.0.made.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Accounts))
    }

    fn projection(&self, _: FunctionSpec) -> Result<Arc<dyn ProjectionModule>, CallError> {
        Ok(self.0.projection.clone())
    }

    fn http(&self, spec: FunctionSpec, _: u64) -> Result<Arc<dyn HttpFunction>, CallError> {
        self.0.made.fetch_add(1, Ordering::SeqCst);
        Err(CallError::Failed(format!("`{}` is never asked to run", spec.function)))
    }
}

struct Accounts;

impl CommandModule for Accounts {
    fn open<'a>(
        &'a self,
        _: &'a StreamId,
        _: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>> {
        Box::pin(ready(Ok(Box::new(Account) as Box<dyn Aggregate>)))
    }
}

struct Account;

impl Aggregate for Account {
    fn apply<'a>(&'a mut self, _: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        Box::pin(ready(Ok(())))
    }

    fn decide<'a>(&'a mut self, _: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        let opened = DecidedEvent { event_type: "Opened".into(), data: Bytes::from_static(b"{}") };
        Box::pin(ready(Ok(Decision::Events(vec![opened]))))
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        Box::pin(ready(Ok(None)))
    }
}

/// What outlives a node.
#[derive(Clone)]
struct Kept {
    storage: Arc<MemoryStorage>,
    models: Arc<MemoryModels>,
    projection: Arc<ScriptedProjection>,
    /// Functions that were made for aggregates and requests.
    made: Arc<AtomicU32>,
    /// Modules that were compiled.
    compiled: Arc<AtomicU32>,
}

struct Fixture {
    kept: Kept,
    node: Arc<Node>,
}

/// Idle time of apps in these tests.
const IDLE: Duration = Duration::from_secs(60);

impl Kept {
    fn new() -> Self {
        let projection = ScriptedProjection::new(|event, rows| {
            rows.add("balances", event.stream().key(), "events", 1)?;
            Ok(())
        });
        let storage = MemoryStorage::new(Arc::new(ManualClock::default()));
        Self { storage, models: Arc::default(), projection, made: Arc::default(), compiled: Arc::default() }
    }

    async fn open(&self) -> Fixture {
        self.open_with(NodeOptions { idle: IDLE, ..NodeOptions::default() }).await
    }

    async fn open_with(&self, options: NodeOptions) -> Fixture {
        let deps = NodeDeps {
            bus: None,
            storage: self.storage.clone(),
            models: self.models.clone(),
            engine: Arc::new(AnyModule(self.clone())),
            secrets: Arc::new(NoSecrets),
            clock: Arc::new(ManualClock::default()),
        };
        Fixture { kept: self.clone(), node: Node::open(deps, options).await.unwrap() }
    }

    fn openings(&self) -> u32 {
        self.storage.openings(&bank())
    }

    /// Events that the projection has counted.
    fn counted(&self) -> i64 {
        let rows = self.models.kept().into_iter().flat_map(|version| self.models.rows(&version));
        let events =
            rows.map(|(_, row)| row.iter().find(|(name, _)| ***name == *"events").unwrap().1.clone());
        events.map(|value| if let ebb_domain::model::Value::Integer(count) = value { count } else { 0 }).sum()
    }
}

impl Fixture {
    async fn new() -> Self {
        Kept::new().open().await
    }

    async fn deploy(&self) -> Result<u64, DeployError> {
        self.deploy_with("").await
    }

    /// The same with more in its manifest.
    async fn deploy_with(&self, more: &str) -> Result<u64, DeployError> {
        let mut bundle = bundle();
        bundle.files.insert("ebb.toml".into(), Bytes::from(format!("{MANIFEST}{more}")));
        self.node.deploy(&bank(), bundle, None, "ann").await.map(|deployment| deployment.number)
    }

    async fn remove(&self, purge: bool) -> Result<(), DeployError> {
        self.node.remove(&bank(), purge, None, "ann").await
    }

    async fn restart(&mut self) {
        self.node.shutdown().await;
        self.node = self.kept.open().await.node;
    }

    fn deployed(&self) -> Arc<DeployedApp> {
        self.node.deployed_app("bank").unwrap()
    }

    async fn app(&self) -> Arc<App> {
        self.deployed().app().await.unwrap()
    }

    fn state(&self) -> AppState {
        self.deployed().status().state
    }

    fn has_log(&self) -> bool {
        self.kept.storage.apps().contains(&bank())
    }

    /// Waits until everything that is to come by itself has come.
    async fn settled(&self) {
        self.until(|| self.deployed().if_open().is_none_or(|app| app.is_idle())).await;
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        tokio::time::timeout(Duration::from_secs(50), async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it comes about by itself");
    }
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::default();
    bundle.files.insert("ebb.toml".into(), Bytes::from_static(MANIFEST.as_bytes()));
    bundle.files.insert("open.json".into(), Bytes::from_static(b"{\"type\": \"object\"}"));
    for module in ["account.wasm", "balances.wasm"] {
        bundle.files.insert(module.into(), Bytes::from_static(b"\0asm\x0d\0\x01\0"));
    }
    bundle
}

fn bank() -> AppName {
    AppName::new("bank").unwrap()
}

async fn open_account(app: &Arc<App>, key: &str) -> CommandReply {
    try_to_open(app, key).await.unwrap_or_else(|error| panic!("a command failed: {error:?}"))
}

async fn try_to_open(app: &Arc<App>, key: &str) -> Result<CommandReply, CommandError> {
    let request = CommandRequest {
        aggregate: "account".into(),
        key: key.into(),
        command: "open".into(),
        data: Bytes::new(),
        actor: Text::from_static("ann"),
        precondition: None,
        idempotency: None,
        correlation_id: None,
        causation_id: None,
        hops: 0,
        trace: None,
        origin: None,
    };
    app.command(request).await
}
