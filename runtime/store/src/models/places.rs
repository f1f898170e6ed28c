//! Where a projection stands in topics, and records that wait beside its rows: parked, queued, or about to be tried again.

use ebb_domain::event::Position;
use ebb_domain::name::TopicName;
use ebb_domain::topic::{KeptRecord, Place};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

pub(super) const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS _place (
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        topic_id BLOB NOT NULL,
        next INTEGER NOT NULL,
        PRIMARY KEY (topic, partition)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _record (
        position INTEGER NOT NULL PRIMARY KEY,
        record TEXT NOT NULL
    ) STRICT;
";

pub(super) fn set(connection: &Connection, place: &Place) -> rusqlite::Result<()> {
    let Place { topic, topic_id, partition, next } = place;
    connection
        .prepare_cached("INSERT OR REPLACE INTO _place VALUES (?, ?, ?, ?)")?
        .execute(params![&**topic, partition, &topic_id.as_bytes()[..], *next as i64])
        .map(drop)
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Place>> {
    let mut statement = connection
        .prepare_cached("SELECT topic, topic_id, partition, next FROM _place ORDER BY topic, partition")?;
    let places = statement.query_map([], |row| {
        let id: Vec<u8> = row.get(1)?;
        let id = Uuid::from_slice(&id)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, error.into()))?;
        let topic = TopicName::new(row.get::<_, String>(0)?)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))?;
        Ok(Place { topic, topic_id: id, partition: row.get(2)?, next: row.get::<_, i64>(3)? as u64 })
    })?;
    places.collect()
}

pub(super) fn keep(connection: &Connection, position: Position, record: &KeptRecord) -> rusqlite::Result<()> {
    let record = serde_json::to_string(record)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO _record VALUES (?, ?)")?
        .execute(params![position.0 as i64, record])
        .map(drop)
}

pub(super) fn record(connection: &Connection, position: Position) -> rusqlite::Result<Option<KeptRecord>> {
    connection
        .prepare_cached("SELECT record FROM _record WHERE position = ?")?
        .query_row([position.0 as i64], |row| {
            serde_json::from_str(&row.get::<_, String>(0)?)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))
        })
        .optional()
}
