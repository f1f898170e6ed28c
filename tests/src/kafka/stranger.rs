//! Another member of a consumer group, which takes partitions away and deals with nothing.

use super::{Kafka, PATIENCE};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A member that is not ours. Dropped, it leaves.
#[derive(Debug)]
pub struct Stranger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kafka {
    /// Joins a group, and returns once it has some of the topic's partitions.
    ///
    /// # Panics
    /// It is given none.
    pub async fn stranger(&self, group: &str, topic: &str) -> Stranger {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false");
        let (stop, has_some) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (stop, has_some, topic) = (stop.clone(), has_some.clone(), topic.to_owned());
            std::thread::spawn(move || {
                let consumer: BaseConsumer = config.create().expect("a consumer");
                consumer.subscribe(&[&topic]).expect("a topic");
                while !stop.load(Ordering::Relaxed) {
                    let _ = consumer.poll(Duration::from_millis(20));
                    let partitions = consumer.assignment().map_or(0, |partitions| partitions.count());
                    has_some.store(partitions > 0, Ordering::Relaxed);
                }
            })
        };
        let stranger = Stranger { stop, thread: Some(thread) };
        crate::within(PATIENCE, "a stranger is given partitions", async || {
            has_some.load(Ordering::Relaxed).then_some(())
        })
        .await;
        stranger
    }
}

impl Stranger {
    /// Leaves, and returns once it has.
    ///
    /// # Panics
    /// It has panicked.
    pub async fn leave(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it leaves once");
        tokio::task::spawn_blocking(move || thread.join()).await.expect("no panic").expect("no panic");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
