//! An HTTP function of `wasi:http` 0.2 whose behaviour is in the path: well-behaved ones first, then the others.

use std::sync::atomic::{AtomicU64, Ordering};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

wasip2::http::proxy::export!(Function);

struct Function;

impl Guest for Function {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number = || query.split('=').next_back().and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        match path.rsplit('/').next().unwrap_or_default() {
            "echo" => echo(request, out),
            "seen" => answer(out, seen(&request).as_bytes()),
            "env" => {
                let mut env: Vec<String> = wasip2::cli::environment::get_environment()
                    .into_iter()
                    .map(|(k, v)| format!("{k}={v}\n"))
                    .collect();
                env.sort();
                answer(out, env.concat().as_bytes());
            }
            "count" => {
                static CALLS: AtomicU64 = AtomicU64::new(0);
                answer(out, (CALLS.fetch_add(1, Ordering::Relaxed) + 1).to_string().as_bytes());
            }
            "ticks" => ticks(out, number()),
            "work" => {
                // So many thousand steps that depend on one another: a call that computes, and ends.
                let steps = 0..number() * 1000;
                let mixed =
                    steps.fold(1_u64, |mixed, step| std::hint::black_box(mixed.wrapping_mul(31) ^ step));
                answer(out, mixed.to_string().as_bytes());
            }
            "trailers" => {
                let (body, stream) = begin(out, 200, &[]);
                write(&stream, b"see below").ok();
                drop(stream);
                let trailers = Fields::new();
                trailers.append("x-sum", b"42").expect("a header");
                OutgoingBody::finish(body, Some(trailers)).expect("the end");
            }
            "big" => {
                let (body, stream) = begin(out, 200, &[]);
                let mut left = number();
                while left > 0 {
                    let piece = left.min(64 << 10);
                    if write(&stream, &vec![b'x'; piece as usize]).is_err() {
                        return;
                    }
                    left -= piece;
                }
                drop(stream);
                OutgoingBody::finish(body, None).expect("the end");
            }
            "many-headers" => {
                let names: Vec<String> = (0..number()).map(|n| format!("x-{n}")).collect();
                let headers: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"value"[..])).collect();
                let (body, stream) = begin(out, 200, &headers);
                drop(stream);
                OutgoingBody::finish(body, None).expect("the end");
            }
            "teapot" => {
                let (body, stream) = begin(out, 418, &[("x-shape", b"short and stout")]);
                write(&stream, b"I am").ok();
                drop(stream);
                OutgoingBody::finish(body, None).expect("the end");
            }
            "after" => {
                // The response is out, and its body at its end: what is done now is done for nobody.
                answer(out, b"done");
                println!("after the response");
            }

            "trap" => panic!("asked to"),
            "trap-later" => {
                let (_body, stream) = begin(out, 200, &[]);
                write(&stream, b"so far so good").ok();
                panic!("asked to, later");
            }
            "spin" => spin(),
            "spin-later" => {
                let (_body, stream) = begin(out, 200, &[]);
                write(&stream, b"so far so good").ok();
                spin();
            }
            "never" => {
                let (_body, stream) = begin(out, 200, &[]);
                write(&stream, b"so far so good").ok();
                sleep(u64::MAX);
            }
            "sleep" => {
                sleep(number() * 1_000_000);
                answer(out, b"good morning");
            }
            "files" => answer(out, files(number()).unwrap_or_else(|error| error.to_string()).as_bytes()),
            "silent" => {}
            // What it should answer with stays in the instance's table, for as long as that lives.
            "forgetful" => std::mem::forget(out),
            // What was sent of the body is not its end, and nobody is left to send the rest.
            "forget-body" => {
                let (body, stream) = begin(out, 200, &[]);
                write(&stream, b"half of it").ok();
                drop(stream);
                std::mem::forget(body);
            }
            "unfinished" => {
                let (body, stream) = begin(out, 200, &[]);
                write(&stream, b"half of it").ok();
                drop(stream);
                drop(body);
            }
            "promise" => {
                // As many bytes as `content-length` says are `query`; ten are sent.
                let length = number().to_string();
                let (body, stream) = begin(out, 200, &[("content-length", length.as_bytes())]);
                write(&stream, b"0123456789").ok();
                drop(stream);
                OutgoingBody::finish(body, None).ok();
            }
            "allocate" => {
                let mut kept = Vec::new();
                loop {
                    kept.push(vec![1_u8; 1 << 20]);
                    std::hint::black_box(&kept);
                }
            }
            "storm" => loop {
                // Calls of the host, each of which leaves nothing behind.
                drop(Fields::new());
            },
            "deep" => answer(out, descend(0).to_string().as_bytes()),
            "shout" => {
                let value = vec![b'a'; number() as usize];
                let (_body, _stream) = begin(out, 200, &[("x-shout", &value)]);
            }
            "leak" => {
                for _ in 0..number() {
                    std::mem::forget(Fields::new());
                }
                answer(out, b"leaked");
            }
            "forbidden" => {
                let headers = Fields::new();
                let refused = headers.append("transfer-encoding", b"chunked").is_err()
                    && headers.append("connection", b"close").is_err();
                answer(out, if refused { b"refused" } else { b"taken" });
            }
            "print" => {
                for _ in 0..number() / 100 {
                    println!("{}", "p".repeat(99));
                }
                answer(out, b"printed");
            }
            _ => {
                let name = header(&request, "ebb-param-name").unwrap_or_else(|| "stranger".to_owned());
                answer(out, format!("hello, {name}").as_bytes());
            }
        }
    }
}

fn header(request: &IncomingRequest, name: &str) -> Option<String> {
    let value = request.headers().get(name).into_iter().next()?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// What a guest is told about a request, one thing a line.
fn seen(request: &IncomingRequest) -> String {
    let method = match request.method() {
        Method::Other(other) => other,
        known => format!("{known:?}").trim_start_matches("Method::").to_uppercase(),
    };
    let mut seen = format!(
        "{method} {} at {}\n",
        request.path_with_query().unwrap_or_default(),
        request.authority().unwrap_or_default()
    );
    let mut headers = request.headers().entries();
    headers.sort();
    for (name, value) in headers {
        seen.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(&value)));
    }
    seen
}

fn begin(out: ResponseOutparam, status: u16, headers: &[(&str, &[u8])]) -> (OutgoingBody, OutputStream) {
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value).expect("a header");
    }
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("a status");
    let body = response.body().expect("a body");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("a stream");
    (body, stream)
}

fn answer(out: ResponseOutparam, bytes: &[u8]) {
    let (body, stream) = begin(out, 200, &[("content-type", b"text/plain")]);
    write(&stream, bytes).ok();
    drop(stream);
    OutgoingBody::finish(body, None).expect("the end");
}

fn write(stream: &OutputStream, bytes: &[u8]) -> Result<(), StreamError> {
    bytes.chunks(4096).try_for_each(|piece| stream.blocking_write_and_flush(piece))
}

/// The body and its trailers, back as they come.
fn echo(request: IncomingRequest, out: ResponseOutparam) {
    let incoming = request.consume().expect("a body");
    let (body, stream) = begin(out, 200, &[]);
    {
        let input = incoming.stream().expect("a stream");
        loop {
            match input.blocking_read(16 << 10) {
                Ok(bytes) => {
                    if write(&stream, &bytes).is_err() {
                        return;
                    }
                }
                Err(StreamError::Closed) => break,
                // Half a body must not look like a whole one.
                Err(StreamError::LastOperationFailed(_)) => return,
            }
        }
    }
    drop(stream);
    let trailers = IncomingBody::finish(incoming);
    trailers.subscribe().block();
    let trailers = match trailers.get() {
        Some(Ok(Ok(Some(trailers)))) => Fields::from_list(&trailers.entries()).ok(),
        _ => None,
    };
    OutgoingBody::finish(body, trailers).expect("the end");
}

/// Server-sent events, 20 ms apart.
fn ticks(out: ResponseOutparam, count: u64) {
    let (body, stream) = begin(out, 200, &[("content-type", b"text/event-stream")]);
    for tick in 0..count {
        if write(&stream, format!("data: {tick}\n\n").as_bytes()).is_err() {
            return;
        }
        sleep(20_000_000);
    }
    drop(stream);
    OutgoingBody::finish(body, None).expect("the end");
}

fn sleep(nanos: u64) {
    wasip2::clocks::monotonic_clock::subscribe_duration(nanos).block();
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn descend(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    descend(here[0] + 1) + std::hint::black_box(here)[63]
}

fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// Does with files what programs do with them, and writes `length` bytes; says what came of it. The file `kept` counts
/// the calls of the instance.
fn files(length: u64) -> std::io::Result<String> {
    use std::fs::{self, File, OpenOptions};
    use std::io::{Read, Seek, SeekFrom, Write};

    let mut kept = OpenOptions::new().create(true).append(true).open("/tmp/kept")?;
    kept.write_all(b".")?;
    drop(kept);
    fs::create_dir_all("/tmp/a/b")?;
    fs::write("/tmp/a/b/text", "hello")?;
    fs::rename("/tmp/a/b/text", "/tmp/a/text")?;
    let mut file = OpenOptions::new().read(true).write(true).open("/tmp/a/text")?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(b", files")?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    file.set_len(5)?;
    let cut = fs::read_to_string("/tmp/a/text")?;
    let mut names: Vec<_> = fs::read_dir("/tmp/a")?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    let outside =
        File::open("/etc/passwd").map_or_else(|error| format!("{:?}", error.kind()), |_| "open".into());
    let written = match fs::write("/tmp/large", vec![b'x'; length as usize]) {
        Ok(()) => fs::metadata("/tmp/large")?.len().to_string(),
        // `wasi-libc` asks no stream why it ended: `EIO`, whatever it was.
        Err(error) if error.raw_os_error() == Some(29) => "full".to_owned(),
        Err(error) => return Err(error),
    };
    fs::remove_file("/tmp/large")?;
    fs::remove_dir_all("/tmp/a")?;
    let left = fs::read_dir("/tmp")?.count();
    let calls = fs::read("/tmp/kept")?.len();
    Ok(format!("{text}; {cut}; {names:?}; outside: {outside}; {written}; {left} left, call {calls}"))
}
