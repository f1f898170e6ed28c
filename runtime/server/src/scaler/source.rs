//! What the node knows of its own backlog: lag of what follows the log, requests that wait for their answers.

use crate::metrics::Metrics;
use ebb_app::node::{AppState, DeployedApp, Node};
use ebb_app::projections::{Kind, ProjectionStatus};
use ebb_domain::port::Future;
use ebb_domain::port::bus::PartitionLag;
use ebb_domain::port::scaling::{ScalingError, ScalingSource};
use ebb_domain::scaling::{Backlog, Partition, Start};
use std::sync::Arc;

/// See the module.
pub(crate) struct NodeScaling {
    pub(crate) node: Arc<Node>,
    pub(crate) metrics: Arc<Metrics>,
}

impl NodeScaling {
    fn app(&self, app: &str) -> Result<Arc<DeployedApp>, ScalingError> {
        let unknown = || ScalingError::Unknown(format!("no app `{app}` is deployed"));
        self.node.deployed_app(app).ok_or_else(unknown)
    }

    /// Looks, and opens nothing: an app at rest has read all it has.
    fn log_backlog(&self, app: &str, consumer: &str) -> Result<Backlog, ScalingError> {
        let deployed = self.app(app)?;
        if let Some(group) = consumer.strip_prefix("group.") {
            return group_backlog(&deployed, group);
        }
        let status = deployed.status();
        if let Some(found) = status.projections.iter().find(|status| function(status) == consumer) {
            let partitions = partitions(found).ok_or_else(|| {
                ScalingError::Unreachable(format!(
                    "the lag of `{consumer}` is not known: the broker has not said yet"
                ))
            })?;
            return Ok(Backlog { partitions, start: Start::Earliest });
        }
        let deployment = deployed.deployment();
        let mut offered = deployment.offers.iter().flat_map(|offers| &offers.functions);
        if offered.any(|function| function.follows_log && *function.name == *consumer) {
            let why = status.unavailable.unwrap_or_else(|| "nobody has opened the app yet".into());
            return Err(ScalingError::Unreachable(format!("the lag of `{consumer}` is not known: {why}")));
        }
        if status.state == AppState::Busy {
            return Err(ScalingError::Unreachable(format!("app `{app}` is being opened or closed")));
        }
        let there = deployment.offers.iter().flat_map(|offers| &offers.functions);
        let there: Vec<_> =
            there.filter(|function| function.follows_log).map(|function| &*function.name).collect();
        Err(ScalingError::Unknown(match &*there {
            [] => format!("app `{app}` has no consumer `{consumer}`, and none at all"),
            there => format!("app `{app}` has no consumer `{consumer}`; there are {}", there.join(", ")),
        }))
    }
}

impl ScalingSource for NodeScaling {
    fn backlog<'a>(&'a self, app: &'a str, consumer: &'a str) -> Future<'a, Result<Backlog, ScalingError>> {
        Box::pin(async move { self.log_backlog(app, consumer) })
    }

    fn in_flight(&self, app: &str, function: Option<&str>) -> Result<u64, ScalingError> {
        let deployed = self.app(app)?;
        if let Some(function) = function {
            let deployment = deployed.deployment();
            let there = deployment.offers.iter().flat_map(|offers| &offers.functions);
            // Those that answer callers.
            let there: Vec<_> =
                there.filter(|function| !function.follows_log).map(|function| &*function.name).collect();
            if !there.contains(&function) {
                let there = there.join(", ");
                let why = format!(
                    "app `{app}` has no function `{function}` that answers callers; there are: {there}"
                );
                return Err(ScalingError::Unknown(why));
            }
        }
        Ok(self.metrics.in_flight(app, function))
    }
}

/// Records of topics that a consumer group has not taken, as the broker said last.
fn group_backlog(deployed: &DeployedApp, group: &str) -> Result<Backlog, ScalingError> {
    let Some(app) = deployed.if_open() else {
        let why = "the app is not open: it is being opened or closed, can't be, or consumes no topics";
        return Err(ScalingError::Unreachable(format!("the lag of group `{group}` is not known: {why}")));
    };
    let groups = app.intake_status();
    let Some(found) = groups.iter().find(|found| *found.group == *group) else {
        let there: Vec<_> = groups.iter().map(|group| &*group.group).collect();
        let why = format!(
            "app `{}` has no consumer group `{group}`; there are: {}",
            deployed.name(),
            there.join(", ")
        );
        return Err(ScalingError::Unknown(why));
    };
    if found.lag.is_none() {
        let why = format!("the lag of group `{group}` is not known: the broker has not said it lately");
        return Err(ScalingError::Unreachable(why));
    }
    Ok(Backlog { partitions: found.partitions.iter().map(topic_partition).collect(), start: Start::Earliest })
}

fn topic_partition(lag: &PartitionLag) -> Partition {
    let begin = lag.end.saturating_sub(lag.lag);
    Partition { begin, end: lag.end, committed: lag.committed.map(|committed| committed.max(begin)) }
}

/// As the list of functions names it.
fn function(status: &ProjectionStatus) -> String {
    match status.kind {
        Kind::Projection => format!("projection.{}", status.name),
        Kind::Function => format!("function.{}", status.name),
        Kind::Commands => format!("commands.{}", status.name),
    }
}

/// What is being built has work to do as well, beside what serves. None: how much is left is not known.
fn partitions(status: &ProjectionStatus) -> Option<Vec<Partition>> {
    let building = status.building.as_ref().filter(|building| building.lag > status.serving.lag);
    let version = building.unwrap_or(&status.serving);
    if let Some(topics) = &version.topics {
        return topics.partitions.as_ref().map(|left| left.iter().map(topic_partition).collect());
    }
    let mark = version.mark.0;
    Some(vec![Partition { begin: 0, end: mark.saturating_add(version.lag), committed: Some(mark) }])
}
