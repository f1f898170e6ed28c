//! JSON Schema: compiled once at deploy, then asked about each body.
//!
//! Draft 2020-12 unless `$schema` names another; `format` is asserted. A schema stands alone: a `$ref` stays within it.
//!
//! Promise: neither a schema nor a body makes a check run without end. Patterns run in linear time, a schema that
//! refers to itself without descending into the body is refused, and so is a body for which the schema's branches
//! multiply beyond [`MAX_STEPS`], or would nest beyond what a thread's stack holds.

use serde::Serialize;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::fmt;
use thiserror::Error;

/// A schema file at most: 256 KiB.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// Schemas applied to parts of one body, at most, by the estimate that is made before it is checked.
pub const MAX_STEPS: u64 = 100_000_000;

/// Schemas applied within one another, at most. The validator recurses, and an overflowing stack would end the
/// process: two million bytes of it hold some 40,000 of the leanest kind, and kinds differ.
const MAX_NESTING: u64 = 2000;

/// How deep a body may be nested: what the JSON parser takes.
const MAX_DEPTH: usize = 128;

/// Violations in one answer.
const MAX_VIOLATIONS: usize = 20;

/// Characters of a violation's message, and of a value that it quotes.
const MAX_MESSAGE: usize = 300;
const MAX_QUOTED_VALUE: usize = 60;

/// Why a schema was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SchemaError {
    /// Larger than [`MAX_SCHEMA_BYTES`].
    #[error("it has {0} bytes, more than the limit of {MAX_SCHEMA_BYTES}")]
    TooLarge(usize),
    /// Not JSON.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    /// A reference that leaves the file, or goes nowhere in it.
    #[error("`{keyword}: {target}`: {problem}")]
    BadReference {
        /// `$ref`, `$id`…
        keyword: &'static str,
        /// What stands there.
        target: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The schema applies itself to the same value again, which would never end.
    #[error(
        "a schema refers to itself without going down into a property or an item, so checking would never end"
    )]
    Endless,
    /// Even a flat body would take too much to check.
    #[error("its branches multiply, or nest, beyond what can be checked for any body")]
    TooComplex,
    /// A keyword has a value that the draft does not allow, or a pattern is not a regular expression.
    #[error("at `{pointer}`: {message}")]
    Invalid {
        /// JSON pointer of the place.
        pointer: String,
        /// What is wrong with it.
        message: String,
    },
}

/// One way in which a body breaks its schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// JSON pointer to the value (RFC 6901); empty for the whole body.
    pub pointer: String,
    /// What is wrong with it, for people.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.pointer {
            "" => write!(f, "{}", self.message),
            pointer => write!(f, "{pointer}: {}", self.message),
        }
    }
}

/// Why a body was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidBody {
    /// Not JSON, or nested deeper than 128.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// Checking it would take more than [`MAX_STEPS`], or more stack than there is.
    #[error("the body is too large and too deeply nested ({depth} levels) for its schema to be checked")]
    TooComplex {
        /// Levels of lists and objects in it.
        depth: usize,
    },
    /// It breaks the schema in these ways: at least one, at most 20.
    #[error("the body breaks its schema: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Violations(Vec<Violation>),
}

/// A compiled schema.
pub struct JsonSchema {
    validator: jsonschema::Validator,
    /// By the body's depth.
    costs: Vec<Cost>,
}

/// What checking a body of some depth takes at most.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Schemas applied on the way from the top to a leaf.
    steps: u64,
    /// Schemas applied within one another.
    nesting: u64,
}

impl Cost {
    /// Whether a body with this many values may be checked.
    fn is_bearable(self, parts: u64) -> bool {
        self.steps.saturating_mul(parts) <= MAX_STEPS && self.nesting <= MAX_NESTING
    }
}

impl fmt::Debug for JsonSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonSchema").finish_non_exhaustive()
    }
}

impl JsonSchema {
    /// Compiles the text of a schema.
    ///
    /// # Errors
    /// It is not JSON, not a schema, or refers to what is not in it.
    pub fn from_slice(text: &[u8]) -> Result<Self, SchemaError> {
        if text.len() > MAX_SCHEMA_BYTES {
            return Err(SchemaError::TooLarge(text.len()));
        }
        let schema = serde_json::from_slice(text).map_err(|error| SchemaError::NotJson(error.to_string()))?;
        Self::compile(&schema)
    }

    /// Compiles a schema.
    ///
    /// # Errors
    /// It is not a schema, or refers to what is not in it.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        let costs = Graph::costs_of(schema)?;
        if costs.get(1).is_none_or(|flat| !flat.is_bearable(1)) {
            return Err(SchemaError::TooComplex);
        }
        let validator = jsonschema::options()
            .offline()
            .should_validate_formats(true)
            // Linear in the text; the default engine backtracks, which a caller could exploit.
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(schema)
            .map_err(|error| SchemaError::Invalid {
                pointer: error.instance_path().to_string(),
                message: cut(&error.to_string(), MAX_MESSAGE),
            })?;
        Ok(Self { validator, costs })
    }

    /// Checks a body, and gives it back as JSON.
    ///
    /// # Errors
    /// It is not JSON, or breaks the schema.
    pub fn validate(&self, body: &[u8]) -> Result<Value, InvalidBody> {
        let value: Value =
            serde_json::from_slice(body).map_err(|error| InvalidBody::NotJson(error.to_string()))?;
        let (depth, parts) = measure(&value);
        match self.costs.get(depth) {
            Some(cost) if cost.is_bearable(parts) => {}
            _ => return Err(InvalidBody::TooComplex { depth }),
        }
        if self.validator.is_valid(&value) {
            return Ok(value);
        }
        let violations = self.validator.iter_errors(&value).take(MAX_VIOLATIONS).map(|error| Violation {
            pointer: cut(&error.instance_path().to_string(), MAX_MESSAGE),
            message: cut(&error.masked_with(quote(error.instance())).to_string(), MAX_MESSAGE),
        });
        Err(InvalidBody::Violations(violations.collect()))
    }
}

/// A value for a message: its JSON if that is short, else its beginning or what it is.
fn quote(value: &Value) -> String {
    match value {
        Value::Object(fields) => format!("an object with {} fields", fields.len()),
        Value::Array(items) => format!("a list with {} items", items.len()),
        Value::String(text) => {
            let mut quoted = Value::from(text.chars().take(MAX_QUOTED_VALUE).collect::<String>()).to_string();
            if text.chars().nth(MAX_QUOTED_VALUE).is_some() {
                quoted.push('…');
            }
            quoted
        }
        scalar => scalar.to_string(),
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Levels of lists and objects, and how many values there are. As deep as the parser let it be.
fn measure(value: &Value) -> (usize, u64) {
    let join = |(depth, parts): (usize, u64), child: &Value| {
        let (below, more) = measure(child);
        (depth.max(below + 1), parts + more)
    };
    match value {
        Value::Array(items) => items.iter().fold((0, 1), join),
        Value::Object(fields) => fields.values().fold((0, 1), join),
        _ => (0, 1),
    }
}

/// Which subschemas apply which, for an estimate of the cost from above.
struct Graph<'s> {
    root: &'s Value,
    nodes: Vec<Node>,
    /// Subschemas by their address.
    known: HashMap<*const Value, usize>,
    anchors: HashMap<&'s str, &'s Value>,
}

/// How one subschema applies others.
#[derive(Default)]
struct Node {
    /// To the same value.
    same: Vec<usize>,
    /// To values one level down: of the schemas of a group, one; of groups of an alternative, all; of alternatives,
    /// one.
    below: Vec<Vec<Vec<usize>>>,
}

impl<'s> Graph<'s> {
    fn costs_of(root: &'s Value) -> Result<Vec<Cost>, SchemaError> {
        let mut graph = Self { root, nodes: Vec::new(), known: HashMap::new(), anchors: HashMap::new() };
        graph.check_references(root)?;
        let mut pending = Vec::new();
        graph.node(root, &mut pending);
        while let Some((node, schema)) = pending.pop() {
            graph.nodes[node] = graph.read(schema, &mut pending)?;
        }
        graph.costs()
    }

    /// The number of a subschema, which is read later if it is new.
    fn node(&mut self, schema: &'s Value, pending: &mut Vec<(usize, &'s Value)>) -> usize {
        let next = self.nodes.len();
        let node = *self.known.entry(std::ptr::from_ref(schema)).or_insert(next);
        if node == next {
            self.nodes.push(Node::default());
            pending.push((node, schema));
        }
        node
    }

    /// Collects anchors, and refuses what would make a reference mean something outside, or something that is known
    /// only while a body is checked.
    fn check_references(&mut self, root: &'s Value) -> Result<(), SchemaError> {
        let refuse = |keyword, target: &Value, problem| {
            Err(SchemaError::BadReference { keyword, target: cut(&target.to_string(), 80), problem })
        };
        let mut pending = vec![root];
        while let Some(value) = pending.pop() {
            let fields = match value {
                Value::Array(items) => {
                    pending.extend(items);
                    continue;
                }
                Value::Object(fields) => fields,
                _ => continue,
            };
            for keyword in ["$dynamicRef", "$recursiveRef"] {
                if let Some(target @ Value::String(_)) = fields.get(keyword) {
                    return refuse(keyword, target, "dynamic references are not supported; use `$ref`");
                }
            }
            if let Some(id @ Value::String(_)) = fields.get("$id").filter(|_| !std::ptr::eq(value, root)) {
                return refuse("$id", id, "only the whole schema may have an `$id`");
            }
            if let Some(Value::String(anchor)) = fields.get("$anchor") {
                self.anchors.insert(anchor, value);
            }
            // `enum` and `const` hold data, which may look like anything.
            pending.extend(
                fields
                    .iter()
                    .filter(|(key, _)| !matches!(&***key, "enum" | "const" | "default" | "examples"))
                    .map(|(_, value)| value),
            );
        }
        Ok(())
    }

    fn resolve(&self, target: &str) -> Result<&'s Value, SchemaError> {
        let error = |problem| SchemaError::BadReference { keyword: "$ref", target: cut(target, 80), problem };
        let Some(fragment) = target.strip_prefix('#') else {
            return Err(error(
                "a schema stands alone: copy what it refers to under `$defs`, and write `#/$defs/…`",
            ));
        };
        let fragment = percent_decode(fragment);
        let found = if fragment.is_empty() || fragment.starts_with('/') {
            self.root.pointer(&fragment)
        } else {
            self.anchors.get(&*fragment).copied()
        };
        found.ok_or_else(|| error("there is nothing of that name in this schema"))
    }

    fn read(
        &mut self,
        schema: &'s Value,
        pending: &mut Vec<(usize, &'s Value)>,
    ) -> Result<Node, SchemaError> {
        let Value::Object(keywords) = schema else { return Ok(Node::default()) };
        let mut one = |this: &mut Self, keyword: &str| -> Vec<usize> {
            match keywords.get(keyword) {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => vec![this.node(schema, pending)],
                Some(Value::Array(schemas)) => {
                    schemas.iter().map(|schema| this.node(schema, pending)).collect()
                }
                _ => Vec::new(),
            }
        };
        let mut same = Vec::new();
        for keyword in ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"] {
            same.extend(one(self, keyword));
        }
        let additional_properties = one(self, "additionalProperties");
        let unevaluated_properties = one(self, "unevaluatedProperties");
        let property_names = one(self, "propertyNames");
        let items = one(self, "items");
        let prefix_items = one(self, "prefixItems");
        let additional_items = one(self, "additionalItems");
        let unevaluated_items = one(self, "unevaluatedItems");
        let contains = one(self, "contains");
        let mut each = |this: &mut Self, keyword: &str| -> Vec<usize> {
            let schemas = keywords.get(keyword).and_then(Value::as_object).into_iter().flatten();
            let schemas = schemas.filter(|(_, schema)| schema.is_object() || schema.is_boolean());
            schemas.map(|(_, schema)| this.node(schema, pending)).collect()
        };
        same.extend(each(self, "dependentSchemas"));
        same.extend(each(self, "dependencies"));
        let properties = each(self, "properties");
        let pattern_properties = each(self, "patternProperties");
        if let Some(Value::String(target)) = keywords.get("$ref") {
            let target = self.resolve(target)?;
            same.push(self.node(target, pending));
        }
        let evaluates_again = !unevaluated_properties.is_empty() || !unevaluated_items.is_empty();
        if evaluates_again {
            // Finding out what was evaluated applies the same schemas a second time.
            same.extend(same.clone());
        }
        let mut of_object = vec![properties, additional_properties, unevaluated_properties, property_names];
        of_object.extend(pattern_properties.into_iter().map(|schema| vec![schema]));
        let of_array = vec![items, prefix_items, additional_items, unevaluated_items, contains];
        Ok(Node { same, below: vec![of_object, of_array] })
    }

    /// By depth of the body: a schema on a value costs one step, what it applies to the same value, and the dearest
    /// way down.
    fn costs(&self) -> Result<Vec<Cost>, SchemaError> {
        let order = self.innermost_first()?;
        let mut below = vec![Cost::default(); self.nodes.len()];
        let mut by_depth = Vec::with_capacity(MAX_DEPTH + 1);
        for _ in 0..=MAX_DEPTH {
            let mut here = vec![Cost::default(); self.nodes.len()];
            for &node in &order {
                let Node { same, below: down } = &self.nodes[node];
                let dearest =
                    |group: &Vec<usize>| group.iter().map(|&other| below[other].steps).max().unwrap_or(0);
                let together =
                    |groups: &Vec<Vec<usize>>| groups.iter().map(dearest).fold(0, u64::saturating_add);
                let steps_down = down.iter().map(together).max().unwrap_or(0);
                let steps_here = same.iter().map(|&other| here[other].steps).fold(1, u64::saturating_add);
                let nesting_here = same.iter().map(|&other| here[other].nesting);
                let nesting_down = down.iter().flatten().flatten().map(|&other| below[other].nesting);
                here[node] = Cost {
                    steps: steps_here.saturating_add(steps_down),
                    nesting: 1 + nesting_here.chain(nesting_down).max().unwrap_or(0),
                };
            }
            by_depth.push(here[0]);
            below = here;
        }
        Ok(by_depth)
    }

    /// Subschemas, each behind those that it applies to the same value.
    fn innermost_first(&self) -> Result<Vec<usize>, SchemaError> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let (mut done, mut open) = (HashSet::new(), HashSet::new());
        for start in 0..self.nodes.len() {
            let mut stack = vec![(start, 0)];
            while let Some((node, next)) = stack.pop() {
                if done.contains(&node) {
                    continue;
                }
                open.insert(node);
                match self.nodes[node].same.get(next) {
                    Some(&inner) => {
                        stack.push((node, next + 1));
                        if open.contains(&inner) {
                            return Err(SchemaError::Endless);
                        }
                        stack.push((inner, 0));
                    }
                    None => {
                        open.remove(&node);
                        done.insert(node);
                        order.push(node);
                    }
                }
            }
        }
        Ok(order)
    }
}

/// A URI fragment as the text it stands for; what is not UTF-8 then points nowhere.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let decoded = match (first, tail) {
            (b'%', [high, low, ..]) => hex::decode([*high, *low]).ok(),
            _ => None,
        };
        rest = if let Some(byte) = decoded {
            bytes.extend(byte);
            &tail[2..]
        } else {
            bytes.push(*first);
            tail
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn violations(schema: &Value, body: &str) -> Vec<String> {
        match JsonSchema::compile(schema).unwrap().validate(body.as_bytes()) {
            Ok(_) => Vec::new(),
            Err(InvalidBody::Violations(found)) => found.iter().map(ToString::to_string).collect(),
            Err(other) => vec![other.to_string()],
        }
    }

    fn refused(schema: &Value) -> String {
        JsonSchema::compile(schema).unwrap_err().to_string()
    }

    #[test]
    fn every_violation_comes_with_its_place() {
        let schema = json!({
            "type": "object",
            "required": ["amount", "owner"],
            "properties": {"amount": {"type": "integer", "minimum": 1}, "tags": {"items": {"type": "string"}}},
            "additionalProperties": false,
        });
        assert_eq!(violations(&schema, r#"{"amount": 5, "owner": 1}"#).len(), 1);
        let found = violations(&schema, r#"{"amount": 0, "tags": ["a", 7]}"#);
        assert_eq!(
            found,
            [
                "\"owner\" is a required property",
                "/amount: 0 is less than the minimum of 1",
                "/tags/1: 7 is not of type \"string\"",
            ]
        );
    }

    #[test]
    fn a_body_that_is_not_json_is_told_apart_from_one_that_breaks_the_schema() {
        let schema = JsonSchema::compile(&json!({})).unwrap();
        assert!(matches!(schema.validate(b"{"), Err(InvalidBody::NotJson(_))));
        assert!(matches!(schema.validate(b""), Err(InvalidBody::NotJson(_))));
        assert!(matches!(schema.validate(b"\"\xff\""), Err(InvalidBody::NotJson(_))));
        assert_eq!(schema.validate(b"[1]"), Ok(json!([1])));
    }

    #[test]
    fn messages_quote_values_shortly_and_there_are_few_of_them() {
        let schema = json!({"items": {"type": "integer"}});
        let body = json!(vec!["x".repeat(10_000); 1000]).to_string();
        let found = violations(&schema, &body);
        assert_eq!(found.len(), MAX_VIOLATIONS);
        assert!(found.iter().all(|message| message.len() < 200), "{}", found[0]);
    }

    #[test]
    fn a_schema_stands_alone() {
        assert!(refused(&json!({"$ref": "https://example.org/s.json"})).contains("stands alone"));
        assert!(refused(&json!({"$ref": "other.json#/a"})).contains("stands alone"));
        assert!(refused(&json!({"$ref": "#/$defs/none"})).contains("nothing of that name"));
        assert!(refused(&json!({"properties": {"a": {"$id": "b", "type": "text"}}})).contains("$id"));
        assert!(
            JsonSchema::compile(&json!({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "null"}}}))
                .is_ok()
        );
        assert!(JsonSchema::compile(&json!({"$ref": "#name", "$defs": {"x": {"$anchor": "name"}}})).is_ok());
    }

    #[test]
    fn what_is_not_a_schema_is_refused_with_its_place() {
        assert!(refused(&json!({"properties": {"a": {"type": "texxt"}}})).contains("/properties/a/type"));
        assert!(JsonSchema::compile(&json!({"pattern": "("})).is_err());
        assert!(JsonSchema::compile(&json!([])).is_err());
        assert!(JsonSchema::from_slice(b"nonsense").is_err());
        assert!(matches!(
            JsonSchema::from_slice(&vec![b' '; MAX_SCHEMA_BYTES + 1]),
            Err(SchemaError::TooLarge(_))
        ));
    }

    #[test]
    fn a_schema_that_applies_itself_to_the_same_value_is_refused() {
        assert_eq!(JsonSchema::compile(&json!({"$ref": "#"})).unwrap_err(), SchemaError::Endless);
        let circle = json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"$ref": "#"}}}});
        assert_eq!(JsonSchema::compile(&circle).unwrap_err(), SchemaError::Endless);
    }

    #[test]
    fn a_schema_may_be_recursive_along_the_body() {
        let tree = json!({
            "type": "object",
            "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "value": {"type": "integer"}},
            "additionalProperties": false,
        });
        assert!(violations(&tree, r#"{"left": {"value": 1}, "right": {"left": {}}}"#).is_empty());
        let deep = format!("{}1{}", "{\"left\":".repeat(100), "}".repeat(100));
        assert_eq!(violations(&tree, &deep).len(), 1, "the 1 at the bottom is no object");
    }

    #[test]
    fn branches_that_multiply_with_depth_are_refused_before_they_are_followed() {
        let doubling = json!({"allOf": [
            {"properties": {"a": {"$ref": "#"}}},
            {"properties": {"a": {"$ref": "#"}}},
        ]});
        let deep = |levels| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(violations(&doubling, &deep(8)).is_empty());
        assert!(violations(&doubling, &deep(100))[0].contains("too deeply nested (100 levels)"));

        let mut defs = serde_json::Map::from_iter([("d0".to_owned(), json!({"type": "integer"}))]);
        for level in 1..60 {
            let inner = json!({"$ref": format!("#/$defs/d{}", level - 1)});
            defs.insert(format!("d{level}"), json!({"allOf": [inner, inner]}));
        }
        let bomb = json!({"$ref": "#/$defs/d59", "$defs": defs});
        assert_eq!(JsonSchema::compile(&bomb).unwrap_err(), SchemaError::TooComplex);
    }

    #[test]
    fn a_schema_that_nests_in_itself_deeper_than_the_stack_is_refused_before_it_overflows() {
        let mut defs =
            serde_json::Map::from_iter([("d0".to_owned(), json!({"properties": {"a": {"$ref": "#"}}}))]);
        for level in 1..300 {
            let inner = json!({"$ref": format!("#/$defs/d{}", level - 1)});
            defs.insert(format!("d{level}"), json!({"anyOf": [{"type": "null"}, inner]}));
        }
        let chain = json!({"$ref": "#/$defs/d299", "$defs": defs});
        let deep = format!("{}1{}", "{\"a\":".repeat(120), "}".repeat(120));
        assert!(violations(&chain, &deep)[0].contains("too deeply nested (120 levels)"));
        assert!(violations(&chain, r#"{"a": 1}"#).is_empty());
    }

    #[test]
    fn a_nested_bomb_of_a_body_is_not_json() {
        let schema = JsonSchema::compile(&json!({})).unwrap();
        let body = "[".repeat(100_000);
        assert!(matches!(schema.validate(body.as_bytes()), Err(InvalidBody::NotJson(_))));
    }

    #[test]
    fn a_pattern_takes_linear_time() {
        let schema = json!({"pattern": "^(a+)+$"});
        assert_eq!(violations(&schema, &format!("\"{}!\"", "a".repeat(5000))).len(), 1);
    }

    proptest! {
        #[test]
        fn no_body_makes_a_check_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let schema = JsonSchema::compile(&json!({"oneOf": [{"type": "object"}, {"items": {"type": "null"}}]})).unwrap();
            let _ = schema.validate(&body);
        }
    }
}
