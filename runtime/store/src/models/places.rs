//! Where a projection stands in topics, and records that wait beside its rows: parked, queued, or about to be tried again.

use ebb_domain::digest::Digest;
use ebb_domain::event::Position;
use ebb_domain::name::TopicName;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{KeptRecord, Place, Seen};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
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
    CREATE TABLE IF NOT EXISTS _seen (
        topic TEXT NOT NULL,
        partition INTEGER NOT NULL,
        same BLOB NOT NULL,
        offset INTEGER NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (topic, partition, same)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS _seen_offset ON _seen (topic, partition, offset);
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

/// Keeps these, and forgets what none that is still to come can be.
pub(super) fn see(connection: &Connection, seen: &[Seen]) -> rusqlite::Result<()> {
    let mut newest: BTreeMap<(&TopicName, u32), (&Seen, u64)> = BTreeMap::new();
    for one in seen {
        let Seen { topic, partition, same, offset, at } = one;
        connection
            .prepare_cached("INSERT OR REPLACE INTO _seen VALUES (?, ?, ?, ?, ?)")?
            .execute(params![&**topic, partition, &same.0[..], *offset as i64, at.0 as i64])?;
        let (last, count) = newest.entry((topic, *partition)).or_insert((one, 0));
        (*last, *count) = (one, *count + 1);
    }
    for ((topic, partition), (last, count)) in newest {
        // Twice as many are looked at as came: so there are never more than may come again. Times may go back a little
        // along a partition, offsets never.
        let old = last.at.0.saturating_sub(2 * Seen::WITHIN.as_micros() as u64);
        connection
            .prepare_cached(
                "DELETE FROM _seen WHERE topic = ?1 AND partition = ?2 AND (offset < ?3 OR at < ?4) AND same IN
                 (SELECT same FROM _seen WHERE topic = ?1 AND partition = ?2 ORDER BY offset LIMIT ?5)",
            )?
            .execute(params![
                &**topic,
                partition,
                last.offset.saturating_sub(Seen::AMONG) as i64,
                old as i64,
                2 * count as i64
            ])?;
    }
    Ok(())
}

pub(super) fn seen(
    connection: &Connection,
    topic: &TopicName,
    partition: u32,
    same: &Digest,
) -> rusqlite::Result<Option<Seen>> {
    connection
        .prepare_cached("SELECT offset, at FROM _seen WHERE topic = ? AND partition = ? AND same = ?")?
        .query_row(params![&**topic, partition, &same.0[..]], |row| {
            let (offset, at) = (row.get::<_, i64>(0)? as u64, Timestamp(row.get::<_, i64>(1)? as u64));
            Ok(Seen { topic: topic.clone(), partition, same: *same, offset, at })
        })
        .optional()
}
