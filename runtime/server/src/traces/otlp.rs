//! Spans as protobuf: `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest`, of which this writes what is
//! needed. Numbers of fields are those of the protocol's `trace.proto`, `common.proto` and `resource.proto`, 1.x, which
//! never change.

use ebb_domain::port::guest::TriggerKind;
use ebb_domain::trace::Trace;
use ebb_engine::{Invocation, Start};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An invocation, as it is sent.
pub(super) struct Span {
    trace: Trace,
    links: Vec<Trace>,
    name: String,
    kind: u64,
    began: Duration,
    ended: Duration,
    error: Option<&'static str>,
    attributes: Vec<(&'static str, Value)>,
}

enum Value {
    Text(String),
    Bool(bool),
    Integer(u64),
    Real(f64),
}

const SERVER: u64 = 2;
const CONSUMER: u64 = 5;
const STATUS_ERROR: u64 = 2;

impl Span {
    /// Of an invocation that has ended right now.
    pub(super) fn of(invocation: &Invocation<'_>, trace: Trace) -> Self {
        let Invocation { app, function, start, outcome, waited, init, duration, .. } = *invocation;
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = |text: &str| Value::Text(text.to_owned());
        let seconds = |duration: Duration| Value::Real(duration.as_secs_f64());
        let mut attributes = vec![
            ("ebbtide.app", text(app)),
            ("faas.name", text(function)),
            ("faas.trigger", text(invocation.trigger.name())),
            ("faas.coldstart", Value::Bool(start > Start::Warm)),
            ("faas.max_memory", Value::Integer(invocation.memory_limit_bytes)),
            ("ebbtide.start", text(start.name())),
            ("ebbtide.outcome", text(outcome.name())),
            ("ebbtide.billed_ms", Value::Integer(invocation.billed_millis)),
            ("ebbtide.cpu_s", seconds(invocation.cpu)),
            ("ebbtide.wait_s", seconds(waited)),
            ("ebbtide.init_s", seconds(init)),
            ("ebbtide.memory_bytes", Value::Integer(invocation.memory_bytes)),
        ];
        let error = outcome.is_error().then(|| outcome.name());
        attributes.extend(error.map(|error| ("error.type", text(error))));
        Self {
            trace,
            links: invocation.links.to_vec(),
            name: function.to_string(),
            kind: if invocation.trigger == TriggerKind::Datasource { CONSUMER } else { SERVER },
            began: ended.saturating_sub(waited + init + duration),
            ended,
            error,
            attributes,
        }
    }

    fn write(&self, message: &mut Message) {
        message.bytes(1, &self.trace.trace_id);
        message.bytes(2, &self.trace.span_id);
        message.text(3, self.trace.state.as_deref().unwrap_or_default());
        if let Some(parent) = &self.trace.parent_id {
            message.bytes(4, parent);
        }
        message.text(5, &self.name);
        message.number(6, self.kind);
        message.fixed64(7, self.began.as_nanos() as u64);
        message.fixed64(8, self.ended.as_nanos() as u64);
        for (key, value) in &self.attributes {
            message.message(9, |message| attribute(message, key, value));
        }
        for link in &self.links {
            message.message(13, |message| {
                message.bytes(1, &link.trace_id);
                message.bytes(2, &link.span_id);
            });
        }
        if let Some(error) = self.error {
            message.message(15, |message| {
                message.text(2, error);
                message.number(3, STATUS_ERROR);
            });
        }
        message.fixed32(16, u32::from(self.trace.flags));
    }
}

fn attribute(message: &mut Message, key: &str, value: &Value) {
    message.text(1, key);
    message.message(2, |message| match value {
        Value::Text(text) => message.bytes(1, text.as_bytes()),
        Value::Bool(truth) => message.number(2, u64::from(*truth)),
        Value::Integer(number) => message.number(3, *number),
        Value::Real(number) => message.fixed64(4, number.to_bits()),
    });
}

/// A request with spans of this service.
pub(super) fn request(service: &str, spans: &[Span]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |resource_spans| {
        resource_spans.message(1, |resource| {
            for (key, value) in [("service.name", service), ("service.version", env!("CARGO_PKG_VERSION"))] {
                resource.message(1, |message| attribute(message, key, &Value::Text(value.to_owned())));
            }
        });
        resource_spans.message(2, |scope_spans| {
            scope_spans.message(1, |scope| scope.text(1, "ebbtide"));
            for span in spans {
                scope_spans.message(2, |message| span.write(message));
            }
        });
    });
    request.0
}

/// A protobuf message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.tag(field, 0);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u64, number: u64) {
        self.tag(field, 1);
        self.0.extend(number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u64, number: u32) {
        self.tag(field, 5);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// A text; none where it is empty.
    fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut message = Self::default();
        write(&mut message);
        self.bytes(field, &message.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_written_as_protobuf_has_them() {
        // From the description of the encoding: field 1 = 150, field 2 = "testing", field 3 = a message like the first.
        let mut message = Message::default();
        message.number(1, 150);
        message.text(2, "testing");
        message.message(3, |message| message.number(1, 150));
        assert_eq!(
            message.0,
            [
                0x08, 0x96, 0x01, 0x12, 0x07, b't', b'e', b's', b't', b'i', b'n', b'g', 0x1a, 0x03, 0x08,
                0x96, 0x01
            ]
        );
    }
}
