//! When apps are opened and closed.

use super::*;
use crate::commands::CommandErrorKind;
use crate::testing::MemoryLog;

#[tokio::test(start_paused = true)]
async fn a_start_opens_no_app_that_was_put_to_rest_and_reads_none_of_its_files() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    open_account(&fixture.app().await, "1").await;
    fixture.settled().await;
    fixture.node.shutdown().await;
    let (openings, read) = (fixture.kept.openings(), fixture.kept.storage.blobs_read());
    fixture.node = fixture.kept.open().await.node;
    tokio::time::sleep(IDLE).await;
    assert_eq!((fixture.kept.openings(), fixture.kept.storage.blobs_read()), (openings, read));

    let status = fixture.deployed().status();
    assert_eq!((status.state, status.end.unwrap().position), (AppState::Idle, Position(1)));
    let [balances] = &status.projections[..] else { panic!("{status:?}") };
    assert_eq!((&*balances.name, balances.serving.mark, balances.serving.lag), ("balances", Position(1), 0));
    assert_eq!(fixture.node.app_for_host("BANK.example").unwrap().name(), &bank());
    assert_eq!(fixture.deployed().deployment().number, 1);

    open_account(&fixture.app().await, "2").await;
    assert_eq!(fixture.kept.openings(), openings + 1);
    assert_eq!(fixture.kept.storage.blobs_read(), read + 2, "the manifest, and the command's schema");
}

#[tokio::test(start_paused = true)]
async fn the_projections_of_an_app_at_rest_are_opened_when_the_log_grows_or_a_reader_comes() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    open_account(&fixture.app().await, "1").await;
    fixture.settled().await;
    fixture.restart().await;
    let app = fixture.app().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(app.projection_status()[0].serving.version, None, "nothing was looked for");
    let reader = app.model(&ModelName::new("balances").unwrap()).await.unwrap().unwrap();
    assert_eq!(reader.position(), Position(1));

    fixture.settled().await;
    drop((app, reader));
    fixture.restart().await;
    open_account(&fixture.app().await, "2").await;
    fixture.until(|| fixture.kept.counted() == 2).await;
}

#[tokio::test]
async fn a_thousand_callers_of_an_app_that_is_not_open_open_it_once() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    fixture.settled().await;
    fixture.restart().await;
    let openings = fixture.kept.openings();
    let callers = (0..1000).map(|caller| {
        let deployed = fixture.deployed();
        tokio::spawn(async move { open_account(&deployed.app().await.unwrap(), &caller.to_string()).await })
    });
    for answered in callers.collect::<Vec<_>>() {
        answered.await.unwrap();
    }
    assert_eq!(fixture.kept.openings(), openings + 1);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_can_not_be_opened_is_tried_once_for_all_who_wait_and_again_after_a_pause() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    fixture.settled().await;
    fixture.restart().await;
    let openings = fixture.kept.openings();
    fixture.kept.storage.fail_openings(1);
    let callers = (0..100).map(|_| {
        let deployed = fixture.deployed();
        tokio::spawn(async move { deployed.app().await.is_err() })
    });
    for refused in callers.collect::<Vec<_>>() {
        assert!(refused.await.unwrap());
    }
    assert_eq!(fixture.kept.openings(), openings + 1);
    assert_eq!(fixture.state(), AppState::Unavailable);
    tokio::time::sleep(Duration::from_secs(1)).await;
    fixture.app().await;
    assert_eq!(fixture.state(), AppState::Open);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_nobody_uses_is_closed_and_put_to_rest() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    open_account(&fixture.app().await, "1").await;
    fixture.settled().await;
    tokio::time::sleep(IDLE / 2).await;
    assert_eq!(fixture.state(), AppState::Open);
    tokio::time::sleep(IDLE).await;
    assert_eq!(fixture.state(), AppState::Idle);
    assert!(log(&fixture).is_closed());
    assert_eq!(fixture.kept.storage.rest(&bank()).unwrap().unwrap().position, Position(1));
    assert_eq!(fixture.deployed().status().projections[0].serving.state.name(), "idle");

    assert_eq!(open_account(&fixture.app().await, "1").await.position, Some(Position(2)));
    assert_eq!(fixture.kept.storage.rest(&bank()).unwrap(), None, "it is open, and may be left with work");
}

#[tokio::test(start_paused = true)]
async fn an_app_stays_open_while_somebody_holds_it_or_a_projection_has_work() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    let held = fixture.app().await;
    tokio::time::sleep(IDLE * 5).await;
    assert_eq!(fixture.state(), AppState::Open);

    fixture.kept.projection.gate().set_open(false);
    open_account(&held, "1").await;
    drop(held);
    tokio::time::sleep(IDLE * 5).await;
    assert_eq!(fixture.state(), AppState::Open, "the projection has not got there");
    fixture.kept.projection.gate().set_open(true);
    tokio::time::sleep(IDLE * 2).await;
    assert_eq!(fixture.state(), AppState::Idle);
}

#[tokio::test(start_paused = true)]
async fn an_app_with_something_parked_is_closed_and_opened_by_the_next_start_so_that_it_is_told() {
    let mut fixture = Fixture::new().await;
    fixture.kept.projection = ScriptedProjection::new(|_, _| Err(crate::testing::Fault::Fails("no".into())));
    fixture = fixture.kept.open().await;
    fixture.deploy().await.unwrap();
    open_account(&fixture.app().await, "1").await;
    let parked = |fixture: &Fixture| {
        fixture.deployed().status().projections.first().map(|projection| projection.serving.parked)
    };
    fixture.until(|| parked(&fixture) == Some(1)).await;
    tokio::time::sleep(IDLE * 2).await;
    assert_eq!((fixture.state(), parked(&fixture)), (AppState::Idle, Some(1)));
    fixture.restart().await;
    fixture.until(|| parked(&fixture) == Some(1)).await;
    assert_eq!(fixture.state(), AppState::Open);
}

#[test]
fn a_projection_that_a_crash_left_behind_catches_up_without_a_call() {
    let kept = Kept::new();
    kept.projection.gate().set_open(false);
    in_one_life(async {
        let fixture = kept.open().await;
        fixture.deploy().await.unwrap();
        open_account(&fixture.app().await, "1").await;
        // Here it ends: nobody closes anything.
    });
    assert_eq!(kept.counted(), 0);
    kept.projection.gate().set_open(true);
    in_one_life(async {
        let fixture = kept.open().await;
        fixture.until(|| kept.counted() == 1).await;
    });
}

#[test]
fn a_projection_that_an_orderly_end_left_behind_catches_up_without_a_call() {
    let kept = Kept::new();
    kept.projection.gate().set_open(false);
    in_one_life(async {
        let fixture = kept.open().await;
        fixture.deploy().await.unwrap();
        open_account(&fixture.app().await, "1").await;
        fixture.node.shutdown().await;
    });
    kept.projection.gate().set_open(true);
    in_one_life(async {
        let fixture = kept.open().await;
        fixture.until(|| kept.counted() == 1).await;
    });
}

/// Runs a node until this is over, and then takes everything away from it at once.
fn in_one_life(life: impl IntoFuture<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(life.into_future());
}

fn log(fixture: &Fixture) -> Arc<MemoryLog> {
    fixture.kept.storage.log(&bank()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_opens_nothing_any_more_and_closes_everything() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    let held = fixture.app().await;
    open_account(&held, "1").await;
    fixture.settled().await;
    fixture.node.shutdown().await;
    assert!(log(&fixture).is_closed(), "whoever still holds it");
    assert!(fixture.kept.storage.rest(&bank()).unwrap().is_some());
    assert!(matches!(fixture.deployed().app().await, Err(NotServed::ShuttingDown)));
    assert!(matches!(fixture.deploy().await, Err(DeployError::Unavailable(_))));
}

#[tokio::test]
async fn a_deployment_that_an_earlier_version_recorded_is_found_by_its_host_all_the_same() {
    let kept = Kept::new();
    let manifest = kept.storage.put_blob(MANIFEST.as_bytes()).unwrap();
    let module = kept.storage.put_blob(b"\0asm\x0d\0\x01\0").unwrap();
    let schema = kept.storage.put_blob(b"{}").unwrap();
    let system = AppName::trusted(Text::from_static(SYSTEM));
    kept.storage.open_log(&system).unwrap();
    let recorded = serde_json::json!({
        "app": "bank", "number": 1, "manifest": manifest,
        "files": { "account.wasm": module, "balances.wasm": module, "open.json": schema },
        "deployed_at": "2013-01-01T00:00:00Z", "deployed_by": "ann"
    });
    kept.storage.log(&system).unwrap().given("deployment-bank", "Deployed", &recorded);
    let fixture = kept.open().await;
    assert_eq!(fixture.node.app_for_host("bank.example").unwrap().name(), &bank());
    open_account(&fixture.app().await, "1").await;
}

/// Closing and use meet in every order that a seed brings about: nobody is refused, nothing is lost, and the log is never
/// open twice.
#[test]
fn whoever_comes_while_an_app_is_being_closed_is_served() {
    let first = std::env::var("EBB_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut reopened = 0;
    for seed in first..first + 60 {
        let kept = Kept::new();
        let accepted = Arc::new(AtomicU32::new(0));
        in_one_life(async {
            let fixture = kept
                .open_with(NodeOptions { idle: Duration::from_millis(8), ..NodeOptions::default() })
                .await;
            fixture.deploy().await.unwrap();
            let clients = (0..3).map(|client| {
                let (deployed, accepted) = (fixture.deployed(), accepted.clone());
                tokio::spawn(async move {
                    let mut dice = Dice(seed * 100 + client + 1);
                    for _ in 0..25 {
                        tokio::time::sleep(Duration::from_micros(dice.roll(45_000))).await;
                        let app = deployed.app().await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                        for _ in 0..dice.roll(3) {
                            tokio::task::yield_now().await;
                        }
                        open_account(&app, &dice.roll(4).to_string()).await;
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                })
            });
            for client in clients.collect::<Vec<_>>() {
                client.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
            fixture.until(|| fixture.state() == AppState::Idle).await;
        });
        let accepted = accepted.load(Ordering::Relaxed);
        let end = kept.storage.rest(&bank()).unwrap().unwrap_or_else(|| panic!("seed {seed}: not at rest"));
        assert_eq!(
            (u64::from(accepted), i64::from(accepted)),
            (end.position.0, kept.counted()),
            "seed {seed}"
        );
        reopened += kept.openings() - 1;
    }
    assert!(reopened > 120, "only {reopened} times was it closed in between");
}

/// Calls, idle closing, deployments and removals meet in every order that a seed brings about: a caller is served or told
/// that the app is not there; and what is left at the end is one log, and rows that say what it says.
#[test]
fn deployments_and_removals_while_an_app_is_opened_and_closed_leave_it_whole() {
    let first = std::env::var("EBB_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let (mut accepted, mut not_there) = (0, 0);
    for seed in first..first + 60 {
        let kept = Kept::new();
        in_one_life(async {
            let fixture = kept
                .open_with(NodeOptions { idle: Duration::from_millis(8), ..NodeOptions::default() })
                .await;
            fixture.deploy().await.unwrap();
            let clients = (0..3).map(|client| {
                let node = fixture.node.clone();
                tokio::spawn(async move {
                    let (mut dice, mut accepted, mut not_there) = (Dice(seed * 100 + client + 1), 0, 0);
                    for _ in 0..25 {
                        tokio::time::sleep(Duration::from_micros(dice.roll(30_000))).await;
                        let Some(deployed) = node.deployed_app("bank") else {
                            not_there += 1;
                            continue;
                        };
                        let app = match deployed.app().await {
                            Ok(app) => app,
                            Err(NotServed::Removed) => {
                                not_there += 1;
                                continue;
                            }
                            Err(error) => panic!("seed {seed}: {error}"),
                        };
                        for _ in 0..dice.roll(3) {
                            tokio::task::yield_now().await;
                        }
                        match try_to_open(&app, &dice.roll(4).to_string()).await {
                            Ok(_) => accepted += 1,
                            Err(CommandError { kind: CommandErrorKind::ShuttingDown, .. }) => not_there += 1,
                            Err(error) => panic!("seed {seed}: {error}"),
                        }
                    }
                    (accepted, not_there)
                })
            });
            let clients: Vec<_> = clients.collect();
            let mut dice = Dice(seed + 7);
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_micros(dice.roll(40_000))).await;
                let done = match dice.roll(4) {
                    0 => fixture.remove(true).await,
                    1 => fixture.remove(false).await,
                    _ => fixture.deploy().await.map(drop),
                };
                assert!(matches!(done, Ok(()) | Err(DeployError::UnknownApp(_))), "seed {seed}: {done:?}");
            }
            for client in clients {
                let seen = client.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                (accepted, not_there) = (accepted + seen.0, not_there + seen.1);
            }
            fixture.deploy().await.unwrap();
            open_account(&fixture.app().await, "last").await;
            fixture.until(|| fixture.state() == AppState::Idle).await;
        });
        let end = kept.storage.rest(&bank()).unwrap().unwrap_or_else(|| panic!("seed {seed}: not at rest"));
        assert_eq!(i64::try_from(end.position.0), Ok(kept.counted()), "seed {seed}");
    }
    assert!(accepted > 500 && not_there > 100, "{accepted} served, {not_there} not");
}

#[tokio::test(start_paused = true)]
async fn a_function_is_made_by_its_first_use_and_the_others_of_its_app_are_not() {
    let mut fixture = Fixture::new().await;
    let functions = (0..50).map(|number| {
        format!("[function.f{number}]\nmodule = \"account.wasm\"\ntrigger = {{ http = {{ route = \"/{number}\" }} }}\n")
    });
    fixture.deploy_with(&functions.collect::<String>()).await.unwrap();
    fixture.settled().await;
    fixture.restart().await;
    let app = fixture.app().await;
    let compiled = fixture.kept.compiled.load(Ordering::SeqCst);
    assert_eq!(compiled, 3, "a module is compiled once for each kind of function, however many there are");
    assert_eq!(fixture.kept.made.load(Ordering::SeqCst), 0);
    let routes = app.http_routes();
    let crate::functions::Routed::Function { endpoint, .. } = routes.find("GET", "/7") else {
        panic!("there is a route")
    };
    assert!(endpoint.function().await.is_err(), "as this engine says");
    assert_eq!(fixture.kept.made.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_keeps_instances_ready_is_open_from_the_start_and_stays_open() {
    let mut fixture = Fixture::new().await;
    let ready = "[aggregate.other]\nmodule = \"account.wasm\"\ncommands = { open = {} }\nevents = { Opened = {} }\ninstances = { warm = 1 }\n";
    fixture.deploy_with(ready).await.unwrap();
    fixture.until(|| fixture.kept.made.load(Ordering::SeqCst) == 1).await;
    fixture.settled().await;
    fixture.restart().await;
    fixture.until(|| fixture.kept.made.load(Ordering::SeqCst) == 2).await;
    tokio::time::sleep(IDLE * 5).await;
    assert_eq!(fixture.state(), AppState::Open);
    fixture.deploy().await.unwrap();
    tokio::time::sleep(IDLE * 2).await;
    assert_eq!(fixture.state(), AppState::Idle, "now none of its functions does");
}

/// A small generator: the same seed, the same numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A node with places for so many open apps, on which these are deployed, each used a second after the one before it.
async fn with_places(open: usize, apps: &[&'static str]) -> Fixture {
    let fixture = Kept::new().open_with(NodeOptions { open, ..NodeOptions::default() }).await;
    for app in apps {
        fixture.deploy_as(app).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    fixture
}

impl Fixture {
    async fn deploy_as(&self, app: &'static str) -> Result<u64, DeployError> {
        let mut bundle = bundle();
        let manifest = MANIFEST.replace("\"bank\"", &format!("\"{app}\"")).replace("bank.example", app);
        bundle.files.insert("ebb.toml".into(), manifest.into());
        let name = AppName::new(app).unwrap();
        self.node.deploy(&name, bundle, None, "ann").await.map(|deployment| deployment.number)
    }

    async fn use_of(&self, app: &str) -> Result<Arc<App>, NotServed> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.node.deployed_app(app).unwrap().app().await
    }

    fn open_apps(&self) -> Vec<String> {
        let open = self.node.apps().into_iter().filter(|app| app.if_open().is_some());
        open.map(|app| app.name().to_string()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_app_that_was_used_longest_ago_makes_room_for_one_more() {
    let fixture = with_places(2, &["a", "b"]).await;
    assert_eq!(fixture.open_apps(), ["a", "b"]);
    drop(fixture.use_of("a").await.unwrap());
    fixture.deploy_as("c").await.unwrap();
    assert_eq!(fixture.open_apps(), ["a", "c"]);
    drop(fixture.use_of("b").await.unwrap());
    assert_eq!(fixture.open_apps(), ["b", "c"]);
    drop(fixture.use_of("b").await.unwrap());
    drop(fixture.use_of("a").await.unwrap());
    assert_eq!(fixture.open_apps(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn where_all_open_apps_are_in_use_one_more_is_told_so_and_is_opened_when_one_is_free() {
    let fixture = with_places(2, &["a", "b", "c"]).await;
    let (a, b) = (fixture.use_of("a").await.unwrap(), fixture.use_of("b").await.unwrap());
    assert_eq!(fixture.use_of("c").await.err(), Some(NotServed::Full(2)));
    assert!(matches!(fixture.deploy_as("d").await, Err(DeployError::Full(2))));
    assert_eq!(fixture.open_apps(), ["a", "b"], "nobody lost theirs");
    let callers = (0..100).map(|_| {
        let c = fixture.node.deployed_app("c").unwrap();
        tokio::spawn(async move { c.app().await.map(drop) })
    });
    let began = tokio::time::Instant::now();
    for told in callers.collect::<Vec<_>>() {
        assert_eq!(told.await.unwrap(), Err(NotServed::Full(2)));
    }
    assert!(began.elapsed() < Duration::from_secs(3), "they wait for one place, not one behind the other");
    drop(a);
    drop(fixture.use_of("c").await.unwrap());
    assert_eq!(fixture.open_apps(), ["b", "c"]);
    drop(b);
    fixture.deploy_as("d").await.unwrap();
    fixture.node.shutdown().await;
}

#[test]
fn what_a_crash_left_is_finished_also_where_there_are_more_apps_than_places() {
    let kept = Kept::new();
    kept.projection.gate().set_open(false);
    in_one_life(async {
        let fixture = kept.open().await;
        for app in ["a", "b", "c"] {
            fixture.deploy_as(app).await.unwrap();
            open_account(&fixture.use_of(app).await.unwrap(), "1").await;
        }
    });
    assert_eq!(kept.counted(), 0);
    kept.projection.gate().set_open(true);
    in_one_life(async {
        let fixture = kept.open_with(NodeOptions { open: 1, ..NodeOptions::default() }).await;
        fixture.until(|| kept.counted() == 3).await;
        fixture.until(|| fixture.open_apps().len() == 1).await;
    });
}
