"""Publishes logins as programs in Python do that know nothing of Rollcall's schema: stacks.py BOOTSTRAP REGISTRY COUNT WHAT...

COUNT users WHAT-0, WHAT-1 and so on log in for each WHAT:

  header   by Confluent's AvroSerializer, the schema's GUID in the header __value_schema_id
  ksql     with the schema that ksqlDB registers for a stream, by the same serializer, the schema's id before the datum
  topic    like ksql, but registered under the topic's name, which is the default: the registry refuses it
"""

import sys
import time

from confluent_kafka import Producer
from confluent_kafka.schema_registry import (
    SchemaRegistryClient,
    header_schema_id_serializer,
    prefix_schema_id_serializer,
    record_subject_name_strategy,
    topic_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

TOPIC = "presence.events"

LOGIN = """{"type": "record", "name": "Login", "namespace": "com.example.python", "fields": [
  {"name": "user", "type": "string"},
  {"name": "session", "type": {"type": "map", "values": ["null", "double", "string"]}, "default": {}},
  {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}, "default": "a"},
  {"name": "type", "type": "string", "default": "connect"},
  {"name": "platform", "type": ["string", "null"]},
  {"name": "device", "type": ["string", "null"]},
  {"name": "gateway", "type": "string"},
  {"name": "epoch", "type": "long"},
  {"name": "conn", "type": ["int", "null"]},
  {"name": "intent", "type": ["string", "null"]},
  {"name": "auth_at", "type": [{"type": "long", "logicalType": "timestamp-millis"}, "null"]}]}"""

# As ksqlDB writes it: every column may be null, and its names are in capitals.
KSQL = """{"type": "record", "name": "KsqlDataSourceSchema", "namespace": "io.confluent.ksql.avro_schemas", "fields": [
  {"name": "TYPE", "type": ["null", "string"], "default": null},
  {"name": "PLATFORM", "type": ["null", "string"], "default": null},
  {"name": "DEVICE", "type": ["null", "string"], "default": null},
  {"name": "GATEWAY", "type": ["null", "string"], "default": null},
  {"name": "EPOCH", "type": ["null", "long"], "default": null},
  {"name": "CONN", "type": ["null", "int"], "default": null},
  {"name": "INTENT", "type": ["null", "string"], "default": null},
  {"name": "AUTH_AT", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": null},
  {"name": "PRICE", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}], "default": null},
  {"name": "USER", "type": ["null", "string"], "default": null}],
  "connect.name": "io.confluent.ksql.avro_schemas.KsqlDataSourceSchema"}"""


def login(user):
    now_ms = int(time.time() * 1000)
    return {"type": "connect", "user": user, "platform": "android", "device": "d1", "gateway": "python-1", "epoch": 1,
            "conn": 1, "intent": "login", "auth_at": now_ms}  # fmt: skip


def delivered(error, _):
    if error is not None:
        sys.exit(f"Kafka did not accept an event: {error}")


def publish(what, bootstrap, registry, users):
    schema, in_header = {"header": (LOGIN, True), "ksql": (KSQL, False), "topic": (KSQL, False)}[what]
    serialize = AvroSerializer(
        registry,
        schema,
        conf={
            # The subject of the topic has Rollcall's own schema, which others must not replace.
            "subject.name.strategy": topic_subject_name_strategy if what == "topic" else record_subject_name_strategy,
            "schema.id.serializer": header_schema_id_serializer if in_header else prefix_schema_id_serializer,
        },
    )
    # librdkafka's default partitioner selects other partitions.
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    for user in users:
        event = login(user)
        if schema is KSQL:
            event = {name.upper(): value for name, value in event.items()}
        headers = []
        value = serialize(event, SerializationContext(TOPIC, MessageField.VALUE, headers))
        assert [name for name, _ in headers] == ["__value_schema_id"] * in_header, headers
        producer.produce(TOPIC, value, key=user, headers=headers, on_delivery=delivered)
    if producer.flush(60):
        sys.exit("Kafka did not accept all events within a minute")


bootstrap, url, count, *whats = sys.argv[1:]
registry = SchemaRegistryClient({"url": url})
for what in whats:
    publish(what, bootstrap, registry, [f"{what}-{number}" for number in range(int(count))])
