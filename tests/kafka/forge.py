"""Writes the outputs of an engine, computed by `rollcall fold`, and with --spoil adds an error.

  forge.py --kafka HOST:PORT --prefix P --group G --program FILE [--spoil KIND,KIND,...]

The first kind is done to partition 0, the second to partition 1, and so on; the other partitions are as they should be.

It is there to be checked by reader.py: a checker that never complained would be worth nothing.
"""

import argparse
import base64
import json
import tempfile

import blake3
import confluent_kafka as kafka

import reader
import wire

SPOILS = (
    "doubled_change", "missing_change", "swapped_changes", "altered_change", "doubled_kick", "missing_kick",
    "swapped_kicks", "missing_quarantine", "missing_current", "wrong_key", "wrong_chain", "behind",
)  # fmt: skip


def forge(cluster, program, spoils):
    partitions = cluster.partitions()
    ends = cluster.settled_ends("events")
    producer = kafka.Producer(cluster.settings | {"transactional.id": f"{cluster.prefix}-forge", "log_level": 0})
    producer.init_transactions(30)
    consumer = kafka.Consumer(cluster.settings | {"group.id": cluster.group})
    for partition in range(partitions):
        producer.begin_transaction()
        mine = spoils[partition] if partition < len(spoils) else None
        offset, position = one(cluster, program, producer, partition, partitions, ends[partition], mine)
        place = kafka.TopicPartition(cluster.topic("events"), partition, offset, base64.b64encode(position).decode())
        producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
    consumer.close()


def one(cluster, program, producer, partition, partitions, end, spoil):
    events = list(cluster.read("events", partition, end))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8", newline="\n") as file:
        for message in events:
            file.write(wire.event_line(message.offset(), message.timestamp()[1], message.key(), message.value()) + "\n")
        file.flush()
        lines = [json.loads(text) for text in reader.fold(program, file.name, partition, partitions)]
    bytes_of = {message.offset(): message for message in events}
    chain, seq = bytes(32), 0
    records = {name: [] for name in wire.TOPICS}
    last = {line["user"]: line for line in lines if line["type"] == "user"}
    changes = [line for line in lines if line["type"] == "change"]
    final = {change["user"]: change["id"] for change in changes}
    for line in lines:
        kind = line.pop("type")
        if kind == "change":
            seq = line["seq"]
            chain = blake3.blake3(chain + wire.FORMATS["Change"].datum(line)).digest()
            user = line["user"].encode()
            records["changes"].append((user, wire.FORMATS["Change"].encode(line)))
            if line["cause"] == "forgotten":
                records["current"].append((user, None))
            elif final[line["user"]] == line["id"]:
                # As after compaction: only the last record remains.
                state = dict(last[line["user"]], partition=partition, offset=line["offset"])
                records["current"].append((user, wire.FORMATS["UserState"].encode(state)))
        elif kind == "kick":
            chain = blake3.blake3(chain + wire.FORMATS["Kick"].datum(line)).digest()
            records["kicks"].append((line["gateway"].encode(), wire.FORMATS["Kick"].encode(line)))
        elif kind == "malformed":
            message = bytes_of[line["offset"]]
            found = {"partition": partition, "offset": line["offset"], "ts": message.timestamp()[1], "error": "forged"}
            found |= {"key": message.key(), "value": message.value()}
            records["quarantine"].append((None, wire.FORMATS["Quarantined"].encode(found)))
    if spoil is not None:
        spoiled(records, spoil)
        chain = bytes(32) if spoil == "wrong_chain" else chain
    for name, written in records.items():
        for key, value in written:
            while True:
                try:
                    producer.produce(cluster.topic(name), value, key, partition)
                    break
                except BufferError:
                    producer.poll(0.1)
    following = events[-1].offset() + 1 if events else 0
    if spoil == "behind":
        following = events[len(events) // 2].offset()
    numbers = [following, 0]
    head = b"\x02" + b"".join(number.to_bytes(8, "big") for number in numbers)
    return following, head + b"\x00" + bytes(8) + seq.to_bytes(8, "big") + chain + b"\x00\x00\x00\x01" + bytes(42)


def spoiled(records, spoil):
    what, _, topic = spoil.partition("_")
    names = {"change": "changes", "changes": "changes", "kick": "kicks", "kicks": "kicks"}
    of = records[names.get(topic, topic if topic in records else "changes")]
    middle = len(of) // 2
    if what == "doubled":
        of.insert(middle + 2, of[middle])
    elif what == "missing":
        if topic == "current":
            # Compaction may also remove a null.
            middle = max(place for place, (_, value) in enumerate(of) if value is not None)
        del of[middle]
    elif what == "swapped":
        of[middle], of[middle + 1] = of[middle + 1], of[middle]
    elif what == "altered":
        key, value = of[middle]
        change = wire.decode("Change", value)
        of[middle] = key, wire.FORMATS["Change"].encode(change | {"logged_at": change["logged_at"] + 1})
    elif spoil == "wrong_key":
        of[middle] = b"somebody else", of[middle][1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--program", required=True)
    parser.add_argument("--spoil", default="", help=f"any of {', '.join(SPOILS)}")
    args = parser.parse_args()
    spoils = args.spoil.split(",") if args.spoil else []
    if set(spoils) - set(SPOILS):
        parser.error(f"--spoil knows {', '.join(SPOILS)}")
    forge(reader.Cluster(args.kafka, args.prefix, args.group), args.program, spoils)


if __name__ == "__main__":
    main()
