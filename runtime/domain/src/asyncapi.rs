//! `GET /asyncapi.json`: what an app takes from Kafka topics and sends to them, from its manifest, as AsyncAPI 3.0.
//!
//! Where the brokers are is the operator's to know, so no servers are named. A topic is a channel; what the app takes from
//! it is an operation `receive`, what it sends there an operation `send`.

use crate::manifest::{AggregateSpec, Manifest, Source, Trigger};
use crate::name::{AggregateName, TopicName};
use crate::openapi::SchemaFiles;
use crate::text::Text;
use crate::topic::{CommandSource, RelaySpec, Selector, TopicSource, TopicSpec};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

const KAFKA_BINDING: &str = "0.5.0";

/// Describes an app. `schemas` has the JSON Schema files that the manifest refers to, by the path it refers to them with;
/// `brokers` says whether the node has some, which decides whether events go out where the manifest says nothing.
#[must_use]
pub fn asyncapi(manifest: &Manifest, schemas: &BTreeMap<PathBuf, Value>, brokers: bool) -> Value {
    let mut document = Document {
        channels: Map::new(),
        operations: Map::new(),
        messages: Map::new(),
        schemas: SchemaFiles { components: Map::new(), files: schemas },
    };
    if let Some(relay) = manifest.relay(brokers) {
        for aggregate in manifest.aggregates.values() {
            document.events_out(manifest, &relay, aggregate);
        }
    }
    for aggregate in manifest.aggregates.values() {
        if let Some(source) = &aggregate.source {
            document.commands_in(manifest, aggregate, source);
        }
    }
    for (consumer, source, dead_letter) in consumers(manifest) {
        if let Source::Topics(source) = source {
            document.records_in(manifest, &consumer, source);
        }
        if let Some(topic) = dead_letter {
            document.dead_letters(&consumer, topic);
        }
    }
    let mut components = document.schemas.components;
    components.insert("cloudevent".into(), cloud_event());
    json!({
        "asyncapi": "3.0.0",
        "id": format!("urn:ebbtide:{}", manifest.name),
        "info": {"title": &*manifest.name, "version": "1"},
        "defaultContentType": "application/json",
        "channels": document.channels,
        "operations": document.operations,
        "components": {"messages": document.messages, "schemas": components},
    })
}

/// Projections and event functions: what they are called, where their events come from, and where those go that fail.
fn consumers(manifest: &Manifest) -> Vec<(String, &Source, Option<&TopicName>)> {
    let projections = manifest.projections.iter().map(|(name, projection)| {
        (format!("projection.{name}"), &projection.source, projection.dead_letter.as_ref())
    });
    let functions = manifest.functions.iter().filter_map(|(name, function)| match &function.trigger {
        Trigger::Events(events) => {
            Some((format!("function.{name}"), &events.source, events.dead_letter.as_ref()))
        }
        Trigger::Http(_) => None,
    });
    projections.chain(functions).collect()
}

struct Document<'a> {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
    schemas: SchemaFiles<'a>,
}

impl Document<'_> {
    fn events_out(&mut self, manifest: &Manifest, relay: &RelaySpec, aggregate: &AggregateSpec) {
        let name = &aggregate.name;
        if !relay.aggregates.is_empty() && !relay.aggregates.contains(name) {
            return;
        }
        let topic =
            relay.topics.get(name).map_or_else(|| format!("{}.{name}", manifest.name), ToString::to_string);
        let mut messages = Vec::new();
        for (event, spec) in &aggregate.events {
            let component = format!("event.{name}.{event}");
            let payload = match &spec.schema {
                Some(file) => self.schemas.file(&component, file),
                None => json!({}),
            };
            let message = json!({
                "name": &**event,
                "summary": format!("{event}, version {}", spec.version),
                "contentType": "application/json",
                "headers": headers(&[("ce_type", constant(event))]),
                "payload": payload,
                "correlationId": correlation(),
                "bindings": key(&format!("The stream, `{name}-ID`. Events of one stream are in order.")),
            });
            messages.push((component, message));
        }
        let summary = format!("Events of {name}, once they are durable. A resend has the same `ce_id`.");
        self.operation(&format!("events.{name}"), "send", &topic, messages, json!({"summary": summary}));
    }

    fn commands_in(&mut self, manifest: &Manifest, aggregate: &AggregateSpec, source: &CommandSource) {
        let name = &aggregate.name;
        for topic in &source.topics {
            let mut messages = Vec::new();
            for (command, spec) in &aggregate.commands {
                if matches!(&source.command, Selector::Fixed(fixed) if **fixed != **command) {
                    continue;
                }
                let component = format!("command.{name}.{command}");
                let data = match &spec.schema {
                    Some(file) => self.schemas.file(&component, file),
                    None => json!({}),
                };
                let record = Record { spec: &manifest.topic(topic), payload: data };
                let message = json!({
                    "name": &**command,
                    "summary": format!("Send `{command}` to one {name}"),
                    "contentType": "application/json",
                    "headers": selected_header(&source.command, command),
                    "payload": record.payload(&[(&source.command, constant(command)), (&source.key, text())]),
                    "correlationId": correlation(),
                    "bindings": key(&key_of(&source.key, name)),
                });
                messages.push((format!("{component}.{topic}"), message));
            }
            let mut more = json!({
                "summary": format!(
                    "Records that are commands. Which command: {}; to which {name}: {}.",
                    source.command.describe(),
                    source.key.describe()
                ),
                "bindings": group(&source.group),
            });
            if let Some(replies) = &source.reply_to {
                let messages = self.replies(replies, name);
                more["reply"] = json!({"channel": channel(replies), "messages": messages});
            }
            self.operation(&format!("commands.{name}.{topic}"), "receive", topic, messages, more);
        }
        if let Some(topic) = &source.dead_letter {
            self.dead_letters(&format!("aggregate.{name}"), topic);
        }
    }

    fn replies(&mut self, topic: &TopicName, aggregate: &AggregateName) -> Vec<Value> {
        let replies = ["accepted", "refused"].map(|outcome| {
            let message = json!({
                "name": format!("ebbtide.command.{outcome}"),
                "summary": format!("A command to {aggregate} was {outcome}"),
                "contentType": "application/json",
                "headers": headers(&[("ce_type", constant(&format!("ebbtide.command.{outcome}")))]),
                "payload": {"type": "object"},
                "correlationId": correlation(),
                "bindings": key("The key of the record that the command was."),
            });
            (format!("reply.{outcome}"), message)
        });
        self.channel(topic, replies.into())
    }

    fn records_in(&mut self, manifest: &Manifest, consumer: &str, source: &TopicSource) {
        for topic in &source.topics {
            let spec = manifest.topic(topic);
            let message = |event_type: Option<&str>| {
                let fixed = event_type.map_or_else(text, constant);
                let record = Record { spec: &spec, payload: json!({}) };
                json!({
                    "name": event_type.unwrap_or("record"),
                    "headers": selected_header(&spec.event_type, event_type.unwrap_or_default()),
                    "payload": record.payload(&[(&spec.event_type, fixed)]),
                    "bindings": key("Records with one key are dealt with in their order."),
                })
            };
            let messages = match source.types.is_empty() {
                true => vec![(format!("record.{topic}"), message(None))],
                false => source
                    .types
                    .iter()
                    .map(|name| (format!("record.{topic}.{name}"), message(Some(name))))
                    .collect(),
            };
            let summary = format!(
                "Records for {consumer}: CloudEvents in binary or structured mode, or anything else, whose type is {}.",
                spec.event_type.describe()
            );
            let more = json!({"summary": summary, "bindings": group(&source.group)});
            self.operation(&format!("{consumer}.{topic}"), "receive", topic, messages, more);
        }
    }

    fn dead_letters(&mut self, consumer: &str, topic: &TopicName) {
        let message = json!({
            "name": "dead-letter",
            "summary": "A record as it came, and in `ebb-dead-letter-…` headers why it is here",
            "headers": {"type": "object", "properties": {"ebb-dead-letter-reason": text()}},
            "payload": {},
        });
        let summary = format!("What {consumer} has failed on for the last time");
        let messages = vec![("dead-letter".to_owned(), message)];
        self.operation(
            &format!("dead-letters.{consumer}"),
            "send",
            topic,
            messages,
            json!({"summary": summary}),
        );
    }

    fn operation(
        &mut self,
        id: &str,
        action: &str,
        topic: &str,
        messages: Vec<(String, Value)>,
        more: Value,
    ) {
        let messages = self.channel(topic, messages);
        let mut operation = json!({"action": action, "channel": channel(topic), "messages": messages});
        if let (Value::Object(operation), Value::Object(more)) = (&mut operation, more) {
            operation.extend(more);
        }
        self.operations.insert(id.to_owned(), operation);
    }

    /// Puts messages into a topic's channel; gives back where they are in there.
    fn channel(&mut self, topic: &str, messages: Vec<(String, Value)>) -> Vec<Value> {
        let known = self.channels.entry(topic.to_owned()).or_insert_with(|| {
            let binding = json!({"topic": topic, "bindingVersion": KAFKA_BINDING});
            json!({"address": topic, "messages": {}, "bindings": {"kafka": binding}})
        });
        let mut references = Vec::new();
        for (name, message) in messages {
            known["messages"][&name] = json!({"$ref": format!("#/components/messages/{name}")});
            references.push(json!({"$ref": format!("#/channels/{topic}/messages/{name}")}));
            self.messages.insert(name, message);
        }
        references
    }
}

/// What the value of a record that is no CloudEvent looks like.
struct Record<'a> {
    spec: &'a TopicSpec,
    payload: Value,
}

impl Record<'_> {
    /// With what is said about it in fields, beside the data or in it.
    fn payload(self, selected: &[(&Selector, Value)]) -> Value {
        let fields: Map<String, Value> = selected
            .iter()
            .filter_map(|(selector, schema)| match selector {
                Selector::Field(field) => Some((field.clone(), schema.clone())),
                _ => None,
            })
            .collect();
        let required: Vec<&String> = fields.keys().collect();
        let own = json!({"type": "object", "required": required, "properties": fields});
        match (&self.spec.data, fields.is_empty()) {
            (Some(field), true) => {
                json!({"type": "object", "required": [field], "properties": {field: self.payload}})
            }
            (None, true) => self.payload,
            // Where the data is a part of the value, the fields are its own.
            (Some(field), false) => {
                json!({"type": "object", "required": [field], "properties": {field: {"allOf": [self.payload, own]}}})
            }
            (None, false) => json!({"allOf": [self.payload, own]}),
        }
    }
}

fn selected_header(selector: &Selector, value: &str) -> Value {
    let schema = if value.is_empty() { text() } else { constant(value) };
    match selector {
        Selector::Attribute(name) => headers(&[(&format!("ce_{name}"), schema)]),
        Selector::Header(name) => json!({"type": "object", "required": [name], "properties": {name: schema}}),
        _ => json!({"type": "object"}),
    }
}

/// Headers of a CloudEvent in binary mode, some of which are known.
fn headers(known: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> =
        known.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"allOf": [{"$ref": "#/components/schemas/cloudevent"}, {"type": "object", "properties": properties}]})
}

fn cloud_event() -> Value {
    json!({
        "type": "object",
        "description": "A CloudEvent in binary mode: attributes as headers, data as the value.",
        "required": ["ce_specversion", "ce_id", "ce_source", "ce_type"],
        "properties": {
            "ce_specversion": {"const": "1.0"},
            "ce_id": {"type": "string", "minLength": 1},
            "ce_source": {"type": "string", "minLength": 1},
            "ce_type": {"type": "string", "minLength": 1},
            "ce_correlationid": {"type": "string"},
            "ce_hops": {"type": "string", "pattern": "^[0-9]+$"},
            "content-type": {"type": "string"},
            "traceparent": {"type": "string"},
        },
    })
}

fn key_of(selector: &Selector, aggregate: &AggregateName) -> String {
    match selector {
        Selector::Key => format!("Which {aggregate}. Commands to one are dealt with in their order."),
        other => format!("Whatever orders the records; which {aggregate} is said by {}.", other.describe()),
    }
}

fn key(description: &str) -> Value {
    json!({"kafka": {"key": {"type": "string", "description": description}, "bindingVersion": KAFKA_BINDING}})
}

fn group(group: &Text) -> Value {
    json!({"kafka": {"groupId": {"type": "string", "enum": [&**group]}, "bindingVersion": KAFKA_BINDING}})
}

fn channel(topic: &str) -> Value {
    json!({"$ref": format!("#/channels/{topic}")})
}

fn correlation() -> Value {
    json!({"location": "$message.header#/ce_correlationid"})
}

fn constant(text: &str) -> Value {
    json!({"const": text})
}

fn text() -> Value {
    json!({"type": "string"})
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
[app]
name = "shop"
relay = { mode = "at-least-once", topics = { account = "accounts" } }

[topic.payments]
type = { field = "kind" }
data = { field = "payload" }

[aggregate.account]
module = "account.wasm"
commands = { open = "open.json", close = {} }
events = { Opened = { version = 2, schema = "opened.json" }, Closed = {} }
source = { topics = ["orders"], key = { field = "account" }, reply-to = "replies", dead-letter = "dead" }

[aggregate.basket]
module = "basket.wasm"
commands = { fill = {} }
events = { Filled = {} }
source = { topics = ["orders"], command = "fill" }

[model.totals]
key = "id"
columns = { id = "text", total = "integer" }

[projection.totals]
module = "totals.wasm"
models = ["totals"]
source = { topics = ["payments"], types = ["Paid", "Refunded"], group = "totals" }

[function.tell]
module = "tell.wasm"
trigger = { events = { topics = ["payments"], dead-letter = "dead" } }
"#;

    fn shop() -> Value {
        let manifest = Manifest::parse(SHOP).unwrap_or_else(|problems| panic!("{problems}"));
        let open = json!({"type": "object", "properties": {"owner": {"$ref": "#/$defs/name"}}, "$defs": {"name": {"type": "string"}}});
        asyncapi(&manifest, &[(PathBuf::from("open.json"), open)].into(), true)
    }

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = shop();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
    }

    #[test]
    fn a_topic_is_one_channel_whoever_uses_it_and_each_use_is_an_operation() {
        let document = shop();
        let operations: Vec<String> = (document["operations"].as_object().unwrap().iter())
            .map(|(id, operation)| {
                let channel =
                    operation["channel"]["$ref"].as_str().unwrap().trim_start_matches("#/channels/");
                let own = format!("#/channels/{channel}/messages/");
                let messages = operation["messages"].as_array().unwrap();
                let names = messages
                    .iter()
                    .map(|message| message["$ref"].as_str().unwrap().strip_prefix(&own).unwrap());
                let names = names.collect::<Vec<_>>().join(", ");
                format!("{} {channel}: {id} ({names})", operation["action"].as_str().unwrap())
            })
            .collect();
        insta::assert_snapshot!(operations.join("\n"), @r"
        receive orders: commands.account.orders (command.account.close.orders, command.account.open.orders)
        receive orders: commands.basket.orders (command.basket.fill.orders)
        send dead: dead-letters.aggregate.account (dead-letter)
        send dead: dead-letters.function.tell (dead-letter)
        send accounts: events.account (event.account.Closed, event.account.Opened)
        send shop.basket: events.basket (event.basket.Filled)
        receive payments: function.tell.payments (record.payments)
        receive payments: projection.totals.payments (record.payments.Paid, record.payments.Refunded)
        ");
        assert_eq!(
            document["operations"]["projection.totals.payments"]["bindings"]["kafka"]["groupId"]["enum"],
            json!(["totals"])
        );
        assert_eq!(
            document["operations"]["commands.account.orders"]["reply"]["channel"]["$ref"],
            "#/channels/replies"
        );
    }

    #[test]
    fn a_message_says_where_its_command_key_and_data_stand() {
        let messages = shop()["components"]["messages"].clone();
        let open = &messages["command.account.open.orders"];
        assert_eq!(open["headers"]["allOf"][1]["properties"]["ce_type"], json!({"const": "open"}));
        assert_eq!(open["payload"]["allOf"][0], json!({"$ref": "#/components/schemas/command.account.open"}));
        assert_eq!(open["payload"]["allOf"][1]["required"], json!(["account"]));
        assert_eq!(messages["command.basket.fill.orders"]["payload"], json!({}));
        let paid = &messages["record.payments.Paid"]["payload"]["properties"]["payload"]["allOf"][1];
        assert_eq!(paid["properties"]["kind"], json!({"const": "Paid"}));
    }

    #[test]
    fn an_app_that_says_nothing_of_kafka_sends_its_events_where_there_are_brokers() {
        let manifest = Manifest::parse(include_str!("../tests/manifests/flights.toml")).unwrap();
        let channels = |brokers| asyncapi(&manifest, &BTreeMap::new(), brokers)["channels"].clone();
        assert_eq!(channels(false), json!({}));
        assert!(channels(true).get("flights.flight").is_some(), "{}", channels(true));
    }
}
