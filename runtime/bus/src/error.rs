//! What librdkafka says, in our words.

use crate::producer::Quiet;
use crate::settings::Settings;
use ebb_domain::port::bus::{BusError, BusErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The error that something with a topic or a group came to.
pub(crate) fn of(settings: &Settings, what: &str, error: &KafkaError) -> BusError {
    let Some(code) = error.rdkafka_error_code() else {
        let kind = match error {
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => BusErrorKind::Refused,
            _ => BusErrorKind::Unavailable,
        };
        // Said of an option, its value would be said as well, which may be a password.
        let message = match error {
            KafkaError::ClientConfig(_, why, option, _) => format!("{what}: the option `{option}`: {why}"),
            error => format!("{what}: {error}"),
        };
        return BusError::new(kind, message);
    };
    of_code(settings, what, code)
}

pub(crate) fn of_code(settings: &Settings, what: &str, code: Code) -> BusError {
    let brokers = &settings.brokers;
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => BusError::new(
            BusErrorKind::MissingTopic,
            format!("{what}: the topic is not there; make it, or name another"),
        ),
        Code::Authentication | Code::SaslAuthenticationFailed => BusError::new(
            BusErrorKind::Denied,
            format!(
                "{what}: the brokers at {brokers} don't accept the node's credentials; check `kafka.sasl` in its settings"
            ),
        ),
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => {
            let name = settings.sasl.as_ref().map_or("the node", |sasl| &sasl.username);
            BusError::new(
                BusErrorKind::Denied,
                format!("{what}: the brokers don't let `{name}` do this ({code}); grant it in Kafka's ACLs"),
            )
        }
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::FencedInstanceId => {
            BusError::new(
                BusErrorKind::Fenced,
                format!(
                    "{what}: someone else does this now ({code}); another node with the same app and brokers runs"
                ),
            )
        }
        Code::MessageSizeTooLarge => BusError::new(
            BusErrorKind::Refused,
            format!(
                "{what}: a record is larger than may be; raise `app.relay.max-message` in the manifest, where it is the relay's, \
                 and the topic's `max.message.bytes`"
            ),
        ),
        Code::SSL => BusError::new(
            BusErrorKind::Denied,
            format!("{what}: no encrypted connection to {brokers}; check `kafka.tls` in the node's settings"),
        ),
        Code::PolicyViolation
        | Code::InvalidReplicationFactor
        | Code::InvalidPartitions
        | Code::InvalidConfig => {
            BusError::new(BusErrorKind::Refused, format!("{what}: the brokers refuse it ({code})"))
        }
        _ => BusError::new(BusErrorKind::Unavailable, format!("{what}: {code} ({brokers})")),
    }
}

/// Nobody answered: what the client was told meanwhile says why.
pub(crate) fn unreachable(settings: &Settings, heard: &Quiet) -> BusError {
    match heard.last() {
        Some((code, reason)) => {
            let mut error = of_code(settings, "the brokers can't be used", code);
            if error.kind == BusErrorKind::Unavailable {
                error.message = format!("the brokers at {} can't be reached: {reason}", settings.brokers);
            }
            error
        }
        None => BusError::new(
            BusErrorKind::Unavailable,
            format!("the brokers at {} did not answer", settings.brokers),
        ),
    }
}
