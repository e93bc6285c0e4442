"""Publishes events directly to Kafka: publish.py BOOTSTRAP USER TEXT logs a user in and sets the user's custom status.

A valid event has the user as key, the partition of Java's partitioner, and a value in Avro's single-object encoding. See
docs/publishing.md. This example needs confluent-kafka and fastavro.
"""

import io
import json
import pathlib
import sys

if len(sys.argv) != 4:
    print("usage: publish.py BOOTSTRAP USER TEXT, such as: publish.py 127.0.0.1:9092 alice hello", file=sys.stderr)
    sys.exit(2)

import fastavro
from confluent_kafka import Producer

TOPIC = "presence.events"
SCHEMA = json.loads((pathlib.Path(__file__).parent.parent / "schemas" / "event.avsc").read_text())
PARSED = fastavro.parse_schema(SCHEMA)
CANONICAL = fastavro.schema.to_parsing_canonical_form(SCHEMA)
# fastavro returns the digits in the order of the bytes on the wire.
HEADER = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(CANONICAL, "CRC-64-AVRO"))


def encode(event):
    out = io.BytesIO(HEADER)
    out.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(out, PARSED, event)
    return out.getvalue()


def delivered(error, message):
    if error is not None:
        sys.exit(f"Kafka did not accept an event: {error}")
    print(message.partition(), message.offset())


def main():
    bootstrap, user, text = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            # librdkafka's default selects other partitions, where the events would be malformed.
            "partitioner": "murmur2_random",
            # Retries keep the order and write each event once.
            "enable.idempotence": True,
        }
    )
    # A lease of ten minutes. Every partition needs the record, so it has no key.
    lease = encode({"type": "lease", "gateway": "python-1", "epoch": 1, "ttl_ms": 600_000})
    for partition in producer.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions:
        producer.produce(TOPIC, lease, partition=partition, on_delivery=delivered)
    events = [
        {"type": "connect", "user": user, "platform": "android", "device": "phone", "gateway": "python-1",
         "epoch": 1, "conn": 1, "intent": "login"},
        {"type": "custom_status", "user": user, "text": text},
    ]  # fmt: skip
    for event in events:
        producer.produce(TOPIC, encode(event), key=user, on_delivery=delivered)
    if producer.flush(60):
        sys.exit("Kafka did not accept all events within a minute")


main()
