//! What several modules need: applications in the shape that a rule wants.

use ebb_tests::{App, Client, bank, guest};
use serde_json::{Value, json};

/// `tests/guests/notes` with its projection.
pub(crate) fn notes() -> App {
    App::new(
        r#"[app]
name = "notes"

[aggregate.note]
module = "notes.wasm"
commands = { write = {}, poison = {}, explode = {}, cure = {} }
events = { Written = {}, Poisoned = {}, Exploded = {}, Cured = {} }

[model.notes]
key = "note"
columns = { note = "text", text = "text", writes = "integer", version = "integer" }
indexes = [["writes"]]

[model.cures]
key = "of"
columns = { of = "text", count = "integer" }

[projection.notes]
module = "projection.wasm"
models = ["notes", "cures"]
source = { aggregates = ["note"] }
retry = { attempts = 2, backoff = "10ms", max-backoff = "20ms" }
"#,
    )
    .file("notes.wasm", guest("notes"))
    .file("projection.wasm", guest("notes_projection"))
}

/// The same with the projection's module changed.
pub(crate) fn notes_changed() -> App {
    notes().file("projection.wasm", guest("notes_projection_2"))
}

/// `tests/guests/hostile`, with the limits that a manifest without any would have.
pub(crate) fn hostile() -> App {
    App::new(
        r#"[app]
name = "hostile"

[aggregate.hostile]
module = "hostile.wasm"
commands = { behave = {}, spin = {}, allocate = {}, trap = {}, overflow = {}, flood = {}, bloat = {}, print = {}, surprise = {}, lie = {}, sleep = {} }
events = { Behaved = {}, Bloated = {}, Told = { schema = "told.json" } }
"#,
    )
    .file("hostile.wasm", guest("hostile"))
    .file("told.json", r#"{"type": "object", "properties": {"truth": {"type": "boolean"}}}"#)
}

/// The bank with another name, so that there can be two.
pub(crate) fn bank_named(name: &str) -> App {
    bank().edit("name = \"bank\"", &format!("name = \"{name}\""))
}

/// Opens an account with a balance; gives back the position of the deposit.
pub(crate) async fn open_account(bank: &Client, id: &str, balance: u64) -> u64 {
    bank.command("account", id, "open", &json!({ "owner": format!("owner of {id}") })).await.ok();
    bank.command("account", id, "deposit", &json!({ "amount": balance })).await.position()
}

/// A row of a model, read behind a position.
pub(crate) async fn row_after(app: &Client, model: &str, key: &str, position: u64) -> Value {
    app.get(&format!("/models/{model}/{key}"))
        .header("ebb-after", position)
        .header("ebb-wait", "20s")
        .await
        .ok()
}

/// Bytes as a JSON string of this length, with its quotes.
pub(crate) fn string_of(length: usize) -> Value {
    json!("x".repeat(length - 2))
}
