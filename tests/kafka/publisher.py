"""A third-party publisher, which also does what publishers should not do.

  publisher.py --kafka HOST:PORT --prefix P hold TIMEOUT_MS           opens a transaction over all partitions of the events
                                                                     and dies, so that it is open until it times out
  publisher.py --kafka HOST:PORT --prefix P abort PARTITION COUNT     writes so many events and gives them up
  publisher.py --kafka HOST:PORT --prefix P owner PARTITION JSON      writes a record into the topic of owners
  publisher.py --kafka HOST:PORT --prefix P again TOPIC [first]       writes the last record of partition 0 once more, or
                                                                     the first
"""

import argparse
import os
import signal
import sys

import confluent_kafka as kafka
from confluent_kafka.admin import AdminClient


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("what", choices=["hold", "abort", "owner", "again"])
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    events = f"{args.prefix}.events"
    settings = {"bootstrap.servers": args.kafka}
    if args.what == "owner":
        partition, value = args.words
        producer = kafka.Producer(settings)
        producer.produce(f"{args.prefix}.owners", key=partition, value=value, partition=0)
        sys.exit(producer.flush(30))
    if args.what == "again":
        topic = f"{args.prefix}.{args.words[0]}"
        reading = {"group.id": "again", "isolation.level": "read_committed", "enable.partition.eof": True}
        reader = kafka.Consumer(settings | reading)
        reader.assign([kafka.TopicPartition(topic, 0, 0)])
        last = None
        while (record := reader.poll(30)) is not None and not record.error():
            last = record
            if "first" in args.words:
                break
        reader.close()
        producer = kafka.Producer(settings)
        producer.produce(topic, key=last.key(), value=last.value(), partition=0)
        sys.exit(producer.flush(30))
    settings["transactional.id"] = f"{args.prefix}-publisher"
    if args.what == "hold":
        settings["transaction.timeout.ms"] = int(args.words[0])
    producer = kafka.Producer(settings)
    producer.init_transactions(30)
    producer.begin_transaction()
    if args.what == "abort":
        partition, count = map(int, args.words)
        for _ in range(count):
            producer.produce(events, value=b"x", partition=partition)
        producer.flush(30)
        producer.abort_transaction(30)
        return
    count = len(AdminClient({"bootstrap.servers": args.kafka}).list_topics(events, timeout=30).topics[events].partitions)
    for partition in range(count):
        producer.produce(events, value=b"x", partition=partition)
    producer.flush(30)
    print("open", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
