// Commands, one a line on stdin, to a topic as CloudEvents in binary mode: node produce.js BROKERS TOPIC
const { Kafka, logLevel } = require("kafkajs");

const [brokers, topic] = process.argv.slice(2);
const message = (line, index) => {
  const { id, command, data } = JSON.parse(line);
  const headers = {
    ce_specversion: "1.0", ce_type: command, ce_id: String(index), ce_source: "urn:test:kafkajs",
    "content-type": "application/json",
  };
  return { key: id, value: JSON.stringify(data), headers };
};

(async () => {
  const lines = require("fs").readFileSync(0, "utf8").trimEnd().split("\n");
  const kafka = new Kafka({ brokers: brokers.split(","), logLevel: logLevel.ERROR });
  // KafkaJS warns that its partitioner is another one since version 2; it is Java's.
  const producer = kafka.producer({ idempotent: true });
  await producer.connect();
  await producer.send({ topic, acks: -1, messages: lines.map(message) });
  await producer.disconnect();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
