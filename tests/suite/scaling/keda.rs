//! KEDA's side of the conversation, after the interface that it publishes (kedacore/keda, `externalscaler.proto`): written
//! out here, so that the node's own copy of it is held against something.

use std::collections::HashMap;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ScaledObjectRef {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(map = "string, string", tag = "3")]
    scaler_metadata: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct IsActiveResponse {
    #[prost(bool, tag = "1")]
    pub(super) result: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetMetricSpecResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) metric_specs: Vec<MetricSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MetricSpec {
    #[prost(string, tag = "1")]
    pub(super) metric_name: String,
    #[prost(int64, tag = "2")]
    pub(super) target_size: i64,
    #[prost(double, tag = "3")]
    pub(super) target_size_float: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetMetricsRequest {
    #[prost(message, optional, tag = "1")]
    scaled_object_ref: Option<ScaledObjectRef>,
    #[prost(string, tag = "2")]
    metric_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetMetricsResponse {
    #[prost(message, repeated, tag = "1")]
    metric_values: Vec<MetricValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetricValue {
    #[prost(string, tag = "1")]
    metric_name: String,
    #[prost(int64, tag = "2")]
    metric_value: i64,
    #[prost(double, tag = "3")]
    metric_value_float: f64,
}

/// KEDA, on one ScaledObject with one trigger.
pub(super) struct Keda {
    channel: Channel,
    object: ScaledObjectRef,
}

impl Keda {
    pub(super) async fn connect(scaler: &str, metadata: &[(&str, &str)]) -> Self {
        let channel = Channel::from_shared(format!("http://{scaler}")).expect("an address");
        let channel = channel.connect().await.expect("the scaler listens");
        let mut scaler_metadata = HashMap::from([("scalerAddress".to_owned(), scaler.to_owned())]);
        scaler_metadata.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let object = ScaledObjectRef { name: "workers".into(), namespace: "shop".into(), scaler_metadata };
        Self { channel, object }
    }

    pub(super) async fn is_active(&self) -> Result<bool, Status> {
        let answer: IsActiveResponse = self.ask("IsActive", self.object.clone()).await?;
        Ok(answer.result)
    }

    pub(super) async fn spec(&self) -> Result<GetMetricSpecResponse, Status> {
        self.ask("GetMetricSpec", self.object.clone()).await
    }

    /// The metric's value, as KEDA takes it: the newer field unless it is 0.
    pub(super) async fn value(&self, metric_name: &str) -> Result<f64, Status> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(self.object.clone()),
            metric_name: metric_name.to_owned(),
        };
        let answer: GetMetricsResponse = self.ask("GetMetrics", request).await?;
        let [value] = &*answer.metric_values else { panic!("{answer:?}") };
        assert_eq!(value.metric_name, metric_name);
        Ok(if value.metric_value_float > 0.0 { value.metric_value_float } else { value.metric_value as f64 })
    }

    pub(super) async fn activity(&self) -> Streaming<IsActiveResponse> {
        self.stream("StreamIsActive").await
    }

    pub(super) async fn specs(&self) -> Streaming<GetMetricSpecResponse> {
        self.stream("StreamMetricSpec").await
    }

    async fn ask<Q, A>(&self, method: &str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.ready().await;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        grpc.unary(Request::new(question), path(method), codec).await.map(tonic::Response::into_inner)
    }

    async fn stream<A: prost::Message + Default + 'static>(&self, method: &str) -> Streaming<A> {
        let mut grpc = self.ready().await;
        let codec: ProstCodec<ScaledObjectRef, A> = ProstCodec::default();
        let opened = grpc.server_streaming(Request::new(self.object.clone()), path(method), codec).await;
        opened.expect("the stream is opened").into_inner()
    }

    async fn ready(&self) -> Grpc<Channel> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.expect("the scaler is there");
        grpc
    }
}

/// What KEDA shows of a failure.
pub(super) fn failure<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a failure");
    (status.code(), status.message().to_owned())
}

fn path(method: &str) -> PathAndQuery {
    format!("/externalscaler.ExternalScaler/{method}").parse().expect("a path")
}
