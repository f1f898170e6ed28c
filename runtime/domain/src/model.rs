//! Read models: tables that one projection writes and callers query.

use crate::name::{ColumnName, ModelName};
use crate::text::Text;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// UTF-8.
    Text,
    /// 64 bits, signed.
    Integer,
    /// An IEEE 754 double; NaN is stored as null.
    Real,
    /// True or false.
    Boolean,
    /// A JSON document.
    Json,
}

impl ColumnType {
    /// Whether a value may stand in such a column. Null may, anywhere but in the key.
    #[must_use]
    pub fn accepts(self, value: &Value) -> bool {
        matches!(
            (self, value),
            (_, Value::Null)
                | (Self::Text, Value::Text(_))
                | (Self::Integer, Value::Integer(_))
                | (Self::Real, Value::Real(_))
                | (Self::Boolean, Value::Boolean(_))
                | (Self::Json, Value::Json(_))
        )
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Real => "real",
            Self::Boolean => "boolean",
            Self::Json => "json",
        })
    }
}

/// A column's value.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Value {
    /// Nothing.
    #[default]
    Null,
    /// Text.
    Text(Text),
    /// An integer.
    Integer(i64),
    /// A real number.
    Real(f64),
    /// A truth value.
    Boolean(bool),
    /// A JSON document, as text.
    Json(Text),
}

impl Value {
    /// As JSON; a JSON document as itself.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Text(text) => serde_json::Value::String(text.to_string()),
            Self::Integer(number) => (*number).into(),
            Self::Real(number) => (*number).into(),
            Self::Boolean(truth) => (*truth).into(),
            Self::Json(document) => serde_json::from_str(document).unwrap_or(serde_json::Value::Null),
        }
    }
}

/// A model as the manifest declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct ModelSchema {
    /// Its name.
    pub name: ModelName,
    /// The text column that holds the key.
    pub key: ColumnName,
    /// All columns, the key among them, in the order of their names.
    pub columns: BTreeMap<ColumnName, ColumnType>,
    /// Columns to index for queries, the most significant first.
    pub indexes: Vec<Vec<ColumnName>>,
}

/// A row: columns by name. A column that is not there is null.
pub type Row = BTreeMap<ColumnName, Value>;

/// A row as a JSON object with every column of the model, null ones included.
#[must_use]
pub fn row_json(schema: &ModelSchema, row: &Row) -> serde_json::Value {
    let columns = schema.columns.keys();
    let fields =
        columns.map(|name| (name.to_string(), row.get(name).map_or(serde_json::Value::Null, Value::to_json)));
    serde_json::Value::Object(fields.collect())
}

/// How a query compares a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Greater.
    Gt,
    /// Greater or equal.
    Gte,
    /// Less.
    Lt,
    /// Less or equal.
    Lte,
}

/// One condition of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// The column.
    pub column: ColumnName,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what. Comparing with null: only `Eq` and `Ne` ever hold.
    pub value: Value,
}

/// One column of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct OrderBy {
    /// The column.
    pub column: ColumnName,
    /// Largest first. Nulls stand lowest.
    pub descending: bool,
}

/// A query over one model. The key, ascending, is always the last column of the order, so that the order is total.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Query {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// The order, most significant first; the key need not be named.
    pub order: Vec<OrderBy>,
    /// Rows at most.
    pub limit: usize,
    /// Only rows behind this place in the order: one value for each column of `order`, then the key.
    pub after: Option<Vec<Value>>,
}

/// Rows of a query, and where the next page starts.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Page {
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether there are more behind the last one.
    pub more: bool,
}
