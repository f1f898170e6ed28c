//! Topics that a relay needs: made if they are not there, and looked at if they are.

use crate::producer::Quiet;
use crate::settings::Settings;
use crate::{PATIENCE, blocking, error, offsets};
use ebb_domain::name::{AppName, TopicName};
use ebb_domain::port::bus::{BusError, BusErrorKind, RelayNeeds};
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode as Code;
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::info;

/// The topic that says how far an app's relay has got.
pub(crate) fn mark_topic(app: &AppName) -> TopicName {
    TopicName::trusted(format!("{app}.relay").into())
}

/// Makes what is missing, and checks what is there.
pub(crate) async fn provide(settings: &Arc<Settings>, needs: &RelayNeeds) -> Result<(), BusError> {
    let there = there(settings.clone()).await?;
    let admin: AdminClient<Quiet> =
        AdminClient::from_config_and_context(&settings.client(), Quiet::default())
            .map_err(|failure| error::of(settings, "topics can't be made", &failure))?;
    let options = AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE));
    let spec = &needs.spec;
    let mark = mark_topic(&needs.app);
    let replication = spec.replication.map_or(-1, |replication| replication.get() as i32);
    let most = spec.max_message_bytes.to_string();
    let mut missing = Vec::new();
    let mut present = Vec::new();
    for topic in needs.topics.iter().chain([&mark]) {
        let partitions = if *topic == mark { 1 } else { spec.partitions.get() as i32 };
        let Some(found) = there.get(&**topic) else {
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
            missing.push(match *topic == mark {
                true => new.set("cleanup.policy", "compact"),
                false => new.set("max.message.bytes", &most),
            });
            continue;
        };
        if *topic == mark && *found != 1 {
            let message = format!(
                "topic `{mark}` has {found} partitions, and how far the relay has got needs one; delete it"
            );
            return Err(BusError::new(BusErrorKind::Refused, message));
        }
        if *topic != mark {
            present.push(topic);
        }
    }
    if !missing.is_empty() {
        let made = admin.create_topics(&missing, &options).await;
        for made in made.map_err(|failure| error::of(settings, "topics can't be made", &failure))? {
            match made {
                Ok(topic) => info!(topic, "made"),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(error::of_code(settings, &format!("topic `{topic}` can't be made"), code));
                }
            }
        }
    }
    check(settings, &admin, &options, &present, spec.max_message_bytes).await
}

/// Records must fit.
async fn check(
    settings: &Settings,
    admin: &AdminClient<Quiet>,
    options: &AdminOptions,
    topics: &[&TopicName],
    most: u32,
) -> Result<(), BusError> {
    if topics.is_empty() {
        return Ok(());
    }
    let specifiers: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let described = admin.describe_configs(&specifiers, options).await;
    let described =
        described.map_err(|failure| error::of(settings, "topics can't be described", &failure))?;
    for (topic, described) in topics.iter().zip(described) {
        // Who may produce may not be let see how a topic is set up: then the first record that is too large tells.
        let Ok(ConfigResource { entries, .. }) = described else { continue };
        let limit = entries.iter().find(|entry| entry.name == "max.message.bytes");
        let limit = limit.and_then(|entry| entry.value.as_deref()?.parse::<u32>().ok());
        if let Some(limit) = limit.filter(|limit| *limit < most) {
            let message = format!(
                "topic `{topic}` takes records of {limit} bytes, and events may have {most} (`app.relay.max-message`): raise \
                 its `max.message.bytes`, or lower the manifest's"
            );
            return Err(BusError::new(BusErrorKind::Refused, message));
        }
    }
    Ok(())
}

/// All topics, and how many partitions each has.
async fn there(settings: Arc<Settings>) -> Result<BTreeMap<String, usize>, BusError> {
    blocking(move || {
        let client = offsets::asking(&settings, "ebbtide")?;
        let metadata = offsets::ask(&settings, &client, |patience| client.fetch_metadata(None, patience))?
            .map_err(|failure| error::of(&settings, "topics can't be listed", &failure))?;
        let topics = metadata.topics().iter();
        Ok(topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
    })
    .await
}
