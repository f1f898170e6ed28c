//! `[model.NAME]`.

use super::{Walk, keys};
use crate::manifest::ModelSpec;
use crate::manifest::problem::{ProblemKind, short, suggestion};
use crate::manifest::reader::{Field, Section, list};
use crate::model::{ColumnType, ModelSchema};
use crate::name::{ColumnName, ModelName};
use std::collections::BTreeMap;

impl<'a> Walk<'a> {
    pub(super) fn model(
        &mut self,
        name: Option<ModelName>,
        field: &Field<'a>,
    ) -> Option<(ModelName, ModelSpec)> {
        let section = self.reader.section(field, keys::MODEL)?;
        let declared = self.columns(&section);
        let key = match section.get("key") {
            None => {
                self.reader.missing(
                    &section,
                    "key",
                    "`key = \"id\"`, with `id = \"text\"` among the columns",
                );
                None
            }
            Some(key) => self.model_key(&key, declared.as_ref()),
        };
        let indexes = match (section.get("indexes"), &declared) {
            (Some(indexes), Some(declared)) => self.indexes(&indexes, declared),
            _ => Vec::new(),
        };
        let allow = self.allow(&section);
        let columns = declared?.into_iter().map(|(name, kind)| Some((ColumnName::new(name).ok()?, kind?)));
        let schema =
            ModelSchema { name: name?, key: key?, columns: columns.collect::<Option<_>>()?, indexes };
        Some((schema.name.clone(), ModelSpec { schema, allow }))
    }

    /// Columns by the names they were given, good or not; none where the type is not one.
    fn columns(&mut self, model: &Section<'a>) -> Option<BTreeMap<&'a str, Option<ColumnType>>> {
        let example = "`columns = { id = \"text\", count = \"integer\" }`";
        let Some(field) = model.get("columns") else {
            self.reader.missing(model, "columns", example);
            return None;
        };
        let mut columns = BTreeMap::new();
        for column in self.reader.table(&field)?.fields() {
            self.reader.name(&column, column.key_at.clone(), column.name, |text| ColumnName::new(text));
            columns.insert(column.name, self.column_type(&column));
        }
        if columns.is_empty() {
            self.reader.refuse(
                &field,
                format!("`{}` has no columns", model.key),
                Some(format!("write {example}")),
            );
            return None;
        }
        if columns.len() > ModelSpec::MAX_COLUMNS {
            let message = format!("`{}` has {} columns", model.key, columns.len());
            let hint = format!(
                "a model has at most {}; put what is rarely asked for into a json column",
                ModelSpec::MAX_COLUMNS
            );
            self.reader.refuse(&field, message, Some(hint));
        }
        Some(columns)
    }

    fn column_type(&mut self, column: &Field<'a>) -> Option<ColumnType> {
        let text = self.reader.text(column, "text")?;
        let types =
            [ColumnType::Text, ColumnType::Integer, ColumnType::Real, ColumnType::Boolean, ColumnType::Json];
        if let Some(kind) = types.into_iter().find(|kind| kind.to_string() == text) {
            return Some(kind);
        }
        let names: Vec<String> = types.iter().map(ToString::to_string).collect();
        let meant = match &*text.to_ascii_lowercase() {
            "string" | "str" | "varchar" | "uuid" | "timestamp" | "datetime" | "date" => Some("text"),
            "int" | "i64" | "i32" | "u64" | "u32" | "bigint" | "number" | "long" => Some("integer"),
            "float" | "double" | "f64" | "f32" | "decimal" => Some("real"),
            "bool" => Some("boolean"),
            "object" | "array" | "jsonb" | "any" => Some("json"),
            _ => suggestion(text, names.iter().map(String::as_str)),
        };
        let message = format!("\"{}\" is not a column type", short(text));
        let hint = match meant {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("write one of {}", list(names.iter().map(String::as_str))),
        };
        self.reader.refuse(column, message, Some(hint));
        None
    }

    fn model_key(
        &mut self,
        field: &Field<'a>,
        columns: Option<&BTreeMap<&'a str, Option<ColumnType>>>,
    ) -> Option<ColumnName> {
        let text = self.reader.text(field, "id")?;
        match columns?.get(text) {
            Some(Some(ColumnType::Text) | None) => ColumnName::new(text).ok(),
            Some(Some(other)) => {
                let message = format!("the key column `{text}` is of type {other}; keys are text");
                let hint = format!(
                    "write `{text} = \"text\"` among the columns; numbers are written as text in keys"
                );
                self.reader.refuse(field, message, Some(hint));
                None
            }
            None => {
                let columns = columns?.keys().copied();
                self.reader.unknown_name(field, "column", text, columns, "the key is one of the columns");
                None
            }
        }
    }

    fn indexes(
        &mut self,
        field: &Field<'a>,
        columns: &BTreeMap<&'a str, Option<ColumnType>>,
    ) -> Vec<Vec<ColumnName>> {
        let example = "a list of columns for each index: `indexes = [[\"origin\", \"hour\"], [\"flights\"]]`";
        let listed = self.reader.list(field, "a list of lists of columns", example).unwrap_or_default();
        let mut indexes: Vec<Vec<ColumnName>> = Vec::new();
        for index in listed {
            if index.value.as_str().is_some() {
                let hint = Some(format!("write {example}"));
                self.reader.refuse(&index, "an index is a list of columns, even of one".to_owned(), hint);
                continue;
            }
            let Some(names) = self.reader.texts(&index) else { continue };
            if names.is_empty() {
                let hint = Some("name its columns, or remove it".to_owned());
                self.reader.refuse(&index, "this index has no columns".to_owned(), hint);
            }
            let mut good = Vec::new();
            for (element, name) in names {
                match columns.get(name) {
                    Some(Some(ColumnType::Json)) => {
                        let message = format!("column `{name}` is json, which can't be indexed");
                        let hint = "give what you search for a column of its own".to_owned();
                        self.reader.refuse(&element, message, Some(hint));
                    }
                    Some(_) => good.extend(ColumnName::new(name)),
                    None => {
                        let known = columns.keys().copied();
                        self.reader.unknown_name(&element, "column", name, known, "index a column");
                    }
                }
            }
            if !good.is_empty() && indexes.contains(&good) {
                let hint = Some("remove one of them".to_owned());
                self.reader.report(
                    ProblemKind::Clash,
                    index.at,
                    index.key,
                    "this index is there twice",
                    hint,
                );
                continue;
            }
            indexes.push(good);
        }
        if indexes.len() > ModelSpec::MAX_INDEXES {
            let message = format!("`{}` has {} entries", field.key, indexes.len());
            let hint =
                format!("a model has at most {} indexes: each slows its projection", ModelSpec::MAX_INDEXES);
            self.reader.refuse(field, message, Some(hint));
        }
        indexes
    }
}
