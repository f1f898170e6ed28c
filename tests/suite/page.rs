//! The page at the control address, in a real browser: what it shows is what happened, and everyone can use it.
//!
//! One browser goes through all of it, because starting one takes longer than a view does. `EBB_SCREENSHOTS=FOLDER` keeps
//! pictures of every view.

mod browser;

use crate::support::{notes, open_account};
use browser::{Browser, Tools};
use ebb_tests::{Client, Node, bank};
use serde_json::{Value, json};

/// Every view of the page, by the hash of its address.
const VIEWS: [(&str, &str); 7] = [
    ("apps", "#/"),
    ("functions", "#/apps/bank/functions"),
    ("events", "#/apps/bank/events"),
    ("streams", "#/apps/bank/streams"),
    ("stream", "#/apps/bank/streams/account-ada/2"),
    ("projections", "#/apps/notes/projections"),
    ("models", "#/apps/bank/models/balances"),
];

async fn tell(notes: &Client, id: &str, command: &str) -> u64 {
    let data = if command == "write" { json!({ "text": "text" }) } else { json!({}) };
    notes.command("note", id, command, &data).await.position()
}

/// Waits until a model is as fresh as the log.
async fn catch_up(app: &Client, model: &str, position: u64) {
    let rows = app.get(&format!("/models/{model}")).header("ebb-after", position);
    rows.header("ebb-wait", "20s").header("ebb-allow-parked", "true").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_happens_and_everyone_can_use_it() {
    let Some(tools) = Tools::find().await else { return };
    let mut node = Node::builder().lasting_addresses().start().await;
    let mut browser = Browser::launch(&tools).await;
    let page = node.control.base().to_owned();

    a_node_without_apps_says_how_to_deploy_one(&mut browser, &node, &page).await;
    node.deploy(&bank()).await;
    node.deploy(&notes()).await;
    events_appear_as_they_happen(&mut browser, &node, &page).await;
    a_state_is_shown_at_any_revision(&mut browser, &node, &page).await;
    functions_tell_how_they_do(&mut browser, &page).await;
    rows_are_shown_in_order(&mut browser, &node, &page).await;
    a_parked_key_is_shown_with_its_reason(&mut browser, &node, &page).await;
    every_view_is_accessible_in_both_schemes_and_on_a_phone(&mut browser, &page).await;
    a_parked_key_is_retried_and_skipped(&mut browser, &node, &page).await;
    assert_eq!(browser.complaints(), [] as [String; 0], "the console says nothing");
    a_node_that_goes_away_is_said_and_found_again(&mut browser, &mut node, &page).await;
    browser.complaints();
    a_token_is_asked_for_and_kept_for_the_tab(&mut browser).await;
}

async fn a_node_without_apps_says_how_to_deploy_one(browser: &mut Browser, node: &Node, page: &str) {
    let document = node.control.get("/").await;
    let policy = document.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let etag = document.header("etag").expect("an entity tag");
    assert_eq!(node.control.get("/").header("if-none-match", etag).await.status, 304);

    browser.look(1280, "light").await;
    browser.go(page).await;
    browser.until_shown(&format!("ebb deploy . --server {page}")).await;
    browser.check("the page of an empty node").await;
    browser.picture("empty").await;
}

async fn events_appear_as_they_happen(browser: &mut Browser, node: &Node, page: &str) {
    browser.go(&format!("{page}/#/apps/bank/events")).await;
    browser.until_shown("Nothing has happened in this app yet").await;
    let lines: String = (0..40)
        .flat_map(|account| {
            let id = format!("imported-{account}");
            [
                json!({ "id": id, "command": "open", "data": { "owner": "Imported" } }),
                json!({ "id": id, "command": "deposit", "data": { "amount": 7 } }),
            ]
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let file = node.home().join("accounts.ndjson");
    std::fs::write(&file, lines).expect("a file");
    let file = file.to_str().expect("a path");
    node.ebb(&["import", "account", file, "--app", "bank"]).await.ok();
    browser.until("document.querySelectorAll('.events > li').length === 80").await;
    browser.until_shown("account-imported-39").await;
    let first = browser.eval("document.querySelector('.events .position').textContent").await;
    assert_eq!(first, "80", "the newest is at the top");

    browser.click("button", "Pause").await;
    open_account(&node.app("bank"), "ada", 500).await;
    browser.until_shown("Resume (2 waiting)").await;
    browser.click("button", "Resume").await;
    browser.until("document.querySelector('.events .subject').textContent === 'account-ada'").await;
    browser.fill("input[type=text]", "Opened").await;
    browser.press("Enter").await;
    browser.until("[...document.querySelectorAll('.events .type')].every((one) => one.textContent === 'Opened') && document.querySelectorAll('.events > li').length === 41").await;
}

async fn a_state_is_shown_at_any_revision(browser: &mut Browser, node: &Node, page: &str) {
    let bank = node.app("bank");
    bank.command("account", "ada", "withdraw", &json!({ "amount": 120 })).await.ok();
    browser.go(&format!("{page}/#/apps/bank/streams")).await;
    browser.click("a", "account-ada").await;
    browser.until_shown("State at revision 2 (the latest)").await;
    let state = "document.querySelector('[aria-label=\"State at revision REV\"]')?.innerText ?? ''";
    let shows = |revision: u64, text: &str| {
        format!("{}.includes({})", state.replace("REV", &revision.to_string()), json!(text))
    };
    browser.until(&shows(2, "380")).await;
    browser.click("button", "Earlier").await;
    browser.until(&shows(1, "500")).await;
    browser.click(".steps a", "0").await;
    browser.until(&shows(0, "\"balance\": 0")).await;
    bank.command("account", "ada", "deposit", &json!({ "amount": 1 })).await.ok();
    browser.until("document.querySelectorAll('.steps a').length === 4").await;

    // The same in a terminal, and for programs.
    let shown = node.ebb_control(&["state", "account-ada", "--at", "1", "--app", "bank"]).await;
    assert!(shown.ok().contains("500"), "{}", shown.stdout);
    let state: Value = node.ebb_control(&["state", "account-ada", "--app", "bank", "--json"]).await.json();
    assert_eq!((&state["revision"], &state["state"]["Open"]["balance"]), (&json!(3), &json!(381)));
    let states = "/apps/bank/streams/account-ada/state";
    let missing = node.control.get(&format!("{states}?revision=9")).await;
    assert_eq!(missing.problem(404, "no_such_revision")["last_revision"], 3);
    node.control.get(&format!("{states}?revision=-1")).await.problem(400, "bad_query");
    node.control.get("/apps/bank/streams/nothing-1/state").await.problem(404, "unknown_aggregate");
}

async fn functions_tell_how_they_do(browser: &mut Browser, page: &str) {
    browser.go(&format!("{page}/#/")).await;
    browser.until_shown("4 functions").await;
    browser.go(&format!("{page}/#/apps/bank/functions")).await;
    browser.until_shown("2 functions").await;
    let row = "[...document.querySelectorAll('tbody tr')].find((row) => row.innerText.includes('aggregate.account'))";
    browser.until(&format!("/warm/.test({row}.innerText) && /\\d (µs|ms)/.test({row}.innerText)")).await;
    browser.click("button.sort", "Calls").await;
    browser
        .until("document.querySelector('th[aria-sort=descending]')?.textContent.startsWith('Calls')")
        .await;
}

async fn rows_are_shown_in_order(browser: &mut Browser, node: &Node, page: &str) {
    let end = node.control.get("/apps/bank").await.ok()["position"].as_u64().expect("a position");
    catch_up(&node.app("bank"), "balances", end).await;
    browser.go(&format!("{page}/#/apps/bank/models/balances")).await;
    browser.until_shown("all of the log").await;
    browser.click("button.sort", "balance").await;
    browser.click("button.sort", "balance").await;
    let first = "document.querySelector('tbody tr').innerText.replace(/\\s+/g, ' ')";
    browser.until(&format!("{first}.includes('381')")).await;
}

async fn a_parked_key_is_shown_with_its_reason(browser: &mut Browser, node: &Node, page: &str) {
    let app = node.app("notes");
    for (id, command) in
        [("good", "write"), ("bad", "write"), ("bad", "poison"), ("bad", "write"), ("worse", "poison")]
    {
        tell(&app, id, command).await;
    }
    browser.go(&format!("{page}/#/apps/notes/projections")).await;
    browser.until_shown("note-worse").await;
    browser.until_shown("the note is poisoned").await;
    browser.until_shown("2 events").await;
}

async fn every_view_is_accessible_in_both_schemes_and_on_a_phone(browser: &mut Browser, page: &str) {
    for (name, address) in VIEWS {
        browser.go(&format!("{page}/{address}")).await;
        browser.until("document.querySelector('main table, main ol, main dl') && !document.body.innerText.includes('Loading…')").await;
        // Colours depend on the scheme and layout on the width: two screens show both of each.
        for (width, scheme) in [(1280, "light"), (360, "dark")] {
            browser.look(width, scheme).await;
            let ground = browser.eval("getComputedStyle(document.body).backgroundColor").await;
            assert_eq!(ground == "rgb(16, 22, 26)", scheme == "dark", "{ground}");
            browser.check(&format!("{name} at {width} in {scheme}")).await;
            browser.picture(&format!("{name}-{width}-{scheme}")).await;
        }
    }
    browser.look(1280, "light").await;
}

async fn a_parked_key_is_retried_and_skipped(browser: &mut Browser, node: &Node, page: &str) {
    browser.go(&format!("{page}/#/apps/notes/projections")).await;
    browser.click("button", "Retry note-bad").await;
    browser.until_shown("It failed again: the note is poisoned").await;
    let cured = tell(&node.app("notes"), "any", "cure").await;
    catch_up(&node.app("notes"), "notes", cured).await;
    browser.until("document.activeElement.tagName === 'H2'").await;
    // By keyboard alone.
    browser.eval("document.querySelector('[aria-label=\"Retry note-bad\"]').focus()").await;
    browser.press("Enter").await;
    browser.until_shown("note-bad: 2 events applied, nothing of it is parked any more").await;
    browser.click("button", "Skip note-worse").await;
    browser.until("document.activeElement.textContent === 'Cancel'").await;
    browser.click("button", "Leave out event").await;
    browser.until_shown("note-worse: 1 event skipped, nothing of it is parked any more").await;
    browser.until("!document.querySelector('[aria-label^=Retry]')").await;
    let parked = node.control.get("/apps/notes/projections/notes/parked").await.ok();
    assert_eq!(parked["parked"], json!([]));
}

async fn a_node_that_goes_away_is_said_and_found_again(browser: &mut Browser, node: &mut Node, page: &str) {
    browser.go(&format!("{page}/#/apps/bank/events")).await;
    browser.until("document.querySelector('.state')?.textContent === 'live'").await;
    node.kill().await;
    browser.until_shown("The node does not answer: trying again").await;
    browser.picture("away").await;
    node.start().await;
    open_account(&node.app("bank"), "after", 3).await;
    browser.until_shown("Connected").await;
    browser.until_shown("account-after").await;
}

async fn a_token_is_asked_for_and_kept_for_the_tab(browser: &mut Browser) {
    let settings = "[control]\ntoken = \"0123456789abcdef\"\n";
    let node = Node::builder().settings(settings).start().await;
    let page = node.control.base().to_owned();
    node.control.get("/apps").await.problem(401, "unauthenticated");
    node.control.get("/").header("host", "evil.example").await.problem(403, "host_not_allowed");
    browser.go(&page).await;
    browser.until_shown("Control token").await;
    browser.check("signing in").await;
    browser.picture("sign-in").await;
    browser.fill("#token", "fedcba9876543210").await;
    browser.press("Enter").await;
    browser.until_shown("does not accept this token").await;
    browser.fill("#token", "0123456789abcdef").await;
    browser.press("Enter").await;
    browser.until_shown("No app is deployed on this node yet").await;
    browser.go(&page).await;
    browser.until_shown("No app is deployed on this node yet").await;
    assert_eq!(browser.eval("[localStorage.length, document.cookie]").await, json!([0, ""]));
    browser.click("button", "Sign out").await;
    browser.until_shown("Control token").await;
}
