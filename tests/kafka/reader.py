"""Reads Rollcall's topics with a third-party client, and compares them with `rollcall fold`.

  reader.py print  --kafka HOST:PORT --prefix P TOPIC [--partition N]     records as JSON lines, read-committed
  reader.py where  --kafka HOST:PORT --prefix P --group G                 committed positions and ends, one JSON object
  reader.py check  --kafka HOST:PORT --prefix P --group G --program FILE [--ends FILE]

`check` folds the events of each partition from offset 0 and compares with what is in the topics: each change and kick
once, in order, the same bytes; `seq` and `version` without gaps; the malformed records in quarantine, whole; `current`
as the changes left it; the committed position and its chain. Events are read twice, with two fetch sizes, and must be the
same both times. It says which offset differs, prints a JSON object with
the sums as its last line, and ends with status 1 if anything is wrong.
"""

import argparse
import base64
import collections
import json
import subprocess
import sys
import tempfile
import time

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

import checks
import wire

PATIENCE_S = 120

# What a fetch brings at most. Brokers have shown a record of an aborted transaction to those whose fetches ended at certain
# places, so events are read twice, with sizes whose fetches end at different ones.
FETCH_BYTES = 64 << 20
OTHER_FETCH_BYTES = 700_001


def patiently(ask):
    """Retries while brokers are down or do not know the answer yet."""

    def asked(*args, **named):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask(*args, **named)
            except (KafkaException, KafkaError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    return asked


class Cluster:
    def __init__(self, bootstrap, prefix, group=None, registry=None):
        self.settings = {"bootstrap.servers": bootstrap}
        self.prefix = prefix
        self.group = group
        self.registry = wire.Registry(registry)
        self.admin = AdminClient(self.settings)

    def topic(self, name):
        return f"{self.prefix}.{name}"

    @patiently
    def partitions(self, name="events"):
        topic = self.topic(name)
        known = self.admin.list_topics(topic, timeout=30).topics[topic]
        if known.error is not None:
            raise SystemExit(f"{topic}: {known.error}")
        return len(known.partitions)

    @patiently
    def offsets(self, name, spec, committed):
        """The first or the next offset of each partition; `committed` excludes records in open transactions."""
        level = confluent_kafka.IsolationLevel.READ_COMMITTED if committed else confluent_kafka.IsolationLevel.READ_UNCOMMITTED
        places = [confluent_kafka.TopicPartition(self.topic(name), partition) for partition in range(self.partitions(name))]
        asked = self.admin.list_offsets({place: spec for place in places}, isolation_level=level, request_timeout=30)
        return [asked[place].result().offset for place in places]

    def settled_ends(self, name):
        """The ends, when no transaction is open: a time-out ends the transaction of a dead producer."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ends = self.offsets(name, OffsetSpec.latest(), committed=False)
            if ends == self.offsets(name, OffsetSpec.latest(), committed=True):
                return ends
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.topic(name)}: a transaction is open and does not end")
            time.sleep(0.2)

    @patiently
    def positions(self):
        """The committed offset of each partition of the events and the position stored with it; None if nothing is committed."""
        # With another client: confluent-kafka reads metadata as text that ends with a zero, which it may lack, and then reads
        # past its end.
        wanted = [TopicPartition(self.topic("events"), partition) for partition in range(self.partitions())]
        # Where the group's coordinator has just moved, or its new one still reads, it is asked again.
        for again in range(30, -1, -1):
            client = KafkaAdminClient(bootstrap_servers=self.settings["bootstrap.servers"].split(","))
            try:
                found = client.list_group_offsets({self.group: wanted})[self.group]
                break
            except KafkaError as error:
                if not error.retriable or not again:
                    raise
                time.sleep(1)
            finally:
                client.close()
        committed = [found.get(place) for place in wanted]
        return [
            None if one is None or one.offset < 0 else (one.offset, wire.Position(base64.b64decode(one.metadata)))
            for one in committed
        ]

    def read(self, name, partition, end, fetch_bytes=FETCH_BYTES):
        """The committed records of a partition before `end`, in order."""
        consumer = confluent_kafka.Consumer(
            self.settings
            | {
                "group.id": "reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.queue.backoff.ms": 2,
                "fetch.wait.max.ms": 10,
                "fetch.message.max.bytes": fetch_bytes,
                "fetch.max.bytes": fetch_bytes,
                "message.max.bytes": fetch_bytes,
                "receive.message.max.bytes": fetch_bytes + (1 << 20),
            }
        )
        try:
            topic = self.topic(name)
            start = self.offsets(name, OffsetSpec.earliest(), committed=False)[partition]
            if start >= end:
                return
            consumer.assign([confluent_kafka.TopicPartition(topic, partition, start)])
            heard = time.monotonic()
            while True:
                messages = consumer.consume(10_000, timeout=0.05)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > PATIENCE_S:
                    raise SystemExit(f"{topic}/{partition} cannot be read to its end {end}")
                for message in messages:
                    error = message.error()
                    if error is None:
                        if message.offset() < end:
                            yield message
                    elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                        if message.offset() >= end:
                            return
                    elif not error.retriable():
                        raise SystemExit(f"{topic}/{partition}: {error}")
        finally:
            consumer.close()


def print_records(cluster, name, only):
    ends = cluster.settled_ends(name)
    for partition, end in enumerate(ends):
        if only not in (None, partition):
            continue
        for message in cluster.read(name, partition, end):
            print(printed(cluster, name, message))


def printed(cluster, name, message):
    value, registry = message.value(), cluster.registry
    if name == "events":
        return wire.event_line(message.offset(), message.timestamp()[1], message.key(), value, registry)
    if name == "changes":
        return wire.change_line(wire.decode("Change", value, registry))
    if name == "kicks":
        return wire.kick_line(wire.decode("Kick", value, registry))
    if name == "current":
        state = None if value is None else wire.decode("UserState", value, registry)
        return wire.line({"user": message.key().decode(), "state": state})
    return wire.line(checks.in_hex(wire.decode("Quarantined", value, registry)))


def where(cluster):
    positions = cluster.positions()
    ends = cluster.offsets("events", OffsetSpec.latest(), committed=True)
    results = []
    for partition, (position, end) in enumerate(zip(positions, ends)):
        committed, outputs = (0, 0) if position is None else (position[1].next, position[1].outputs)
        results.append({"partition": partition, "committed": committed, "outputs": outputs, "end": end})
    print(json.dumps(results))


def fold(program, lines, partition, partitions):
    """The output of `rollcall fold --state`."""
    command = [program, "fold", "--partition", str(partition), "--partitions", str(partitions), "--state", lines]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    # Not splitlines: it also splits at characters that may be in a name.
    return done.stdout.decode().split("\n")[:-1]


def check(cluster, program, ends):
    started = time.monotonic()
    partitions = cluster.partitions()
    for name in wire.TOPICS:
        if cluster.partitions(name) != partitions:
            raise SystemExit(f"{cluster.topic(name)} has not {partitions} partitions")
    settled = {name: cluster.settled_ends(name) for name in wire.TOPICS}
    positions = cluster.positions()
    total = collections.Counter({name: 0 for name in checks.COUNTED})
    for partition in range(partitions):
        one = checks.Partition(partition)
        read = lambda name, **sizes: cluster.read(name, partition, settled[name][partition], **sizes)
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8", newline="\n") as file:
            next_offset, outputs = one.position(positions[partition], (ends or {}).get(str(partition)))
            for message in read("events"):
                # If the commit is within a record, only some of its outputs are published.
                if message.offset() < next_offset + (1 if outputs else 0):
                    file.write(one.event(message, cluster.registry))
            file.flush()
            for message in read("events", fetch_bytes=OTHER_FETCH_BYTES):
                if message.offset() < next_offset + (1 if outputs else 0):
                    one.event_again(message)
            one.compare_readings(FETCH_BYTES, OTHER_FETCH_BYTES)
            one.folded(fold(program, file.name, partition, partitions), next_offset, outputs)
        for message in read("changes"):
            one.change(message, cluster.registry)
        for message in read("kicks"):
            one.kick(message, cluster.registry)
        for message in read("current"):
            one.current(message, cluster.registry)
        for message in read("quarantine"):
            one.quarantined(message, cluster.registry)
        one.finish()
        for complaint in one.complaints:
            print(complaint)
        total.update(one.counts)
        total["wrong"] += one.wrong
        total["longest_stall_ms"] = max(total["longest_stall_ms"], one.longest_stall_ms)
    total["check_s"] = round(time.monotonic() - started)
    print(json.dumps(total))
    return 1 if total["wrong"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["print", "where", "check"])
    parser.add_argument("topic", nargs="?", choices=wire.TOPICS)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", default="presence")
    parser.add_argument("--group", default="rollcall")
    parser.add_argument("--registry", help="its Confluent interface, for values in Confluent's framing")
    parser.add_argument("--partition", type=int)
    parser.add_argument("--program", help="the rollcall binary, of which `fold` is used")
    parser.add_argument("--ends", help="JSON object: partition to the last offset that was acknowledged to a writer")
    args = parser.parse_args()
    cluster = Cluster(args.kafka, args.prefix, args.group, args.registry)
    if args.what == "print":
        if args.topic is None:
            parser.error("print what? Name a topic")
        print_records(cluster, args.topic, args.partition)
    elif args.what == "where":
        where(cluster)
    else:
        if args.program is None:
            parser.error("check needs --program")
        ends = None
        if args.ends is not None:
            with open(args.ends, encoding="utf-8") as file:
                ends = json.load(file)
        sys.exit(check(cluster, args.program, ends))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    main()
