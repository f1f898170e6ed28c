//! Secrets: where a function has them from, and that nobody else sees them.

use ebb_tests::{App, Client, Node, guest};
use serde_json::{Value, json};

const VALUE: &str = "correct-horse-battery-staple";

fn app(name: &str) -> App {
    App::new(&format!(
        "[app]\nname = \"{name}\"\n\n[function.knows]\nmodule = \"asker.wasm\"\n\
         trigger = {{ http = {{ route = \"/knows\" }} }}\n\
         capabilities = {{ secrets = [\"API_KEY\"], env = {{ PLAIN = \"x\" }}, commands = [], models = [] }}\n\n\
         [function.other]\nmodule = \"asker.wasm\"\ntrigger = {{ http = {{ route = \"/other\" }} }}\n\
         capabilities = {{ commands = [], models = [] }}\n"
    ))
    .file("asker.wasm", guest("asker"))
}

/// The function's environment.
async fn environment(app: &Client, path: &str) -> Value {
    app.post(path, &json!({ "env": true })).await.ok()
}

#[tokio::test]
async fn a_secret_of_a_file_is_its_functions_alone_and_shown_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let set = |app: &str, value: &str| {
        std::fs::create_dir_all(folder.path().join(app)).unwrap();
        std::fs::write(folder.path().join(app).join("API_KEY"), value).unwrap();
    };
    set("shop", &format!("{VALUE}\n"));
    let path = folder.path().to_str().unwrap();
    let mut node = Node::builder().env("EBB_FUNCTIONS_SECRETS", path).env("EBB_LOG", "debug").start().await;
    node.deploy(&app("shop")).await;
    let shop = node.app("shop");
    assert_eq!(environment(&shop, "/knows").await, json!([["API_KEY", VALUE], ["PLAIN", "x"]]));
    assert_eq!(environment(&shop, "/other").await, json!([]));
    // Another app has its own, and is told where it belongs.
    let refused = node.put(&app("bank")).await.problem(422, "manifest_invalid");
    let problem = refused["problems"][0].clone();
    let said = problem.to_string();
    assert!(said.contains("app `bank` has no secret `API_KEY`"), "{said}");
    assert!(said.contains("bank/API_KEY") && said.contains("EBB_SECRET_BANK__API_KEY"), "{said}");
    set("bank", "another");
    node.deploy(&app("bank")).await;
    assert_eq!(environment(&node.app("bank"), "/knows").await[0], json!(["API_KEY", "another"]));

    // A rotation takes effect with a deployment.
    set("shop", "rotated");
    assert_eq!(environment(&shop, "/knows").await[0], json!(["API_KEY", VALUE]));
    node.deploy(&app("shop")).await;
    assert_eq!(environment(&shop, "/knows").await[0], json!(["API_KEY", "rotated"]));
    set("shop", VALUE);
    node.stop().await;
    node.start().await;
    assert_eq!(environment(&node.app("shop"), "/knows").await[0], json!(["API_KEY", VALUE]));

    for path in ["/apps/shop", "/apps/shop/deployments", "/functions", "/metrics", "/usage", "/logs", "/"] {
        let body = node.control.get(path).await.body;
        assert!(!String::from_utf8_lossy(&body).contains(VALUE), "{path}");
    }
    let log = std::fs::read_to_string(node.log_path()).unwrap();
    assert!(log.contains("deployed") && !log.contains(VALUE), "the node's log has it");
    assert!(!holds(&node.data_folder(), VALUE.as_bytes()), "the data folder has it");
}

#[tokio::test]
async fn a_secret_of_the_nodes_environment_has_its_apps_name() {
    let node = Node::builder().env("EBB_SECRET_SHOP__API_KEY", VALUE).start().await;
    node.deploy(&app("shop")).await;
    assert_eq!(environment(&node.app("shop"), "/knows").await[0], json!(["API_KEY", VALUE]));
    node.put(&app("bank")).await.problem(422, "manifest_invalid");
}

#[tokio::test]
async fn a_secret_that_is_gone_after_a_restart_is_said_aloud_and_the_app_serves() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("shop")).unwrap();
    std::fs::write(folder.path().join("shop/API_KEY"), VALUE).unwrap();
    let mut node =
        Node::builder().env("EBB_FUNCTIONS_SECRETS", folder.path().to_str().unwrap()).start().await;
    node.deploy(&app("shop")).await;
    node.stop().await;
    std::fs::remove_file(folder.path().join("shop/API_KEY")).unwrap();
    node.start().await;
    assert_eq!(environment(&node.app("shop"), "/knows").await, json!([["PLAIN", "x"]]));
    let log = std::fs::read_to_string(node.log_path()).unwrap();
    assert!(log.contains("has to do without its secret") && log.contains("API_KEY"), "{log}");
    // Whoever deploys it again, be it by going back, is told.
    let back = node.control.post("/apps/shop/rollback", &json!({ "to": 1 })).await;
    assert!(back.problem(422, "manifest_invalid")["problems"].to_string().contains("API_KEY"));
}

/// Whether a file below a folder has these bytes in it.
fn holds(folder: &std::path::Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().flatten().any(|entry| match entry.path() {
        path if path.is_dir() => holds(&path, bytes),
        path => std::fs::read(path).unwrap_or_default().windows(bytes.len()).any(|window| window == bytes),
    })
}
