//! An aggregate that opens a socket: it must never get as far as being deployed.

use ebbtide::prelude::*;

/// Nothing to remember.
#[derive(Default, Serialize, Deserialize)]
pub struct Dialler;

/// What it can be asked.
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// Says whether somebody listens at an address.
    Dial {
        /// Host and port.
        address: String,
    },
}

/// What can happen.
#[derive(Serialize, Deserialize)]
pub enum DiallerEvent {
    /// Somebody listens there.
    Dialled {
        /// Host and port.
        address: String,
    },
}

impl Aggregate for Dialler {
    type Command = Command;
    type Event = DiallerEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, _: &Context) -> Result<Vec<DiallerEvent>, Refusal> {
        let Command::Dial { address } = command;
        match std::net::TcpStream::connect(&address) {
            Ok(_) => Ok(vec![DiallerEvent::Dialled { address }]),
            Err(error) => Err(Refusal::new("no_answer", error.to_string())),
        }
    }

    fn apply(&mut self, _: DiallerEvent) {}
}

ebbtide::export_aggregate!(Dialler);
