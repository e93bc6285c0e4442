"""Changes topics for tests, with a third-party client.

  topics.py --kafka HOST:PORT --prefix P truncate TOPIC PARTITION OFFSET    what was before OFFSET is gone
  topics.py --kafka HOST:PORT --prefix P lag TOPIC GROUP    prints for each partition what is committed, and the end
  topics.py --kafka HOST:PORT --prefix P coordinator GROUP            prints the id of the broker that has the group
  topics.py --kafka HOST:PORT --prefix P delete_group GROUP           a group without members, with all its offsets
"""

import argparse
import json
import time

import confluent_kafka as kafka
from confluent_kafka.admin import AdminClient, OffsetSpec


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("what", choices=["truncate", "lag", "coordinator", "delete_group"])
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    admin = AdminClient({"bootstrap.servers": args.kafka})
    if args.what == "truncate":
        topic, partition, offset = args.words
        place = kafka.TopicPartition(f"{args.prefix}.{topic}", int(partition), int(offset))
        for gone in admin.delete_records([place], operation_timeout=30, request_timeout=60).values():
            gone.result()
    elif args.what == "lag":
        topic, group = args.words
        topic = f"{args.prefix}.{topic}"
        count = len(admin.list_topics(topic, timeout=30).topics[topic].partitions)
        places = [kafka.TopicPartition(topic, partition) for partition in range(count)]
        asked = admin.list_consumer_group_offsets([kafka.ConsumerGroupTopicPartitions(group, places)], request_timeout=30)
        committed = {place.partition: place.offset for place in asked[group].result().topic_partitions}
        ends = admin.list_offsets({place: OffsetSpec.latest() for place in places}, request_timeout=30)
        print(json.dumps([(committed.get(place.partition, -1), ends[place].result().offset) for place in places]))
    elif args.what == "delete_group":
        for gone in admin.delete_consumer_groups([args.words[0]], request_timeout=30).values():
            gone.result()
    else:
        groups = admin.describe_consumer_groups([args.words[0]], request_timeout=30)
        print(groups[args.words[0]].result().coordinator.id)


def passes(error):
    """A busy broker, or one that has just changed leaders, returns an error and answers a moment later. A member whose request
    to leave was lost when it stopped stays in its group until its session times out, after 10 s."""
    return error.args[0].retriable() or "LEADER_EPOCH" in str(error) or error.args[0].code() == kafka.KafkaError.NON_EMPTY_GROUP


def patiently():
    give_up = time.monotonic() + 60
    while True:
        try:
            return main()
        except kafka.KafkaException as error:
            if time.monotonic() > give_up or not passes(error):
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    patiently()
