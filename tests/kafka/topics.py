"""What a test does to topics, by a client that is not Rollcall's.

  topics.py --kafka HOST:PORT --prefix P truncate PARTITION OFFSET    the events before OFFSET are gone
  topics.py --kafka HOST:PORT --prefix P coordinator GROUP            prints the id of the broker that has the group
"""

import argparse

import confluent_kafka as kafka
from confluent_kafka.admin import AdminClient


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("what", choices=["truncate", "coordinator"])
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    admin = AdminClient({"bootstrap.servers": args.kafka})
    if args.what == "truncate":
        partition, offset = map(int, args.words)
        place = kafka.TopicPartition(f"{args.prefix}.events", partition, offset)
        for gone in admin.delete_records([place], operation_timeout=30, request_timeout=60).values():
            gone.result()
    else:
        told = admin.describe_consumer_groups([args.words[0]], request_timeout=30)
        print(told[args.words[0]].result().coordinator.id)


if __name__ == "__main__":
    main()
