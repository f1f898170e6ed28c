//! `GET /openapi.json`: what an app offers on the data plane, from its manifest, as OpenAPI 3.1.

use crate::manifest::function::HttpMethod;
use crate::manifest::{AggregateSpec, CommandSpec, HttpTrigger, Manifest, ModelSpec, Trigger};
use crate::model::ColumnType;
use crate::name::{CommandName, FunctionName, ModelName};
use crate::route::Route;
use crate::stream::MAX_KEY_BYTES;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Query parameters of a model that are not columns; a column of the same name is compared as `limit.eq`.
const RESERVED_PARAMETERS: [&str; 3] = ["order", "limit", "cursor"];

/// What may go wrong, by status: the codes that `problem+json` carries.
const PROBLEMS: &[(&str, &str)] = &[
    ("400", "The request is malformed: the path, a parameter, a header, or a body that is not JSON."),
    ("401", "A token is needed, or the one shown is not accepted."),
    ("403", "The actor, or the page's origin, may not do this."),
    ("404", "There is nothing of this name."),
    (
        "409",
        "The stream is at another revision than `If-Match` says, a request with the same key is being decided, or \
             `Ebb-After` names a position that the log has never reached.",
    ),
    ("413", "The body is larger than the limit."),
    ("415", "The body is not of a type that this path takes."),
    (
        "422",
        "The module refused the command (`code` is its own), the body breaks the command's schema, or the \
             idempotency key was used for another request.",
    ),
    ("429", "Too many requests at once; try again after `Retry-After` seconds."),
    ("500", "The module trapped, or decided what it may not."),
    (
        "503",
        "Overloaded, the disk is full, the outcome is not known, or the projection has not got as far as \
             `Ebb-After`; try again after `Retry-After` seconds, with the same idempotency key.",
    ),
    ("504", "The module took longer than its limit."),
];

/// Describes an app. `schemas` has the JSON Schema files that the manifest refers to, by the path it refers to them
/// with; a command whose schema is not there takes any JSON.
#[must_use]
pub fn openapi(manifest: &Manifest, schemas: &BTreeMap<PathBuf, Value>) -> Value {
    let mut document = Document { schemas: SchemaFiles { components: common_schemas(), files: schemas } };
    let mut paths = Map::new();
    for (name, aggregate) in &manifest.aggregates {
        for (command, spec) in &aggregate.commands {
            let path = format!("/commands/{name}/{{id}}/{command}");
            paths.insert(path, json!({"post": document.command(aggregate, command, spec)}));
        }
    }
    paths.insert("/command-log/{id}".into(), json!({"get": command_log()}));
    paths.insert("/streams/{stream}".into(), json!({"get": stream()}));
    paths.insert("/events".into(), json!({"get": events(manifest)}));
    for (name, model) in &manifest.models {
        let row = document.row(name, model);
        paths.insert(format!("/models/{name}/{{key}}"), json!({"get": model_row(name, &row)}));
        paths.insert(format!("/models/{name}"), json!({"get": model_query(name, model, &row)}));
    }
    functions(manifest, &mut paths);
    let mut servers = vec![json!({"url": format!("/apps/{}", manifest.name)})];
    if !manifest.hosts.is_empty() {
        let description = format!("Requests for {}", manifest.hosts.join(", "));
        servers.push(json!({"url": "/", "description": description}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": &*manifest.name, "version": "1"},
        "servers": servers,
        "security": [{}, {"bearer": []}],
        "tags": tags(manifest),
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "parameters": common_parameters(),
            "headers": common_headers(),
            "responses": problem_responses(),
            "schemas": document.schemas.components,
        },
    })
}

/// What components are collected in on the way.
struct Document<'a> {
    schemas: SchemaFiles<'a>,
}

/// The schemas of a document, some of which are files that the manifest refers to.
pub(crate) struct SchemaFiles<'a> {
    pub(crate) components: Map<String, Value>,
    pub(crate) files: &'a BTreeMap<PathBuf, Value>,
}

impl SchemaFiles<'_> {
    /// A schema file as a component, its references to itself moved along.
    pub(crate) fn file(&mut self, name: &str, file: &Path) -> Value {
        let Some(contents) = self.files.get(file) else { return json!({}) };
        let mut contents = contents.clone();
        if let Value::Object(keywords) = &mut contents {
            keywords.remove("$id");
        }
        rebase(&mut contents, &format!("#/components/schemas/{name}"));
        self.components.insert(name.to_owned(), contents);
        schema(name)
    }
}

impl Document<'_> {
    fn command(&mut self, aggregate: &AggregateSpec, name: &CommandName, spec: &CommandSpec) -> Value {
        let body = match &spec.schema {
            Some(file) => self.schemas.file(&format!("command.{}.{name}", aggregate.name), file),
            None => json!({}),
        };
        let reply = self.reply(aggregate);
        let mut answers =
            responses(&["400", "401", "403", "404", "409", "413", "415", "422", "429", "500", "503", "504"]);
        answers.insert(
            "200".into(),
            json!({
                "description": "Decided, and durable. `events` is empty if nothing had to happen.",
                "headers": headers(&["Ebb-Position", "Ebb-Command-Id", "Ebb-Replayed"]),
                "content": {"application/json": {"schema": reply}},
            }),
        );
        json!({
            "operationId": format!("{}.{name}", aggregate.name),
            "summary": format!("Send `{name}` to one {}", aggregate.name),
            "tags": [format!("aggregate {}", aggregate.name)],
            "parameters": [
                {
                    "name": "id", "in": "path", "required": true,
                    "description": format!("Which {}: percent-encoded once, a slash as `%2F`.", aggregate.name),
                    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES},
                },
                parameter("If-Match"),
                parameter("If-None-Match"),
                parameter("Idempotency-Key"),
                parameter("Ebb-Correlation-Id"),
                parameter("Ebb-Causation-Id"),
            ],
            "requestBody": {
                "required": spec.schema.is_some(),
                "content": {"application/json": {"schema": body}},
            },
            "responses": answers,
        })
    }

    /// The answer to a command of this aggregate; a component, with the data of the events it may decide.
    fn reply(&mut self, aggregate: &AggregateSpec) -> Value {
        let name = format!("reply.{}", aggregate.name);
        if !self.schemas.components.contains_key(&name) {
            let events: Vec<Value> = (aggregate.events.iter())
                .map(|(event, spec)| {
                    let data = match &spec.schema {
                        Some(file) => self.schemas.file(&format!("event.{}.{event}", aggregate.name), file),
                        None => json!({}),
                    };
                    json!({
                        "type": "object",
                        "required": ["id", "type", "revision", "position", "data"],
                        "properties": {
                            "id": {"type": "string", "format": "uuid"},
                            "type": {"const": &**event},
                            "revision": number("Place in the stream, from 0.", 0),
                            "position": number("Place in the app's log, from 1.", 1),
                            "data": data,
                        },
                    })
                })
                .collect();
            let reply = json!({
                "type": "object",
                "required": ["stream", "revision", "position", "events"],
                "properties": {
                    "stream": {"type": "string"},
                    "revision": {"type": ["integer", "null"], "minimum": 0, "description": "Of the stream's last event."},
                    "position": {"type": ["integer", "null"], "minimum": 1, "description": "Of its last event; null if it has none."},
                    "events": {"type": "array", "items": {"oneOf": events}},
                },
            });
            self.schemas.components.insert(name.clone(), reply);
        }
        schema(&name)
    }

    fn row(&mut self, name: &ModelName, model: &ModelSpec) -> Value {
        let columns = &model.schema.columns;
        let properties: Map<String, Value> = (columns.iter())
            .map(|(column, kind)| {
                let schema = match kind {
                    ColumnType::Text if *column == model.schema.key => json!({"type": "string"}),
                    ColumnType::Json => json!({"description": "Any JSON."}),
                    other => json!({"type": [type_name(*other), "null"]}),
                };
                (column.to_string(), schema)
            })
            .collect();
        let required: Vec<&str> = columns.keys().map(|column| &**column).collect();
        let component = format!("model.{name}");
        let row = json!({
            "type": "object", "required": required, "properties": properties, "additionalProperties": false,
        });
        self.schemas.components.insert(component.clone(), row);
        schema(&component)
    }
}

/// Makes `#/$defs/x` mean the same once the schema is part of a larger document. As deep as the JSON parser let it
/// be.
fn rebase(value: &mut Value, base: &str) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, base)),
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                match (keyword.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        if let Some(rest) =
                            target.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'))
                        {
                            *target = format!("{base}{rest}");
                        }
                    }
                    // Data, which may look like anything.
                    ("enum" | "const" | "default" | "examples", _) => {}
                    (_, value) => rebase(value, base),
                }
            }
        }
        _ => {}
    }
}

/// Functions by the shape of their routes: paths that differ in their parameters' names only are one path to OpenAPI.
fn functions(manifest: &Manifest, paths: &mut Map<String, Value>) {
    let mut by_shape: BTreeMap<String, (&HttpTrigger, Map<String, Value>)> = BTreeMap::new();
    for (name, function) in &manifest.functions {
        let Trigger::Http(http) = &function.trigger else { continue };
        let (first, operations) = by_shape.entry(http.route.shape()).or_insert_with(|| (http, Map::new()));
        for method in http.methods.iter() {
            let operation = function_operation(name, &first.route, method);
            let listed = http.methods.0.as_ref().is_some_and(|methods| methods.contains(&method));
            let method = method.as_str().to_ascii_lowercase();
            // A `HEAD` that another function lists goes before one that is only implied.
            if listed || !operations.contains_key(&method) {
                operations.insert(method, operation);
            }
        }
    }
    for (http, operations) in by_shape.into_values() {
        paths.insert(http.route.template(), operations.into());
    }
}

fn function_operation(name: &FunctionName, route: &Route, method: HttpMethod) -> Value {
    let parameters: Vec<Value> = (route.parameters())
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let mut answers = responses(&["401", "403", "413", "429", "500", "503", "504"]);
    answers.insert("default".into(), json!({"description": "What the function answers."}));
    json!({
        "operationId": format!("function.{name}.{}", method.as_str().to_ascii_lowercase()),
        "summary": format!("Call `{name}`"),
        "tags": [format!("function {name}")],
        "parameters": parameters,
        "responses": answers,
    })
}

fn command_log() -> Value {
    let mut answers = responses(&["400", "401", "403", "404", "503"]);
    answers.insert(
        "200".into(),
        json!({
            "description": "What became of the command.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }),
    );
    json!({
        "operationId": "command-log.get",
        "summary": "The outcome of a command, by the `Ebb-Command-Id` of its answer",
        "tags": ["log"],
        "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string", "format": "uuid"}}],
        "responses": answers,
    })
}

fn stream() -> Value {
    let mut answers = responses(&["400", "401", "403", "404", "503"]);
    answers.insert("200".into(), page_of_events("Events of the stream, by revision.", false));
    json!({
        "operationId": "streams.read",
        "summary": "Events of one stream",
        "tags": ["log"],
        "parameters": [
            {
                "name": "stream", "in": "path", "required": true, "description": "`aggregate-id`, percent-encoded once.",
                "schema": {"type": "string"},
            },
            query("from", &number("The first revision wanted.", 0)),
            parameter("limit"),
        ],
        "responses": answers,
    })
}

fn events(manifest: &Manifest) -> Value {
    let types: std::collections::BTreeSet<&str> = manifest
        .aggregates
        .values()
        .flat_map(|aggregate| aggregate.events.keys())
        .map(|name| &**name)
        .collect();
    let mut answers = responses(&["400", "401", "403", "409", "503"]);
    answers.insert("200".into(), page_of_events("Events of the app, by position.", true));
    json!({
        "operationId": "events.read",
        "summary": "Events of the app; live with `Accept: text/event-stream`",
        "tags": ["log"],
        "parameters": [
            query("after", &number("The last position that is known already.", 0)),
            parameter("limit"),
            {
                "name": "types", "in": "query", "description": "Only events of these types.",
                "style": "form", "explode": false,
                "schema": {"type": "array", "items": {"type": "string", "examples": types}},
            },
            {
                "name": "Last-Event-ID", "in": "header",
                "description": "Where a broken live stream goes on: the position of the last event received.",
                "schema": {"type": "integer", "minimum": 0},
            },
        ],
        "responses": answers,
    })
}

fn page_of_events(description: &str, live: bool) -> Value {
    let page = json!({"schema": {
        "type": "object",
        "required": ["events", "next"],
        "properties": {
            "events": {"type": "array", "items": schema("cloud-event")},
            "next": {"type": ["integer", "null"], "description": "Where the next page starts; null at the end."},
        },
    }});
    let mut content = json!({"application/json": page});
    if live {
        content["text/event-stream"] = json!({"schema": {
            "type": "string",
            "description": "`id` is the position, `event` the type, `data` a CloudEvent. A comment with an id every 15 \
                            seconds keeps the connection alive.",
        }});
    }
    json!({"description": description, "headers": headers(&["Ebb-Position"]), "content": content})
}

fn model_row(name: &ModelName, row: &Value) -> Value {
    let mut answers = responses(&["400", "401", "403", "404", "409", "503"]);
    answers.insert(
        "200".into(),
        json!({
            "description": "The row.",
            "headers": headers(&["Ebb-Position", "Ebb-Lag", "Ebb-Parked"]),
            "content": {"application/json": {"schema": row}},
        }),
    );
    json!({
        "operationId": format!("models.{name}.get"),
        "summary": format!("One row of `{name}`"),
        "tags": [format!("model {name}")],
        "parameters": [
            {"name": "key", "in": "path", "required": true, "schema": {"type": "string"}},
            parameter("Ebb-After"), parameter("Ebb-Wait"), parameter("Ebb-Allow-Parked"),
        ],
        "responses": answers,
    })
}

fn model_query(name: &ModelName, model: &ModelSpec, row: &Value) -> Value {
    let mut answers = responses(&["400", "401", "403", "404", "409", "503"]);
    answers.insert(
        "200".into(),
        json!({
            "description": "Rows. One whose order columns don't change is neither skipped nor repeated between pages.",
            "headers": headers(&["Ebb-Position", "Ebb-Lag", "Ebb-Parked"]),
            "content": {"application/json": {"schema": {
                "type": "object",
                "required": ["items", "next"],
                "properties": {
                    "items": {"type": "array", "items": row},
                    "next": {"type": ["string", "null"], "description": "The `cursor` of the next page; null at the end."},
                },
            }}},
        }),
    );
    let columns = model.schema.columns.iter();
    let mut parameters: Vec<Value> =
        columns.clone().flat_map(|(column, kind)| comparisons(column, *kind)).collect();
    let sortable: Vec<&str> =
        columns.filter(|(_, kind)| **kind != ColumnType::Json).map(|(column, _)| &**column).collect();
    let order = format!(
        "Columns, the most significant first, with `-` in front for the largest first: of {}. The key comes last of itself.",
        sortable.join(", ")
    );
    parameters.push(query("order", &json!({"type": "string", "description": order})));
    parameters.push(parameter("limit"));
    parameters.push(query("cursor", &json!({"type": "string", "description": "`next` of the page before."})));
    parameters.extend([parameter("Ebb-After"), parameter("Ebb-Wait"), parameter("Ebb-Allow-Parked")]);
    json!({
        "operationId": format!("models.{name}.query"),
        "summary": format!("Rows of `{name}`"),
        "tags": [format!("model {name}")],
        "parameters": parameters,
        "responses": answers,
    })
}

/// The ways in which a column can be asked for.
fn comparisons(column: &str, kind: ColumnType) -> Vec<Value> {
    let operators: &[&str] = match kind {
        ColumnType::Json => &[],
        ColumnType::Boolean => &["eq", "ne"],
        _ => &["eq", "ne", "gt", "gte", "lt", "lte"],
    };
    let value = json!({"type": type_name(kind)});
    let mut parameters: Vec<Value> = (operators.iter())
        .map(|operator| match *operator {
            "eq" if !RESERVED_PARAMETERS.contains(&column) => query(column, &value),
            operator => query(&format!("{column}.{operator}"), &value),
        })
        .collect();
    parameters.push(query(&format!("{column}.is"), &json!({"enum": ["null", "not-null"]})));
    parameters
}

fn type_name(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text | ColumnType::Json => "string",
        ColumnType::Integer => "integer",
        ColumnType::Real => "number",
        ColumnType::Boolean => "boolean",
    }
}

fn tags(manifest: &Manifest) -> Vec<Value> {
    let aggregates = manifest.aggregates.keys().map(|name| {
        json!({"name": format!("aggregate {name}"), "description": format!("Commands to streams `{name}-…`.")})
    });
    let log = json!({"name": "log", "description": "Events as they were recorded."});
    let models = manifest.models.keys().map(|name| {
        let writer = manifest
            .writer_of(name)
            .map(|projection| format!("Written by projection `{}`.", projection.name));
        json!({"name": format!("model {name}"), "description": writer.unwrap_or_default()})
    });
    aggregates.chain([log]).chain(models).collect()
}

fn common_schemas() -> Map<String, Value> {
    let problem = json!({
        "description": "RFC 9457.",
        "type": "object",
        "required": ["title", "status", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "description": "Stable, for programs."},
            "hint": {"type": "string", "description": "What to do."},
        },
    });
    let text = json!({"type": "string"});
    let cloud_event = json!({
        "description": "CloudEvents 1.0.",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "position", "sequence"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string", "format": "uuid"},
            "source": {"type": "string", "description": "`urn:ebbtide:{app}`."},
            "type": text,
            "subject": {"type": "string", "description": "The stream."},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": text,
            "position": number("Place in the app's log, from 1.", 1),
            "sequence": number("Place in the stream, from 0.", 0),
            "schemaversion": number("The version of this type when it was recorded.", 1),
            "partitionkey": text,
            "commandid": {"type": "string", "format": "uuid"},
            "correlationid": text,
            "causationid": text,
            "hops": number("Functions and topics between it and what began its chain; not there where none do.", 1),
            "actor": text,
            "traceparent": text,
            "module": {"type": "string", "description": "SHA-256 of the module that decided it."},
            "data": {"description": "The event's data, where it is JSON."},
            "data_base64": {"type": "string", "description": "The event's data, where it is not JSON."},
        },
    });
    Map::from_iter([("problem".to_owned(), problem), ("cloud-event".to_owned(), cloud_event)])
}

fn common_parameters() -> Value {
    let header = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "header", "description": description, "schema": schema});
    json!({
        "If-Match": header(
            "If-Match",
            "The revision that the stream's last event must have; `*`: that there is one.",
            json!({"type": "string", "examples": ["4", "*"]}),
        ),
        "If-None-Match": header("If-None-Match", "`*`: the stream must have no events.", json!({"const": "*"})),
        "Idempotency-Key": header(
            "Idempotency-Key",
            "The same key gives the same answer for 24 hours, refusals included.",
            json!({"type": "string", "minLength": 1, "maxLength": 255}),
        ),
        "Ebb-Correlation-Id": header(
            "Ebb-Correlation-Id",
            "Ties together everything that one outside cause leads to.",
            json!({"type": "string"}),
        ),
        "Ebb-Causation-Id": header(
            "Ebb-Causation-Id",
            "The event or command that led to this command.",
            json!({"type": "string"}),
        ),
        "Ebb-After": header(
            "Ebb-After",
            "Wait until the projection has passed this position: the `Ebb-Position` of a command's answer.",
            json!({"type": "integer", "minimum": 0}),
        ),
        "Ebb-Wait": header(
            "Ebb-Wait",
            "How long to wait for `Ebb-After` before the answer is 503; by default 2s.",
            json!({"type": "string", "examples": ["500ms"]}),
        ),
        "Ebb-Allow-Parked": header(
            "Ebb-Allow-Parked",
            "Answer although a key is parked at or below `Ebb-After`.",
            json!({"type": "boolean"}),
        ),
        "limit": query("limit", &json!({
            "type": "integer", "minimum": 1, "maximum": 1000, "default": 100, "description": "Items at most.",
        })),
    })
}

fn common_headers() -> Value {
    let header =
        |description: &str, kind: &str| json!({"description": description, "schema": {"type": kind}});
    json!({
        "Ebb-Position": header("The position that the answer is as new as.", "integer"),
        "Ebb-Command-Id": header("The command's id, for `/command-log/{id}`.", "string"),
        "Ebb-Replayed": header("`true` if this is the answer to an earlier request with the same key.", "boolean"),
        "Ebb-Lag": header("How many events the projection is behind the log.", "integer"),
        "Ebb-Parked": header("How many keys of the projection are parked.", "integer"),
        "Retry-After": header("Seconds to wait before the next try.", "integer"),
    })
}

fn problem_responses() -> Map<String, Value> {
    let response = |(status, description): &(&str, &str)| {
        let mut response = json!({
            "description": description,
            "content": {"application/problem+json": {"schema": schema("problem")}},
        });
        if matches!(*status, "429" | "503") {
            response["headers"] = headers(&["Retry-After"]);
        }
        (format!("problem-{status}"), response)
    };
    PROBLEMS.iter().map(response).collect()
}

fn responses(statuses: &[&str]) -> Map<String, Value> {
    let reference = |status: &&str| {
        ((*status).to_owned(), json!({"$ref": format!("#/components/responses/problem-{status}")}))
    };
    statuses.iter().map(reference).collect()
}

fn headers(names: &[&str]) -> Value {
    let reference =
        |name: &&str| ((*name).to_owned(), json!({"$ref": format!("#/components/headers/{name}")}));
    Value::Object(names.iter().map(reference).collect())
}

fn parameter(name: &str) -> Value {
    json!({"$ref": format!("#/components/parameters/{name}")})
}

fn query(name: &str, schema: &Value) -> Value {
    json!({"name": name, "in": "query", "schema": schema})
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn number(description: &str, least: u64) -> Value {
    json!({"type": "integer", "minimum": least, "description": description})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::JsonSchema;
    use std::collections::BTreeSet;

    fn flights() -> Value {
        let manifest = Manifest::parse(include_str!("../tests/manifests/flights.toml")).unwrap();
        let schedule = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.org/schedule.json",
            "type": "object",
            "required": ["origin", "dest"],
            "properties": {"origin": {"$ref": "#/$defs/airport"}, "dest": {"$ref": "#/$defs/airport"}},
            "$defs": {"airport": {"type": "string", "pattern": "^[A-Z]{3}$"}},
        });
        let scheduled = json!({"type": "object", "enum": [{"$ref": "#/untouched"}]});
        let files = [("schemas/schedule.json", schedule), ("schemas/scheduled.json", scheduled)];
        openapi(&manifest, &files.map(|(path, schema)| (PathBuf::from(path), schema)).into())
    }

    fn everything() -> Value {
        let manifest = Manifest::parse(include_str!("../tests/manifests/everything.toml")).unwrap();
        openapi(&manifest, &BTreeMap::new())
    }

    fn operations(document: &Value) -> Vec<(&String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        paths
            .iter()
            .flat_map(|(path, item)| item.as_object().unwrap().values().map(move |o| (path, o)))
            .collect()
    }

    fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(target) => {
                document.pointer(&target[1..]).unwrap_or_else(|| panic!("{target} leads nowhere"))
            }
            None => value,
        }
    }

    #[test]
    fn the_description_of_flights() {
        insta::assert_json_snapshot!(flights());
    }

    #[test]
    fn every_parameter_of_a_path_is_described_and_none_twice() {
        for document in [flights(), everything()] {
            for (path, operation) in operations(&document) {
                let parameters = operation["parameters"].as_array().unwrap();
                let mut seen = BTreeSet::new();
                for parameter in parameters.iter().map(|parameter| resolve(&document, parameter)) {
                    let name = parameter["name"].as_str().unwrap();
                    assert!(
                        seen.insert((name, parameter["in"].as_str().unwrap())),
                        "{path}: {name} is there twice"
                    );
                    assert!(parameter["schema"].is_object());
                    assert_eq!(
                        parameter["in"] == "path",
                        path.contains(&format!("{{{name}}}")),
                        "{path}: {name}"
                    );
                }
                assert_eq!(
                    path.matches('{').count(),
                    seen.iter().filter(|(_, place)| *place == "path").count()
                );
            }
        }
    }

    #[test]
    fn every_operation_has_an_id_of_its_own_and_described_responses() {
        for document in [flights(), everything()] {
            let mut ids = BTreeSet::new();
            for (path, operation) in operations(&document) {
                assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{path}");
                let responses = operation["responses"].as_object().unwrap();
                assert!(responses.contains_key("200") || responses.contains_key("default"));
                for response in responses.values().map(|response| resolve(&document, response)) {
                    assert!(response["description"].is_string());
                    for header in response["headers"].as_object().into_iter().flat_map(Map::values) {
                        assert!(resolve(&document, header)["schema"].is_object());
                    }
                }
            }
        }
    }

    /// The schema of a component, as a validator sees it: with the whole document around it.
    fn component(document: &Value, name: &str) -> JsonSchema {
        let mut whole = document.clone();
        whole["$ref"] = format!("#/components/schemas/{name}").into();
        JsonSchema::compile(&whole).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[test]
    fn every_component_is_a_schema_whose_references_lead_somewhere() {
        for document in [flights(), everything()] {
            for name in document["components"]["schemas"].as_object().unwrap().keys() {
                component(&document, name);
            }
        }
    }

    #[test]
    fn a_schema_file_means_the_same_inside_the_document() {
        let document = flights();
        let schedule = component(&document, "command.flight.schedule");
        assert!(schedule.validate(br#"{"origin": "EWR", "dest": "LAX"}"#).is_ok());
        assert!(schedule.validate(br#"{"origin": "ewr", "dest": "LAX"}"#).is_err());
        let untouched = &document["components"]["schemas"]["event.flight.Scheduled"]["enum"][0]["$ref"];
        assert_eq!(untouched, "#/untouched", "data that looks like a reference");
    }

    #[test]
    fn a_row_has_the_columns_of_its_model_and_the_key_is_never_null() {
        let document = everything();
        let row = component(&document, "model.orders");
        assert!(
            row.validate(br#"{"order": "1", "total": null, "paid": true, "lines": [1], "placed": 3}"#)
                .is_ok()
        );
        assert!(
            row.validate(br#"{"order": null, "total": 1.5, "paid": true, "lines": [], "placed": 3}"#)
                .is_err()
        );
        assert!(row.validate(br#"{"order": "1"}"#).is_err());
    }

    #[test]
    fn a_column_that_is_named_like_a_parameter_is_compared_by_its_operator() {
        let document = everything();
        let parameters = document["paths"]["/models/orders"]["get"]["parameters"].as_array().unwrap();
        let names: Vec<&str> = parameters.iter().filter_map(|parameter| parameter["name"].as_str()).collect();
        assert!(names.contains(&"order.eq") && names.contains(&"order.is") && names.contains(&"placed"));
        assert_eq!(names.iter().filter(|name| **name == "order").count(), 1, "the order of the rows");
        assert!(names.contains(&"lines.is") && !names.contains(&"lines"), "JSON is not compared");
    }
}
