//! KEDA's external scaler: how many workers an app's backlog wants, over gRPC, on a port of its own.
//!
//! What is told is [`ebb_domain::scaling`]'s to decide; here it is asked for and put into KEDA's words. A trigger that asks
//! for what is not there gets an error, which KEDA shows at the ScaledObject. A source that does not answer is stood in for
//! by its last good answer, for [`HOLD`]; after that KEDA's own `fallback` counts.

mod source;
mod trigger;
// Kept by tests/generated.rs.
#[expect(unreachable_pub, unused_qualifications, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/externalscaler.rs"]
mod wire;

pub(crate) use source::NodeScaling;

use crate::http::body::RequestBody;
use crate::http::problem::Problem;
use crate::http::reply::Reply;
use crate::serve::Plane;
use ebb_domain::port::Clock;
use ebb_domain::port::guest::BodyError;
use ebb_domain::port::scaling::{ScalingError, ScalingSource};
use ebb_domain::scaling::{Backlog, LastGood, Reading, RisingEdge};
use futures_util::stream::{BoxStream, StreamExt as _, once, unfold};
use http::Request;
use http_body_util::{BodyExt as _, Either};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::codegen::Service as _;
use tonic::{Response, Status};
use trigger::{Metric, Trigger};
use wire::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use wire::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};

/// How long an answer that can't be had anew counts: as long as KEDA waits before it lets go of the last worker.
const HOLD: Duration = Duration::from_secs(300);
/// How long a source may take. KEDA itself waits for 3 s.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon something that becomes active is pushed.
const TICK: Duration = Duration::from_millis(250);
/// More than any ScaledObject's metadata.
const MAX_REQUEST: u64 = 64 << 10;

/// The port's answers.
pub(crate) struct Scaler(ExternalScalerServer<Questions>);

impl Scaler {
    /// Ends its streams once `stopping` says so.
    pub(crate) fn new(
        source: Arc<dyn ScalingSource>,
        clock: Arc<dyn Clock>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let inner = Inner { source, clock, known: Mutex::default(), stopping };
        Self(ExternalScalerServer::new(Questions(Arc::new(inner))))
    }
}

impl Plane for Scaler {
    async fn answer(&self, request: Request<RequestBody>) -> Reply {
        let (parts, body) = request.into_parts();
        let body = match body.into_stream(MAX_REQUEST) {
            Ok((body, _)) => body,
            Err(problem) => return Problem::into_reply(problem),
        };
        let Ok(response) = self.0.clone().call(Request::from_parts(parts, body)).await;
        let broken = |status: Status| BodyError::Broken(status.to_string());
        response.map(|body| Either::Right(body.map_err(broken).boxed_unsync()))
    }
}

#[derive(Clone)]
struct Questions(Arc<Inner>);

struct Inner {
    source: Arc<dyn ScalingSource>,
    clock: Arc<dyn Clock>,
    /// By app and consumer; only of those that the source has known.
    known: Mutex<HashMap<(String, String), LastGood<Backlog>>>,
    stopping: watch::Receiver<bool>,
}

impl Inner {
    async fn read(&self, trigger: &Trigger) -> Result<Reading, ScalingError> {
        let app = &trigger.app;
        match &trigger.metric {
            Metric::Requests { function, rules } => {
                Ok(rules.read(self.source.in_flight(app, function.as_deref())?))
            }
            Metric::Lag { consumer, rules } => Ok(rules.read(&self.backlog(app, consumer).await?)),
        }
    }

    async fn backlog(&self, app: &str, consumer: &str) -> Result<Backlog, ScalingError> {
        let late =
            || ScalingError::Unreachable(format!("the lag of `{consumer}` was not told within {PATIENCE:?}"));
        let asked = tokio::time::timeout(PATIENCE, self.source.backlog(app, consumer)).await;
        let answer = asked.unwrap_or_else(|_| Err(late()));
        let key = (app.to_owned(), consumer.to_owned());
        let mut known = self.known.lock();
        if let Err(error @ ScalingError::Unknown(_)) = answer {
            known.remove(&key);
            return Err(error);
        }
        if let Err(error) = &answer {
            tracing::debug!(app, consumer, %error, "scaling by the last good answer, if there is one");
        }
        let (now, hold) = (self.clock.now(), HOLD.as_micros() as u64);
        match known.get_mut(&key) {
            Some(last) => last.settle(answer, now, hold),
            // Of what was never known nothing is kept: anybody may ask for anything.
            None if answer.is_err() => answer,
            None => known.entry(key).or_default().settle(answer, now, hold),
        }
    }
}

impl Questions {
    async fn reading(&self, object: &ScaledObjectRef) -> Result<(Trigger, Reading), Status> {
        let trigger = trigger(object)?;
        let reading = self.0.read(&trigger).await.map_err(status)?;
        Ok((trigger, reading))
    }
}

#[tonic::async_trait]
impl ExternalScaler for Questions {
    type StreamIsActiveStream = BoxStream<'static, Result<IsActiveResponse, Status>>;
    type StreamMetricSpecStream = BoxStream<'static, Result<GetMetricSpecResponse, Status>>;

    async fn is_active(
        &self,
        request: tonic::Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let (_, reading) = self.reading(request.get_ref()).await?;
        Ok(Response::new(IsActiveResponse { result: reading.is_active }))
    }

    async fn stream_is_active(
        &self,
        request: tonic::Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let (trigger, _) = self.reading(request.get_ref()).await?;
        let watch = Watch { inner: self.0.clone(), trigger, edge: RisingEdge::default() };
        let edges = unfold(Some(watch), async |watch| {
            let mut watch = watch?;
            match watch.next_edge().await {
                Ok(true) => Some((Ok(IsActiveResponse { result: true }), Some(watch))),
                Ok(false) => None,
                Err(error) => Some((Err(status(error)), None)),
            }
        });
        Ok(Response::new(edges.boxed()))
    }

    async fn get_metric_spec(
        &self,
        request: tonic::Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        Ok(Response::new(spec(&trigger(request.get_ref())?)))
    }

    async fn get_metrics(
        &self,
        request: tonic::Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        let object =
            scaled_object_ref.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
        let (trigger, reading) = self.reading(&object).await?;
        let own = trigger.metric_name();
        if !metric_name.is_empty() && metric_name != own {
            return Err(Status::not_found(format!("the trigger's metric is `{own}`, not `{metric_name}`")));
        }
        let value = MetricValue {
            metric_name: own,
            metric_value: i64::try_from(reading.value).unwrap_or(i64::MAX),
            metric_value_float: reading.value as f64,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        request: tonic::Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        // It follows from the trigger alone, and KEDA comes anew when that changes.
        let spec = spec(&trigger(request.get_ref())?);
        let mut stopping = self.0.stopping.clone();
        let end = once(async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let specs = once(async { Ok(spec) }).chain(end.filter_map(async |()| None));
        Ok(Response::new(specs.boxed()))
    }
}

/// Looks for what becomes active.
struct Watch {
    inner: Arc<Inner>,
    trigger: Trigger,
    edge: RisingEdge,
}

impl Watch {
    /// Waits until it has become active; `false` where the node stops before.
    async fn next_edge(&mut self) -> Result<bool, ScalingError> {
        let mut stopping = self.inner.stopping.clone();
        loop {
            match self.inner.read(&self.trigger).await {
                Ok(reading) if self.edge.rises(reading.is_active) => return Ok(true),
                // Polling tells KEDA of a source that is out of reach.
                Ok(_) | Err(ScalingError::Unreachable(_)) => {}
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                _ = stopping.wait_for(|stop| *stop) => return Ok(false),
            }
        }
    }
}

fn trigger(object: &ScaledObjectRef) -> Result<Trigger, Status> {
    let problems = |problems| {
        let ScaledObjectRef { name, namespace, .. } = object;
        Status::invalid_argument(format!(
            "the trigger's metadata in ScaledObject {namespace}/{name}: {problems}"
        ))
    };
    Trigger::read(&object.scaler_metadata).map_err(problems)
}

fn spec(trigger: &Trigger) -> GetMetricSpecResponse {
    let threshold = trigger.threshold().get();
    let spec = MetricSpec {
        metric_name: trigger.metric_name(),
        target_size: i64::try_from(threshold).unwrap_or(i64::MAX),
        target_size_float: threshold as f64,
    };
    GetMetricSpecResponse { metric_specs: vec![spec] }
}

fn status(error: ScalingError) -> Status {
    match error {
        ScalingError::Unknown(what) => Status::not_found(what),
        ScalingError::Unreachable(why) => Status::unavailable(why),
    }
}
