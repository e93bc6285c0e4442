"""Publishes events with and without a trace, and prints the headers of what came of them, with a third-party client.

  headers.py --kafka HOST:PORT --prefix P COUNT    publishes to partition 0, waits until COUNT outputs are there, and prints a
                                                   JSON line for each: topic, headers, and the id in the value
"""

import argparse
import json
import sys
import time

import confluent_kafka as kafka
import wire

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ALICE = {"user": "alice", "platform": "linux", "device": "d", "gateway": "g", "epoch": 1}


def events():
    """The second login takes the device over: a kick, and no change."""
    traced = [("traceparent", TRACE.encode())]
    yield "alice", {"type": "connect", **ALICE, "conn": 1, "intent": "login"}, traced
    yield "alice", {"type": "connect", **ALICE, "conn": 2, "intent": "login"}, [("traceparent", b"no trace")]
    yield "alice", {"type": "custom_status", "user": "alice", "text": "busy"}, []
    yield None, b"no event", traced
    yield "alice", {"type": "forget", "user": "alice"}, traced


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    producer = kafka.Producer({"bootstrap.servers": args.kafka})
    for key, event, headers in events():
        value = event if isinstance(event, bytes) else wire.FORMATS["Event"].encode(event)
        producer.produce(f"{args.prefix}.events", key=key, value=value, partition=0, headers=headers)
        producer.flush(30)
    consumer = kafka.Consumer(
        {"bootstrap.servers": args.kafka, "group.id": "headers", "isolation.level": "read_committed", "enable.auto.commit": False}
    )
    names = {"Change": "changes", "Kick": "kicks", "UserState": "current", "Quarantined": "quarantine"}
    consumer.assign([kafka.TopicPartition(f"{args.prefix}.{topic}", 0, 0) for topic in names.values()])
    found, give_up = 0, time.monotonic() + 60
    while found < args.count:
        if time.monotonic() > give_up:
            sys.exit(f"only {found} of {args.count} outputs came")
        record = consumer.poll(0.5)
        if record is None:
            continue
        if record.error():
            sys.exit(str(record.error()))
        found += 1
        topic = record.topic().removeprefix(f"{args.prefix}.")
        name = next(name for name, of in names.items() if of == topic)
        value = None if record.value() is None else wire.decode(name, record.value())
        headers = {name: text.decode() for name, text in record.headers() or []}
        print(json.dumps({"topic": topic, "headers": headers, "id": (value or {}).get("id")}))
    consumer.close()


if __name__ == "__main__":
    main()
