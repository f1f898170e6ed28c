//! What one app's flood leaves of the node to another.

use super::*;
use futures_util::future::join_all;
use std::time::Instant;

/// Functions of two apps, the second of which may be flooded by the first.
async fn two_apps(bench: &Bench, cpu: Duration) -> [Arc<dyn CommandModule>; 2] {
    let app = async |name: &str| {
        bench
            .commands(|spec| {
                spec.app = AppName::new(name).unwrap();
                spec.limits.cpu = cpu;
                spec.limits.wall = Duration::from_secs(60);
                spec.instances.max = at_least(32);
            })
            .await
    };
    [app("flood").await, app("other").await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_app_burns_another_has_its_share_of_the_processors() {
    let folder = tempfile::tempdir().unwrap();
    let engine = WasmEngine::new(EngineOptions { running: 2, ..options(&folder) }).unwrap();
    let bench = Bench { engine, folder };
    let cpu = Duration::from_millis(300);
    let [flood, other] = two_apps(&bench, cpu).await;
    let flood = tokio::spawn(burn(flood, 24));
    let began = Instant::now();
    burn(other, 2).await;
    let took = began.elapsed();
    // Two loops of 300 ms on half of two processors; a thirteenth of them would take 3.9 s.
    assert!(took < Duration::from_millis(1500), "it took {took:?}");
    flood.abort();
}

/// So many endless loops of a function, until all have used up their time.
async fn burn(module: Arc<dyn CommandModule>, loops: usize) {
    let loops = (0..loops).map(|index| {
        let module = module.clone();
        tokio::spawn(async move {
            let mut aggregate = open(&module, &index.to_string()).await?;
            decide(&mut aggregate, "loop", "").await
        })
    });
    for ended in join_all(loops).await {
        let ended = ended.unwrap();
        assert!(matches!(ended, Err(CallError::OutOfCpu { .. } | CallError::InstanceLost)), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_app_burns_another_is_answered_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let engine = WasmEngine::new(EngineOptions { running: 2, ..options(&folder) }).unwrap();
    let bench = Bench { engine, folder };
    let [flood, other] = two_apps(&bench, Duration::from_secs(20)).await;
    let mut aggregate = open(&other, "a").await.unwrap();
    let flood = tokio::spawn(burn(flood, 24));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut took = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(decide(&mut aggregate, "count", "").await.unwrap(), "a=0");
        took.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took.sort();
    flood.abort();
    // One after another the loops take 120 ms for a round of ticks.
    assert!(took[40] < Duration::from_millis(30), "{took:?}");
}

#[tokio::test]
async fn one_apps_calls_never_take_all_places_of_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let engine = WasmEngine::new(EngineOptions { concurrency: 18, ..options(&folder) }).unwrap();
    let bench = Bench { engine, folder };
    let [flood, other] = two_apps(&bench, Duration::from_secs(20)).await;
    let flood = tokio::spawn(burn(flood, 24));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = tokio::time::timeout(Duration::from_secs(10), outcome(&other, "count", "")).await;
    assert_eq!(answer.expect("there is a place").unwrap(), "a=0");
    flood.abort();
}
