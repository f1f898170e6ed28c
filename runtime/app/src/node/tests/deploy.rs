//! What deploying and removing promise.

use super::*;

#[tokio::test]
async fn a_log_that_can_not_be_opened_is_told_before_anything_is_recorded() {
    let fixture = Fixture::new().await;
    fixture.kept.storage.fail_openings(1);
    assert!(matches!(fixture.deploy().await, Err(DeployError::LogClosed(_))));
    assert_eq!(fixture.deploy().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_is_recorded_and_can_not_be_served_is_told_as_such_and_served_as_soon_as_it_can() {
    let mut fixture = Fixture::new().await;
    fixture.kept.models.fail_opens(1);
    assert!(matches!(fixture.deploy().await, Err(DeployError::NotServed { number: 1, .. })));
    let status = fixture.deployed().status();
    assert_eq!(status.state, AppState::Unavailable);
    assert!(status.unavailable.is_some(), "it is deployed, and can't be served");
    assert!(matches!(fixture.deployed().app().await, Err(NotServed::Unavailable(_))), "at once");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fixture.app().await.deployment().number, 1);
    assert_eq!(fixture.deployed().status().unavailable, None);

    fixture.remove(true).await.unwrap();
    fixture.kept.models.fail_opens(1);
    fixture.deploy().await.unwrap_err();
    fixture.restart().await;
    assert_eq!(fixture.app().await.deployment().number, 3);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_was_not_recorded_leaves_an_app_at_rest_as_it_was() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    open_account(&fixture.app().await, "1").await;
    fixture.settled().await;
    fixture.restart().await;
    let system = AppName::trusted(Text::from_static(SYSTEM));
    fixture.kept.storage.log(&system).unwrap().set_unavailable(Some("the disk is full"));
    assert!(matches!(fixture.deploy().await, Err(DeployError::Unavailable(_))));
    assert_eq!(fixture.state(), AppState::Idle);
    assert!(fixture.kept.storage.log(&bank()).unwrap().is_closed());
    assert!(fixture.kept.storage.rest(&bank()).unwrap().is_some());
}

#[tokio::test]
async fn a_deployment_of_an_app_that_is_idle_is_served_behind_its_events() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    open_account(&fixture.app().await, "1").await;
    fixture.settled().await;
    fixture.restart().await;
    assert_eq!(fixture.state(), AppState::Idle);
    assert_eq!(fixture.deploy().await.unwrap(), 2);
    assert_eq!(fixture.app().await.deployment().number, 2);
    assert_eq!(open_account(&fixture.app().await, "2").await.position, Some(Position(2)));
}

#[tokio::test]
async fn a_purge_that_fails_is_told_and_can_be_asked_for_again() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    fixture.kept.storage.fail_removals(1);
    assert!(matches!(fixture.remove(true).await, Err(DeployError::NotPurged(_))));
    assert!(fixture.node.deployed_app("bank").is_none(), "it is removed all the same");
    assert!(fixture.has_log());
    fixture.remove(true).await.unwrap();
    assert!(!fixture.has_log());
    assert!(matches!(fixture.remove(false).await, Err(DeployError::UnknownApp(_))));
}

#[tokio::test]
async fn a_purge_that_was_cut_short_is_finished_by_the_next_start() {
    let mut fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    fixture.kept.storage.fail_removals(1);
    fixture.remove(true).await.unwrap_err();
    fixture.restart().await;
    assert!(!fixture.has_log());
}

#[tokio::test]
async fn a_deployment_after_a_purge_finds_nothing_even_if_the_purge_was_cut_short() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    let before = fixture.app().await.log().clone();
    fixture.kept.storage.fail_removals(2);
    fixture.remove(true).await.unwrap_err();
    assert!(matches!(fixture.deploy().await, Err(DeployError::NotPurged(_))), "never on what was to be gone");
    assert_eq!(fixture.deploy().await.unwrap(), 3);
    assert!(!Arc::ptr_eq(&before, fixture.app().await.log()));
}

#[tokio::test]
async fn an_app_that_was_removed_keeps_its_events_until_they_are_purged() {
    let fixture = Fixture::new().await;
    fixture.deploy().await.unwrap();
    let before = fixture.app().await.log().clone();
    fixture.remove(false).await.unwrap();
    assert_eq!(fixture.deploy().await.unwrap(), 3);
    assert!(Arc::ptr_eq(&before, fixture.app().await.log()));
    fixture.remove(false).await.unwrap();
    fixture.remove(true).await.unwrap();
    assert!(!fixture.has_log());
}
