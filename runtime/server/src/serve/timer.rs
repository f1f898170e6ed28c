//! The timer of one connection's heads.
//!
//! Hyper has a deadline for each head, and drops it when the head is there. As timers of the runtime these would be made,
//! put among all others, and taken out again for every request, under a lock of the whole runtime. So a connection has one,
//! which stays where it is: it goes off for the deadline that it was set to, and is set to the one that counts only then.

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant as StdInstant};
use tokio::time::Instant;

/// A timer for deadlines of which there is one at a time, each later than the last.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadTimer(Alarm);

/// None before anybody waited.
type Alarm = Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>;

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until((Instant::now() + duration).into_std())
    }

    fn sleep_until(&self, deadline: StdInstant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep { alarm: self.0.clone(), deadline: deadline.into() })
    }

    fn now(&self) -> StdInstant {
        Instant::now().into_std()
    }
}

/// The time until one deadline.
struct HeadSleep {
    alarm: Alarm,
    deadline: Instant,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.lock();
        let alarm = alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.deadline)));
        loop {
            ready!(alarm.as_mut().poll(context));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(self.deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn each_deadline_is_kept_whatever_was_waited_for_before() {
        let timer = HeadTimer::default();
        let began = Instant::now();
        for _ in 0..3 {
            let head = timer.sleep(PATIENCE);
            assert!(tokio::time::timeout(PATIENCE / 3, head).await.is_err(), "the head is there");
        }
        timer.sleep(PATIENCE).await;
        let passed = began.elapsed().as_secs_f64();
        assert!((passed - 20.0).abs() < 0.1, "{passed}");
        timer.sleep(PATIENCE).await;
        assert!(began.elapsed() >= PATIENCE * 3);
    }
}
