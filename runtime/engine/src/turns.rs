//! Turns of guests at the processors, fair between apps by the time that they have computed.
//!
//! Without turns, guests that compute for long would all stand in the reactor's run queue, each for a tick at a time,
//! and the call of another app, and every socket, would wait behind all of them. So only as many guests as there are
//! processors are ever in that queue; the others wait here. A turn ends when the guest waits for something or is
//! done, and at every tick; then the next is for the app that has computed least for its weight (*start-time fair
//! queueing*: an app that comes back after a pause begins at the time of those who are there, with neither credit nor
//! debt). While all processors have guests the ticker ticks every millisecond, so that this is how long anybody waits.
//!
//! Calls that are over within their first turn would leave nothing to be fair about: each has ended before the next asks,
//! and apps would have turns by the number of their callers. So where more than one app calls, a call queues for its
//! first turn even if one is free ([`Turn::poll_queue`]), until everybody who is ready has asked.

use crate::fair::{App, Queues};
use parking_lot::Mutex;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Turns that are given on at once, before the reactor looks at its sockets: as long as guests follow each other it would not,
/// and an app whose callers wait for their answers before they ask again would have nobody who asks.
const IN_A_ROW: u32 = 8;

/// All turns of a node.
pub(crate) struct Turns {
    /// How many at once.
    width: usize,
    state: Mutex<State>,
    /// All turns are taken: a tick should be short.
    crowded: AtomicBool,
}

struct State {
    running: usize,
    /// Free turns are about to be given out, to whoever has asked by then.
    gathering: bool,
    /// Turns that were given on since the reactor has looked.
    in_a_row: u32,
    /// Virtual time: that of the turn which began last, nanoseconds of computing for a weight of 1.
    now: u64,
    /// What each app has had, in virtual time.
    had: Vec<u64>,
    queues: Queues<Arc<Ticket>>,
}

/// Someone who waits for a turn.
struct Ticket {
    granted: AtomicBool,
    waker: Mutex<Waker>,
}

impl State {
    fn had(&mut self, app: App) -> &mut u64 {
        if self.had.len() <= app.index {
            self.had.resize(app.index + 1, 0);
        }
        &mut self.had[app.index]
    }

    /// A turn begins: no earlier than those that have begun.
    fn begin(&mut self, app: App) {
        self.running += 1;
        let now = self.now;
        let had = self.had(app);
        *had = (*had).max(now);
        self.now = *had;
    }

    fn end(&mut self, app: App, spent: Duration) {
        self.running -= 1;
        *self.had(app) += spent.as_nanos() as u64 / u64::from(app.weight);
    }

    fn enqueue(&mut self, app: App, ticket: Arc<Ticket>) {
        let now = self.now;
        let had = self.had(app);
        *had = (*had).max(now);
        self.queues.push(app, ticket);
    }

    /// A turn is given on: whether the reactor is to look first.
    fn looks_first(&mut self) -> bool {
        self.in_a_row += 1;
        let looks = self.in_a_row >= IN_A_ROW;
        if looks {
            self.in_a_row = 0;
        }
        looks
    }

    /// The next whose turn it is, if there is one to be had.
    fn next(&mut self, width: usize) -> Option<Arc<Ticket>> {
        if self.running >= width {
            return None;
        }
        let Self { had, queues, .. } = self;
        let (app, ticket) = queues.pop_least(|app| Some(had[app.index]))?;
        self.begin(app);
        // Under the lock, so that who goes away knows whether it has a turn.
        ticket.granted.store(true, Ordering::Relaxed);
        Some(ticket)
    }
}

impl Turns {
    pub(crate) fn new(width: usize) -> Arc<Self> {
        let state = State {
            running: 0,
            gathering: false,
            in_a_row: 0,
            now: 0,
            had: Vec::new(),
            queues: Queues::new(),
        };
        Arc::new(Self { width: width.max(1), state: Mutex::new(state), crowded: AtomicBool::new(false) })
    }

    /// Whether somebody may be waiting for a running guest to pause.
    pub(crate) fn crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    fn note(&self, state: &State) {
        let crowded = state.running >= self.width;
        // Written only when it changes: it is read from another processor.
        if self.crowded.load(Ordering::Relaxed) != crowded {
            self.crowded.store(crowded, Ordering::Relaxed);
        }
    }
}

/// Gives out the turns that are free.
impl Wake for Turns {
    fn wake(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock();
                state.gathering = false;
                let next = state.next(self.width);
                self.note(&state);
                next
            };
            match next {
                Some(ticket) => ticket.wake(false),
                None => return,
            }
        }
    }
}

/// The turns of one call.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    app: App,
    stage: Stage,
    /// What it has taken of a turn that goes on.
    taken: Duration,
}

enum Stage {
    Away,
    Waiting(Arc<Ticket>),
    Running,
}

impl Turn {
    pub(crate) fn new(turns: Arc<Turns>, app: App) -> Self {
        Self { turns, app, stage: Stage::Away, taken: Duration::ZERO }
    }

    /// Waits for a turn, unless there already is one.
    pub(crate) fn poll_begin(&mut self, context: &Context<'_>) -> Poll<()> {
        match &self.stage {
            Stage::Running => return Poll::Ready(()),
            Stage::Waiting(ticket) => {
                // Before the look, so that a turn that is given in between wakes the right one.
                ticket.waker.lock().clone_from(context.waker());
                if ticket.granted.load(Ordering::Acquire) {
                    self.stage = Stage::Running;
                    return Poll::Ready(());
                }
            }
            Stage::Away => {
                let mut state = self.turns.state.lock();
                if state.running < self.turns.width && state.queues.is_empty() {
                    state.begin(self.app);
                    self.turns.note(&state);
                    self.stage = Stage::Running;
                    return Poll::Ready(());
                }
                let ticket = Ticket::new(context);
                state.enqueue(self.app, ticket.clone());
                self.stage = Stage::Waiting(ticket);
            }
        }
        Poll::Pending
    }

    /// Waits for a turn, behind all who are ready to ask for one, and have one sooner where their app has had less.
    pub(crate) fn poll_queue(&mut self, context: &Context<'_>) -> Poll<()> {
        if !matches!(self.stage, Stage::Away) {
            return self.poll_begin(context);
        }
        let ticket = Ticket::new(context);
        self.stage = Stage::Waiting(ticket.clone());
        let gathers = {
            let mut state = self.turns.state.lock();
            state.enqueue(self.app, ticket);
            // Where all are taken, whoever ends one gives it on.
            state.running < self.turns.width && !mem::replace(&mut state.gathering, true)
        };
        if gathers {
            wake_after_io(&Waker::from(self.turns.clone()));
        }
        Poll::Pending
    }

    /// So much of the turn is over, which goes on.
    pub(crate) fn goes_on(&mut self, spent: Duration) {
        self.taken += spent;
    }

    /// The turn is over, having taken so long; with `again` the call wants another as soon as may be.
    pub(crate) fn end(&mut self, spent: Duration, again: Option<&Context<'_>>) {
        if !matches!(self.stage, Stage::Running) {
            return;
        }
        self.stage = Stage::Away;
        let spent = spent + mem::take(&mut self.taken);
        let next = {
            let mut state = self.turns.state.lock();
            state.end(self.app, spent);
            if let Some(context) = again {
                let ticket = Ticket::new(context);
                state.enqueue(self.app, ticket.clone());
                self.stage = Stage::Waiting(ticket);
            }
            let next = state.next(self.turns.width);
            self.turns.note(&state);
            // A guest that paused has had a millisecond or more.
            next.map(|ticket| (ticket, state.looks_first() || again.is_some()))
        };
        if let Some((ticket, after_io)) = next {
            ticket.wake(after_io);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        match mem::replace(&mut self.stage, Stage::Away) {
            Stage::Away => return,
            Stage::Running => self.stage = Stage::Running,
            Stage::Waiting(ticket) => {
                let mut state = self.turns.state.lock();
                if !ticket.granted.load(Ordering::Relaxed) {
                    state.queues.retain(self.app, |other| !Arc::ptr_eq(other, &ticket));
                    return;
                }
                drop(state);
                // It has a turn that it will not use.
                self.stage = Stage::Running;
            }
        }
        self.end(Duration::ZERO, None);
    }
}

impl Ticket {
    fn new(context: &Context<'_>) -> Arc<Self> {
        Arc::new(Self { granted: AtomicBool::new(false), waker: Mutex::new(context.waker().clone()) })
    }

    /// Wakes who has the ticket; with `after_io` once the reactor has looked at its sockets.
    fn wake(&self, after_io: bool) {
        let waker = self.waker.lock().clone();
        if after_io { wake_after_io(&waker) } else { waker.wake() }
    }
}

/// Wakes once the reactor has looked at its sockets, and what was ready has been looked at; at once where there is no reactor.
fn wake_after_io(waker: &Waker) {
    let woken = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(waker));
    debug_assert!(woken.is_pending(), "the first poll always asks to be woken");
}

/// What a guest does at a tick: nothing, once. Nobody is woken: its next turn is what wakes it.
pub(crate) async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|_| match mem::replace(&mut paused, true) {
        false => Poll::Pending,
        true => Poll::Ready(()),
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: Duration = Duration::from_millis(1);

    fn app(index: usize, weight: u32) -> App {
        App { index, weight }
    }

    fn begins(turn: &mut Turn) -> bool {
        turn.poll_begin(&Context::from_waker(Waker::noop())).is_ready()
    }

    fn queues(turn: &mut Turn) -> bool {
        turn.poll_queue(&Context::from_waker(Waker::noop())).is_ready()
    }

    /// Calls that compute without end, so many of each app: how many slices each app gets of the first `slices`.
    fn shares(width: usize, apps: &[(App, usize)], slices: usize) -> Vec<usize> {
        let turns = Turns::new(width);
        let calls = apps.iter().flat_map(|(app, calls)| std::iter::repeat_n(*app, *calls));
        let mut calls: Vec<_> = calls.map(|app| Turn::new(turns.clone(), app)).collect();
        let mut had = vec![0; apps.len()];
        let mut left = slices;
        while left > 0 {
            let running: Vec<_> = calls.iter_mut().filter_map(|turn| begins(turn).then_some(turn)).collect();
            assert!(running.len() <= width, "{} at once", running.len());
            for turn in running {
                turn.end(SLICE, Some(&Context::from_waker(Waker::noop())));
                had[turn.app.index] += 1;
                left = left.saturating_sub(1);
            }
        }
        had
    }

    #[test]
    fn an_app_with_many_calls_has_no_more_of_the_processors_than_one_with_few() {
        let had = shares(2, &[(app(0, 1), 64), (app(1, 1), 2)], 10_000);
        assert!(had[1] >= 4_950, "{had:?}");
    }

    #[test]
    fn shares_follow_weights() {
        let had = shares(2, &[(app(0, 1), 10), (app(1, 3), 10), (app(2, 4), 3)], 8_000);
        for (had, fair) in had.iter().zip([1_000_usize, 3_000, 4_000]) {
            assert!(had.abs_diff(fair) < 50, "{had} of {fair}");
        }
    }

    #[test]
    fn who_comes_after_a_pause_is_next_and_has_saved_nothing_up() {
        let turns = Turns::new(1);
        let context = Context::from_waker(Waker::noop());
        let mut flood: Vec<_> = (0..64).map(|_| Turn::new(turns.clone(), app(0, 1))).collect();
        for turn in &mut flood {
            begins(turn);
        }
        let mut running = 0;
        let mut slice = |flood: &mut Vec<Turn>| {
            flood[running].end(SLICE, Some(&context));
            running = flood.iter_mut().position(begins).unwrap_or(usize::MAX);
        };
        for _ in 0..1000 {
            slice(&mut flood);
        }
        let mut late = [0; 2].map(|_| Turn::new(turns.clone(), app(1, 1)));
        assert!(!begins(&mut late[0]) && !begins(&mut late[1]), "the only turn is taken");
        slice(&mut flood);
        assert!(begins(&mut late[0]), "it has its turn when the one that ran pauses");
        late[0].end(SLICE, Some(&context));
        assert!(!begins(&mut late[0]) && !begins(&mut late[1]), "though it was away for a second");
    }

    /// Calls that are over within one turn, by so many callers of each app, one after the other on one thread: how many
    /// each app has had of the first `calls`.
    async fn short_calls(apps: [usize; 2], calls: usize) -> [usize; 2] {
        let turns = Turns::new(1);
        let had = Arc::new(Mutex::new([0; 2]));
        let callers: Vec<_> = (0..2)
            .flat_map(|app| std::iter::repeat_n(app, apps[app]))
            .map(|index| {
                let (turns, had) = (turns.clone(), had.clone());
                tokio::spawn(async move {
                    while had.lock().iter().sum::<usize>() < calls {
                        let mut turn = Turn::new(turns.clone(), app(index, 1));
                        std::future::poll_fn(|context| turn.poll_queue(context)).await;
                        had.lock()[index] += 1;
                        turn.goes_on(SLICE / 2);
                        turn.end(SLICE / 2, None);
                    }
                })
            })
            .collect();
        futures_util::future::join_all(callers).await;
        *had.lock()
    }

    #[tokio::test]
    async fn of_calls_that_are_over_in_one_turn_apps_have_the_same_however_many_call() {
        let [flood, other] = short_calls([256, 8], 10_000).await;
        assert!(other >= 4_500, "{flood} and {other}");
    }

    #[test]
    fn who_queues_for_a_free_turn_has_it_when_all_who_are_ready_have_asked() {
        let turns = Turns::new(1);
        let mut turn = Turn::new(turns.clone(), app(0, 1));
        assert!(!queues(&mut turn));
        assert!(queues(&mut turn), "nothing to wait for where there is no reactor");
        assert!(turns.crowded());
    }

    #[test]
    fn who_goes_away_holds_nothing() {
        let turns = Turns::new(1);
        let mut calls: Vec<_> = (0..4).map(|index| Turn::new(turns.clone(), app(index, 1))).collect();
        for (index, turn) in calls.iter_mut().enumerate() {
            assert_eq!(begins(turn), index == 0);
        }
        drop(calls.remove(2));
        drop(calls.remove(0));
        assert!(begins(&mut calls[0]), "a turn that was given while one waited is passed on");
        assert!(turns.crowded());
        calls.remove(0);
        // Granted, and never polled again.
        drop(calls);
        assert!(!turns.crowded());
        assert!(begins(&mut Turn::new(turns, app(0, 1))));
    }

    proptest! {
        #[test]
        fn nobody_waits_for_a_turn_that_nobody_has(
            width in 1_usize..4,
            steps in prop::collection::vec((0_usize..12, 0_u8..6, 0_u64..3_000_000), 1..300),
        ) {
            let turns = Turns::new(width);
            let new = |call: usize| Turn::new(turns.clone(), app(call % 4, 1 + call as u32 % 4));
            let mut calls: Vec<_> = (0..12).map(new).collect();
            for (call, step, nanos) in steps {
                let spent = Duration::from_nanos(nanos);
                match step {
                    0 | 1 => drop(begins(&mut calls[call])),
                    2 => calls[call].end(spent, (nanos % 2 == 0).then_some(&Context::from_waker(Waker::noop()))),
                    3 => drop(queues(&mut calls[call])),
                    4 => calls[call].goes_on(spent),
                    _ => calls[call] = new(call),
                }
                let waiting = calls.iter().any(|turn| {
                    matches!(&turn.stage, Stage::Waiting(ticket) if !ticket.granted.load(Ordering::Relaxed))
                });
                let state = turns.state.lock();
                prop_assert!(state.running <= width);
                prop_assert!(!waiting || state.running == width);
                prop_assert_eq!(waiting, !state.queues.is_empty());
            }
            drop(calls);
            prop_assert_eq!(turns.state.lock().running, 0);
        }
    }
}
