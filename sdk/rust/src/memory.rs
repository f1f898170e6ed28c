//! Rows kept in memory, for native tests. As strict as the platform: a column has one type.

use crate::rows::Value;
use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

type Row = BTreeMap<String, Value>;

/// Rows by model and key, and the type of every column that was written.
#[derive(Debug, Default)]
pub(crate) struct Backend {
    pub(crate) models: BTreeMap<String, BTreeMap<String, Row>>,
    types: BTreeMap<(String, String), Discriminant<Value>>,
}

impl Backend {
    pub(crate) fn get(&self, model: &str, key: &str) -> Option<Vec<(String, Value)>> {
        Some(self.models.get(model)?.get(key)?.clone().into_iter().collect())
    }

    pub(crate) fn put(&mut self, model: &str, key: &str, columns: Vec<(String, Value)>) {
        for (column, value) in &columns {
            self.check(model, column, value);
        }
        self.models
            .entry(model.to_owned())
            .or_default()
            .insert(key.to_owned(), columns.into_iter().collect());
    }

    pub(crate) fn delete(&mut self, model: &str, key: &str) {
        if let Some(rows) = self.models.get_mut(model) {
            rows.remove(key);
        }
    }

    pub(crate) fn add(&mut self, model: &str, key: &str, column: &str, delta: i64) {
        self.check(model, column, &Value::Integer(delta));
        let row = self.models.entry(model.to_owned()).or_default().entry(key.to_owned()).or_default();
        let value = row.entry(column.to_owned()).or_insert(Value::Integer(0));
        *value = match value {
            Value::Integer(sum) => Value::Integer(sum.saturating_add(delta)),
            _ => Value::Integer(delta),
        };
    }

    fn check(&mut self, model: &str, column: &str, value: &Value) {
        if *value == Value::Null {
            return;
        }
        let known = *self.types.entry((model.to_owned(), column.to_owned())).or_insert(discriminant(value));
        assert!(
            known == discriminant(value),
            "column `{column}` of model `{model}` got values of two types; the second is {value:?}"
        );
    }
}
