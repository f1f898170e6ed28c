//! One version's file: a writer that commits batches, and readers beside it.

use super::sql::{Parameter, Table};
use super::{parks, places};
use ebb_domain::digest::Digest;
use ebb_domain::event::Position;
use ebb_domain::model::{ModelSchema, Page, Query, Row, Value};
use ebb_domain::name::{ModelName, TopicName};
use ebb_domain::port::models::{ModelError, Parked, ProjectionStore, RowBatch, RowChange, Tried};
use ebb_domain::text::Text;
use ebb_domain::topic::{KeptRecord, Place, Seen};
use ebb_faults::{Point, crash_point};
use parking_lot::Mutex;
use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension, ffi, params_from_iter};
use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Readers kept open for the next query.
const IDLE_READERS: usize = 4;

/// Statements kept prepared for each connection.
const STATEMENTS: usize = 128;

/// The rows of one projection version.
pub(super) struct SqliteProjection {
    path: PathBuf,
    /// Which file that was when it was opened: one that is deleted can be read and written for as long as it is open.
    inode: (u64, u64),
    tables: HashMap<Text, Table>,
    /// Open while someone writes.
    writer: Mutex<Option<Connection>>,
    readers: Mutex<Vec<Connection>>,
    mark: AtomicU64,
    /// Once damage was met, nothing is read or written until the file has been opened, and thereby built, anew.
    damaged: AtomicBool,
}

/// Why a file could not be opened.
#[derive(Debug)]
pub(super) struct OpenError(rusqlite::Error);

impl OpenError {
    /// Whether the file is not what SQLite wrote.
    pub(super) fn is_damage(&self) -> bool {
        is_damage(&self.0)
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    match error {
        // The write-ahead log ends before what its index says it holds.
        E::SqliteFailure(failure, _) if failure.extended_code == ffi::SQLITE_IOERR_SHORT_READ => true,
        E::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // Tables are strict: a value of another type than its column's was never written.
        E::FromSqlConversionFailure(..) | E::InvalidColumnType(..) | E::Utf8Error(..) => true,
        _ => false,
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error)
    }
}

pub(super) fn store_error(error: impl fmt::Display) -> ModelError {
    ModelError::Store(error.to_string())
}

impl SqliteProjection {
    /// Opens a file, making it if it is not there.
    pub(super) fn open(path: &Path, models: &[ModelSchema]) -> Result<Self, OpenError> {
        let writer = open_writer(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        writer.pragma_update(None, "journal_mode", "WAL")?;
        // One transaction: a file has all of its tables, or is an empty one that gets them at the next try.
        let creation = writer.unchecked_transaction()?;
        writer.execute_batch(
            "CREATE TABLE IF NOT EXISTS _mark (id INTEGER PRIMARY KEY CHECK (id = 0), position INTEGER NOT NULL) STRICT;
             INSERT OR IGNORE INTO _mark VALUES (0, 0);",
        )?;
        writer.execute_batch(parks::CREATE)?;
        writer.execute_batch(places::CREATE)?;
        write_models(&writer, models)?;
        let mut tables = HashMap::with_capacity(models.len());
        for model in models {
            let table = Table::new(model);
            writer.execute_batch(&table.create())?;
            tables.insert(model.name.text().clone(), table);
        }
        creation.commit()?;
        // Damage below is met by whoever reads it; this meets what lies at the top of each tree.
        let mark: i64 = writer.query_row("SELECT position FROM _mark", [], |row| row.get(0))?;
        for table in tables.values() {
            writer.prepare(&table.get)?.query_row([""], |_| Ok(())).optional()?;
        }
        let inode = inode(path).ok_or_else(|| {
            rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_CANTOPEN),
                Some("it was just made".into()),
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            inode,
            tables,
            writer: Mutex::new(Some(writer)),
            readers: Mutex::default(),
            mark: AtomicU64::new(mark as u64),
            damaged: AtomicBool::new(false),
        })
    }

    fn table(&self, model: &str) -> Result<&Table, ModelError> {
        self.tables
            .get(model.as_bytes())
            .ok_or_else(|| ModelError::UnknownModel(model.chars().take(80).collect()))
    }

    /// Runs a read on a connection of its own, which sees one moment of the file.
    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, ModelError> {
        self.check_damage()?;
        let pooled = self.readers.lock().pop();
        let reader = match pooled {
            Some(reader) => reader,
            None => self.open_reader().map_err(|error| self.failed(&error))?,
        };
        let result = read(&reader);
        let mut readers = self.readers.lock();
        if result.is_ok() && readers.len() < IDLE_READERS {
            readers.push(reader);
        }
        result.map_err(|error| self.failed(&error))
    }

    /// Whether damage was met.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    fn check_damage(&self) -> Result<(), ModelError> {
        if self.is_damaged() {
            return Err(store_error("its file is damaged, and will be built anew from the log"));
        }
        Ok(())
    }

    /// Whether somebody took the file away.
    fn is_gone(&self) -> bool {
        inode(&self.path) != Some(self.inode)
    }

    fn failed(&self, error: &rusqlite::Error) -> ModelError {
        let cant_open = error.sqlite_error_code() == Some(ErrorCode::CannotOpen);
        if is_damage(error) || (cant_open && self.is_gone()) {
            self.damaged.store(true, Ordering::Release);
        }
        store_error(error)
    }

    fn open_reader(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(&self.path, flags)?;
        configure(&reader)?;
        reader.pragma_update(None, "cache_size", -2 * 1024)?;
        Ok(reader)
    }

    fn apply(&self, writer: &Connection, change: &(ModelName, Text, RowChange)) -> Result<(), ModelError> {
        let (model, key, change) = change;
        let table = self.table(model)?;
        let done = match change {
            RowChange::Put(row) => {
                for (name, value) in row {
                    let kind = table.column(name)?;
                    if !kind.accepts(value) {
                        let problem = format!("column `{name}` is {kind}, which {value:?} is not");
                        return Err(ModelError::BadColumn { model: model.to_string(), problem });
                    }
                }
                writer.prepare_cached(&table.put).and_then(|mut put| bind_row(&mut put, table, key, row))
            }
            RowChange::Delete => {
                writer.prepare_cached(&table.delete).and_then(|mut delete| delete.execute([&**key]))
            }
            RowChange::Add(columns) if columns.is_empty() => return Ok(()),
            RowChange::Add(columns) => {
                for (name, _) in columns {
                    let kind = table.column(name)?;
                    if !kind.accepts(&Value::Integer(0)) {
                        let problem = format!("column `{name}` is {kind}; only integers can be added to");
                        return Err(ModelError::BadColumn { model: model.to_string(), problem });
                    }
                }
                writer.prepare_cached(&table.add(columns)).and_then(|mut add| {
                    add.raw_bind_parameter(1, &**key)?;
                    for (index, (_, delta)) in columns.iter().enumerate() {
                        add.raw_bind_parameter(index + 2, delta)?;
                    }
                    add.raw_execute()
                })
            }
        };
        done.map(drop).map_err(|error| self.failed(&error))
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn open_writer(path: &Path, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let writer = Connection::open_with_flags(path, flags)?;
    configure(&writer)?;
    // The log has everything: a lost tail is projected again, so only checkpoints sync.
    writer.pragma_update(None, "synchronous", "NORMAL")?;
    writer.pragma_update(None, "cache_size", -8 * 1024)?;
    Ok(writer)
}

/// Keeps the models with their rows, for whoever opens the file without a manifest at hand.
fn write_models(writer: &Connection, models: &[ModelSchema]) -> rusqlite::Result<()> {
    writer.execute_batch("CREATE TABLE IF NOT EXISTS _model (schema TEXT NOT NULL PRIMARY KEY) STRICT;")?;
    for model in models {
        let schema = serde_json::to_string(model)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        writer.execute("INSERT OR IGNORE INTO _model VALUES (?)", [schema])?;
    }
    Ok(())
}

/// The models that a file was made for.
pub(super) fn read_models(path: &Path) -> rusqlite::Result<Vec<ModelSchema>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(path, flags)?;
    let mut statement = reader.prepare("SELECT schema FROM _model ORDER BY rowid")?;
    let texts = statement.query_map([], |row| row.get::<_, String>(0))?;
    texts
        .map(|text| {
            serde_json::from_str(&text?).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
            })
        })
        .collect()
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "mmap_size", 256 << 20)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

fn bind_row(put: &mut CachedStatement<'_>, table: &Table, key: &str, row: &Row) -> rusqlite::Result<usize> {
    for (index, (name, _)) in table.columns.iter().enumerate() {
        if *name == table.schema.key {
            put.raw_bind_parameter(index + 1, key)?;
        } else {
            put.raw_bind_parameter(index + 1, Parameter(row.get(name).unwrap_or(&Value::Null)))?;
        }
    }
    put.raw_execute()
}

fn get(connection: &Connection, table: &Table, key: &str) -> rusqlite::Result<Option<Row>> {
    connection.prepare_cached(&table.get)?.query_row([key], |row| table.row(row)).optional()
}

fn query(
    connection: &Connection,
    table: &Table,
    sql: &str,
    parameters: &[Value],
    limit: usize,
) -> rusqlite::Result<Page> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows =
        statement.query_map(params_from_iter(parameters.iter().map(Parameter)), |row| table.row(row))?;
    let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    Ok(Page { rows, more })
}

fn mark(connection: &Connection) -> rusqlite::Result<Position> {
    let mark: i64 =
        connection.prepare_cached("SELECT position FROM _mark")?.query_row([], |row| row.get(0))?;
    Ok(Position(mark as u64))
}

/// A read transaction: everything in it sees the same moment.
fn at_one_moment<T>(
    connection: &Connection,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<(Position, T)> {
    let transaction = connection.unchecked_transaction()?;
    let mark = mark(&transaction)?;
    let result = read(&transaction)?;
    transaction.commit()?;
    Ok((mark, result))
}

impl ProjectionStore for SqliteProjection {
    fn mark(&self) -> Result<Position, ModelError> {
        Ok(Position(self.mark.load(Ordering::Acquire)))
    }

    fn get(&self, model: &str, key: &str) -> Result<Option<Row>, ModelError> {
        let table = self.table(model)?;
        self.read(|reader| get(reader, table, key))
    }

    fn query(&self, model: &str, asked: &Query) -> Result<Page, ModelError> {
        let table = self.table(model)?;
        let (sql, parameters) = table.query(asked)?;
        self.read(|reader| query(reader, table, &sql, &parameters, asked.limit))
    }

    fn get_at(&self, model: &str, key: &str) -> Result<(Position, Option<Row>), ModelError> {
        let table = self.table(model)?;
        self.read(|reader| at_one_moment(reader, |reader| get(reader, table, key)))
    }

    fn query_at(&self, model: &str, asked: &Query) -> Result<(Position, Page), ModelError> {
        let table = self.table(model)?;
        let (sql, parameters) = table.query(asked)?;
        self.read(|reader| {
            at_one_moment(reader, |reader| query(reader, table, &sql, &parameters, asked.limit))
        })
    }

    fn commit(&self, mut batch: RowBatch) -> Result<(), ModelError> {
        // Neighbouring keys share pages.
        batch.changes.sort_unstable_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        if self.is_gone() {
            self.damaged.store(true, Ordering::Release);
        }
        self.check_damage()?;
        let mut writer = self.writer.lock();
        let writer = match &mut *writer {
            Some(writer) => writer,
            // Never made anew here: what was removed stays removed.
            closed => {
                let opened =
                    open_writer(&self.path, OpenFlags::empty()).map_err(|error| self.failed(&error))?;
                closed.insert(opened)
            }
        };
        let transaction = writer.transaction().map_err(|error| self.failed(&error))?;
        for change in &batch.changes {
            self.apply(&transaction, change)?;
        }
        for (position, record) in &batch.records {
            places::keep(&transaction, *position, record).map_err(|error| self.failed(&error))?;
        }
        for place in &batch.places {
            places::set(&transaction, place).map_err(|error| self.failed(&error))?;
        }
        places::see(&transaction, &batch.seen).map_err(|error| self.failed(&error))?;
        for change in &batch.parks {
            parks::apply(&transaction, change).map_err(|error| self.failed(&error))?;
        }
        if let Some(mark) = batch.mark {
            transaction
                .prepare_cached("UPDATE _mark SET position = ?")
                .and_then(|mut update| update.execute([mark.0 as i64]))
                .and_then(|_| parks::forget_tried(&transaction, mark))
                .map_err(|error| self.failed(&error))?;
        }
        crash_point(Point::RowsBeforeCommit);
        transaction.commit().map_err(|error| self.failed(&error))?;
        crash_point(Point::RowsAfterCommit);
        if let Some(mark) = batch.mark {
            self.mark.store(mark.0, Ordering::Release);
        }
        Ok(())
    }

    fn parked(&self, after: Option<&str>, limit: usize) -> Result<Vec<Parked>, ModelError> {
        self.read(|reader| parks::list(reader, after, limit))
    }

    fn parked_key(&self, key: &str) -> Result<Option<Parked>, ModelError> {
        self.read(|reader| parks::get(reader, key))
    }

    fn parked_count(&self) -> Result<u64, ModelError> {
        self.read(parks::count)
    }

    fn first_parked(&self) -> Result<Option<Position>, ModelError> {
        self.read(parks::first)
    }

    fn queued(&self, key: &str, limit: usize) -> Result<Vec<Position>, ModelError> {
        self.read(|reader| parks::queued(reader, key, limit))
    }

    fn tried(&self) -> Result<Option<Tried>, ModelError> {
        self.read(parks::tried)
    }

    fn places(&self) -> Result<Vec<Place>, ModelError> {
        self.read(places::all)
    }

    fn record(&self, position: Position) -> Result<Option<KeptRecord>, ModelError> {
        self.read(|reader| places::record(reader, position))
    }

    fn seen(&self, topic: &TopicName, partition: u32, same: &Digest) -> Result<Option<Seen>, ModelError> {
        self.read(|reader| places::seen(reader, topic, partition, same))
    }

    fn size_bytes(&self) -> u64 {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let mut wal = self.path.as_os_str().to_owned();
        wal.push("-wal");
        size(&self.path) + size(Path::new(&wal))
    }

    fn release(&self) {
        self.readers.lock().clear();
        *self.writer.lock() = None;
    }
}
