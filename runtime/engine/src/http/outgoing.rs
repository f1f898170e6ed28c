//! Requests that a function sends: to where its manifest allows, at addresses that were looked up and checked once,
//! within bounds.

use super::{TRACEPARENT, propagate};
use bytes::Bytes;
use ebb_domain::manifest::Capabilities;
use ebb_domain::outbound::Outbound;
use ebb_domain::trace::Trace;
use http::header::{CONNECTION, HeaderValue};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// Connections of one instance at once. One more is refused, not queued: a guest that waits for a place that only
/// itself could free would wait for ever.
const CONNECTIONS: usize = 32;
/// A response's head at most.
const HEAD_BYTES: usize = 64 << 10;
/// A response's body at most. A guest reads it at its own pace; this bounds the traffic, not memory.
const BODY_BYTES: u64 = 256 << 20;
/// What a guest may wait for at most, and waits for where it does not say. The wall-clock limit of the call goes
/// before.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);

/// What sends the requests of one instance.
pub(super) struct Outgoing {
    capabilities: Arc<Capabilities>,
    connections: Arc<Semaphore>,
    /// The span of the call that goes on.
    span: Option<Trace>,
}

impl Outgoing {
    pub(super) fn new(capabilities: Arc<Capabilities>) -> Self {
        Self { capabilities, connections: Arc::new(Semaphore::new(CONNECTIONS)), span: None }
    }

    /// A call begins, as this span.
    pub(super) fn begin(&mut self, span: Option<Trace>) {
        self.span = span;
    }
}

type IoResult = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: IoResult,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, IoResult), Error>> + Send> {
        // A guest that speaks for itself knows better.
        if let Some(span) = &self.span
            && !request.headers().contains_key(TRACEPARENT)
        {
            propagate(span, request.headers_mut());
        }
        let capabilities = self.capabilities.clone();
        let place = self.connections.clone().try_acquire_owned();
        Box::new(async move {
            let place = place.map_err(|_| Error::ConnectionLimitReached)?;
            let outbound = capabilities.outbound_http.as_ref().ok_or(Error::HttpRequestDenied)?;
            send(outbound, request, &Patience::of(options.as_ref()), place).await
        })
    }
}

/// How long each step may take.
struct Patience {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Duration,
}

impl Patience {
    fn of(options: Option<&RequestOptions>) -> Self {
        // Zero would be a time-out before the first try.
        let within = |asked: Option<Duration>, most: Duration| {
            asked.unwrap_or(most).clamp(Duration::from_millis(1), most)
        };
        Self {
            connect: within(options.and_then(|options| options.connect_timeout), CONNECT),
            first_byte: within(options.and_then(|options| options.first_byte_timeout), PATIENCE),
            between_bytes: within(options.and_then(|options| options.between_bytes_timeout), PATIENCE),
        }
    }
}

async fn send(
    outbound: &Outbound,
    mut request: Request<WasiBody>,
    patience: &Patience,
    place: OwnedSemaphorePermit,
) -> Result<(Response<WasiBody>, IoResult), Error> {
    let (host, port, tls) = destination(request.uri())?;
    if !outbound.names(&host, port) {
        tracing::debug!(host, port, "a function may not send requests there");
        return Err(Error::HttpRequestDenied);
    }
    let connecting = async {
        let stream = connect(outbound, &host, port).await?;
        // An early answer must not wait for more of a small request.
        let _ = stream.set_nodelay(true);
        Ok::<_, Error>(if tls { handshake(&host, stream).await? } else { Box::new(stream) as Box<dyn Wire> })
    };
    let wire =
        tokio::time::timeout(patience.connect, connecting).await.map_err(|_| Error::ConnectionTimeout)??;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(wire)).await?;
    // Alive for as long as the request or its answer is wanted.
    let connection = AbortOnDrop(tokio::spawn(async move {
        let _place = place;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of a function ended early");
        }
    }));

    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    // One request a connection, which both sides should know.
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let response = tokio::time::timeout(patience.first_byte, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)??;
    let response = response.map(|incoming| {
        IncomingBody {
            incoming,
            left: BODY_BYTES,
            patience: patience.between_bytes,
            silence: Box::pin(tokio::time::sleep(patience.between_bytes)),
            _connection: connection,
        }
        .boxed_unsync()
    });
    Ok((response, Box::new(std::future::ready(Ok(())))))
}

/// Host (an IPv6 address without its brackets), port, and whether to speak TLS.
fn destination(uri: &Uri) -> Result<(String, u16, bool), Error> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(Error::HttpRequestUriInvalid);
    }
    let port = match authority.port() {
        Some(port) => port.as_str().parse().map_err(|_| Error::HttpRequestUriInvalid)?,
        None if tls => 443,
        None => 80,
    };
    Ok((host.to_owned(), port, tls))
}

/// Looks the host up, and connects to an address that may be reached. The name is not looked up again in between: its
/// owner can't show one address to the check and another to the connection.
async fn connect(outbound: &Outbound, host: &str, port: u16) -> Result<TcpStream, Error> {
    let found: Vec<SocketAddr> = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.collect(),
        Err(error) => {
            tracing::debug!(host, %error, "a name that a function asked for was not found");
            return Err(Error::DnsError { rcode: Some("address not available".to_owned()), info_code: None });
        }
    };
    let reachable: Vec<SocketAddr> = found.into_iter().filter(|address| outbound.reaches(*address)).collect();
    if reachable.is_empty() {
        tracing::debug!(host, port, "leads to addresses that a function may not reach");
        return Err(Error::DestinationIpProhibited);
    }
    let mut last = Error::DestinationNotFound;
    for address in reachable {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

/// The system's trusted roots, read once.
static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, unusable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            unusable,
            "the system has no trusted certificates: functions can't send requests over TLS"
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
});

async fn handshake(host: &str, stream: TcpStream) -> Result<Box<dyn Wire>, Error> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let stream = TlsConnector::from(TLS.clone()).connect(name, stream).await.map_err(Error::Tls)?;
    Ok(Box::new(stream))
}

trait Wire: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Wire for T {}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response's body: bounded, and not silent for too long.
struct IncomingBody {
    incoming: Incoming,
    left: u64,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    _connection: AbortOnDrop,
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
            return self.silence.as_mut().poll(context).map(|()| Some(Err(Error::ConnectionReadTimeout)));
        };
        let patience = self.patience;
        self.silence.as_mut().reset(Instant::now() + patience);
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            self.left = self.left.checked_sub(bytes).ok_or(Error::HttpResponseBodySize(Some(BODY_BYTES)))?;
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
