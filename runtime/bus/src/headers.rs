//! A record's headers, read by librdkafka's own interface: the binding panics at a name that is not UTF-8, and anybody may
//! send one.

use bytes::Bytes;
use ebb_domain::text::Text;
use rdkafka::bindings as sys;
use rdkafka::message::BorrowedMessage;
use std::ffi::CStr;
use std::ptr;

/// Names and values, in order. What of a name is not UTF-8 is replaced.
#[expect(unsafe_code, reason = "the binding's own way panics at names that are not UTF-8")]
pub(crate) fn of(message: &BorrowedMessage<'_>) -> Vec<(Text, Option<Bytes>)> {
    const DONE: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    let mut headers = Vec::new();
    // SAFETY: the message is borrowed to the end of the function. The headers are its own, and so are their names, which end
    // with a zero, and their values, which have as many bytes as is said; all of that is copied.
    unsafe {
        let mut native = ptr::null_mut();
        if sys::rd_kafka_message_headers(message.ptr(), &raw mut native) != DONE {
            return headers;
        }
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            let found =
                sys::rd_kafka_header_get_all(native, index, &raw mut name, &raw mut value, &raw mut size);
            if found != DONE {
                break;
            }
            let copy = || Bytes::copy_from_slice(std::slice::from_raw_parts(value.cast::<u8>(), size));
            let value = (!value.is_null()).then(copy);
            headers.push((Text::from(&*CStr::from_ptr(name).to_string_lossy()), value));
        }
    }
    headers
}
