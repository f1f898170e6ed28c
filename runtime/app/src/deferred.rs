//! What is made when it is first needed: before that nothing of it is read, compiled or looked for.

use std::sync::Arc;
use tokio::sync::OnceCell;

/// Makes it. Blocks.
pub(crate) type Make<T> = Arc<dyn Fn() -> Result<T, String> + Send + Sync>;

/// Something that may not have been made yet.
pub(crate) struct Deferred<T> {
    make: Make<T>,
    made: OnceCell<T>,
}

impl<T: Clone + Send + Sync + 'static> Deferred<T> {
    pub(crate) fn new(make: Make<T>) -> Self {
        Self { make, made: OnceCell::new() }
    }

    /// What has been made already.
    pub(crate) fn of(made: T) -> Self {
        let again = made.clone();
        Self { make: Arc::new(move || Ok(again.clone())), made: OnceCell::new_with(Some(made)) }
    }

    /// It, if it has been made.
    pub(crate) fn made(&self) -> Option<&T> {
        self.made.get()
    }

    /// It. Whoever comes while it is being made waits for that; what could not be made is tried again by the next.
    pub(crate) async fn get(&self) -> Result<T, String> {
        if let Some(made) = self.made() {
            return Ok(made.clone());
        }
        let make = async || {
            let make = self.make.clone();
            let made = tokio::task::spawn_blocking(move || make()).await;
            made.unwrap_or_else(|error| Err(error.to_string()))
        };
        self.made.get_or_try_init(make).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn many_who_need_it_make_it_once_and_a_failure_is_tried_again() {
        let tries = Arc::new(AtomicU32::new(0));
        let counted = tries.clone();
        let deferred = Deferred::new(Arc::new(move || match counted.fetch_add(1, Ordering::SeqCst) {
            0 => Err("not yet".to_owned()),
            tries => Ok(tries),
        }));
        assert_eq!((deferred.made(), deferred.get().await), (None, Err("not yet".to_owned())));
        let got = futures_util::future::join_all((0..100).map(|_| deferred.get())).await;
        assert!(got.iter().all(|got| *got == Ok(1)), "{got:?}");
        assert_eq!(tries.load(Ordering::SeqCst), 2);
    }
}
