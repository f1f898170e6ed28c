//! Rows of read models.

use crate::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

#[cfg(target_family = "wasm")]
use crate::guest as backend;
#[cfg(not(target_family = "wasm"))]
use crate::memory as backend;

/// The rows of the projection's models. Reads see what this batch wrote.
///
/// A row is a struct, or anything else that serde writes as an object: text, numbers and booleans are columns of these
/// types, lists and objects are `json` columns. The model's key column need not be a field: the platform fills it in.
/// Model and column names are those of the manifest; others stop the module.
#[derive(Debug, Default)]
pub struct Rows {
    pub(crate) backend: backend::Backend,
}

impl Rows {
    /// The row, or none. Columns that are null are left out of it: make them `Option`, or give them a
    /// `#[serde(default)]`.
    ///
    /// # Errors
    /// The row does not fit `T`.
    pub fn get<T: DeserializeOwned>(&self, model: &str, key: &str) -> Result<Option<T>, Failure> {
        let Some(columns) = self.backend.get(model, key) else { return Ok(None) };
        let columns = columns.into_iter().filter_map(|(name, value)| Some((name, value.into_json()?)));
        let row = Json::Object(columns.collect());
        serde_json::from_value(row)
            .map(Some)
            .map_err(|error| Failure::new(format_args!("row `{key}` of model `{model}`: {error}")))
    }

    /// Writes the whole row: columns that `row` does not have become null.
    ///
    /// # Errors
    /// `row` is not an object, or has an integer past 64 bits, signed.
    pub fn put<T: Serialize + ?Sized>(&mut self, model: &str, key: &str, row: &T) -> Result<(), Failure> {
        let problem = |problem: &dyn std::fmt::Display| {
            Failure::new(format_args!("row `{key}` of model `{model}` can't be written: {problem}"))
        };
        match serde_json::to_value(row) {
            Ok(Json::Object(row)) => {
                let columns = columns(row).map_err(|column| problem(&column))?;
                self.backend.put(model, key, columns);
                Ok(())
            }
            Ok(other) => Err(problem(&format_args!("it is not an object, but {other}"))),
            Err(error) => Err(problem(&error)),
        }
    }

    /// Removes the row, if there is one.
    pub fn delete(&mut self, model: &str, key: &str) {
        self.backend.delete(model, key);
    }

    /// Adds to an integer column, making the row if there is none. Prefer it to reading and writing: additions commute,
    /// so that lanes which work on the same row at once need not wait for each other.
    pub fn add(&mut self, model: &str, key: &str, column: &str, delta: i64) {
        self.backend.add(model, key, column, delta);
    }
}

/// A column's value, as the platform knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Text(String),
    Integer(i64),
    Real(f64),
    Boolean(bool),
    Json(String),
}

impl Value {
    /// As JSON; null is none.
    pub(crate) fn into_json(self) -> Option<Json> {
        Some(match self {
            Self::Null => return None,
            Self::Text(text) => Json::String(text),
            Self::Integer(number) => number.into(),
            Self::Real(number) => number.into(),
            Self::Boolean(truth) => truth.into(),
            Self::Json(document) => serde_json::from_str(&document).ok()?,
        })
    }
}

fn columns(row: Map<String, Json>) -> Result<Vec<(String, Value)>, String> {
    let value = |name: &str, value| {
        Ok(match value {
            Json::Null => Value::Null,
            Json::Bool(truth) => Value::Boolean(truth),
            Json::String(text) => Value::Text(text),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Value::Integer(integer),
                (None, Some(real)) if number.is_f64() => Value::Real(real),
                _ => return Err(format!("column `{name}` is {number}, more than an integer column holds")),
            },
            document @ (Json::Array(_) | Json::Object(_)) => Value::Json(document.to_string()),
        })
    };
    row.into_iter().map(|(name, json)| value(&name, json).map(|value| (name, value))).collect()
}
