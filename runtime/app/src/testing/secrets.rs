//! Secrets that are not there.

use ebb_domain::manifest::function::Variable;
use ebb_domain::name::AppName;
use ebb_domain::port::secrets::{NoSecret, Secret, Secrets};

/// A node whose operator keeps none.
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn get(&self, app: &AppName, name: &Variable) -> Result<Secret, NoSecret> {
        Err(NoSecret { problem: format!("app `{app}` has no secret `{name}`"), hint: String::new() })
    }
}
