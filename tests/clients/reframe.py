"""Copies changes into another framing: reframe.py BOOTSTRAP FROM TO ID COUNT writes COUNT records of the topic FROM to
the topic TO, which it creates, in Confluent's wire format with that schema id."""

import sys

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

bootstrap, source, target, number, count = sys.argv[1:]
servers = {"bootstrap.servers": bootstrap}
admin = AdminClient(servers)
for made in admin.create_topics([NewTopic(target, 1, 1)]).values():
    made.result(60)
consumer = Consumer(servers | {"group.id": "reframe", "auto.offset.reset": "earliest"})
consumer.subscribe([source])
producer = Producer(servers)
left = int(count)
while left:
    message = consumer.poll(1.0)
    if message is None:
        continue
    assert not message.error(), message.error()
    assert message.value()[:2] == b"\xc3\x01"
    producer.produce(target, b"\x00" + int(number).to_bytes(4, "big") + message.value()[10:], key=message.key())
    left -= 1
assert producer.flush(60) == 0
consumer.close()
