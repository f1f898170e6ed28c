use super::parse::keys;
use super::{Capabilities, FilePurpose, LaneBy, Manifest, Source, Trigger};
use crate::limits::{InstancePolicy, Limits};
use crate::port::guest::{Grants, ModuleKind};
use crate::topic::{Selector, Start, Via};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::Duration;

const FLIGHTS: &str = include_str!("../../tests/manifests/flights.toml");
const BANK: &str = include_str!("../../tests/manifests/bank.toml");
const EVERYTHING: &str = include_str!("../../tests/manifests/everything.toml");
const FIVE_MISTAKES: &str = include_str!("../../tests/manifests/five-mistakes.toml");

/// A good manifest with one line or more added, removed or changed.
fn bank_with(from: &str, to: &str) -> String {
    assert!(BANK.contains(from), "the manifest of the test has no `{from}`");
    BANK.replacen(from, to, 1)
}

fn problems(text: &str) -> Vec<String> {
    match Manifest::parse(text) {
        Ok(_) => Vec::new(),
        Err(problems) => (&problems)
            .into_iter()
            .map(|problem| {
                let hint = problem.hint.as_deref().map(|hint| format!(" | {hint}")).unwrap_or_default();
                format!("{}: {}{hint}", problem.place.line, problem.message)
            })
            .collect(),
    }
}

/// The one problem of this text.
#[track_caller]
fn problem(text: &str) -> String {
    let found = problems(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap_or_default()
}

#[test]
fn a_good_manifest_becomes_types() {
    insta::assert_debug_snapshot!(Manifest::parse(FLIGHTS).unwrap());
}

#[test]
fn a_manifest_with_five_mistakes_has_all_five_reported() {
    let report = Manifest::parse(FIVE_MISTAKES).unwrap_err();
    assert_eq!(report.as_slice().len(), 5);
    insta::assert_snapshot!(report);
}

#[test]
fn a_report_is_data_for_programs_and_comes_back_the_same() {
    let report = Manifest::parse(FIVE_MISTAKES).unwrap_err();
    let written = serde_json::to_value(&report).unwrap();
    assert_eq!(written[0]["kind"], "unknown_key");
    assert_eq!(serde_json::from_value::<super::Problems>(written).unwrap(), report);
}

#[test]
fn defaults_are_those_of_the_design() {
    let manifest = Manifest::parse(BANK).unwrap();
    let account = &manifest.aggregates.values().next().unwrap();
    assert_eq!((account.limits, account.snapshot_every.get()), (Limits::COMMAND, 100));
    assert!(account.record_commands && account.allow.permits("anyone"));
    let balances = manifest.projections.values().next().unwrap();
    assert_eq!((balances.limits, balances.max_parked), (Limits::PROJECTION, 10_000));
    assert_eq!((balances.lanes.get(), &balances.lane_by), (1, &LaneBy::Stream));
    assert!(manifest.writer_of("balances").is_some() && manifest.writer_of("accounts").is_none());
}

#[test]
fn every_key_is_understood() {
    let manifest = Manifest::parse(EVERYTHING).unwrap();
    let aggregate = manifest.aggregates.values().next().unwrap();
    assert_eq!(aggregate.limits.memory_bytes, 128 << 20);
    assert_eq!(aggregate.limits.wall, Duration::from_secs(60));
    assert!(aggregate.allow.permits("service:billing") && !aggregate.allow.permits("bob"));
    let projection = manifest.projections.values().next().unwrap();
    assert_eq!(projection.lane_by, LaneBy::Field("customer".to_owned()));
    assert_eq!(projection.retry.max_backoff, Duration::from_secs(60));
    let Source::Log { aggregates, types } = &projection.source else { panic!("{:?}", projection.source) };
    assert_eq!((aggregates.len(), types.len()), (1, 1));
    let hello = &manifest.functions["hello".as_bytes()];
    let Trigger::Http(http) = &hello.trigger else { panic!("{:?}", hello.trigger) };
    assert_eq!((http.route.as_str(), http.max_body, http.max_response), ("/hello/{name}", 64 << 10, 1 << 30));
    assert_eq!(http.methods.take("DELETE"), None);
    assert_eq!((hello.limits.wall, hello.limits.cpu), (Duration::from_secs(900), Duration::from_secs(30)));
    let Capabilities { outbound_http, commands, models, env, secrets, tmp } = &hello.capabilities;
    assert_eq!(*tmp, Some(16 << 20));
    let outbound_http = outbound_http.as_ref().unwrap();
    assert!(outbound_http.private && outbound_http.destinations.len() == 4);
    assert_eq!((env.len(), secrets.len()), (1, 1));
    assert_eq!((commands.as_ref().map(|c| c.len()), models.as_ref().map(|m| m.len())), (Some(1), Some(1)));
    assert!(hello.capabilities.may_send_to("order") && !hello.capabilities.may_send_to("orders"));
    let files = &manifest.functions["files".as_bytes()];
    assert_eq!((files.capabilities.grants(), files.instances), (Grants::default(), InstancePolicy::HTTP));
}

#[test]
fn every_file_is_listed_with_its_place_and_purpose() {
    let manifest = Manifest::parse(FLIGHTS).unwrap();
    let files: Vec<_> =
        manifest.files().iter().map(|file| (file.key.as_str(), file.place.line, file.purpose)).collect();
    assert_eq!(
        files,
        [
            ("aggregate.flight.module", 9, FilePurpose::Module(ModuleKind::Command)),
            ("aggregate.flight.commands.schedule", 10, FilePurpose::Schema),
            ("aggregate.flight.events.Scheduled.schema", 11, FilePurpose::Schema),
            ("projection.delays.module", 22, FilePurpose::Module(ModuleKind::Projection)),
        ]
    );
}

#[test]
fn what_is_wrong_with_files_is_in_the_same_report() {
    let text = FLIGHTS.replace("lanes = 2", "lanes = 0");
    let report = Manifest::parse_with(&text, |file| {
        let contents: Option<&[u8]> = match &*file.key {
            "aggregate.flight.module" => Some(b"\0asm\x0d\0\x01\0"),
            "aggregate.flight.commands.schedule" => Some(br#"{"type": "objekt"}"#),
            "projection.delays.module" => Some(b"#!/bin/sh"),
            _ => None,
        };
        file.inspect(contents)
    });
    insta::assert_snapshot!(report.unwrap_err());
}

#[test]
fn units_are_asked_for_and_corrected() {
    let limits = |value: &str| bank_with("[model", &format!("limits = {{ memory = {value} }}\n\n[model"));
    assert!(problem(&limits("\"64MB\"")).contains("\"64MB\" is not a size | write \"64MiB\""));
    assert!(problem(&limits("64")).contains("but is an integer | write `\"64MiB\"`"));
    assert!(
        problem(&limits("\"0MiB\"")).contains("out of bounds | write something from \"1MiB\" to \"1GiB\"")
    );
    assert!(problem(&limits("\"2GiB\"")).contains("is 2GiB, which is out of bounds"));
    assert!(problems(&limits("\"1GiB\"")).is_empty());
}

/// Bounded settings: section, key, what is refused, and the bounds that the answer names.
type Bounded = (&'static str, &'static str, &'static [&'static str], &'static str);

const BOUNDED: &[Bounded] = &[
    (
        "limits",
        "memory",
        &["\"0B\"", "\"1023KiB\"", "\"1025MiB\"", "\"17179869184GiB\""],
        "\"1MiB\" to \"1GiB\"",
    ),
    ("limits", "cpu", &["\"0ms\"", "\"9ms\"", "\"16min\"", "\"99999999h\""], "\"10ms\" to \"15min\""),
    ("limits", "wall", &["\"0s\"", "\"9ms\"", "\"901s\""], "\"10ms\" to \"15min\""),
    ("limits", "concurrency", &["0", "-1", "513", "4294967297"], "1 to 512"),
    ("instances", "reuse", &["0", "-1", "4294967296"], "1 to 4294967295"),
    ("instances", "max", &["0", "-1", "513"], "1 to 512"),
    ("instances", "idle", &["\"0s\"", "\"25h\""], "\"1ms\" to \"24h\""),
    ("instances", "aggregates", &["0", "65537"], "1 to 65536"),
    ("instances", "warm", &["-1", "65"], "0 to "),
    ("batch", "max-events", &["0", "10001"], "1 to 10000"),
    ("batch", "max-wait", &["\"61s\""], "\"0ms\" to \"1min\""),
    ("retry", "attempts", &["0", "101"], "1 to 100"),
    ("retry", "backoff", &["\"0ms\"", "\"2h\""], "\"1ms\" to \"1h\""),
    ("retry", "max-backoff", &["\"0ms\"", "\"2h\""], "\"1ms\" to \"1h\""),
    ("retry", "max-age", &["\"0s\"", "\"9000h\""], "\"1s\" to \"8760h\""),
    ("http", "max-body", &["\"1025MiB\""], "\"0B\" to \"1GiB\""),
    ("http", "max-response", &["\"1025MiB\""], "\"0B\" to \"1GiB\""),
    ("chains", "hops", &["0", "1001"], "1 to 1000"),
    ("chains", "per-minute", &["0", "1000001"], "1 to 1000000"),
    ("", "lanes", &["0", "65"], "1 to 64"),
    ("", "max-parked", &["0", "-1"], "1 to "),
    ("", "snapshot-every", &["0", "1000001"], "1 to 1000000"),
];

/// Manifests with this written into every place where it can stand.
fn everywhere(section: &str, line: &str) -> Vec<String> {
    let of_an_aggregate = || bank_with("[model", &format!("{line}\n\n[model"));
    let of_a_projection = || format!("{BANK}{line}\n");
    let of_a_function = || hello_with(line);
    let of_events = || {
        let function = "[function.told]\nmodule = \"told.wasm\"\ntrigger = { events = { from = \"now\", ";
        format!("{BANK}\n{function}{line} }} }}\n")
    };
    match section {
        "limits" | "instances" => vec![of_an_aggregate(), of_a_projection(), of_a_function()],
        "batch" | "retry" => vec![of_a_projection(), of_events()],
        "chains" => vec![bank_with("name = \"bank\"", &format!("name = \"bank\"\n{line}"))],
        "http" => vec![hello_with("").replace("route = \"/hello\"", &format!("route = \"/hello\", {line}"))],
        _ if line.starts_with("snapshot") => vec![of_an_aggregate()],
        _ => vec![of_a_projection(), of_events()],
    }
}

#[test]
fn no_bound_can_be_zero_or_absurd_and_who_tries_is_told_the_bounds() {
    for (section, key, refused, bounds) in BOUNDED {
        for value in *refused {
            let line = match *section {
                "" | "http" => format!("{key} = {value}"),
                section => format!("{section} = {{ {key} = {value} }}"),
            };
            for text in everywhere(section, &line) {
                let told = problem(&text);
                assert!(told.contains(&format!("{key}` is ")), "`{line}`: {told}");
                assert!(told.contains(bounds), "`{line}`: {told}");
            }
        }
    }
}

#[test]
fn every_key_that_bounds_something_is_tried() {
    for (section, keys) in [
        ("limits", keys::LIMITS),
        ("instances", keys::INSTANCES),
        ("batch", keys::BATCH),
        ("retry", keys::RETRY),
    ] {
        for key in keys {
            let tried = BOUNDED.iter().any(|(of, tried, ..)| (of, tried) == (&section, key));
            assert!(tried, "`{section}.{key}` is in no line of `BOUNDED`");
        }
    }
}

#[test]
fn a_cpu_limit_that_the_wall_clock_limit_hides_is_refused() {
    let limits = |limits: &str| bank_with("[model", &format!("limits = {{ {limits} }}\n\n[model"));
    assert!(problem(&limits("cpu = \"60s\"")).contains("more than the default `wall`, 30s"));
    assert!(problems(&limits("cpu = \"60s\", wall = \"2min\"")).is_empty());
    let short = Manifest::parse(&limits("wall = \"100ms\"")).unwrap();
    assert_eq!(short.aggregates.values().next().unwrap().limits.cpu, Duration::from_millis(100));
}

#[test]
fn a_model_has_exactly_one_writer() {
    let second = format!("{BANK}\n[projection.other]\nmodule = \"other.wasm\"\nmodels = [\"balances\"]\n");
    assert!(
        problem(&second).contains("model `balances` is written by `projection.balances` already (line 18)")
    );
    let unwritten = format!("{BANK}\n[model.spare]\nkey = \"id\"\ncolumns = {{ id = \"text\" }}\n");
    assert!(problem(&unwritten).contains("no projection writes model `spare`"));
}

#[test]
fn names_that_are_declared_nowhere_are_reported_with_what_was_probably_meant() {
    let source = |source: &str| bank_with("source = { aggregates = [\"account\"] }", source);
    assert!(problem(&source("source = { aggregates = [\"acount\"] }")).contains("did you mean `account`?"));
    assert!(problem(&source("source = { types = [\"Depositd\"] }")).contains("did you mean `Deposited`?"));
    assert!(problem(&source("source = { aggregates = [] }")).contains("leave `aggregates` out"));
    assert!(
        problem(&bank_with("models = [\"balances\"]", "models = [\"balance\"]"))
            .contains("did you mean `balances`?")
    );
}

#[test]
fn the_key_of_a_model_is_one_of_its_text_columns() {
    assert!(problem(&bank_with("key = \"account\"", "key = \"id\"")).contains("there is no column `id`"));
    assert!(
        problem(&bank_with("key = \"account\"", "key = \"balance\""))
            .contains("is of type integer; keys are text")
    );
    assert!(problem(&bank_with("key = \"account\"\n", "")).contains("`model.balances` has no `key`"));
}

#[test]
fn an_index_is_a_list_of_columns() {
    let index =
        |index: &str| bank_with("key = \"account\"", &format!("key = \"account\"\nindexes = {index}"));
    assert!(problem(&index("[[\"ownr\"]]")).contains("did you mean `owner`?"));
    assert!(problem(&index("[\"owner\"]")).contains("an index is a list of columns"));
    assert!(problem(&index("[[]]")).contains("has no columns"));
    assert!(problem(&index("[[\"owner\"], [\"owner\"]]")).contains("twice"));
    assert!(problems(&index("[[\"owner\", \"balance\"]]")).is_empty());
}

#[test]
fn reserved_names_are_refused() {
    assert!(problem(&bank_with("name = \"bank\"", "name = \"system\"")).contains("reserved"));
    assert!(problem(&bank_with("name = \"bank\"", "name = \"My Bank\"")).contains("write `my_bank`"));
    let topic =
        BANK.replace("[aggregate.account]", "[aggregate.topic]").replace("[\"account\"]", "[\"topic\"]");
    assert!(problem(&topic).contains("reserved"));
}

#[test]
fn hosts_are_names_and_nothing_else() {
    let hosts = |hosts: &str| bank_with("name = \"bank\"", &format!("name = \"bank\"\nhosts = {hosts}"));
    assert!(
        problem(&hosts("[\"https://Bank.example/\"]"))
            .contains("has a scheme; only the name belongs here | write \"bank.example\"")
    );
    assert!(problem(&hosts("[\"bank.example:8080\"]")).contains("has a port"));
    assert!(problem(&hosts("[\"a.example\", \"a.example\"]")).contains("twice"));
    assert!(problem(&hosts("\"bank.example\"")).contains("should be a list of texts, but is a string"));
    assert!(problems(&hosts("[\"bank.localhost\", \"127.0.0.1\"]")).is_empty());
}

const HELLO: &str =
    "\n[function.hello]\nmodule = \"hello.wasm\"\ntrigger = { http = { route = \"/hello\" } }\n";

/// A manifest with one function, and a line more in it.
fn hello_with(line: &str) -> String {
    format!("{BANK}{HELLO}{line}\n")
}

#[test]
fn every_mistake_in_a_function_is_reported() {
    let text = format!("{BANK}{}", include_str!("../../tests/manifests/functions-with-mistakes.toml"));
    insta::assert_snapshot!(Manifest::parse(&text).unwrap_err());
}

#[test]
fn functions_of_one_route_share_it_by_method() {
    let other = |route: &str, methods: &str| {
        hello_with(&format!(
            "[function.other]\nmodule = \"o.wasm\"\ntrigger.http = {{ route = \"{route}\"{methods} }}"
        ))
    };
    assert!(problem(&other("/hello", "")).contains("as \"/hello\" of `function.hello` (line 23)"));
    assert!(problem(&other("/hello", ", methods = [\"GET\"]")).contains("with `GET`"));
    assert!(problems(&other("/hello/", "")).is_empty());
    let both = other("/hello", ", methods = [\"POST\"]")
        .replace("{ route = \"/hello\" }", "{ route = \"/hello\", methods = [\"GET\"] }");
    assert!(problems(&both).is_empty());
}

#[test]
fn a_list_of_no_hosts_lets_a_module_import_what_sends_requests() {
    let with = |line: &str| Manifest::parse(&hello_with(line)).unwrap().functions["hello".as_bytes()].clone();
    let listed = with("capabilities = { outbound-http = [] }").capabilities;
    assert!(listed.grants().outbound_http && !listed.outbound_http.unwrap().names("example.org", 80));
    assert!(!with("capabilities = {}").capabilities.grants().outbound_http);
    let listed = with("capabilities = { commands = [], models = [] }").capabilities;
    assert!(listed.grants().commands && listed.grants().models && !listed.may_send_to("account"));
}

#[test]
fn records_of_topics_are_a_source_of_events_and_of_commands() {
    let text = bank_with("{ aggregates = [\"account\"] }", "{ topics = [\"payments\"], types = [\"Paid\"] }");
    let text = text.replace("[aggregate.account]", "[topic.payments]\nstart = \"latest\"\ntype = { header = \"kind\" }\n\n[aggregate.account]\nsource = { topics = [\"orders\"], group = \"shop\", key = { field = \"account\" }, command = \"open\", reply-to = \"outcomes\" }");
    let manifest = Manifest::parse(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let projection = &manifest.projections["balances".as_bytes()];
    let Source::Topics(source) = &projection.source else { panic!("{:?}", projection.source) };
    assert_eq!((&*source.group, source.via), ("bank", Via::Log));
    assert_eq!(projection.lane_by, LaneBy::Record(Selector::Key), "records go by their key");
    let commands = manifest.aggregates["account".as_bytes()].source.as_ref().unwrap();
    assert_eq!(
        (&commands.key, &commands.command),
        (&Selector::Field("account".into()), &Selector::Fixed("open".into()))
    );
    let consumed = manifest.consumed();
    assert_eq!(consumed.keys().map(|group| &**group).collect::<Vec<_>>(), ["bank", "shop"]);
    assert_eq!(consumed["bank".as_bytes()]["payments".as_bytes()].start, Start::Latest);
    assert_eq!(manifest.needs_kafka().map(|(key, _)| key.as_str()), Some("aggregate.account.source.topics"));
    assert!(manifest.relay(true).is_some() && manifest.relay(false).is_none(), "where the node has brokers");
}

#[test]
fn records_that_come_straight_are_a_projections_own() {
    let text = bank_with("{ aggregates = [\"account\"] }", "{ topics = [\"payments\"], via = \"direct\" }");
    let manifest = Manifest::parse(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let Source::Topics(source) = &manifest.projections["balances".as_bytes()].source else { panic!() };
    assert_eq!((&*source.group, source.via), ("bank.balances", Via::Direct));
    assert!(manifest.consumed().is_empty() && manifest.has_direct(), "nothing of it comes into the log");
}

#[test]
fn what_is_wrong_about_topics_is_said() {
    let source = |source: &str| problem(&bank_with("{ aggregates = [\"account\"] }", source));
    assert!(source("{ topics = [] }").contains("is empty"));
    assert!(source("{ topics = [\"a/b\"] }").contains("is not a topic name"));
    assert!(
        source("{ topics = [\"a\"], aggregates = [\"account\"] }").contains("both topics and aggregates")
    );
    let with_group = "{ topics = [\"a\"], via = \"direct\", group = \"bank\" }";
    let shared = bank_with("{ aggregates = [\"account\"] }", with_group)
        .replace("[aggregate.account]", "[aggregate.account]\nsource = { topics = [\"b\"] }");
    assert!(problem(&shared).contains("which `aggregate.account` consumes under as well"));
    assert!(source("{ topics = [\"a\"], via = \"air\" }").contains("no way for records to come"));
    assert!(source("{ via = \"log\" }").contains("is about topics, and there are none"));
    let with =
        |line: &str| problem(&bank_with("[aggregate.account]", &format!("[aggregate.account]\n{line}")));
    assert!(with("source = {}").contains("has no `topics`"));
    assert!(with("source = { topics = [\"a\"], dead-letter = \"a\" }").contains("would come back"));
    assert!(
        with("source = { topics = [\"a\"], key = { header = \"a\", field = \"b\" } }")
            .contains("names 2 parts")
    );
    assert!(
        with("source = { topics = [\"a\"], identity = \"offset\" }")
            .contains("what makes a command the same")
    );
    let app = |line: &str| problem(&bank_with("name = \"bank\"", &format!("name = \"bank\"\n{line}")));
    assert!(app("relay = \"twice\"").contains("no way to publish"));
    assert!(app("relay = { topics = { account = \"shop.relay\" } }").contains("end so"));
    for follows in [
        "[projection.p]\nmodule = \"p.wasm\"\nmodels = []\nsource = { topics = [\"a\"] }\ndead-letter = \"a\"",
        "[function.f]\nmodule = \"f.wasm\"\ntrigger = { events = { topics = [\"a\"], dead-letter = \"a\" } }",
    ] {
        let manifest = format!("{BANK}\n{follows}\n");
        let problems = Manifest::parse(&manifest).unwrap_err().to_string();
        assert!(problems.contains("would come back"), "{problems}");
    }
    assert!(app("relay = { topics = { acount = \"a\" } }").contains("there is no aggregate `acount`"));
    assert!(
        problem(&bank_with("[aggregate.account]", "[topic.unused]\n\n[aggregate.account]"))
            .contains("nothing of this manifest consumes")
    );
}

#[test]
fn text_that_is_not_toml_is_reported_as_such_and_nothing_is_guessed_from_it() {
    assert!(problem("[app]\nname = bank\n").contains("this is not TOML"));
    assert!(
        problem(&bank_with("key = \"account\"", "key = \"account\"\nkey = \"owner\""))
            .contains("`key` is here a second time")
    );
    assert!(problem("").contains("`[app]` is missing"));
    assert!(problem(&"#".repeat(2 << 20)).contains("more than the limit"));
}

#[test]
fn an_aggregate_without_commands_or_events_is_refused() {
    assert!(
        problem(&bank_with(
            "commands = { open = {}, deposit = {}, withdraw = {}, close = {} }",
            "commands = {}"
        ))
        .contains("has no commands")
    );
    assert!(
        problem(&bank_with("events = { Opened = {}, Deposited = {}, Withdrawn = {}, Closed = {} }\n", ""))
            .contains("`aggregate.account` has no `events`")
    );
}

#[test]
fn paths_are_relative_and_written_with_slashes() {
    for wrong in ["/usr/lib/a.wasm", "C:/a.wasm", "~/a.wasm", "", "a\\\\b.wasm", "a\\u0000b"] {
        let text = bank_with("target/wasm32-wasip2/release/account.wasm", wrong);
        assert!(problem(&text).contains("relative to the manifest"), "{wrong}");
    }
    assert!(problems(&bank_with("target/wasm32-wasip2", "../target/wasm32-wasip2")).is_empty());
}

/// The published schema for editors, checked with our own validator.
fn editor_schema() -> (Value, crate::schema::JsonSchema) {
    let text = include_str!("../../../../docs/ebb.schema.json");
    let value: Value = serde_json::from_str(text).unwrap();
    let compiled = crate::schema::JsonSchema::compile(&value).unwrap();
    (value, compiled)
}

fn accepted_by_editors(text: &str) -> bool {
    let value: Value = serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
    editor_schema().1.validate(value.to_string().as_bytes()).is_ok()
}

#[test]
fn editors_accept_what_the_parser_accepts() {
    for good in [FLIGHTS, BANK, EVERYTHING] {
        assert!(Manifest::parse(good).is_ok());
        let value = serde_json::to_value(toml::from_str::<toml::Table>(good).unwrap()).unwrap();
        let answer = editor_schema().1.validate(value.to_string().as_bytes());
        assert!(answer.is_ok(), "{}", answer.unwrap_err());
    }
}

#[test]
fn editors_see_mistakes_that_need_no_second_look() {
    assert!(!accepted_by_editors(FIVE_MISTAKES));
    for (from, to) in [
        ("key = \"account\"", "kee = \"account\""),
        ("name = \"bank\"", "name = \"My Bank\""),
        ("name = \"bank\"", "name = \"system\""),
        ("owner = \"text\"", "owner = \"string\""),
        ("[model", "limits = { memory = \"64MB\" }\n\n[model"),
        ("commands = { open = {}, deposit = {}, withdraw = {}, close = {} }", "commands = {}"),
    ] {
        assert!(!accepted_by_editors(&bank_with(from, to)), "{to}");
    }
}

#[test]
fn editors_and_the_parser_know_the_same_keys() {
    let (schema, _) = editor_schema();
    let defs = |name: &str| format!("/$defs/{name}");
    for (pointer, known) in [
        (String::new(), keys::ROOT),
        (defs("app"), keys::APP),
        (defs("cors"), keys::CORS),
        (defs("chains"), keys::CHAINS),
        (defs("build"), keys::BUILD),
        (defs("aggregate"), keys::AGGREGATE),
        (defs("command"), keys::COMMAND),
        (defs("event"), keys::EVENT),
        (defs("model"), keys::MODEL),
        (defs("projection"), keys::PROJECTION),
        (defs("topic"), keys::TOPIC),
        (defs("selector"), keys::SELECTOR),
        (defs("command-source"), keys::COMMAND_SOURCE),
        (defs("relay"), keys::RELAY),
        (defs("source"), keys::SOURCE),
        (defs("batch"), keys::BATCH),
        (defs("lane-by-field"), keys::LANE_BY),
        (defs("retry"), keys::RETRY),
        (defs("function"), keys::FUNCTION),
        (defs("trigger"), keys::TRIGGER),
        (defs("http"), keys::HTTP),
        (defs("events"), keys::EVENTS),
        (defs("capabilities"), keys::CAPABILITIES),
        (defs("limits"), keys::LIMITS),
        (defs("instances"), keys::INSTANCES),
    ] {
        let section = schema.pointer(&pointer).unwrap();
        let mut listed: Vec<&str> =
            section["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut known = known.to_vec();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known, "{pointer}");
        assert_eq!(section["additionalProperties"], json!(false), "{pointer}");
        let undescribed =
            section["properties"].as_object().unwrap().iter().find(|(_, property)| {
                property.get("description").is_none() && property.get("$ref").is_none()
            });
        assert_eq!(undescribed, None, "an editor shows what each key is for");
    }
}

/// A line of a good manifest, a part of one, or noise: what people's half-written files are made of.
fn fragments() -> impl Strategy<Value = String> {
    let lines: Vec<String> =
        EVERYTHING.lines().chain(FIVE_MISTAKES.lines()).map(|line| format!("{line}\n")).collect();
    let words =
        ["[", "]", "{", "}", "=", "\"", "'", "\n", ".", "aggregate", "limits", "= 1\n", "= {}\n", "é", "#"];
    prop::collection::vec(
        prop_oneof![
            6 => prop::sample::select(lines),
            2 => prop::sample::select(words.map(str::to_owned).to_vec()),
            1 => "\\PC{0,8}",
        ],
        0..40,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_text_makes_parsing_panic(text in any::<String>()) {
        let _ = Manifest::parse(&text).map_err(|problems| problems.to_string());
    }

    #[test]
    fn half_written_manifests_are_answered_with_problems_within_their_lines(text in fragments()) {
        if let Err(problems) = Manifest::parse(&text) {
            for problem in &problems {
                prop_assert!(problem.place.line >= 1 && problem.place.line <= text.lines().count() + 1);
                prop_assert!(!problem.message.is_empty());
            }
            let _ = problems.to_string();
        }
    }

    #[test]
    fn any_value_under_any_key_is_read_or_reported(at in 0..200usize, value in prop::sample::select(vec![
        "0", "-1", "1.5", "true", "\"\"", "\"x\"", "[]", "[[]]", "[1]", "{}", "{ x = {} }", "1979-05-27", "\"1h\"", "nan",
    ])) {
        let mut lines: Vec<String> = EVERYTHING.lines().map(str::to_owned).collect();
        let keyed: Vec<usize> = (0..lines.len()).filter(|&line| lines[line].contains(" = ")).collect();
        let line = keyed[at % keyed.len()];
        let key = lines[line].split(" = ").next().unwrap_or_default().to_owned();
        lines[line] = format!("{key} = {value}");
        let _ = Manifest::parse(&lines.join("\n")).map_err(|problems| problems.to_string());
    }
}
