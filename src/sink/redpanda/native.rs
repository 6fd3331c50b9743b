//! What librdkafka can and its bindings do not wrap: giving a client that is there other credentials, having it send what it
//! holds back, and being woken by what it has to tell.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::thread::Thread;
use std::time::Duration;

use rdkafka::bindings;
use rdkafka::client::{Client, ClientContext, OAuthToken};
use rdkafka::types::RDKafkaRespErr;

use crate::sink::SinkError;

fn text(text: &str) -> Result<CString, SinkError> {
    CString::new(text).map_err(|_| SinkError::Client("a credential holds a NUL".into()))
}

/// User and password for the connections that the client makes from now on.
pub(super) fn set_credentials<C: ClientContext>(
    client: &Client<C>,
    username: &str,
    password: &str,
) -> Result<(), SinkError> {
    let (username, password) = (text(username)?, text(password)?);
    // SAFETY: the client outlives the call, the texts do, and librdkafka copies them. What it returns is ours to read
    // and to free.
    unsafe {
        let error = bindings::rd_kafka_sasl_set_credentials(
            client.native_ptr(),
            username.as_ptr(),
            password.as_ptr(),
        );
        if error.is_null() {
            return Ok(());
        }
        let said = CStr::from_ptr(bindings::rd_kafka_error_string(error));
        let said = said.to_string_lossy().into_owned();
        bindings::rd_kafka_error_destroy(error);
        Err(SinkError::Client(said))
    }
}

/// A token for the connections that the client makes from now on.
pub(super) fn set_token<C: ClientContext>(
    client: &Client<C>,
    token: &OAuthToken,
) -> Result<(), SinkError> {
    let (value, principal) = (text(&token.token)?, text(&token.principal_name)?);
    let mut said = [0; 512];
    // SAFETY: as above; what is wrong is written into `said`, which ends with a NUL.
    let (code, said) = unsafe {
        let code = bindings::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            said.as_mut_ptr(),
            said.len(),
        );
        (code, CStr::from_ptr(said.as_ptr()))
    };
    match code {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        _ => Err(SinkError::Client(said.to_string_lossy().into_owned())),
    }
}

/// There is no token, and why: the client goes on asking for one.
pub(super) fn refuse_token<C: ClientContext>(client: &Client<C>, why: &str) {
    let why = CString::new(why.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the client and the text outlive the call.
    unsafe {
        bindings::rd_kafka_oauthbearer_set_token_failure(client.native_ptr(), why.as_ptr());
    }
}

/// Has a producer send at once what it holds back for `linger.ms`, and what it is handed meanwhile; blocks until all is
/// reported on, or for this long. The bindings' own does so for no time at all, which its threads may miss.
pub(super) fn hasten<C: ClientContext>(client: &Client<C>, within: Duration) {
    let ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client outlives the call. That the time was too short is no error: reports tell what became of it.
    unsafe { bindings::rd_kafka_flush(client.native_ptr(), ms) };
}

/// What a client has to tell: its reports, errors and log lines. Not to outlive the client.
pub(super) struct Events {
    queue: ptr::NonNull<bindings::rd_kafka_queue_t>,
    /// Whom they wake; librdkafka has its address.
    woken: Option<Box<Thread>>,
}

// SAFETY: librdkafka's queues are locked, and may be used by any thread.
unsafe impl Send for Events {}
// SAFETY: as above; what is asked of a shared one is how long it is.
unsafe impl Sync for Events {}

impl Events {
    pub(super) fn of<C: ClientContext>(client: &Client<C>) -> Self {
        // SAFETY: the client is there; what it returns is a reference of ours to its queue.
        let queue = unsafe { bindings::rd_kafka_queue_get_main(client.native_ptr()) };
        Self {
            queue: ptr::NonNull::new(queue).expect("every client has a main queue"),
            woken: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        // SAFETY: the queue is ours until we let go of it.
        unsafe { bindings::rd_kafka_queue_length(self.queue.as_ptr()) == 0 }
    }

    /// Wakes this thread when the first is there, and each time there is one again after none was.
    pub(super) fn wake(&mut self, thread: &Thread) {
        unsafe extern "C" fn wake(_: *mut bindings::rd_kafka_t, thread: *mut c_void) {
            // SAFETY: it is the thread below, which is there for as long as librdkafka may call this.
            unsafe { &*thread.cast::<Thread>() }.unpark();
        }
        let woken = Box::new(thread.clone());
        let address = ptr::from_ref(&*woken).cast_mut().cast::<c_void>();
        // SAFETY: the queue is ours; `woken` stays where it is until `drop` has told librdkafka to call nobody, which waits
        // for a call that is under way: both take the queue's lock.
        unsafe {
            bindings::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), Some(wake), address);
        }
        self.woken = Some(woken);
        // Of what was there before nobody is told.
        thread.unpark();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: the queue is ours, and not used after this.
        unsafe {
            if self.woken.is_some() {
                let queue = self.queue.as_ptr();
                bindings::rd_kafka_queue_cb_event_enable(queue, None, ptr::null_mut());
            }
            bindings::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// What this client may do with each of these topics, as numbers of `rd_kafka_AclOperation_t`; of a topic that is not
/// there, or where the brokers do not say, nothing. Blocks.
pub(super) fn allowed<C: ClientContext>(
    client: &Client<C>,
    topics: &[String],
    within: Duration,
) -> Result<BTreeMap<String, Vec<i32>>, SinkError> {
    let names: Vec<CString> = topics.iter().map(|t| text(t)).collect::<Result<_, _>>()?;
    let mut pointers: Vec<_> = names.iter().map(|n| n.as_ptr()).collect();
    let ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    let mut allowed = BTreeMap::new();
    // SAFETY: what is made here is destroyed here, the result before the event that owns it; the client outlives all of
    // it; names are copied. Operations are read as numbers, whatever a later librdkafka has among them.
    unsafe {
        let rk = client.native_ptr();
        let collection = bindings::rd_kafka_TopicCollection_of_topic_names(
            pointers.as_mut_ptr(),
            pointers.len(),
        );
        let options = bindings::rd_kafka_AdminOptions_new(
            rk,
            bindings::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let wrong = bindings::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        if !wrong.is_null() {
            bindings::rd_kafka_error_destroy(wrong);
        }
        let queue = bindings::rd_kafka_queue_new(rk);
        bindings::rd_kafka_DescribeTopics(rk, collection, options, queue);
        let event = bindings::rd_kafka_queue_poll(queue, ms);
        let result = match event.is_null() {
            true => ptr::null(),
            false => bindings::rd_kafka_event_DescribeTopics_result(event),
        };
        if !result.is_null() {
            let mut count = 0;
            let found = bindings::rd_kafka_DescribeTopics_result_topics(result, &mut count);
            for n in 0..count {
                let topic = *found.add(n);
                let name = CStr::from_ptr(bindings::rd_kafka_TopicDescription_name(topic));
                let mut of = 0;
                let operations =
                    bindings::rd_kafka_TopicDescription_authorized_operations(topic, &mut of);
                let operations: &[i32] = match operations.is_null() {
                    true => &[],
                    false => std::slice::from_raw_parts(operations.cast(), of),
                };
                allowed.insert(name.to_string_lossy().into_owned(), operations.to_vec());
            }
        }
        if !event.is_null() {
            bindings::rd_kafka_event_destroy(event);
        }
        bindings::rd_kafka_queue_destroy(queue);
        bindings::rd_kafka_AdminOptions_destroy(options);
        bindings::rd_kafka_TopicCollection_destroy(collection);
    }
    Ok(allowed)
}
