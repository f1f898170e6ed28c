//! Values that a function needs and nobody should read: where the operator keeps them is not the use cases' to know.

use crate::manifest::function::Variable;
use crate::name::AppName;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// A value that is shown to nobody but the guest that it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// A secret.
    #[must_use]
    pub fn new(value: &str) -> Self {
        Self(value.into())
    }

    /// The value, for the guest's environment.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why there is no value. Says where it was looked for, and never what was found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct NoSecret {
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

/// The secrets of a node's apps, each app's its own.
pub trait Secrets: Send + Sync + 'static {
    /// The value of a secret, as it is now.
    ///
    /// # Errors
    /// The operator has given the app none of that name, or one that can't be used.
    fn get(&self, app: &AppName, name: &Variable) -> Result<Secret, NoSecret>;
}
