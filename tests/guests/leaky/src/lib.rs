//! An aggregate with a fault that one is easily made of: a cache that outlives the call. Greetings come from whoever was
//! named last in the same instance. While one guest after another is named and greeted, nobody notices.

use ebbtide::prelude::*;
use std::sync::Mutex;

/// Shared by all streams that live in one instance: that is the fault.
static LAST_NAMED: Mutex<Option<String>> = Mutex::new(None);

/// A guest.
#[derive(Default, Serialize, Deserialize)]
pub struct Guest {
    name: String,
}

/// What it can be asked.
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// Gives it a name.
    Name {
        /// Its name.
        name: String,
    },
    /// Greets it by that.
    Greet,
}

/// What can happen.
#[derive(Serialize, Deserialize)]
pub enum GuestEvent {
    /// It has a name.
    Named {
        /// Its name.
        name: String,
    },
    /// It was greeted.
    Greeted {
        /// By this name.
        name: String,
    },
}

impl Aggregate for Guest {
    type Command = Command;
    type Event = GuestEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, _: &Context) -> Result<Vec<GuestEvent>, Refusal> {
        let mut last =
            LAST_NAMED.lock().map_err(|_| Refusal::new("poisoned", "a call before this one broke off"))?;
        match command {
            Command::Name { name } => {
                *last = Some(name.clone());
                Ok(vec![GuestEvent::Named { name }])
            }
            Command::Greet => {
                let name = last.clone().unwrap_or_else(|| self.name.clone());
                Ok(vec![GuestEvent::Greeted { name }])
            }
        }
    }

    fn apply(&mut self, event: GuestEvent) {
        if let GuestEvent::Named { name } = event {
            self.name = name;
        }
    }
}

ebbtide::export_aggregate!(Guest);
