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

impl ModelSchema {
    /// A column by its name.
    fn column(&self, name: &str) -> Result<(&ColumnName, ColumnType), BadQuery> {
        self.columns.get_key_value(name.as_bytes()).map(|(name, of)| (name, *of)).ok_or_else(|| {
            let known: Vec<&str> = self.columns.keys().map(|column| &**column).collect();
            let name: String = name.chars().take(80).collect();
            let message =
                format!("model `{}` has no column `{name}`; it has {}", self.name, known.join(", "));
            BadQuery { code: "unknown_column", message }
        })
    }
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

impl Query {
    /// Rows of a page where nobody says.
    pub const DEFAULT_LIMIT: usize = 100;
    /// Rows of a page at most.
    pub const MAX_LIMIT: usize = 1000;
    /// Conditions at most: the store binds each of them.
    pub const MAX_CONDITIONS: usize = 50;

    /// The place in the order behind which the page goes on whose last row this is.
    #[must_use]
    pub fn place_of(&self, schema: &ModelSchema, last: &Row) -> Vec<Value> {
        let columns = self.order.iter().map(|order| &order.column).chain([&schema.key]);
        columns.map(|column| last.get(column).cloned().unwrap_or_default()).collect()
    }
}

/// A query as a program put it: columns by any name, values of any type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AskedQuery {
    /// Column, comparison, value; all must hold.
    pub conditions: Vec<(String, Comparison, Value)>,
    /// Columns, and whether the largest comes first.
    pub order: Vec<(String, bool)>,
    /// Rows at most.
    pub limit: Option<u32>,
    /// A place in the order.
    pub after: Option<Vec<Value>>,
}

/// Why a query can't be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadQuery {
    /// Stable, for programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl AskedQuery {
    /// The query, if it is one of this model.
    ///
    /// # Errors
    /// A column is not the model's, a value is not of its column's type, or a bound is passed.
    pub fn check(self, schema: &ModelSchema) -> Result<Query, BadQuery> {
        let bad = |code, message| Err(BadQuery { code, message });
        let limit = self.limit.map_or(Query::DEFAULT_LIMIT, |limit| limit as usize);
        if !(1..=Query::MAX_LIMIT).contains(&limit) {
            let most = Query::MAX_LIMIT;
            return bad("bad_query", format!("`limit` is {limit}; it takes a number from 1 to {most}"));
        }
        if self.conditions.len() > Query::MAX_CONDITIONS {
            return bad("bad_query", format!("a query has at most {} conditions", Query::MAX_CONDITIONS));
        }
        let mut query = Query { limit, ..Query::default() };
        for (name, comparison, value) in self.conditions {
            let (column, of) = schema.column(&name)?;
            let is_null = value == Value::Null;
            let comparable = match comparison {
                Comparison::Eq | Comparison::Ne => is_null || of != ColumnType::Json,
                _ => !is_null && of != ColumnType::Json,
            };
            if !comparable || !of.accepts(&value) {
                let message =
                    format!("column `{column}` is {of} and can't be compared like this with {value:?}");
                return bad("bad_value", message);
            }
            query.conditions.push(Condition { column: column.clone(), comparison, value });
        }
        for (name, descending) in self.order {
            let (column, of) = schema.column(&name)?;
            if of == ColumnType::Json {
                return bad("bad_query", format!("`{column}` is a json column: those have no order"));
            }
            if query.order.iter().any(|earlier| earlier.column == *column) {
                return bad("bad_query", format!("the order names `{column}` twice"));
            }
            query.order.push(OrderBy { column: column.clone(), descending });
        }
        if let Some(after) = self.after {
            let columns = query.order.iter().map(|order| &order.column).chain([&schema.key]);
            let fits = after.len() == query.order.len() + 1
                && columns.zip(&after).all(|(column, value)| schema.columns[column].accepts(value));
            if !fits {
                let message = "`after` is not `next` of a page in this order".to_owned();
                return bad("bad_cursor", message);
            }
            query.after = Some(after);
        }
        Ok(query)
    }
}

/// Rows of a query, and where the next page starts.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Page {
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carriers() -> ModelSchema {
        let columns =
            [("carrier", ColumnType::Text), ("flights", ColumnType::Integer), ("extra", ColumnType::Json)];
        ModelSchema {
            name: ModelName::new("carriers").unwrap(),
            key: ColumnName::new("carrier").unwrap(),
            columns: columns.into_iter().map(|(name, of)| (ColumnName::new(name).unwrap(), of)).collect(),
            indexes: Vec::new(),
        }
    }

    fn where_it(column: &str, comparison: Comparison, value: Value) -> AskedQuery {
        AskedQuery { conditions: vec![(column.into(), comparison, value)], ..AskedQuery::default() }
    }

    #[test]
    fn a_page_goes_on_behind_its_last_row() {
        let asked = AskedQuery { order: vec![("flights".into(), true)], ..AskedQuery::default() };
        let query = asked.clone().check(&carriers()).unwrap();
        assert_eq!((query.limit, query.order[0].descending), (100, true));
        let last = Row::from([(ColumnName::new("carrier").unwrap(), Value::Text("UA".into()))]);
        let place = query.place_of(&carriers(), &last);
        assert_eq!(place, [Value::Null, Value::Text("UA".into())]);
        assert!(AskedQuery { after: Some(place), ..asked }.check(&carriers()).is_ok());
    }

    #[test]
    fn what_is_no_query_of_the_model_is_refused_with_its_code() {
        use Comparison::{Eq, Gt};
        for (asked, code) in [
            (where_it("colour", Eq, Value::Integer(1)), "unknown_column"),
            (where_it("flights", Eq, Value::Text("many".into())), "bad_value"),
            (where_it("flights", Gt, Value::Null), "bad_value"),
            (where_it("extra", Eq, Value::Json("{}".into())), "bad_value"),
            (AskedQuery { limit: Some(0), ..AskedQuery::default() }, "bad_query"),
            (AskedQuery { limit: Some(1001), ..AskedQuery::default() }, "bad_query"),
            (AskedQuery { order: vec![("extra".into(), false)], ..AskedQuery::default() }, "bad_query"),
            (AskedQuery { order: vec![("flights".into(), false); 2], ..AskedQuery::default() }, "bad_query"),
            (AskedQuery { after: Some(vec![]), ..AskedQuery::default() }, "bad_cursor"),
            (AskedQuery { after: Some(vec![Value::Integer(1)]), ..AskedQuery::default() }, "bad_cursor"),
        ] {
            assert_eq!(asked.clone().check(&carriers()).unwrap_err().code, code, "{asked:?}");
        }
        assert!(where_it("extra", Eq, Value::Null).check(&carriers()).is_ok());
    }
}
