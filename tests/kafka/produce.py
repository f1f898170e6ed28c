"""Commands, one a line on stdin, to a topic as CloudEvents in structured mode: produce.py BROKERS TOPIC"""

import json
import sys

from confluent_kafka import Producer

brokers, topic = sys.argv[1:]
producer = Producer({
    "bootstrap.servers": brokers,
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
})
failed = []
for index, line in enumerate(sys.stdin):
    given = json.loads(line)
    event = {
        "specversion": "1.0",
        "type": given["command"],
        "id": str(index),
        "source": "urn:test:confluent-kafka",
        "datacontenttype": "application/json",
        "data": given.get("data"),
    }
    producer.produce(
        topic,
        key=given["id"],
        value=json.dumps(event),
        headers={"content-type": "application/cloudevents+json; charset=utf-8"},
        on_delivery=lambda error, _: error and failed.append(error),
    )
    producer.poll(0)
producer.flush()
if failed:
    sys.exit(str(failed[0]))
