"""Moves leaders of partitions all the time, with a third-party client.

  leaders.py --kafka HOST:PORT --prefix P --seed N [--every S]

Every so often some partitions of the topics, of the transactions' states or of the groups' offsets get another leader among the
replicas in sync: the replica becomes the preferred one, and then an election. While brokers are down or do not know better it
tries again. It ends when its standard input does, and then prints how many leaders it has moved.
"""

import argparse
import random
import sys
import threading
import time

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

INTERNAL = ("__transaction_state", "__consumer_offsets")
AT_ONCE_MAX = 4
PREFERRED = 0


def leaders(client, topics):
    return {
        TopicPartition(topic["name"], partition["partition_index"]): partition
        for topic in client.describe_topics(topics)
        for partition in topic["partitions"]
    }


def move(client, topics, choice):
    """Gives some partitions another leader, and returns how many have it."""
    before = leaders(client, topics)
    wanted = {}
    for place in choice.sample(sorted(before), min(len(before), choice.randint(1, AT_ONCE_MAX))):
        partition = before[place]
        others = [broker for broker in partition["isr_nodes"] if broker != partition["leader_id"]]
        if others:
            first = choice.choice(others)
            wanted[place] = [first] + [broker for broker in partition["replica_nodes"] if broker != first]
    if not wanted:
        return 0
    client.alter_partition_reassignments(wanted, timeout_ms=5_000)
    elected = {}
    for place in wanted:
        elected.setdefault(place.topic, []).append(place.partition)
    client.elect_leaders(PREFERRED, elected, timeout_ms=5_000, raise_errors=False)
    after = leaders(client, topics)
    return sum(after[place]["leader_id"] == replicas[0] for place, replicas in wanted.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--every", type=float, default=1)
    args = parser.parse_args()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    choice = random.Random(args.seed)
    names = ("events", "changes", "kicks", "current", "quarantine", "owners")
    topics = [f"{args.prefix}.{name}" for name in names]
    client, moved = None, 0
    while not ended.wait(args.every * choice.uniform(0.5, 1.5)):
        try:
            client = client or KafkaAdminClient(bootstrap_servers=args.kafka.split(","), request_timeout_ms=10_000)
            existing = [name for name in client.list_topics() if name in INTERNAL]
            moved += move(client, topics + existing, choice)
        except (KafkaError, OSError):
            time.sleep(0.3)
    print(moved)


if __name__ == "__main__":
    main()
