//! Places for open apps: each takes files and memory, so that there are only so many. Who wants one more closes the app
//! that has been out of use for the longest time, if there is one that nobody uses.

use super::deployed::DeployedApp;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long one who finds all apps in use waits for a place: most calls are over by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often they look for an app that is not in use any more.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A place for an open app, free again when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// The places of a node.
pub(super) struct Places {
    free: Arc<Semaphore>,
    most: usize,
    open: Mutex<Vec<Weak<DeployedApp>>>,
    base: Instant,
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let most = most.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most)),
            most,
            open: Mutex::default(),
            base: Instant::now(),
        })
    }

    /// Now, in milliseconds since the node began.
    pub(super) fn millis(&self) -> u64 {
        self.base.elapsed().as_millis() as u64
    }

    /// This app is open from now on.
    pub(super) fn is_open(&self, app: &Arc<DeployedApp>) {
        let mut open = self.open.lock();
        open.retain(|other| other.strong_count() > 0);
        let app = Arc::downgrade(app);
        if !open.iter().any(|other| other.ptr_eq(&app)) {
            open.push(app);
        }
    }

    /// A place; where there is none, that of the app which has been out of use for the longest time.
    ///
    /// # Errors
    /// All apps that are open are in use: how many.
    pub(super) async fn take(&self) -> Result<Place, usize> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(place) = self.free.clone().try_acquire_owned() {
                return Ok(place);
            }
            if let Some(closing) = self.close_one() {
                // Whoever comes first has the place: then another app is closed.
                let _ = closing.await;
                continue;
            }
            // An app whose last call is over closes by itself only after a while: it is looked for again.
            let freed = tokio::time::timeout(LOOK_AGAIN, self.free.clone().acquire_owned()).await;
            if let Ok(Ok(place)) = freed {
                return Ok(place);
            }
            if Instant::now() >= until {
                return Err(self.most);
            }
        }
    }

    fn close_one(&self) -> Option<JoinHandle<()>> {
        let mut open: Vec<_> = {
            let mut open = self.open.lock();
            open.retain(|app| app.upgrade().is_some_and(|app| app.if_open().is_some()));
            open.iter().filter_map(Weak::upgrade).collect()
        };
        open.sort_by_cached_key(|app| app.used_at());
        open.iter().find_map(|app| app.close_if_idle(Duration::ZERO))
    }
}
