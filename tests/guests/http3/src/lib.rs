//! An HTTP function of `wasi:http` 0.3 whose behaviour is in the path.

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

wasip3::http::service::export!(Function);

struct Function;

impl Guest for Function {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number = query.split('=').next_back().and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        match path.rsplit('/').next().unwrap_or_default() {
            "echo" => Ok(echo(request)),
            "ticks" => Ok(ticks(number)),
            "trailers" => Ok(stream(b"see below".to_vec(), Some(("x-sum", "42")))),
            "big" => Ok(stream(vec![b'x'; number as usize], None)),
            "error" => Err(ErrorCode::InternalError(Some("asked to".to_owned()))),
            "trap" => panic!("asked to"),
            "trap-later" => {
                let (mut body, reader) = wit_stream::new();
                let (_trailers, trailers) = wit_future::new(|| Ok(None));
                let (response, _) = Response::new(Fields::new(), Some(reader), trailers);
                wit_bindgen::spawn_local(async move {
                    body.write_all(b"so far so good".to_vec()).await;
                    panic!("asked to, later");
                });
                Ok(response)
            }
            "spin-later" => {
                let (mut body, reader) = wit_stream::new();
                let (_trailers, trailers) = wit_future::new(|| Ok(None));
                let (response, _) = Response::new(Fields::new(), Some(reader), trailers);
                wit_bindgen::spawn_local(async move {
                    body.write_all(b"so far so good".to_vec()).await;
                    let mut n = 0_u64;
                    loop {
                        n = std::hint::black_box(n.wrapping_add(1));
                    }
                });
                Ok(response)
            }
            "never" => {
                wasip3::clocks::monotonic_clock::wait_for(u64::MAX).await;
                Ok(stream(Vec::new(), None))
            }
            _ => {
                let name = request.get_headers().get("ebb-param-name").into_iter().next();
                let name = name.map_or_else(
                    || "stranger".to_owned(),
                    |name| String::from_utf8_lossy(&name).into_owned(),
                );
                Ok(stream(format!("hello, {name}").into_bytes(), None))
            }
        }
    }
}

/// A response with this body, and perhaps a trailer.
fn stream(bytes: Vec<u8>, trailer: Option<(&'static str, &'static str)>) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(Fields::new(), Some(reader), trailers_reader);
    wit_bindgen::spawn_local(async move {
        body.write_all(bytes).await;
        drop(body);
        let fields = trailer.map(|(name, value)| {
            let fields = Fields::new();
            fields.append(name, value.as_bytes()).expect("a header");
            fields
        });
        trailers.write(Ok(fields)).await.ok();
    });
    response
}

/// The body and its trailers, back as they come.
fn echo(request: Request) -> Response {
    let (_done, processed) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, processed);
    let (response, _) = Response::new(Fields::new(), Some(body), trailers);
    response
}

/// Server-sent events, 20 ms apart.
fn ticks(count: u64) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let headers = Fields::new();
    headers.append("content-type", b"text/event-stream").expect("a header");
    let (response, _) = Response::new(headers, Some(reader), trailers_reader);
    wit_bindgen::spawn_local(async move {
        for tick in 0..count {
            body.write_all(format!("data: {tick}\n\n").into_bytes()).await;
            wasip3::clocks::monotonic_clock::wait_for(20_000_000).await;
        }
        drop(body);
        trailers.write(Ok(None)).await.ok();
    });
    response
}
