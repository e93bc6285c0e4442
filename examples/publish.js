// Publishes events directly to Kafka: node publish.js BOOTSTRAP USER TEXT logs a user in and sets the user's custom status.
//
// A valid event has the user as key, the partition of Java's partitioner (the default of kafkajs from 2.0 on), and a value in
// Avro's single-object encoding. See docs/publishing.md. This example needs kafkajs and avsc.

if (process.argv.length !== 5) {
  console.error('usage: node publish.js BOOTSTRAP USER TEXT, such as: node publish.js 127.0.0.1:9092 bob hello');
  process.exit(2);
}

const fs = require('fs');
const path = require('path');
const avro = require('avsc');
const { Kafka, Partitioners, logLevel } = require('kafkajs');

const TOPIC = 'presence.events';
const schema = JSON.parse(fs.readFileSync(path.join(__dirname, '../schemas/event.avsc')));
const Event = avro.Type.forSchema(schema);

// c3 01, and the schema's fingerprint from schemas/README.md, least byte first.
const HEADER = Buffer.alloc(10);
HEADER.writeUInt16BE(0xc301);
HEADER.writeBigUInt64LE(0xd6cdb63891b91905n, 2);

const encode = (event) => Buffer.concat([HEADER, Event.toBuffer(event)]);

async function main() {
  const [bootstrap, user, text] = process.argv.slice(2);
  const kafka = new Kafka({ brokers: bootstrap.split(','), logLevel: logLevel.ERROR });
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, idempotent: true });
  const admin = kafka.admin();
  await Promise.all([producer.connect(), admin.connect()]);
  const partitions = await admin.fetchTopicOffsets(TOPIC);
  await admin.disconnect();

  // A lease of ten minutes. Every partition needs the record, so it has no key.
  const lease = encode({ type: 'lease', gateway: 'node-1', epoch: 1, ttl_ms: 600_000 });
  const leases = partitions.map(({ partition }) => ({ partition, value: lease }));
  const events = [
    { type: 'connect', user, platform: 'android', device: 'phone', gateway: 'node-1', epoch: 1, conn: 1,
      intent: 'login' },
    { type: 'custom_status', user, text },
  ];
  const messages = [...leases, ...events.map((event) => ({ key: user, value: encode(event) }))];
  for (const { partition, baseOffset } of await producer.send({ topic: TOPIC, messages, acks: -1 })) {
    console.log(partition, baseOffset);
  }
  await producer.disconnect();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
