//! Versions: what deployments and rebuilds do to rows, and to whoever reads them.

use super::*;

impl Bank {
    /// A module that makes ten of each that is added.
    fn provide_tenfold(&self) -> Arc<ScriptedProjection> {
        let module = ScriptedProjection::new(|event, rows| {
            let by = event.json().unwrap()["by"].as_i64().unwrap();
            Ok(rows.add("balances", event.stream().key(), "balance", 10 * by)?)
        });
        self.engine.provide("tenfold", module.clone());
        module
    }

    async fn swapped(&self) {
        self.until("swapped", |bank| bank.status().building.is_none() && bank.models.kept().len() == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_version_goes_on_with_its_new_settings() {
    let mut bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    let version = bank.status().serving.version.unwrap();
    bank.spec.batch.max_events = NonZeroUsize::new(3).unwrap();
    let calls = bank.module.calls();
    let bank = bank.deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!((bank.status().serving.version.unwrap(), bank.balance("ann")), (version, Some(2)));
    assert_eq!(bank.module.calls() - calls, 1, "and nothing was applied again");
}

#[tokio::test(start_paused = true)]
async fn a_changed_module_is_built_beside_and_serves_once_it_has_got_as_far() {
    let bank = Bank::open().deployed().await;
    for _ in 0..50 {
        bank.add("ann", 1);
    }
    bank.caught_up().await;
    let old = bank.status().serving.version.unwrap();
    let tenfold = bank.provide_tenfold();
    tenfold.gate().set_open(false);
    bank.deploy("tenfold").await;
    bank.until("called", |_| tenfold.calls() == 1).await;
    let status = bank.status();
    assert_eq!(status.serving.version.unwrap(), old);
    assert_eq!(status.building.unwrap().mark, Position::START);
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(51), "the old one serves, and follows the log");
    tenfold.gate().set_open(true);
    bank.swapped().await;
    assert_eq!(bank.balance("ann"), Some(510));
    assert_eq!(bank.models.kept(), [bank.status().serving.version.unwrap()], "the old one is gone");
    let version = bank.status().serving.version.unwrap();
    let bank = bank.restarted().await;
    bank.deploy("tenfold").await;
    assert_eq!(
        (bank.status().serving.version.unwrap(), bank.balance("ann")),
        (version, Some(510)),
        "the swap is for good"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deployment_of_which_one_projection_can_not_be_opened_changes_none() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    let before = (bank.status().serving.version, bank.models.kept());
    bank.provide_tenfold();
    let two = || {
        let mut other = bank.deployment("tenfold");
        other.spec.name = ProjectionName::new("other").unwrap();
        other.models[0].name = ModelName::new("others").unwrap();
        vec![bank.deployment("tenfold"), other]
    };
    // Of three that are opened: one that serves and is there, one to be built beside it, and the other's first.
    for fail in [1, 2] {
        bank.models.fail_open(fail);
        bank.projections.deploy(two()).await.unwrap_err();
        assert_eq!(bank.projections.status().len(), 1);
        let status = bank.status();
        assert_eq!(
            (status.serving.version, status.building.map(|building| building.version)),
            (before.0, None)
        );
        bank.add("ann", 1);
        bank.caught_up().await;
        assert!(before.1.iter().all(|kept| bank.models.kept().contains(kept)));
    }
    assert_eq!(bank.balance("ann"), Some(3), "what ran runs");
    bank.projections.deploy(two()).await.unwrap();
    bank.until("swapped", |bank| bank.status().building.is_none()).await;
    assert_eq!((bank.balance("ann"), bank.projections.status().len()), (Some(30), 2));
}

/// Nothing needs to be written for it to be noticed.
#[tokio::test(start_paused = true)]
async fn rows_that_a_reader_finds_damaged_are_built_anew() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 7);
    bank.caught_up().await;
    bank.models.damage();
    bank.reader().get_at("ann").unwrap_err();
    bank.until("rows built anew", |bank| bank.reader().get_at("ann").is_ok_and(|(at, _)| at == Position(1)))
        .await;
    assert_eq!(bank.balance("ann"), Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_reader_never_sees_the_position_go_back_and_a_wait_lasts_through_a_swap() {
    let bank = Arc::new(Bank::open().deployed().await);
    bank.provide_tenfold();
    let watcher = {
        let bank = bank.clone();
        tokio::spawn(async move {
            let mut last = Position::START;
            while last < Position(400) {
                let (position, _) = bank.reader().get_at("ann").unwrap();
                assert!(position >= last, "went back from {last} to {position}");
                last = position;
                tokio::task::yield_now().await;
            }
        })
    };
    let waiter = {
        let reader = bank.reader();
        tokio::spawn(async move { reader.wait_for(Position(400), LONG).await })
    };
    for _ in 0..200 {
        bank.add("ann", 1);
    }
    bank.caught_up().await;
    bank.deploy("tenfold").await;
    assert!(bank.status().building.is_some());
    for _ in 0..200 {
        bank.add("ann", 1);
        bank.caught_up().await;
    }
    waiter.await.unwrap().unwrap();
    watcher.await.unwrap();
    bank.swapped().await;
    assert_eq!(bank.balance("ann"), Some(4000));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_a_restart_interrupted_goes_on_while_the_old_rows_serve() {
    let bank = Bank::open().deployed().await;
    for _ in 0..30 {
        bank.add("ann", 1);
    }
    bank.caught_up().await;
    let old = bank.status().serving.version.unwrap();
    let tenfold = bank.provide_tenfold();
    tenfold.gate().set_open(false);
    bank.deploy("tenfold").await;
    let bank = bank.restarted().await;
    bank.deploy("tenfold").await;
    let status = bank.status();
    assert_eq!((status.serving.version.unwrap(), status.serving.state), (old, State::Superseded));
    assert_eq!((bank.balance("ann"), bank.reader().get_at("ann").unwrap().0), (Some(30), Position(30)));
    tenfold.gate().set_open(true);
    bank.swapped().await;
    assert_eq!(bank.balance("ann"), Some(300));
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_version_that_serves_drops_the_one_that_is_being_built() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.provide_tenfold().gate().set_open(false);
    bank.deploy("tenfold").await;
    assert_eq!(bank.models.kept().len(), 2);
    bank.deploy("bank").await;
    assert!(bank.status().building.is_none());
    assert_eq!((bank.models.kept().len(), bank.balance("ann")), (1, Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_fixed_module_takes_the_place_of_one_that_is_halted() {
    let bank = Bank::open_with(|spec| spec.max_parked = 0).deployed().await;
    bank.event("ann", "Bad");
    bank.until("halted", |bank| matches!(bank.state(), State::Halted { .. })).await;
    bank.provide_tenfold();
    bank.deploy("tenfold").await;
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_rebuild_makes_the_rows_again_beside_those_that_serve() {
    let bank = Bank::open().deployed().await;
    for _ in 0..30 {
        bank.add("ann", 1);
    }
    bank.caught_up().await;
    let old = bank.status().serving.version.unwrap();
    bank.module.gate().set_open(false);
    bank.projections.rebuild(&name()).await.unwrap();
    assert_eq!(bank.projections.rebuild(&name()).await, Err(ProjectionError::Building(name())));
    assert_eq!((bank.status().serving.version.unwrap(), bank.balance("ann")), (old, Some(30)));
    bank.module.gate().set_open(true);
    bank.swapped().await;
    assert_ne!(bank.status().serving.version.unwrap(), old);
    assert_eq!((bank.balance("ann"), bank.reader().position()), (Some(30), Position(30)));
    let bank = bank.restarted().await.deployed().await;
    assert!(bank.status().building.is_none(), "it is the same version, built again");
    assert_eq!(bank.balance("ann"), Some(30));
}

#[tokio::test(start_paused = true)]
async fn a_rebuild_that_a_restart_interrupted_goes_on() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    let old = bank.status().serving.version.unwrap();
    bank.module.gate().set_open(false);
    bank.projections.rebuild(&name()).await.unwrap();
    let bank = bank.restarted().await.deployed().await;
    assert!(bank.status().building.is_some());
    bank.module.gate().set_open(true);
    bank.swapped().await;
    assert_ne!(bank.status().serving.version.unwrap(), old);
    assert_eq!(bank.balance("ann"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_new_in_a_version_is_not_empty_but_being_made() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.provide_tenfold().gate().set_open(false);
    let mut deployment = bank.deployment("tenfold");
    let audit = ModelSchema { name: ModelName::new("audit").unwrap(), ..balances() };
    deployment.models.push(audit.clone());
    bank.projections.deploy(vec![deployment]).await.unwrap();
    let refused = bank.projections.model(&audit.name).unwrap().get_at("ann").unwrap_err();
    assert!(refused.to_string().contains("`audit` is new"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_projection_that_is_not_deployed_any_more_is_removed_with_its_rows() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.projections.deploy(vec![]).await.unwrap();
    assert!(bank.projections.model(&balances().name).is_none());
    assert!(bank.models.kept().is_empty() && bank.projections.status().is_empty());
    bank.deploy("bank").await;
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(1), "deployed again, it starts at the first event");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_whose_module_can_not_be_run_changes_nothing() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    let refused = bank.projections.deploy(vec![bank.deployment("missing")]).await.unwrap_err();
    assert!(
        refused.to_string().starts_with("projection `balances`: the module could not be run"),
        "{refused}"
    );
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_deployment_whose_rows_can_not_be_opened_leaves_what_ran_running() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.provide_tenfold();
    bank.models.fail_reads(1);
    bank.projections.deploy(vec![bank.deployment("tenfold")]).await.unwrap_err();
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(2));
}
