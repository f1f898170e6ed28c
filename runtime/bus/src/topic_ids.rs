//! Ids of topics (KIP-516): a topic that is deleted and made again has another. The Rust binding has no word for them, so
//! librdkafka is asked itself.

use crate::error;
use crate::settings::Settings;
use ebb_domain::name::TopicName;
use ebb_domain::port::bus::BusError;
use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode as Code;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;
use uuid::Uuid;

/// The ids of topics, those that are there.
#[expect(unsafe_code, reason = "the binding has no DescribeTopics; librdkafka's C interface does")]
pub(crate) fn of<'a, C: ClientContext>(
    settings: &Settings,
    client: &Client<C>,
    topics: impl IntoIterator<Item = &'a TopicName>,
    patience: Duration,
) -> Result<BTreeMap<TopicName, Uuid>, BusError> {
    let names: Vec<CString> = topics.into_iter().filter_map(|name| CString::new(&**name).ok()).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let mut ids = BTreeMap::new();
    // SAFETY: `pointers` and the texts behind them live to the end of the function, and librdkafka copies them. Each object
    // is made here, used by this thread alone and destroyed once, the event after what was read from it. Null is checked
    // where librdkafka may return it.
    unsafe {
        let native = client.native_ptr();
        let wanted = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options = sys::rd_kafka_AdminOptions_new(
            native,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let mut text = [0; 256];
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis, text.as_mut_ptr(), text.len());
        let queue = sys::rd_kafka_queue_new(native);
        sys::rd_kafka_DescribeTopics(native, wanted, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, millis);
        let mut failed = None;
        if event.is_null() {
            failed = Some(Code::RequestTimedOut);
        } else {
            let error = sys::rd_kafka_event_error(event);
            let result = sys::rd_kafka_event_DescribeTopics_result(event);
            if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || result.is_null() {
                failed = Some(Code::from(error));
            } else {
                let mut count = 0;
                let described = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
                for index in 0..count {
                    let topic = *described.add(index);
                    let error = sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(topic));
                    let id = sys::rd_kafka_TopicDescription_topic_id(topic);
                    if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || id.is_null() {
                        continue;
                    }
                    let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic)).to_string_lossy();
                    let most = sys::rd_kafka_Uuid_most_significant_bits(id) as u64;
                    let least = sys::rd_kafka_Uuid_least_significant_bits(id) as u64;
                    if let Ok(name) = TopicName::new(&*name) {
                        ids.insert(name, Uuid::from_u64_pair(most, least));
                    }
                }
            }
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(wanted);
        match failed {
            Some(code) => Err(error::of_code(settings, "topics can't be described", code)),
            None => Ok(ids),
        }
    }
}
