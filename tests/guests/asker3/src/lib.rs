//! An HTTP function of wasi:http 0.3 that opens the account of its path, and says what came of it.

use ebbtide::commands::Command;
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

wasip3::http::service::export!(Function);

struct Function;

impl Guest for Function {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let key = path.rsplit('/').next().unwrap_or_default();
        let open = Command::new("account", key, "open")
            .data([("owner", "Ann")].into_iter().collect::<std::collections::BTreeMap<_, _>>());
        let said = match open.send() {
            Ok(accepted) => format!("{} at {:?}", accepted.stream, accepted.revision),
            Err(error) => format!("{:?}: {error}", error.kind),
        };
        let (mut body, reader) = wit_stream::new();
        let (_trailers, trailers) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(Fields::new(), Some(reader), trailers);
        wit_bindgen::spawn_local(async move {
            body.write_all(said.into_bytes()).await;
        });
        Ok(response)
    }
}
