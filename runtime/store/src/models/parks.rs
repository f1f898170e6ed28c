//! Parked keys and their queues, beside the rows they belong to.

use ebb_domain::event::Position;
use ebb_domain::port::models::{ParkChange, Parked, Tried};
use ebb_domain::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

pub(super) const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS _parked (
        key TEXT NOT NULL PRIMARY KEY,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        since INTEGER NOT NULL,
        last_attempt INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _parked_queue (
        key TEXT NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (key, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _tried (
        position INTEGER NOT NULL PRIMARY KEY,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS _parked_position ON _parked_queue (position);
";

const SELECT: &str = "
    SELECT key,
           (SELECT min(position) FROM _parked_queue queue WHERE queue.key = _parked.key),
           (SELECT count(*) FROM _parked_queue queue WHERE queue.key = _parked.key),
           reason, attempts, since, last_attempt
    FROM _parked
";

pub(super) fn apply(connection: &Connection, change: &ParkChange) -> rusqlite::Result<()> {
    match change {
        ParkChange::Park { key, position, reason, attempts, at } => {
            let at = at.0 as i64;
            connection
                .prepare_cached(
                    "INSERT INTO _parked VALUES (?1, ?2, ?3, ?4, ?4)
                     ON CONFLICT (key) DO UPDATE SET reason = ?2, attempts = ?3, last_attempt = ?4",
                )?
                .execute(params![&**key, reason, attempts, at])?;
            queue(connection, key, *position)
        }
        ParkChange::Queue { key, position } => queue(connection, key, *position),
        ParkChange::Tried(Tried { position, reason, attempts }) => connection
            .prepare_cached("INSERT OR REPLACE INTO _tried VALUES (?, ?, ?)")?
            .execute(params![position.0 as i64, reason, attempts])
            .map(drop),
        ParkChange::Failed { key, reason, at } => connection
            .prepare_cached(
                "UPDATE _parked SET reason = ?2, attempts = attempts + 1, last_attempt = ?3 WHERE key = ?1",
            )?
            .execute(params![&**key, reason, at.0 as i64])
            .map(drop),
        ParkChange::Done { key, through } => {
            connection
                .prepare_cached(
                    "DELETE FROM _record WHERE position IN (SELECT position FROM _parked_queue WHERE key = ? AND position <= ?)",
                )?
                .execute(params![&**key, through.0 as i64])?;
            connection
                .prepare_cached("DELETE FROM _parked_queue WHERE key = ? AND position <= ?")?
                .execute(params![&**key, through.0 as i64])?;
            connection
                .prepare_cached(
                    "DELETE FROM _parked WHERE key = ?1 AND NOT EXISTS (SELECT 1 FROM _parked_queue WHERE key = ?1)",
                )?
                .execute(params![&**key])
                .map(drop)
        }
    }
}

/// What failed at or below the mark is done with, or parked.
pub(super) fn forget_tried(connection: &Connection, mark: Position) -> rusqlite::Result<()> {
    // Its record stays if it was parked: then it is in a queue by now.
    connection
        .prepare_cached(
            "DELETE FROM _record WHERE position IN (SELECT position FROM _tried WHERE position <= ?)
             AND NOT EXISTS (SELECT 1 FROM _parked_queue queue WHERE queue.position = _record.position)",
        )?
        .execute([mark.0 as i64])?;
    connection.prepare_cached("DELETE FROM _tried WHERE position <= ?")?.execute([mark.0 as i64]).map(drop)
}

pub(super) fn tried(connection: &Connection) -> rusqlite::Result<Option<Tried>> {
    let mut statement =
        connection.prepare_cached("SELECT position, reason, attempts FROM _tried ORDER BY position")?;
    let tried = |row: &rusqlite::Row<'_>| {
        let position = Position(row.get::<_, i64>(0)? as u64);
        Ok(Tried { position, reason: row.get(1)?, attempts: row.get(2)? })
    };
    statement.query_row([], tried).optional()
}

fn queue(connection: &Connection, key: &str, position: Position) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO _parked_queue VALUES (?, ?)")?
        .execute(params![key, position.0 as i64])
        .map(drop)
}

pub(super) fn list(
    connection: &Connection,
    after: Option<&str>,
    limit: usize,
) -> rusqlite::Result<Vec<Parked>> {
    let sql = format!("{SELECT} WHERE ?1 IS NULL OR key > ?1 ORDER BY key LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let parked = statement.query_map(params![after, limit as i64], parked)?;
    parked.collect()
}

pub(super) fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<Parked>> {
    connection.prepare_cached(&format!("{SELECT} WHERE key = ?"))?.query_row([key], parked).optional()
}

pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT count(*) FROM _parked")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(|n| n as u64)
}

pub(super) fn first(connection: &Connection) -> rusqlite::Result<Option<Position>> {
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(position) FROM _parked_queue")?
        .query_row([], |row| row.get(0))?;
    Ok(first.map(|position| Position(position as u64)))
}

pub(super) fn queued(connection: &Connection, key: &str, limit: usize) -> rusqlite::Result<Vec<Position>> {
    let mut statement = connection
        .prepare_cached("SELECT position FROM _parked_queue WHERE key = ? ORDER BY position LIMIT ?")?;
    let positions = statement.query_map(params![key, limit as i64], |row| row.get::<_, i64>(0))?;
    positions.map(|position| position.map(|position| Position(position as u64))).collect()
}

fn parked(row: &rusqlite::Row<'_>) -> rusqlite::Result<Parked> {
    Ok(Parked {
        key: row.get::<_, String>(0)?.into(),
        position: Position(row.get::<_, i64>(1)? as u64),
        queued: row.get::<_, i64>(2)? as u64,
        reason: row.get(3)?,
        attempts: row.get::<_, i64>(4)? as u32,
        since: Timestamp(row.get::<_, i64>(5)? as u64),
        last_attempt: Timestamp(row.get::<_, i64>(6)? as u64),
    })
}
