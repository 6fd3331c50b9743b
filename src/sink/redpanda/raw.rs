//! A producer of librdkafka's that is told of acknowledgements where they come in.
//!
//! The bindings' producers are told of each message by an event: what a broker has acknowledged is queued for another thread,
//! which is woken for it, looks at each message, and frees it. Here an interceptor is called for each on the thread of its
//! broker, which then frees it itself (`delivery.report.only.error`): no thread is woken for what goes well, and nothing is
//! looked at twice. What failed comes as an event, as ever (`rd_kafka_dr_msgq0`, 2.12).
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::bindings::{self, rd_kafka_vtype_t as V};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaRespErr as Code, RDKafkaType};

use super::header_list::HeaderList;
use super::native;

/// Names of topics are shorter (`Topic.MAX_NAME_LENGTH`: 249).
const TOPIC_ROOM: usize = 256;
/// What a producer that ends waits for what it let go of to be reported on.
const PURGED_WITHIN: Duration = Duration::from_millis(500);

/// Who is told what became of messages.
pub(super) trait Answered: ClientContext + 'static {
    /// It is delivered, as far as librdkafka knows. On the thread of its broker, which waits meanwhile: may call nothing of
    /// the producer.
    fn delivered(&self, message: &Delivered<'_>);

    /// It was given up on.
    fn failed(&self, error: &KafkaError, topic: &str, tag: usize);
}

/// A message that librdkafka is about to free.
pub(super) struct Delivered<'a>(&'a bindings::rd_kafka_message_t);

impl Delivered<'_> {
    /// As it was handed over with it.
    pub(super) fn tag(&self) -> usize {
        self.0._private.addr()
    }

    pub(super) fn partition(&self) -> i32 {
        self.0.partition
    }

    /// Negative if its broker did not say.
    pub(super) fn offset(&self) -> i64 {
        self.0.offset
    }

    pub(super) fn topic(&self) -> Cow<'_, str> {
        // SAFETY: a message has a topic, and keeps it.
        unsafe { CStr::from_ptr(bindings::rd_kafka_topic_name(self.0.rkt)) }.to_string_lossy()
    }

    /// Whether it is for this topic. Looks no further than to the first difference.
    pub(super) fn is_for(&self, topic: &str) -> bool {
        // SAFETY: as above; it ends with a NUL, which differs from what is in a topic's name.
        let name = unsafe { bindings::rd_kafka_topic_name(self.0.rkt) };
        let is_at = |at: usize, byte: u8| unsafe { name.add(at).read().cast_unsigned() == byte };
        topic.bytes().enumerate().all(|(at, byte)| is_at(at, byte)) && is_at(topic.len(), 0)
    }
}

/// A message on its way to librdkafka, which copies all of it but the headers.
pub(super) struct Message<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub(super) timestamp: Option<i64>,
    pub(super) tag: usize,
}

/// What librdkafka has against a step of a transaction.
#[derive(Debug)]
pub(super) struct Objection {
    /// Its code, as an error of the bindings.
    pub(super) error: KafkaError,
    /// In its words.
    pub(super) text: String,
}

impl From<KafkaError> for Objection {
    fn from(error: KafkaError) -> Self {
        let text = error.to_string();
        Self { error, text }
    }
}

/// The producer. What it has to tell waits for [`Self::poll`].
pub(super) struct Raw<C: Answered> {
    queue: NonNull<bindings::rd_kafka_queue_t>,
    client: Client<C>,
}

// SAFETY: librdkafka's queues are locked, and may be used by any thread, as the client.
unsafe impl<C: Answered> Send for Raw<C> {}
// SAFETY: as above.
unsafe impl<C: Answered> Sync for Raw<C> {}

impl<C: Answered> Raw<C> {
    pub(super) fn new(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let mut config = config.clone();
        config.set("delivery.report.only.error", "true");
        let native = config.create_native_config()?;
        let events = bindings::RD_KAFKA_EVENT_DR
            | bindings::RD_KAFKA_EVENT_STATS
            | bindings::RD_KAFKA_EVENT_ERROR
            | bindings::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH;
        // SAFETY: the configuration is there, and is the client's from the next call on; names are copied.
        let code = unsafe {
            bindings::rd_kafka_conf_set_events(native.ptr(), events);
            let name = c"penstock".as_ptr();
            bindings::rd_kafka_conf_interceptor_add_on_new(
                native.ptr(),
                name,
                Some(made::<C>),
                ptr::null_mut(),
            )
        };
        if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::ClientCreation(
                "nobody would be told of deliveries".into(),
            ));
        }
        let client = Client::new(&config, native, RDKafkaType::RD_KAFKA_PRODUCER, context)?;
        // SAFETY: the client is there; what it returns is a reference of ours to its queue.
        let queue = unsafe { bindings::rd_kafka_queue_get_main(client.native_ptr()) };
        let queue = NonNull::new(queue).expect("every client has a main queue");
        Ok(Self { queue, client })
    }

    pub(super) fn client(&self) -> &Client<C> {
        &self.client
    }

    /// Hands a message over; refused, its headers come back.
    pub(super) fn send(
        &self,
        message: &Message<'_>,
        headers: Option<HeaderList>,
    ) -> Result<(), (KafkaError, Option<HeaderList>)> {
        let mut room = [0; TOPIC_ROOM];
        let Some(topic) = terminated(&mut room, message.topic) else {
            let invalid = Code::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION;
            return Err((KafkaError::MessageProduction(invalid.into()), headers));
        };
        let part = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => (bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len()),
            None => (ptr::null_mut(), 0),
        };
        let ((value, value_bytes), (key, key_bytes)) = (part(message.value), part(message.key));
        let list = headers.as_ref().map_or(ptr::null_mut(), HeaderList::as_ptr);
        // SAFETY: each kind is followed by what librdkafka takes for it (`rd_kafka_producev`); all of it is there during the
        // call and copied, but for the headers, which are librdkafka's if it takes the message, and ours if not.
        let code = unsafe {
            bindings::rd_kafka_producev(
                self.client.native_ptr(),
                V::RD_KAFKA_VTYPE_TOPIC,
                topic.as_ptr(),
                V::RD_KAFKA_VTYPE_PARTITION,
                message.partition.unwrap_or(-1),
                V::RD_KAFKA_VTYPE_MSGFLAGS,
                bindings::RD_KAFKA_MSG_F_COPY,
                V::RD_KAFKA_VTYPE_VALUE,
                value,
                value_bytes,
                V::RD_KAFKA_VTYPE_KEY,
                key,
                key_bytes,
                V::RD_KAFKA_VTYPE_OPAQUE,
                ptr::without_provenance_mut::<c_void>(message.tag),
                V::RD_KAFKA_VTYPE_TIMESTAMP,
                message.timestamp.unwrap_or(0),
                V::RD_KAFKA_VTYPE_HEADERS,
                list,
                V::RD_KAFKA_VTYPE_END,
            )
        };
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                std::mem::forget(headers);
                Ok(())
            }
            code => Err((KafkaError::MessageProduction(code.into()), headers)),
        }
    }

    /// Tells the context of all that has come.
    pub(super) fn poll(&self) {
        // SAFETY: the queue is ours; an event is ours to read and to destroy.
        unsafe {
            while let Some(event) =
                NonNull::new(bindings::rd_kafka_queue_poll(self.queue.as_ptr(), 0))
            {
                self.tell(event.as_ptr());
                bindings::rd_kafka_event_destroy(event.as_ptr());
            }
        }
    }

    /// # Safety
    /// The event is there.
    unsafe fn tell(&self, event: *mut bindings::rd_kafka_event_t) {
        let context = self.client.context();
        // SAFETY: each is asked for what an event of its type has, which stays until the event is destroyed.
        unsafe {
            match bindings::rd_kafka_event_type(event) {
                bindings::RD_KAFKA_EVENT_DR => {
                    while let Some(message) = bindings::rd_kafka_event_message_next(event).as_ref()
                    {
                        failed(&**context, message);
                    }
                }
                bindings::RD_KAFKA_EVENT_ERROR => {
                    let code = bindings::rd_kafka_event_error(event);
                    let reason = text(bindings::rd_kafka_event_error_string(event));
                    context.error(KafkaError::Global(code.into()), reason.trim());
                }
                bindings::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut line, mut level) = (ptr::null(), ptr::null(), 0);
                    let code = bindings::rd_kafka_event_log(
                        event,
                        &raw mut facility,
                        &raw mut line,
                        &raw mut level,
                    );
                    if code == 0 {
                        context.log(weight(level), text(facility).trim(), text(line).trim());
                    }
                }
                bindings::RD_KAFKA_EVENT_STATS => {
                    let found = CStr::from_ptr(bindings::rd_kafka_event_stats(event));
                    context.stats_raw(found.to_bytes());
                }
                bindings::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH => {
                    let config = bindings::rd_kafka_event_config_string(event);
                    let config = (!config.is_null()).then(|| text(config));
                    let token = context.generate_oauth_token(config.as_deref());
                    let set = token.map_err(|error| error.to_string()).and_then(|token| {
                        native::set_token(&self.client, &token).map_err(|e| e.to_string())
                    });
                    if let Err(error) = set {
                        native::refuse_token(&self.client, &error);
                    }
                }
                _ => {}
            }
        }
    }

    /// Lets go of what is queued and of what is on its way.
    pub(super) fn purge(&self) {
        let all = bindings::RD_KAFKA_PURGE_F_QUEUE | bindings::RD_KAFKA_PURGE_F_INFLIGHT;
        // SAFETY: the client is there. It refuses only other flags, and other clients.
        unsafe { bindings::rd_kafka_purge(self.client.native_ptr(), all) };
    }

    /// Connects to the coordinator and takes the transactional id. Blocks, as those below.
    pub(super) fn init_transactions(&self, within: Duration) -> Result<(), Objection> {
        let ms = c_int::try_from(within.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the client is there, here and below.
        allowed(unsafe { bindings::rd_kafka_init_transactions(self.client.native_ptr(), ms) })
    }

    pub(super) fn begin_transaction(&self) -> Result<(), Objection> {
        // SAFETY: as above.
        allowed(unsafe { bindings::rd_kafka_begin_transaction(self.client.native_ptr()) })
    }

    /// Waits for what is on its way, and commits.
    pub(super) fn commit_transaction(&self) -> Result<(), Objection> {
        // SAFETY: as above.
        allowed(unsafe { bindings::rd_kafka_commit_transaction(self.client.native_ptr(), -1) })
    }

    pub(super) fn abort_transaction(&self) -> Result<(), Objection> {
        // SAFETY: as above.
        allowed(unsafe { bindings::rd_kafka_abort_transaction(self.client.native_ptr(), -1) })
    }
}

impl<C: Answered> Drop for Raw<C> {
    fn drop(&mut self) {
        self.purge();
        let until = Instant::now() + PURGED_WITHIN;
        loop {
            self.poll();
            // SAFETY: the client is there.
            let left = unsafe { bindings::rd_kafka_outq_len(self.client.native_ptr()) };
            if left == 0 || Instant::now() >= until {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: the queue is ours, and not used after this; the client, which is, goes next.
        unsafe { bindings::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// A client is being made: interceptors can be added to it now alone.
unsafe extern "C" fn made<C: Answered>(
    rk: *mut bindings::rd_kafka_t,
    _: *const bindings::rd_kafka_conf_t,
    _: *mut c_void,
    _: *mut c_char,
    _: usize,
) -> Code {
    // SAFETY: the client is there; the name is copied.
    unsafe {
        bindings::rd_kafka_interceptor_add_on_acknowledgement(
            rk,
            c"penstock".as_ptr(),
            Some(acknowledged::<C>),
            ptr::null_mut(),
        )
    }
}

/// Called for each message that is done, by the thread of a broker; and for those that are refused as they are handed
/// over, by the one that does so.
unsafe extern "C" fn acknowledged<C: Answered>(
    rk: *mut bindings::rd_kafka_t,
    message: *mut bindings::rd_kafka_message_t,
    _: *mut c_void,
) -> Code {
    // SAFETY: what the client was made with is its context, which outlives it; the message is there, and no other thread's.
    unsafe {
        let context = &*bindings::rd_kafka_opaque(rk).cast::<C>();
        let message = &*message;
        match message.err {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => context.delivered(&Delivered(message)),
            // Of one that failed an event comes, unless its request did not: a broker that takes a request and names records
            // in it that it has not taken says two things.
            _ => {
                let status = bindings::rd_kafka_message_status(message);
                if status == bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_PERSISTED {
                    failed(context, message);
                }
            }
        }
    }
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// # Safety
/// The message is whole.
unsafe fn failed(context: &impl Answered, message: &bindings::rd_kafka_message_t) {
    // SAFETY: a message has a topic, and keeps it.
    let topic = unsafe { text(bindings::rd_kafka_topic_name(message.rkt)) };
    let error = KafkaError::MessageProduction(message.err.into());
    context.failed(&error, &topic, message._private.addr());
}

fn allowed(error: *mut bindings::rd_kafka_error_t) -> Result<(), Objection> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: it is ours to read and to destroy.
    let (code, said) = unsafe {
        let code = bindings::rd_kafka_error_code(error);
        let said = text(bindings::rd_kafka_error_string(error)).into_owned();
        bindings::rd_kafka_error_destroy(error);
        (code, said)
    };
    Err(Objection {
        error: KafkaError::Global(code.into()),
        text: format!("Transaction error: {said}"),
    })
}

/// # Safety
/// It ends with a NUL, and stays for as long as what is returned.
unsafe fn text<'a>(text: *const c_char) -> Cow<'a, str> {
    match text.is_null() {
        true => Cow::Borrowed(""),
        // SAFETY: the caller sees to it.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
    }
}

/// The name as C has it; `None` if it is no topic's.
fn terminated<'a>(room: &'a mut [u8; TOPIC_ROOM], name: &str) -> Option<&'a CStr> {
    room.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    CStr::from_bytes_with_nul(room.get(..=name.len())?).ok()
}

/// As syslog counts.
fn weight(level: c_int) -> RDKafkaLogLevel {
    match level {
        ..=0 => RDKafkaLogLevel::Emerg,
        1 => RDKafkaLogLevel::Alert,
        2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        7.. => RDKafkaLogLevel::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_its_room_or_is_none() {
        let of = |name: &str| terminated(&mut [0; TOPIC_ROOM], name).map(CStr::to_owned);
        assert_eq!(of("events.order").as_deref(), Some(c"events.order"));
        assert_eq!((of("a\0b"), of(&"a".repeat(TOPIC_ROOM))), (None, None));
        assert!(of(&"a".repeat(TOPIC_ROOM - 1)).is_some());
    }
}
