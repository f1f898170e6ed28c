//! Places of the node for calls, given out fairly between apps.
//!
//! A call holds its place until it ends, which may be long, and can't be made to give it back. So fairness needs two
//! rules. Where calls wait, the place that comes free goes to the app that holds the fewest for its weight. And an app
//! may hold only so many: [`SHARE`] times its weight for each place that is free, the *dynamic threshold* that network
//! switches share their buffers with. However many calls one app has, some places are left for who comes next; the
//! more apps there are, the fewer each may hold, without anybody having counted them.

use crate::fair::{App, Queues};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

/// An app alone may hold 8/9 of all places.
const SHARE: usize = 8;

/// The node's places.
pub(crate) struct Gate {
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Places that each app holds.
    held: Vec<usize>,
    queues: Queues<oneshot::Sender<Place>>,
}

impl State {
    fn held(&mut self, app: App) -> &mut usize {
        if self.held.len() <= app.index {
            self.held.resize(app.index + 1, 0);
        }
        &mut self.held[app.index]
    }

    fn may_hold_one_more(held: usize, app: App, free: usize) -> bool {
        held < SHARE.saturating_mul(app.weight as usize).saturating_mul(free)
    }

    fn take(&mut self, app: App) {
        self.free -= 1;
        *self.held(app) += 1;
    }

    /// Whose turn it is, if there is a place for anybody who waits.
    fn next(&mut self) -> Option<(App, oneshot::Sender<Place>)> {
        let Self { free, held, queues } = self;
        queues.pop_least(|app| {
            let held = held.get(app.index).copied().unwrap_or(0);
            // In thousandths, so that weights need no fractions.
            Self::may_hold_one_more(held, app, *free).then(|| held as u64 * 1000 / u64::from(app.weight))
        })
    }
}

/// A place; it is free again when this is dropped.
pub(crate) struct Place {
    gate: Arc<Gate>,
    app: App,
}

impl Gate {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: places, held: Vec::new(), queues: Queues::new() }) })
    }

    /// A place at once, if there is one for the app and nobody is before it.
    pub(crate) fn try_enter(self: &Arc<Self>, app: App) -> Option<Place> {
        let mut state = self.state.lock();
        let held = *state.held(app);
        let enters = state.queues.is_empty() && State::may_hold_one_more(held, app, state.free);
        enters.then(|| {
            state.take(app);
            Place { gate: self.clone(), app }
        })
    }

    /// Waits for a place.
    pub(crate) async fn enter(self: &Arc<Self>, app: App) -> Place {
        let _leaving = Leaving { gate: self, app };
        let (sender, receiver) = oneshot::channel();
        self.state.lock().queues.push(app, sender);
        // There may be a place: what keeps this app out need not keep out others.
        self.hand_out();
        receiver.await.expect("who hands out places drops nobody who waits for one")
    }

    /// Gives free places to those who wait.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            let Some((app, waiter)) = state.next() else { return };
            state.take(app);
            drop(state);
            // Who went away just now gives the place back by dropping it.
            drop(waiter.send(Place { gate: self.clone(), app }));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.gate.state.lock();
            state.free += 1;
            *state.held(self.app) -= 1;
            if state.queues.is_empty() {
                return;
            }
        }
        self.gate.hand_out();
    }
}

/// Someone who waits. One who goes away leaves the queue at once: it is as long as there are callers, no longer.
struct Leaving<'a> {
    gate: &'a Gate,
    app: App,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.gate.state.lock().queues.retain(self.app, |waiter| !waiter.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use std::pin::Pin;

    fn app(index: usize, weight: u32) -> App {
        App { index, weight }
    }

    type Entering<'a> = Pin<Box<dyn Future<Output = Place> + 'a>>;

    fn fill(gate: &Arc<Gate>, app: App) -> Vec<Place> {
        std::iter::from_fn(|| gate.try_enter(app)).collect()
    }

    #[test]
    fn one_app_alone_has_most_places_and_leaves_some_for_who_comes_next() {
        let gate = Gate::new(512);
        let flood = fill(&gate, app(0, 1));
        assert_eq!(flood.len(), 456);
        let next = fill(&gate, app(1, 1));
        assert!(next.len() >= 48, "{}", next.len());
        assert!(gate.try_enter(app(2, 1)).is_some(), "and so on");
    }

    #[test]
    fn few_places_are_all_used() {
        for places in 1..=8 {
            assert_eq!(fill(&Gate::new(places), app(0, 1)).len(), places);
        }
    }

    #[test]
    fn places_that_come_free_go_to_who_holds_the_fewest_for_its_weight() {
        let gate = Gate::new(120);
        let (flood, light, heavy) = (app(0, 1), app(1, 1), app(2, 2));
        let mut held: Vec<_> = fill(&gate, flood);
        let mut waiting: Vec<_> = Vec::new();
        for app in [flood, light, heavy] {
            waiting.extend((0..200).map(|_| (app, Box::pin(gate.enter(app)))));
        }
        // Each place is held for as long as it takes 200 others to end.
        for _ in 0..2000 {
            drop(held.remove(0));
            waiting.retain_mut(|(_, enter)| match enter.as_mut().now_or_never() {
                Some(place) => {
                    held.push(place);
                    false
                }
                None => true,
            });
            for app in [flood, light, heavy] {
                while waiting.iter().filter(|(waits, _)| *waits == app).count() < 200 {
                    waiting.push((app, Box::pin(gate.enter(app))));
                }
            }
        }
        let count = |app: App| held.iter().filter(|place| place.app == app).count();
        let (light, heavy, flood) = (count(light), count(heavy), count(flood));
        assert!(light.abs_diff(flood) <= 2 && heavy.abs_diff(2 * light) <= 4, "{flood} {light} {heavy}");
    }

    proptest! {
        #[test]
        fn no_place_is_lost_and_none_is_idle_while_someone_may_have_it(
            places in 1_usize..40,
            steps in prop::collection::vec((0_usize..4, 0_u8..4), 1..300),
        ) {
            let gate = Gate::new(places);
            let mut held = Vec::new();
            let mut waiting: Vec<(App, Entering<'_>)> = Vec::new();
            for (index, step) in steps {
                let app = app(index, 1 + index as u32 % 2);
                match step {
                    0 => held.extend(gate.try_enter(app)),
                    1 => waiting.push((app, Box::pin(gate.enter(app)))),
                    2 if !held.is_empty() => drop(held.swap_remove(index % held.len())),
                    _ if !waiting.is_empty() => drop(waiting.swap_remove(index % waiting.len())),
                    _ => {}
                }
                waiting.retain_mut(|(_, enter)| match enter.as_mut().now_or_never() {
                    Some(place) => {
                        held.push(place);
                        false
                    }
                    None => true,
                });
                let mut state = gate.state.lock();
                prop_assert_eq!(state.free + held.len(), places);
                prop_assert_eq!(state.held.iter().sum::<usize>(), held.len());
                for (app, _) in &waiting {
                    let holds = *state.held(*app);
                    prop_assert!(!State::may_hold_one_more(holds, *app, state.free));
                }
            }
            drop(waiting);
            held.clear();
            prop_assert_eq!(gate.state.lock().free, places);
            prop_assert!(gate.state.lock().queues.is_empty());
        }
    }
}
