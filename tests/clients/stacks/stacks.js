// Publishes logins as a program on Node does that knows nothing of Rollcall's schema, by kafkajs and its client of the schema
// registry: stacks.js BOOTSTRAP REGISTRY COUNT logs in as many users, node-0, node-1 and so on.

const { Kafka, Partitioners, logLevel } = require('kafkajs');
const { SchemaRegistry, SchemaType } = require('@kafkajs/confluent-schema-registry');

const LOGIN = {
  type: 'record',
  name: 'Login',
  namespace: 'com.example.node',
  fields: [
    { name: 'type', type: { type: 'enum', name: 'Kind', symbols: ['connect', 'disconnect'] } },
    { name: 'platform', type: { type: 'enum', name: 'Platform', symbols: ['web', 'android'] } },
    { name: 'user', type: 'string' },
    { name: 'device', type: 'string' },
    { name: 'gateway', type: 'string' },
    { name: 'epoch', type: 'int' },
    { name: 'conn', type: 'int' },
    { name: 'intent', type: ['null', 'string'], default: null },
    { name: 'authAt', type: ['null', { type: 'long', logicalType: 'timestamp-millis' }], default: null },
    { name: 'cart', type: { type: 'array', items: { type: 'record', name: 'Item', fields: [{ name: 'price', type: 'double' }] } } },
  ],
};

async function main() {
  const [bootstrap, url, count] = process.argv.slice(2);
  const users = Array.from({ length: Number(count) }, (_, number) => `node-${number}`);
  const registry = new SchemaRegistry({ host: url });
  // The subject of the topic has Rollcall's own schema, which others must not replace.
  const schema = { type: SchemaType.AVRO, schema: JSON.stringify(LOGIN) };
  const { id } = await registry.register(schema, { subject: 'com.example.node.Login' });
  const kafka = new Kafka({ brokers: bootstrap.split(','), logLevel: logLevel.ERROR });
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner, idempotent: true });
  await producer.connect();
  const login = (user) => ({
    type: 'connect', platform: 'android', user, device: 'd1', gateway: 'node-1', epoch: 1, conn: 1, intent: 'login',
    authAt: Date.now(), cart: [{ price: 12.5 }],
  });
  const message = async (user) => ({ key: user, value: await registry.encode(id, login(user)) });
  await producer.send({ topic: 'presence.events', messages: await Promise.all(users.map(message)), acks: -1 });
  await producer.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
