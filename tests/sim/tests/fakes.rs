//! The fakes that the use cases are tested with keep the rules of what they stand for.

mod log {
    use ebb_app::testing::MemoryLog;
    use ebb_store::testing::ManualClock;
    use ebb_store::testing::conformance::Subject;
    use std::sync::Arc;

    ebb_store::event_log_tests!({
        let clock = ManualClock::new();
        Subject { log: Arc::new(MemoryLog::new(clock.clone())), clock, keep: None }
    });
}

mod models {
    use ebb_app::testing::MemoryModels;
    use ebb_store::testing::models::Stores;
    use std::sync::Arc;

    ebb_store::model_stores_tests!(Stores { stores: Arc::<MemoryModels>::default(), keep: None });
}
