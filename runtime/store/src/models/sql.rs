//! SQL for a model. Names in it come from the schema, where they were checked when the manifest was read; values are
//! always parameters.

use ebb_domain::model::{ColumnType, Comparison, Condition, ModelSchema, OrderBy, Query, Row, Value};
use ebb_domain::name::ColumnName;
use ebb_domain::port::models::ModelError;
use ebb_domain::text::Text;
use rusqlite::types::{ToSqlOutput, ValueRef};
use std::fmt::Write;

/// A model's table, and the statements that never change.
pub(super) struct Table {
    pub schema: ModelSchema,
    /// Names and types in the order in which statements list them.
    pub columns: Vec<(ColumnName, ColumnType)>,
    pub get: String,
    pub put: String,
    pub delete: String,
}

impl Table {
    pub(super) fn new(schema: &ModelSchema) -> Self {
        let columns: Vec<_> = schema.columns.iter().map(|(name, kind)| (name.clone(), *kind)).collect();
        let (table, key) = (table(schema), &schema.key);
        let names = names(&columns);
        let marks = vec!["?"; columns.len()].join(", ");
        let rest: Vec<_> = columns
            .iter()
            .filter(|(name, _)| name != key)
            .map(|(name, _)| format!("\"{name}\" = excluded.\"{name}\""))
            .collect();
        let update =
            if rest.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", rest.join(", ")) };
        Self {
            get: format!("SELECT {names} FROM {table} WHERE \"{key}\" = ?"),
            put: format!(
                "INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT (\"{key}\") DO {update}"
            ),
            delete: format!("DELETE FROM {table} WHERE \"{key}\" = ?"),
            columns,
            schema: schema.clone(),
        }
    }

    /// Statements that make the table and its indexes, if they are not there.
    pub(super) fn create(&self) -> String {
        let (table, key) = (table(&self.schema), &self.schema.key);
        let columns = self.columns.iter().map(|(name, kind)| {
            let constraint = if name == key { " NOT NULL PRIMARY KEY" } else { "" };
            format!("\"{name}\" {}{constraint}", sql_type(*kind))
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let mut sql = format!("CREATE TABLE IF NOT EXISTS {table} ({columns}) STRICT, WITHOUT ROWID;\n");
        for index in &self.schema.indexes {
            let name = index.iter().map(|column| &**column).collect::<Vec<_>>().join("+");
            let on = index.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                sql,
                "CREATE INDEX IF NOT EXISTS \"i_{}_{name}\" ON {table} ({on}, \"{key}\");",
                self.schema.name
            );
        }
        sql
    }

    /// Adds to columns of a row, or makes the row. A sum beyond 64 bits stays at the last value that fits: a row
    /// that can't be written would stop the projection for ever.
    pub(super) fn add(&self, columns: &[(ColumnName, i64)]) -> String {
        let key = &self.schema.key;
        let mut names = format!("\"{key}\"");
        let mut updates = Vec::with_capacity(columns.len());
        for (column, _) in columns {
            let _ = write!(names, ", \"{column}\"");
            updates.push(format!(
                "\"{column}\" = CASE \
                 WHEN excluded.\"{column}\" > 0 AND coalesce(\"{column}\", 0) > 9223372036854775807 - excluded.\"{column}\" THEN 9223372036854775807 \
                 WHEN excluded.\"{column}\" < 0 AND coalesce(\"{column}\", 0) < -9223372036854775807 - 1 - excluded.\"{column}\" THEN -9223372036854775807 - 1 \
                 ELSE coalesce(\"{column}\", 0) + excluded.\"{column}\" END"
            ));
        }
        let marks = vec!["?"; columns.len() + 1].join(", ");
        format!(
            "INSERT INTO {} ({names}) VALUES ({marks}) ON CONFLICT (\"{key}\") DO UPDATE SET {}",
            table(&self.schema),
            updates.join(", ")
        )
    }

    /// A query's statement and parameters. It asks for one row more than the limit, to know whether there are more.
    pub(super) fn query(&self, query: &Query) -> Result<(String, Vec<Value>), ModelError> {
        let mut parameters = Vec::new();
        let mut wheres = Vec::new();
        for condition in &query.conditions {
            self.column(&condition.column)?;
            wheres.push(compare(condition, &mut parameters));
        }
        let order = self.total_order(&query.order)?;
        if let Some(after) = &query.after {
            wheres.push(self.behind(&order, &query.order, after, &mut parameters)?);
        }
        let mut sql = format!("SELECT {} FROM {}", names(&self.columns), table(&self.schema));
        if !wheres.is_empty() {
            let _ = write!(sql, " WHERE {}", wheres.join(" AND "));
        }
        let order = order.iter().map(|by| {
            let direction = if by.descending { "DESC" } else { "ASC" };
            format!("\"{}\" {direction}", by.column)
        });
        let _ = write!(sql, " ORDER BY {} LIMIT ?", order.collect::<Vec<_>>().join(", "));
        parameters.push(Value::Integer(i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1)));
        Ok((sql, parameters))
    }

    /// The order with the key behind it; what stands behind the key decides nothing.
    fn total_order(&self, order: &[OrderBy]) -> Result<Vec<OrderBy>, ModelError> {
        let key = &self.schema.key;
        let mut total: Vec<OrderBy> = Vec::with_capacity(order.len() + 1);
        for by in order {
            self.column(&by.column)?;
            if !total.iter().any(|earlier| earlier.column == by.column) {
                total.push(by.clone());
            }
            if by.column == *key {
                return Ok(total);
            }
        }
        total.push(OrderBy { column: key.clone(), descending: false });
        Ok(total)
    }

    /// The condition that a row stands behind a place in the order: equal in the first columns, beyond in the next.
    fn behind(
        &self,
        order: &[OrderBy],
        asked: &[OrderBy],
        after: &[Value],
        parameters: &mut Vec<Value>,
    ) -> Result<String, ModelError> {
        if after.len() != asked.len() + 1 {
            return Err(ModelError::BadColumn {
                model: self.schema.name.to_string(),
                problem: format!("a place in this order has {} values, not {}", asked.len() + 1, after.len()),
            });
        }
        // A column that the order repeats has its value at its first mention; the key's is the last.
        let value = |index: usize| {
            let named = asked.iter().position(|by| by.column == order[index].column);
            &after[named.unwrap_or(asked.len())]
        };
        let mut alternatives = Vec::new();
        for beyond in 0..order.len() {
            let mut parts = Vec::new();
            let mut own = Vec::new();
            for (equal, by) in order.iter().enumerate().take(beyond) {
                parts.push(format!("\"{}\" IS ?", by.column));
                own.push(value(equal).clone());
            }
            let by = &order[beyond];
            match (by.descending, value(beyond)) {
                // Nulls stand lowest: behind one come all values, or nothing.
                (false, Value::Null) => parts.push(format!("\"{}\" IS NOT NULL", by.column)),
                (true, Value::Null) => continue,
                (false, limit) => {
                    parts.push(format!("\"{}\" > ?", by.column));
                    own.push(limit.clone());
                }
                (true, limit) => {
                    parts.push(format!("(\"{0}\" < ? OR \"{0}\" IS NULL)", by.column));
                    own.push(limit.clone());
                }
            }
            alternatives.push(format!("({})", parts.join(" AND ")));
            parameters.extend(own);
        }
        Ok(format!("({})", alternatives.join(" OR ")))
    }

    pub(super) fn column(&self, name: &str) -> Result<ColumnType, ModelError> {
        self.schema.columns.get(name.as_bytes()).copied().ok_or_else(|| ModelError::BadColumn {
            model: self.schema.name.to_string(),
            problem: format!("there is no column `{}`", name.chars().take(80).collect::<String>()),
        })
    }

    pub(super) fn row(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        let mut columns = Row::new();
        for (index, (name, kind)) in self.columns.iter().enumerate() {
            let value = match (row.get_ref(index)?, kind) {
                (ValueRef::Integer(number), ColumnType::Boolean) => Value::Boolean(number != 0),
                (ValueRef::Integer(number), _) => Value::Integer(number),
                (ValueRef::Real(number), _) => Value::Real(number),
                (ValueRef::Text(text), ColumnType::Json) => Value::Json(utf8(text)),
                (ValueRef::Text(text), _) => Value::Text(utf8(text)),
                (ValueRef::Null | ValueRef::Blob(_), _) => continue,
            };
            columns.insert(name.clone(), value);
        }
        Ok(columns)
    }
}

/// A value as a parameter.
pub(super) struct Parameter<'a>(pub &'a Value);

impl rusqlite::ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Text(text) | Value::Json(text) => ValueRef::Text(text.as_bytes()),
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Real(number) if number.is_nan() => ValueRef::Null,
            Value::Real(number) => ValueRef::Real(*number),
            Value::Boolean(truth) => ValueRef::Integer(i64::from(*truth)),
        }))
    }
}

fn compare(condition: &Condition, parameters: &mut Vec<Value>) -> String {
    let column = &condition.column;
    let operator = match (condition.comparison, &condition.value) {
        (Comparison::Eq, Value::Null) => return format!("\"{column}\" IS NULL"),
        (Comparison::Ne, Value::Null) => return format!("\"{column}\" IS NOT NULL"),
        (_, Value::Null) => return "0".into(),
        (Comparison::Eq, _) => "=",
        (Comparison::Ne, _) => "IS NOT",
        (Comparison::Gt, _) => ">",
        (Comparison::Gte, _) => ">=",
        (Comparison::Lt, _) => "<",
        (Comparison::Lte, _) => "<=",
    };
    parameters.push(condition.value.clone());
    format!("\"{column}\" {operator} ?")
}

fn table(schema: &ModelSchema) -> String {
    format!("\"m_{}\"", schema.name)
}

fn names(columns: &[(ColumnName, ColumnType)]) -> String {
    columns.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn sql_type(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text | ColumnType::Json => "TEXT",
        ColumnType::Integer | ColumnType::Boolean => "INTEGER",
        ColumnType::Real => "REAL",
    }
}

fn utf8(text: &[u8]) -> Text {
    String::from_utf8_lossy(text).into_owned().into()
}
