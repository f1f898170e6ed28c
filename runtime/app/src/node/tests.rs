//! What deploying and removing promise, on storage in memory.

use super::*;
use crate::testing::{ManualClock, MemoryModels, MemoryStorage};
use bytes::Bytes;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    CallError, CommandModule, CompileError, FunctionSpec, HttpFunction, ModuleKind, ProjectionModule,
};

const MANIFEST: &str = r#"
[app]
name = "bank"

[aggregate.account]
module = "account.wasm"
commands = { open = {} }
events = { Opened = {} }

[model.balances]
key = "account"
columns = { account = "text" }

[projection.balances]
module = "balances.wasm"
models = ["balances"]
source = { aggregates = ["account"] }
"#;

/// Takes every module, and is never asked to run one.
struct AnyModule;

impl Engine for AnyModule {
    fn compile(&self, wasm: Bytes, _: ModuleKind) -> Future<'_, Result<Digest, CompileError>> {
        Box::pin(std::future::ready(Ok(Digest::of(&wasm))))
    }

    fn commands(&self, _: FunctionSpec) -> Result<Arc<dyn CommandModule>, CallError> {
        Ok(Arc::new(Self))
    }

    fn projection(&self, _: FunctionSpec) -> Result<Arc<dyn ProjectionModule>, CallError> {
        Ok(crate::testing::ScriptedProjection::new(|_, _| Ok(())))
    }

    fn http(&self, spec: FunctionSpec, _: u64) -> Result<Arc<dyn HttpFunction>, CallError> {
        Err(CallError::Failed(format!("`{}` is never asked to run", spec.function)))
    }
}

impl CommandModule for AnyModule {
    fn open<'a>(
        &'a self,
        _: &'a StreamId,
        _: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn ebb_domain::port::guest::Aggregate>, CallError>> {
        Box::pin(std::future::ready(Err(CallError::InstanceLost)))
    }
}

struct Fixture {
    storage: Arc<MemoryStorage>,
    models: Arc<MemoryModels>,
    node: Arc<Node>,
}

impl Fixture {
    async fn new() -> Self {
        let (storage, models) =
            (MemoryStorage::new(Arc::new(ManualClock::default())), Arc::new(MemoryModels::default()));
        let node = open(&storage, &models).await;
        Self { storage, models, node }
    }

    async fn deploy(&self) -> Result<u64, DeployError> {
        let mut bundle = Bundle::default();
        bundle.files.insert("ebb.toml".into(), Bytes::from_static(MANIFEST.as_bytes()));
        for module in ["account.wasm", "balances.wasm"] {
            bundle.files.insert(module.into(), Bytes::from_static(b"\0asm\x0d\0\x01\0"));
        }
        self.node.deploy(&bank(), bundle, None, "ann").await.map(|deployment| deployment.number)
    }

    async fn remove(&self, purge: bool) -> Result<(), DeployError> {
        self.node.remove(&bank(), purge, None, "ann").await
    }

    async fn restart(&mut self) {
        self.node.shutdown().await;
        self.node = open(&self.storage, &self.models).await;
    }

    fn has_log(&self) -> bool {
        self.storage.apps().contains(&bank())
    }
}

async fn open(storage: &Arc<MemoryStorage>, models: &Arc<MemoryModels>) -> Arc<Node> {
    let deps = NodeDeps {
        storage: storage.clone(),
        models: models.clone(),
        engine: Arc::new(AnyModule),
        clock: Arc::new(ManualClock::default()),
    };
    Node::open(deps).await.unwrap()
}

fn bank() -> AppName {
    AppName::new("bank").unwrap()
}

#[tokio::test]
async fn a_log_that_can_not_be_opened_is_told_before_anything_is_recorded() {
    let fixture = Fixture::new().await;
    fixture.storage.fail_openings(1);
    assert!(matches!(fixture.deploy().await, Err(DeployError::LogClosed(_))));
    assert_eq!(fixture.deploy().await.unwrap(), 1);
}

#[tokio::test]
async fn a_deployment_that_is_recorded_and_can_not_be_served_is_told_as_such_and_served_at_the_next_start() {
    let mut fixture = Fixture::new().await;
    fixture.models.fail_opens(1);
    assert!(matches!(fixture.deploy().await, Err(DeployError::NotServed { number: 1, .. })));
    assert!(fixture.node.app("bank").is_none());
    assert!(fixture.node.why_closed("bank").is_some(), "it is deployed, and can't be served");
    fixture.restart().await;
    assert_eq!(fixture.node.app("bank").unwrap().deployment().number, 1);
    assert_eq!(fixture.node.why_closed("bank"), None);
}

#[tokio::test]
async fn a_purge_that_fails_is_told_and_can_be_asked_for_again() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    fixture.storage.fail_removals(1);
    assert!(matches!(fixture.remove(true).await, Err(DeployError::NotPurged(_))));
    assert!(fixture.node.app("bank").is_none(), "it is removed all the same");
    assert!(fixture.has_log());
    fixture.remove(true).await.unwrap();
    assert!(!fixture.has_log());
    assert!(matches!(fixture.remove(false).await, Err(DeployError::UnknownApp(_))));
}

#[tokio::test]
async fn a_purge_that_was_cut_short_is_finished_by_the_next_start() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    fixture.storage.fail_removals(1);
    fixture.remove(true).await.unwrap_err();
    fixture.restart().await;
    assert!(!fixture.has_log());
}

#[tokio::test]
async fn a_deployment_after_a_purge_finds_nothing_even_if_the_purge_was_cut_short() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    let before = fixture.node.app("bank").unwrap().log().clone();
    fixture.storage.fail_removals(2);
    fixture.remove(true).await.unwrap_err();
    assert!(matches!(fixture.deploy().await, Err(DeployError::NotPurged(_))), "never on what was to be gone");
    assert_eq!(fixture.deploy().await.unwrap(), 3);
    assert!(!Arc::ptr_eq(&before, fixture.node.app("bank").unwrap().log()));
}

#[tokio::test]
async fn an_app_that_was_removed_keeps_its_events_until_they_are_purged() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    let before = fixture.node.app("bank").unwrap().log().clone();
    fixture.remove(false).await.unwrap();
    assert_eq!(fixture.deploy().await.unwrap(), 3);
    assert!(Arc::ptr_eq(&before, fixture.node.app("bank").unwrap().log()));
    fixture.remove(false).await.unwrap();
    fixture.remove(true).await.unwrap();
    assert!(!fixture.has_log());
}
