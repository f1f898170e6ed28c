//! What an autoscaler's questions are answered from.

use super::Future;
use crate::scaling::Backlog;
use thiserror::Error;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScalingError {
    /// There is no such app, consumer or function: whoever asks has to change the question.
    #[error("{0}")]
    Unknown(String),
    /// It can't be told now: a broker does not answer, say.
    #[error("{0}")]
    Unreachable(String),
}

/// How much there is to do. Asked every few hundred milliseconds, also about what nobody runs: nothing is opened for it.
pub trait ScalingSource: Send + Sync + 'static {
    /// What a consumer has before it; its name is the one in the list of functions: `projection.delays`.
    fn backlog<'a>(&'a self, app: &'a str, consumer: &'a str) -> Future<'a, Result<Backlog, ScalingError>>;

    /// Requests and commands that wait for their answers, of one function (`function.hello`, `aggregate.flight`) or of the
    /// whole app.
    fn in_flight(&self, app: &str, function: Option<&str>) -> Result<u64, ScalingError>;
}
