"""Follows presence.changes: changes.py BOOTSTRAP [--registry URL] [--count N] prints each change as a JSON line.

Reads both framings: Avro's single-object encoding, and Confluent's wire format with a registry. Each change is handled
once as long as what is done with it and its (partition, offset) are kept together; here the position is the consumer
group's. See docs/subscribing.md. Needs confluent-kafka and fastavro.
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
        """The schema with an id of the registry's, which never changes."""
        if number not in self.writers:
            if self.registry is None:
                raise SystemExit(f"a change has the schema id {number}: name the registry with --registry")
            with urllib.request.urlopen(f"{self.registry}/schemas/ids/{number}", timeout=10) as answer:
                self.writers[number] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        return self.writers[number]

    def decode(self, value):
        if value.startswith(HEADER):
            return fastavro.schemaless_reader(io.BytesIO(value[len(HEADER) :]), READER, None)
        if value[:1] == b"\x00":
            writer = self.writer(int.from_bytes(value[1:5], "big"))
            return fastavro.schemaless_reader(io.BytesIO(value[5:]), writer, READER)
        raise SystemExit("a change was written with a schema that is not here: take the newer schemas/change.avsc")


def milliseconds(time):
    return round(time.timestamp() * 1000)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bootstrap")
    parser.add_argument("--registry", help="where the registry's REST interface begins")
    parser.add_argument("--topic", default="presence.changes")
    parser.add_argument("--group", default="changes-example")
    parser.add_argument("--count", type=int, help="ends after so many")
    arguments = parser.parse_args()
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.bootstrap,
            "group.id": arguments.group,
            "auto.offset.reset": "earliest",
            # Changes are written in transactions: those that were given up must not be seen. It is the default.
            "isolation.level": "read_committed",
            # Only once a change is dealt with, below.
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
        # Times come as datetimes, since the schema says what they are.
        print(json.dumps(decoder.decode(message.value()), ensure_ascii=False, default=milliseconds), flush=True)
        consumer.commit(message, asynchronous=False)
        left = None if left is None else left - 1
    consumer.close()


main()
