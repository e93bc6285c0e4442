"""Follows presence.changes: changes.py BOOTSTRAP [--registry URL] [--count N] prints each change as a JSON line.

It reads both framings: Avro's single-object encoding, and Confluent's wire format with a registry. To process each change
exactly once, store the result and the (partition, offset) of the change together; this example uses the position of the
consumer group. See docs/subscribing.md. It needs confluent-kafka and fastavro.
"""

import argparse
import io
import json
import pathlib
import urllib.request

import fastavro
from confluent_kafka import Consumer, KafkaException

SCHEMA = json.loads((pathlib.Path(__file__).parent.parent / "schemas" / "change.avsc").read_text())
READER = fastavro.parse_schema(SCHEMA)
CANONICAL = fastavro.schema.to_parsing_canonical_form(SCHEMA)
HEADER = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(CANONICAL, "CRC-64-AVRO"))


class Decoder:
    def __init__(self, registry):
        self.registry = registry
        self.writers = {}

    def writer(self, number):
        """Returns the registry's schema with this id, which never changes."""
        if number not in self.writers:
            if self.registry is None:
                raise SystemExit(f"a change has the schema id {number}; give the URL of the registry with --registry")
            with urllib.request.urlopen(f"{self.registry}/schemas/ids/{number}", timeout=10) as answer:
                self.writers[number] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        return self.writers[number]

    def decode(self, value):
        if value.startswith(HEADER):
            return fastavro.schemaless_reader(io.BytesIO(value[len(HEADER) :]), READER, None)
        if value[:1] == b"\x00":
            writer = self.writer(int.from_bytes(value[1:5], "big"))
            return fastavro.schemaless_reader(io.BytesIO(value[5:]), writer, READER)
        raise SystemExit("a change has an unknown schema; use a newer schemas/change.avsc")


def milliseconds(time):
    return round(time.timestamp() * 1000)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("--registry", help="URL of the registry's REST interface")
    parser.add_argument("--topic", default="presence.changes")
    parser.add_argument("--group", default="changes-example")
    parser.add_argument("--count", type=int, help="ends after this many changes")
    arguments = parser.parse_args()
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.bootstrap,
            "group.id": arguments.group,
            "auto.offset.reset": "earliest",
            # Changes are written in transactions, and aborted ones must not be read. This is the default.
            "isolation.level": "read_committed",
            # Commit only after a change was processed, below.
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([arguments.topic])
    decoder = Decoder(arguments.registry)
    left = arguments.count
    while left is None or left > 0:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        # fastavro returns times as datetimes, because of the schema's logical types.
        print(json.dumps(decoder.decode(message.value()), ensure_ascii=False, default=milliseconds), flush=True)
        consumer.commit(message, asynchronous=False)
        left = None if left is None else left - 1
    consumer.close()


main()
