//! What one app's callers leave to those of another, however many they are.

use crate::raw;
use ebb_tests::{App, Node, guest};
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections of an app that many call, and of one that few do.
const MANY: usize = 96;
const FEW: usize = 8;

fn app(name: &str) -> App {
    let manifest = format!(
        "[app]\nname = \"{name}\"\n[function.do]\nmodule = \"http.wasm\"\ntrigger = {{ http = {{ route = \"/do/{{what}}\" }} }}\n"
    );
    App::new(&manifest).file("http.wasm", guest("http"))
}

/// Calls of either app, of so many altogether, each connection's one after the other.
async fn calls(node: &Node, what: &str, answer: &str, altogether: usize) -> [usize; 2] {
    let had = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let apps = [("many", MANY), ("few", FEW)];
    let address = node.data.base().trim_start_matches("http://");
    let callers = apps.iter().enumerate().flat_map(|(index, (name, callers))| {
        let request = format!("GET /apps/{name}/do/{what} HTTP/1.1\r\nhost: a\r\n\r\n");
        std::iter::repeat_n((index, request), *callers)
    });
    let callers = callers.map(|(index, request)| {
        let (had, address, answer) = (had.clone(), address.to_owned(), answer.to_owned());
        tokio::spawn(async move {
            let mut call = raw::Call::to(&address).await;
            while had.iter().map(|calls| calls.load(Ordering::Relaxed)).sum::<usize>() < altogether {
                call.next(&request, &answer).await;
                had[index].fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for ended in join_all(callers).await {
        ended.unwrap();
    }
    [0, 1].map(|index| had[index].load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_with_few_callers_has_its_share_beside_one_with_many() {
    let node = Node::builder().start().await;
    node.deploy(&app("many")).await;
    node.deploy(&app("few")).await;
    // Of calls that end within one turn, by connections it would be a thirteenth.
    let [many, few] = calls(&node, "work?n=200", "\r\n\r\n", 6_000).await;
    assert!(few * 3 >= many + few, "{few} beside {many}");
}
