//! [`DiskLog`] as the use cases see it.

use super::*;
use tokio::runtime::{Handle, RuntimeFlavor};

impl Memory for Core {
    fn head(&self, stream: &Text) -> Result<Option<Revision>, NotInMemory> {
        self.index.head_in_memory(stream)
    }

    fn key(&self, hash: &Hash) -> Result<Location, NotInMemory> {
        self.index.key_in_memory(hash)
    }

    fn origin(&self, hash: &(Hash, u64)) -> Result<Location, NotInMemory> {
        self.index.origin_in_memory(hash)
    }
}

impl Core {
    /// The end of a stream.
    fn head(&self, stream: &StreamId) -> Result<Head, ReadError> {
        loop {
            if let Ok(head) = self.sequencer.lock().head(stream, self) {
                return Ok(head);
            }
            self.index.fetch_head(stream.text()).map_err(|error| index_failed(&error))?;
        }
    }

    /// The commit of a key.
    fn find_key(&self, actor: &str, key: &str) -> Result<Option<KeyMatch>, ReadError> {
        let hash = key_hash(actor, key);
        let mut known = None;
        loop {
            {
                let sequencer = self.sequencer.lock();
                let now = sequencer.time(self.clock.now());
                if let Ok(found) = sequencer.find_key(&hash, known.as_ref(), now, self) {
                    return Ok(found);
                }
            }
            known = Some(self.look_up_key(&hash, actor, key)?);
        }
    }

    /// Stages a commit; what durable state must be asked for is looked up while the sequencer is free.
    fn stage(
        &self,
        prepared: &mut Prepared,
        ready: impl Fn(&Sequencer) -> bool,
    ) -> Result<Option<Staged>, AppendError> {
        let unavailable = |error: ReadError| AppendError::Unavailable(error.to_string());
        loop {
            {
                let mut sequencer = self.sequencer.lock();
                if !ready(&sequencer) {
                    return Ok(None);
                }
                match sequencer.stage(prepared, self.clock.now(), self) {
                    Ok(staged) => return Ok(Some(staged)),
                    Err(NotStaged::Refused(error)) => return Err(error),
                    Err(NotStaged::LookUp) => {}
                }
            }
            self.look_up(prepared).map_err(unavailable)?;
        }
    }

    fn look_up(&self, prepared: &mut Prepared) -> Result<(), ReadError> {
        let commit = &prepared.commit;
        if let (Some(hash), Some(key)) = (&prepared.key, &commit.idempotency) {
            prepared.known_key = Some(self.look_up_key(hash, &commit.actor, &key.key)?);
        }
        if let (Some(hash), Some(origin)) = (&prepared.origin, &commit.origin) {
            let find = || self.index.find_origin(hash).map_err(|error| index_failed(&error));
            let same = |header: &CommitHeader| header.origin.as_ref() == Some(origin);
            prepared.known_origin = Some(self.find_verified(find, same)?);
        }
        self.index.fetch_head(commit.stream.text()).map_err(|error| index_failed(&error))
    }

    fn look_up_key(&self, hash: &Hash, actor: &str, key: &str) -> Result<LookedUp, ReadError> {
        let find = || {
            let now = self.sequencer.lock().time(self.clock.now());
            let place = self.index.find_key(hash, now).map_err(|error| index_failed(&error))?;
            Ok(place.map(|place| place.location))
        };
        let same = |header: &CommitHeader| {
            let found = header.idempotency.as_ref();
            found.is_some_and(|found| *found.key == *key) && *header.actor == *actor
        };
        self.find_verified(find, same)
    }

    /// Follows the index to a commit and checks that it is the right one; an index that errs is built again, once.
    fn find_verified(
        &self,
        find: impl Fn() -> Result<Option<Location>, ReadError>,
        same: impl Fn(&CommitHeader) -> bool,
    ) -> Result<LookedUp, ReadError> {
        for rebuilt in [false, true] {
            let settlings = self.index.settlings();
            let Some(location) = find()? else { return Ok(LookedUp { settlings, found: None }) };
            let record = Places::new(&self.segments).record(location)?;
            let commit = record.and_then(|record| reader::commit(&record).ok());
            if let Some(commit) = commit.filter(|commit| same(&commit.header)) {
                return Ok(LookedUp { settlings, found: Some((location, Arc::new(commit))) });
            }
            if !rebuilt {
                self.rebuild_index("it named a commit for a key that the commit does not have", &mut |_| ())?;
            }
        }
        Err(ReadError::Corrupt("the index names a commit for a key that the commit does not have".into()))
    }

    fn events(
        &self,
        after: Position,
        filter: &EventFilter,
        limits: ReadLimits,
    ) -> Result<EventBatch, ReadError> {
        let durable = *self.durable.borrow();
        let mut batch = EventBatch { events: Vec::new(), scanned_to: after };
        if after >= durable.position {
            return Ok(batch);
        }
        // About what the wanted items take; further blocks are large.
        let size = limits.bytes.min(limits.items.saturating_mul(512)).clamp(16 << 10, scan::BLOCK);
        let target = Target::Position(after.0 + 1);
        let Some(mut commits) = Commits::from(&self.segments, target, durable.commit.0, size)? else {
            return Ok(batch);
        };
        let mut bytes = 0;
        while let Some(found) = commits.next()? {
            let raw = commits.raw(&found)?;
            let (first, last) = (raw.first_position(), raw.last_position());
            if raw.event_count() == 0 || last <= after {
                continue;
            }
            if !filter.wants_stream(raw.stream_text()) {
                batch.scanned_to = last;
                continue;
            }
            let skip = (after.0 + 1).saturating_sub(first.0);
            let record = commits.record(&found);
            let mut header = None;
            let mut events =
                commit_record::Events::new(&record).map_err(|e| commits.malformed(&found, &e))?;
            loop {
                let wanted = |index: u32, event_type: &[u8]| {
                    u64::from(index) >= skip
                        && filter.types.as_ref().is_none_or(|types| types.contains(event_type))
                };
                // Decoded once, and only if one of its events is wanted.
                let decode = || match &header {
                    Some(header) => Ok(Arc::clone(header)),
                    None => {
                        let decoded = Arc::new(commit_record::decode_header(&record)?);
                        Ok(Arc::clone(header.insert(decoded)))
                    }
                };
                let event = events.next(wanted, decode).map_err(|e| commits.malformed(&found, &e))?;
                let Some(event) = event else { break };
                bytes += event.weight();
                batch.scanned_to = event.position;
                batch.events.push(event);
                if batch.events.len() >= limits.items || bytes >= limits.bytes {
                    return Ok(batch);
                }
            }
            batch.scanned_to = last;
        }
        batch.scanned_to = durable.position;
        Ok(batch)
    }

    fn stream_events(
        &self,
        stream: &StreamId,
        from: Revision,
        limits: ReadLimits,
        only_memory: bool,
    ) -> Result<Option<Vec<StoredEvent>>, ReadError> {
        let last = self.durable.borrow().commit.0;
        for rebuilt in [false, true] {
            let spans = self.index.spans(stream.text(), from, limits.items.max(1), only_memory);
            let Some(mut spans) = spans.map_err(|error| index_failed(&error))? else { return Ok(None) };
            // The index hears of a commit a moment before the mark covers it.
            spans.retain(|span| span.commit <= last);
            let mut places = Places::new(&self.segments);
            let (mut events, mut bytes) = (Vec::new(), 0);
            let mut next = from.0;
            let mut wrong = false;
            for span in &spans {
                let header_of = |record: &Bytes| commit_record::decode_header(record).ok();
                let record = places.record(span.location)?;
                let header = record.as_ref().and_then(header_of).filter(|header| {
                    // Dense as well: a block that is not there would show as a gap.
                    header.stream == *stream
                        && header.first_revision.0 == span.revision
                        && span.revision <= next
                });
                let (Some(record), Some(header)) = (record, header) else {
                    wrong = true;
                    break;
                };
                let (header, skip) = (Arc::new(header), from.0.saturating_sub(span.revision));
                let before = events.len();
                let wanted = |index: u32, _: &[u8]| u64::from(index) >= skip;
                reader::append_events(&record, &header, wanted, &mut events)
                    .map_err(|malformed| ReadError::Corrupt(malformed.to_string()))?;
                next = span.last_revision().0 + 1;
                bytes += events[before..].iter().map(StoredEvent::weight).sum::<usize>();
                if events.len() >= limits.items || bytes >= limits.bytes {
                    break;
                }
            }
            if !wrong {
                events.truncate(limits.items.max(1));
                cut_to_bytes(&mut events, limits.bytes);
                return Ok(Some(events));
            }
            if !rebuilt {
                self.rebuild_index("it named a commit for a stream that the commit is not of", &mut |_| ())?;
            }
        }
        Err(ReadError::Corrupt(format!("the index does not agree with the log about stream `{stream}`")))
    }

    fn commits(&self, after: CommitNumber, limits: ReadLimits) -> Result<Vec<Commit>, ReadError> {
        let last = self.durable.borrow().commit.0;
        let mut out = Vec::new();
        if after.0 >= last {
            return Ok(out);
        }
        let size = limits.bytes.min(limits.items.saturating_mul(1024)).clamp(16 << 10, scan::BLOCK);
        let Some(mut commits) = Commits::from(&self.segments, Target::Commit(after.0 + 1), last, size)?
        else {
            return Ok(out);
        };
        let mut bytes = 0;
        while let Some(found) = commits.next()? {
            if commits.raw(&found)?.number() <= after {
                continue;
            }
            let record = commits.record(&found);
            bytes += record.len();
            out.push(reader::commit(&record).map_err(|malformed| commits.malformed(&found, &malformed))?);
            if out.len() >= limits.items || bytes >= limits.bytes {
                break;
            }
        }
        Ok(out)
    }

    fn command(&self, command: CommandId) -> Result<Option<Commit>, ReadError> {
        let Some(time) = command.time() else { return Ok(None) };
        let last = self.durable.borrow().commit.0;
        let Some(mut commits) = Commits::from(&self.segments, Target::Time(time.0), last, 256 << 10)? else {
            return Ok(None);
        };
        let late = time.plus(COMMAND_LIFE);
        while let Some(found) = commits.next()? {
            let raw = commits.raw(&found)?;
            if raw.recorded_at() > late {
                break;
            }
            if raw.command_id() == command {
                let commit = reader::commit(&commits.record(&found));
                return commit.map(Some).map_err(|malformed| commits.malformed(&found, &malformed));
            }
        }
        Ok(None)
    }

    /// Whether what is behind this place is at the log's end, and little.
    fn is_near(&self, target: Target) -> bool {
        let Some((segment, offset)) = self.segments.find_in_memory(target) else { return false };
        self.segments.get(segment.header.sequence + 1).is_none() && segment.end() - offset <= SMALL_READ
    }
}

/// Cuts what goes beyond the bound, and leaves one at least.
fn cut_to_bytes(events: &mut Vec<StoredEvent>, most: usize) {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        let fits = bytes < most;
        bytes += event.weight();
        fits
    });
    let fit = fit.count().max(1);
    events.truncate(fit);
}

/// Runs a read that may wait for the disk where waiting is allowed.
fn off_reactor<T: Send + 'static>(
    core: &Arc<Core>,
    read: impl FnOnce(&Core) -> Result<T, ReadError> + Send + 'static,
) -> Future<'static, Result<T, ReadError>> {
    let core = Arc::clone(core);
    Box::pin(async move {
        // A runtime of one thread is a test's, which wants the same order of things each time.
        let threads = |current: Handle| current.runtime_flavor() != RuntimeFlavor::CurrentThread;
        if !Handle::try_current().is_ok_and(threads) {
            return read(&core);
        }
        match tokio::task::spawn_blocking(move || read(&core)).await {
            Ok(result) => result,
            Err(error) => Err(ReadError::Io(format!("the read was given up: {error}"))),
        }
    })
}

/// An append's place in the queue; counted as long as it waits.
struct Waiting(Arc<Core>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut sequencer = self.0.sequencer.lock();
        sequencer.waiting = sequencer.waiting.saturating_sub(1);
    }
}

/// Has a staged commit written. If that is impossible, its settlement says so.
fn wake(core: &Core, syncer: &Worker) {
    if let Err(error) = syncer.wake() {
        core.fail_staged(&error);
    }
}

impl EventLog for DiskLog {
    fn append(&self, commit: NewCommit) -> Future<'_, Result<Staged, AppendError>> {
        if let Err(text) = commit_record::check_size(&commit) {
            return Box::pin(std::future::ready(Err(AppendError::TooLarge(text))));
        }
        let mut prepared = Prepared::new(commit);
        // Staged here and now rather than when the future is polled: that is what keeps the order of calls.
        let ready = |sequencer: &Sequencer| sequencer.waiting == 0 && !sequencer.is_full();
        match self.core.stage(&mut prepared, ready) {
            Ok(Some(staged)) => {
                wake(&self.core, &self.syncer);
                return Box::pin(std::future::ready(Ok(staged)));
            }
            Ok(None) => self.core.sequencer.lock().waiting += 1,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        }
        let waiting = Waiting(Arc::clone(&self.core));
        let mut turn = Box::pin(Arc::clone(&self.core.queue).acquire_owned());
        // The first poll is what takes a place in the queue.
        let first = Pin::new(&mut turn).poll(&mut Context::from_waker(Waker::noop()));
        Box::pin(async move {
            let waiting = waiting;
            let core = &waiting.0;
            let _turn = match first {
                Poll::Ready(turn) => turn,
                Poll::Pending => turn.await,
            };
            loop {
                if let Some(staged) = core.stage(&mut prepared, |sequencer| !sequencer.is_full())? {
                    wake(core, &self.syncer);
                    return Ok(staged);
                }
                core.room.notified().await;
            }
        })
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.core.durable.subscribe()
    }

    fn now(&self) -> Timestamp {
        self.core.sequencer.lock().tell_time(self.core.clock.now())
    }

    fn head(&self, stream: &StreamId) -> Result<Head, ReadError> {
        self.core.head(stream)
    }

    fn find_key(&self, actor: &str, key: &str) -> Result<Option<KeyMatch>, ReadError> {
        self.core.find_key(actor, key)
    }

    fn read<'a>(
        &'a self,
        after: Position,
        filter: &'a EventFilter,
        limits: ReadLimits,
    ) -> Future<'a, Result<EventBatch, ReadError>> {
        let core = &self.core;
        let end = core.durable.borrow().position;
        if after >= end || core.is_near(Target::Position(after.0 + 1)) {
            return Box::pin(async move { core.events(after, filter, limits) });
        }
        let filter = filter.clone();
        off_reactor(core, move |core| core.events(after, &filter, limits))
    }

    fn read_stream<'a>(
        &'a self,
        stream: &'a StreamId,
        from: Revision,
        limits: ReadLimits,
    ) -> Future<'a, Result<Vec<StoredEvent>, ReadError>> {
        Box::pin(async move {
            // What is not in sled yet was written within the last moments, so it is in the system's page cache too.
            if limits.items <= 100
                && let Some(events) = self.core.stream_events(stream, from, limits, true)?
            {
                return Ok(events);
            }
            let stream = stream.clone();
            let read = move |core: &Core| core.stream_events(&stream, from, limits, false);
            Ok(off_reactor(&self.core, read).await?.unwrap_or_default())
        })
    }

    fn read_commits(
        &self,
        after: CommitNumber,
        limits: ReadLimits,
    ) -> Future<'_, Result<Vec<Commit>, ReadError>> {
        let core = &self.core;
        let end = core.durable.borrow().commit;
        if after >= end || core.is_near(Target::Commit(after.0 + 1)) {
            return Box::pin(async move { core.commits(after, limits) });
        }
        off_reactor(core, move |core| core.commits(after, limits))
    }

    fn commit(&self, number: CommitNumber) -> Future<'_, Result<Option<Commit>, ReadError>> {
        Box::pin(async move {
            let Some(before) = number.0.checked_sub(1) else { return Ok(None) };
            let one = ReadLimits { items: 1, bytes: 64 << 10 };
            Ok(self.read_commits(CommitNumber(before), one).await?.pop())
        })
    }

    fn find_command(&self, command: CommandId) -> Future<'_, Result<Option<Commit>, ReadError>> {
        off_reactor(&self.core, move |core| core.command(command))
    }

    fn close(&self) -> Option<Durable> {
        self.close()
    }
}
