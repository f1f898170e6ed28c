//! Programs of a few hundred lines that do what a node does for its apps, without wasm: the baselines of `kafka`.
//!
//! Each keeps the promises that are measured: nothing is told to Kafka before it is durable, rows and how far they are
//! commit together, order is kept, and what is produced is idempotent. They differ from a node in what they leave out:
//! modules, manifests, limits, retries, parking, many apps.

use super::broker::{PATIENCE, Producer};
use crate::log::{commit, open};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use bytes::Bytes;
use ebb_domain::commit::{KafkaOrigin, NewCommit, Outcome};
use ebb_domain::event::{NewEvent, Position};
use ebb_domain::name::{AppName, EventType};
use ebb_domain::port::log::{AppendError, EventFilter, EventLog, ReadLimits};
use ebb_domain::port::storage::Storage;
use ebb_domain::stream::StreamId;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Message as _, Offset};
use rusqlite::Connection;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// What a projection takes at once at most, as in a node unless the manifest says otherwise.
const BATCH: usize = 500;
/// What goes to the log, and out of it, at once.
const INTAKE: usize = 1000;
const RELAY: ReadLimits = ReadLimits { items: 5000, bytes: 4 << 20 };

type Log = Arc<dyn EventLog>;

struct Native {
    log: Option<Log>,
    rows: PathBuf,
    reader: Mutex<Option<Connection>>,
    /// What was done: events published, records or events projected, commands carried out.
    done: AtomicU64,
    /// How far rows are.
    mark: watch::Sender<u64>,
}

/// Serves one of them until it is killed.
pub async fn serve(what: &str, folder: &str, brokers: &str, topic: &str) {
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let with_log = what != "direct";
    let log =
        with_log.then(|| open(&folder).open_log(&AppName::new("bench").expect("a name")).expect("a log"));
    let native = Arc::new(Native {
        log,
        rows: folder.join("rows.sqlite"),
        reader: Mutex::default(),
        done: AtomicU64::new(0),
        mark: watch::Sender::new(0),
    });
    // Readers find tables.
    drop(Rows::open(&native.rows));
    let broker = Broker { brokers: brokers.to_owned(), topic: topic.to_owned() };
    let apart = |work: Box<dyn FnOnce() + Send>| drop(std::thread::spawn(work));
    let also = (native.clone(), broker.clone());
    match what {
        "relay" => drop(tokio::spawn(async move { also.0.relay(&also.1, false).await })),
        "relay-transactional" => drop(tokio::spawn(async move { also.0.relay(&also.1, true).await })),
        "direct" => apart(Box::new(move || also.0.direct(&also.1))),
        "log" => {
            let other = native.clone();
            drop(tokio::spawn(async move { other.follow().await }));
            drop(tokio::spawn(async move { also.0.intake(&also.1).await }));
        }
        "commands" => drop(tokio::spawn(async move { also.0.commands(&also.1).await })),
        "rows" => drop(tokio::spawn(async move { also.0.follow().await })),
        "chain" => {
            let (other, to) = (native.clone(), broker.clone());
            drop(tokio::spawn(async move { other.relay(&to, false).await }));
            apart(Box::new(move || also.0.direct(&also.1)));
        }
        other => panic!("no such program: {other}"),
    }
    let router = axum::Router::new()
        .route(
            "/done",
            get(|State(native): State<Arc<Native>>| async move {
                native.done.load(Ordering::Relaxed).to_string()
            }),
        )
        .route("/apps/bank/commands/account/{id}/{command}", post(command))
        .route("/apps/{app}/models/{model}/{key}", get(row))
        .with_state(native);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("http=http://{} ", listener.local_addr().expect("an address"));
    std::io::stdout().flush().expect("stdout");
    let listener = axum::serve::ListenerExt::tap_io(listener, |socket| drop(socket.set_nodelay(true)));
    axum::serve(listener, router).await.expect("it serves");
}

/// Appends the event that a command leads to, with the command's data.
async fn command(
    State(native): State<Arc<Native>>,
    Path((id, command)): Path<(String, String)>,
    body: Bytes,
) -> String {
    let stream = StreamId::parse(format!("account-{id}")).expect("a stream");
    serde_json::from_slice::<Deposit>(&body).expect("JSON");
    let event = NewEvent { event_type: event_type(&command), ..event(body) };
    let commit = NewCommit { outcome: Outcome::Events(vec![event]), ..commit(stream, Bytes::new()) };
    let mut staged = native.log().append(commit).await.expect("staged");
    staged.settlement.wait().await.expect("durable");
    format!("{{\"revision\":{},\"position\":{}}}", staged.first_revision, staged.first_position)
}

async fn row(
    State(native): State<Arc<Native>>,
    Path((_, _, key)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let after = headers.get("ebb-after").and_then(|after| after.to_str().ok()?.parse().ok());
    let after: u64 = after.unwrap_or_default();
    native.mark.subscribe().wait_for(|mark| *mark >= after).await.expect("a mark");
    let mut reader = native.reader.lock().expect("no panic");
    let reader = reader.get_or_insert_with(|| Connection::open(&native.rows).expect("rows"));
    let mut read = reader.prepare_cached("SELECT amount FROM tallies WHERE account = ?").expect("SQL");
    match read.query_row([&key], |row| row.get::<_, i64>(0)) {
        Ok(amount) => (StatusCode::OK, format!("{{\"account\":\"{key}\",\"amount\":{amount}}}")),
        Err(_) => (StatusCode::NOT_FOUND, String::new()),
    }
}

#[derive(Deserialize)]
struct Deposit {
    #[serde(default)]
    amount: i64,
}

/// What a record adds to which account.
#[derive(Deserialize)]
struct Amount<'a> {
    #[serde(alias = "owner", borrow)]
    account: std::borrow::Cow<'a, str>,
    #[serde(default)]
    amount: i64,
}

fn event(data: Bytes) -> NewEvent {
    NewEvent {
        event_type: EventType::new("Deposited").expect("a name"),
        schema_version: 1,
        data,
        content_type: ebb_domain::event::JSON,
    }
}

fn event_type(command: &str) -> EventType {
    EventType::new(if command == "open" { "Opened" } else { "Deposited" }).expect("a name")
}

impl Native {
    fn log(&self) -> &Log {
        self.log.as_ref().expect("it has a log")
    }

    /// Publishes the log, from its beginning on.
    async fn relay(&self, broker: &Broker, transactional: bool) {
        let producer = Producer::new(&broker.brokers, transactional.then_some(&*broker.topic));
        if transactional {
            producer.0.init_transactions(PATIENCE).expect("transactions");
        }
        let mark_topic = format!("{}.mark", broker.topic);
        let app = AppName::new("bench").expect("a name");
        let (filter, mut durable) = (EventFilter::default(), self.log().durable());
        let mut after = Position::START;
        loop {
            durable.wait_for(|durable| durable.position > after).await.expect("a log");
            let batch = self.log().read(after, &filter, RELAY).await.expect("a batch");
            after = batch.scanned_to;
            tokio::task::block_in_place(|| {
                if transactional {
                    producer.0.begin_transaction().expect("a transaction");
                }
                for event in &batch.events {
                    let attributes = event.attributes(&app);
                    let headers = OwnedHeaders::new_with_capacity(attributes.len() + 1)
                        .insert(Header { key: "content-type", value: Some(&*event.content_type) });
                    let headers = attributes.iter().fold(headers, |headers, (name, value)| {
                        headers.insert(Header { key: &format!("ce_{name}"), value: Some(&**value) })
                    });
                    let record = BaseRecord::to(&broker.topic).key(event.stream().as_str());
                    producer.send(record.payload(&event.data[..]).headers(headers));
                }
                let mark = format!("{{\"position\":{after}}}");
                if transactional {
                    producer.send(BaseRecord::to(&mark_topic).key("relay").payload(mark.as_bytes()));
                    producer.0.commit_transaction(PATIENCE).expect("a commit");
                } else {
                    // The mark of the batch before goes with this one.
                    producer.wait();
                    producer.send(BaseRecord::to(&mark_topic).key("relay").payload(mark.as_bytes()));
                }
            });
            self.done.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
        }
    }

    /// Records to rows, with their offsets.
    fn direct(&self, broker: &Broker) {
        let consumer = broker.consumer();
        let mut rows = Rows::open(&self.rows);
        loop {
            let records = batch(&consumer, BATCH);
            if records.is_empty() {
                continue;
            }
            let mut offsets = HashMap::new();
            let mut sums: HashMap<String, i64> = HashMap::new();
            for record in &records {
                offsets.insert(record.partition(), record.offset() + 1);
                add(&mut sums, record.payload().unwrap_or_default());
            }
            rows.write(&sums, |write| {
                let mut mark = write.prepare_cached(
                    "INSERT INTO offsets VALUES (?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
                )?;
                offsets.iter().try_for_each(|(partition, next)| mark.execute((partition, next)).map(drop))
            });
            // So that tools see it.
            stored(&consumer, &broker.topic, &offsets);
            let done = self.done.fetch_add(records.len() as u64, Ordering::Relaxed);
            self.mark.send_replace(done + records.len() as u64);
        }
    }

    /// Records to the log, once each.
    async fn intake(&self, broker: &Broker) {
        let consumer = broker.consumer();
        loop {
            let offsets = {
                let records = tokio::task::block_in_place(|| batch(&consumer, INTAKE));
                let mut offsets = HashMap::new();
                let mut last = None;
                for record in &records {
                    let stream = StreamId::parse(format!("topic-{}-{}", broker.topic, record.partition()));
                    let data = Bytes::copy_from_slice(record.payload().unwrap_or_default());
                    let commit =
                        NewCommit { origin: origin(record), ..commit(stream.expect("a stream"), data) };
                    last = Some(settlement(self.log().append(commit).await));
                    offsets.insert(record.partition(), record.offset() + 1);
                }
                if let Some(mut last) = last {
                    last.wait().await.expect("durable");
                }
                offsets
            };
            stored(&consumer, &broker.topic, &offsets);
        }
    }

    /// Events of the log to rows, with how far they are.
    async fn follow(&self) {
        let mut rows = Rows::open(&self.rows);
        let (filter, mut durable) = (EventFilter::default(), self.log().durable());
        let limits = ReadLimits { items: BATCH, bytes: 1 << 20 };
        let mut after = Position::START;
        loop {
            durable.wait_for(|durable| durable.position > after).await.expect("a log");
            let batch = self.log().read(after, &filter, limits).await.expect("a batch");
            after = batch.scanned_to;
            tokio::task::block_in_place(|| {
                let mut sums: HashMap<String, i64> = HashMap::new();
                for event in &batch.events {
                    match event.stream().as_str().strip_prefix("account-") {
                        // As `balances` does it.
                        Some(account) => {
                            let deposit: Deposit = serde_json::from_slice(&event.data).expect("a deposit");
                            *sums.entry(account.to_owned()).or_default() += deposit.amount;
                        }
                        None => add(&mut sums, &event.data),
                    }
                }
                rows.write(&sums, |write| {
                    let mut mark = write.prepare_cached(
                        "INSERT INTO offsets VALUES (-1, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
                    )?;
                    mark.execute([after.0 as i64]).map(drop)
                });
            });
            self.done.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
            self.mark.send_replace(after.0);
        }
    }

    /// Records that are commands: decided on accounts that are in memory, and the events appended, once for each record.
    async fn commands(&self, broker: &Broker) {
        let consumer = broker.consumer();
        let mut accounts: HashMap<String, i64> = HashMap::new();
        loop {
            let (offsets, count) = {
                let records = tokio::task::block_in_place(|| batch(&consumer, INTAKE));
                let mut offsets = HashMap::new();
                let mut last = None;
                for record in &records {
                    let key = std::str::from_utf8(record.key().unwrap_or_default()).expect("a key");
                    let headers = record.headers().expect("headers");
                    let command =
                        headers.iter().find(|header| header.key == "ce_type").and_then(|header| header.value);
                    let data = Bytes::copy_from_slice(record.payload().unwrap_or_default());
                    let amount = serde_json::from_slice::<Deposit>(&data).expect("a command").amount;
                    let command = std::str::from_utf8(command.expect("a command")).expect("UTF-8");
                    match accounts.get_mut(key) {
                        Some(balance) => *balance += amount,
                        None if command == "open" => drop(accounts.insert(key.to_owned(), 0)),
                        None => panic!("account {key} is not open"),
                    }
                    let stream = StreamId::parse(format!("account-{key}")).expect("a stream");
                    let event = NewEvent { event_type: event_type(command), ..event(data) };
                    let commit = NewCommit {
                        origin: origin(record),
                        outcome: Outcome::Events(vec![event]),
                        ..commit(stream, Bytes::new())
                    };
                    last = Some(settlement(self.log().append(commit).await));
                    offsets.insert(record.partition(), record.offset() + 1);
                }
                if let Some(mut last) = last {
                    last.wait().await.expect("durable");
                }
                (offsets, records.len())
            };
            stored(&consumer, &broker.topic, &offsets);
            self.done.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}

fn add(sums: &mut HashMap<String, i64>, data: &[u8]) {
    let Amount { account, amount } = serde_json::from_slice(data).expect("an amount");
    match sums.get_mut(&*account) {
        Some(sum) => *sum += amount,
        None => drop(sums.insert(account.into_owned(), amount)),
    }
}

fn origin(record: &BorrowedMessage<'_>) -> Option<KafkaOrigin> {
    Some(KafkaOrigin {
        cluster: "bench".into(),
        topic: uuid::Uuid::from_u128(1),
        partition: record.partition() as u32,
        offset: record.offset() as u64,
    })
}

fn settlement(
    appended: Result<ebb_domain::port::log::Staged, AppendError>,
) -> ebb_domain::port::log::Settlement {
    match appended {
        Ok(staged) => staged.settlement,
        Err(AppendError::Duplicate(earlier)) => earlier.settlement,
        Err(error) => panic!("{error}"),
    }
}

/// Rows of a counter for each account, written as a node writes them.
struct Rows(Connection);

impl Rows {
    fn open(path: &std::path::Path) -> Self {
        let rows = Connection::open(path).expect("a file");
        rows.pragma_update(None, "journal_mode", "WAL").expect("WAL");
        rows.pragma_update(None, "synchronous", "NORMAL").expect("a setting");
        rows.pragma_update(None, "mmap_size", 256 << 20).expect("a setting");
        rows.execute_batch(
            "CREATE TABLE IF NOT EXISTS tallies (account TEXT NOT NULL PRIMARY KEY, amount INTEGER) STRICT, WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS offsets (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL) STRICT;",
        )
        .expect("tables");
        Self(rows)
    }

    fn write(&mut self, sums: &HashMap<String, i64>, mark: impl FnOnce(&Connection) -> rusqlite::Result<()>) {
        let write = self.0.transaction().expect("a transaction");
        {
            let mut add = write
                .prepare_cached("INSERT INTO tallies VALUES (?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount")
                .expect("SQL");
            for sum in sums {
                add.execute(sum).expect("a row");
            }
        }
        mark(&write).expect("a mark");
        write.commit().expect("a commit");
    }
}

/// The broker, and the topic that a program is about.
#[derive(Clone)]
struct Broker {
    brokers: String,
    topic: String,
}

impl Broker {
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn consumer(&self) -> BaseConsumer {
        let mut config = self.client();
        config
            .set("group.id", uuid::Uuid::now_v7().to_string())
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "1000")
            .set("fetch.wait.max.ms", "100");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        consumer.subscribe(&[&self.topic]).expect("a topic");
        consumer
    }
}

/// Waits for a record, and takes those that are there with it.
fn batch(consumer: &BaseConsumer, most: usize) -> Vec<BorrowedMessage<'_>> {
    let mut records = Vec::with_capacity(most);
    let mut wait = Duration::from_millis(100);
    while records.len() < most
        && let Some(record) = consumer.poll(wait)
    {
        records.push(record.expect("a record"));
        wait = Duration::ZERO;
    }
    records
}

fn stored(consumer: &BaseConsumer, topic: &str, offsets: &HashMap<i32, i64>) {
    let mut list = rdkafka::TopicPartitionList::new();
    for (partition, next) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*next)).expect("an offset");
    }
    consumer.store_offsets(&list).expect("stored");
}
