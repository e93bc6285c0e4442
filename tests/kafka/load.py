"""A load of random events, written directly to Kafka by third-party clients, as hostile as publishers can be.

  load.py --kafka HOST:PORT --prefix P --seed N --seconds S [--rate R] [--writers W] [--users U] [--keep-policy] [--http URL]...

Several writers, each with a seed of its own, talk about the same few users and gateways: logins, heartbeats one by one
and in batches, leases that end, policies, events that come twice, late or from a connection long gone; poison, keys and
partitions that are wrong; leases in transactions, some of which are aborted. With --http some events are published to
engines instead, at any of the addresses. With --keep-policy there are no policies, and the one that the log began with stays. Whatever fails is tried again by the client, or is dropped: a publisher's loss
is no loss of the engine's. It ends after S seconds, with --attached also when its standard input ends. With --epoch E the gateways
have been started E times before.

Prints a JSON object in the end: records by kind, for each partition the last offset that was acknowledged, and some of what was
refused: nothing should be. With --totals FILE it is also in that file, as it is every few seconds.
"""

import argparse
import collections
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request

import confluent_kafka as kafka
from confluent_kafka.admin import AdminClient

import wire

# How often the file of --totals is written.
TOTALS_S = 5

PLATFORMS = ("android", "iphone", "mac", "windows", "web", "mini_program", "tv", "toaster")
DEVICES = ("d1", "d2", "～", "😀")
TEXTS = ("busy", "在忙 😀", 'a"b\\c\n\u0001', "away", None)
CLIENTS = ("10.0.0.7; App 3.1", 'tab "1"\t', "会议室 😀", None, None)
GATEWAYS = ("g1", "g2", "gateway/3", "g4")
# They include names with special characters.
ODD_USERS = ("～", "😀", 'u"1\\', "zoë")

WEIGHTS = {
    "connect": 300, "heartbeat": 260, "heartbeats": 60, "background": 30, "foreground": 30, "disconnect": 80,
    "logout": 25, "kick": 12, "custom_status": 40, "forget": 6, "lease": 12, "policy": 1, "tick": 4,
    "again": 50, "late": 50, "poison": 20, "wrong_key": 6, "wrong_partition": 8, "transaction": 1,
}  # fmt: skip


def policy(choice):
    """Deadlines within seconds, so that they are due during the load."""
    ms = lambda *of: choice.choice(of)
    platforms = {
        "android": {"timeout_ms": ms(1_500, 4_000), "away_ms": ms(3_000, 20_000), "closed_ms": ms(0, 500)},
        "iphone": {"timeout_ms": ms(2_000, 60_000), "away_ms": ms(0, 5_000)},
        "web": {"timeout_ms": ms(1_000, 3_000), "away_ms": ms(2_000, 9_000), "closed_ms": ms(0, 700)},
        "mini_program": {"background_ms": ms(300, 1_500), "exit_ms": 400, "away_ms": 4_000},
        "tv": {"timeout_ms": 2_500, "push": True, "away_ms": ms(1, 6_000)},
    }
    login = ms("single", "dual", "triple", "multi")
    outage = ms({"silence_ms": 0, "grace_ms": 0}, {"silence_ms": 2_000, "grace_ms": 1_500})
    kicked = ms(2, 16)
    return {"login": login, "kicked_max": kicked, "outage": outage, "instances": {"web": 2}, "platforms": platforms}


def event(kind, **fields):
    nothing = dict.fromkeys(
        ("user", "platform", "device", "gateway", "epoch", "conn", "intent", "client", "beats", "reason", "text",
         "ttl_ms", "policy")
    )  # fmt: skip
    return nothing | {"type": kind} | fields


# Nobody knows whether the record is in the log.
UNKNOWN_OUTCOMES = (
    kafka.KafkaError._MSG_TIMED_OUT,
    kafka.KafkaError._PURGE_QUEUE,
    kafka.KafkaError._PURGE_INFLIGHT,
    kafka.KafkaError._TRANSPORT,
)


class Gateways:
    """The gateways, shared by all writers: the epoch of each, and its last connection."""

    def __init__(self, epoch):
        self.lock = threading.Lock()
        self.epochs = collections.Counter(dict.fromkeys(GATEWAYS, epoch))
        self.conns = collections.Counter()

    def connection(self, choice):
        with self.lock:
            gateway = choice.choice(GATEWAYS)
            self.conns[gateway] += 1
            epoch = self.epochs[gateway] + choice.choices((0, 1, -1), (96, 2, 2))[0]
            return {"gateway": gateway, "epoch": max(epoch, 0), "conn": self.conns[gateway]}

    def lease(self, choice):
        with self.lock:
            gateway = choice.choice(GATEWAYS)
            if choice.random() < 0.02:
                self.epochs[gateway] += 1
            epoch = max(self.epochs[gateway] - choice.choices((0, 1), (95, 5))[0], 0)
            ttl_ms = choice.choices((0, 1, 800, 3_000, 30_000), (2, 2, 10, 60, 26))[0]
            return event("lease", gateway=gateway, epoch=epoch, ttl_ms=ttl_ms)


class Writer:
    def __init__(self, number, args, partitions, gateways, ends):
        self.choice = random.Random(f"{args.seed}-{number}")
        self.args = args
        self.partitions = partitions
        self.gateways = gateways
        self.ends = ends
        self.counts = collections.Counter()
        self.topic = f"{args.prefix}.events"
        self.users = [f"user {n}" for n in range(args.users - len(ODD_USERS))] + list(ODD_USERS)
        self.links = collections.deque(maxlen=200)  # connections that may send events
        self.before = collections.deque(maxlen=300)  # records that may be sent again, or late
        self.held = []
        self.refusals = collections.deque(maxlen=3)
        self.settings = {
            "bootstrap.servers": args.kafka,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "compression.type": self.choice.choice(("none", "lz4", "zstd")),
            "message.max.bytes": 2_000_000,
            "message.timeout.ms": 300_000,
            "retry.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 2,
        }
        self.producer = kafka.Producer(self.settings)
        self.transactional = None
        self.transactional_id = f"{args.prefix}-load-{number}"

    # Writes.

    def send(self, key, value, partition=None):
        place = {} if partition is None else {"partition": partition}
        while True:
            try:
                self.producer.produce(self.topic, value, key, on_delivery=self.delivered, **place)
                break
            except BufferError:
                self.producer.poll(0.1)
        self.producer.poll(0)

    def delivered(self, error, message):
        if error is None:
            self.counts["acknowledged"] += 1
            self.ends.acknowledged(message.partition(), message.offset())
        elif error.code() in UNKNOWN_OUTCOMES:
            self.counts["not_acknowledged"] += 1
        else:
            self.refused(str(error))

    def refused(self, why):
        """Somebody has judged what was written, and has not taken it: then this load is not what it should be."""
        self.counts["refused"] += 1
        self.refusals.append(why)

    def publish(self, record):
        """Publishes correctly: the user is the key and determines the partition."""
        value = wire.FORMATS["Event"].encode(record)
        user = record["user"]
        if user is not None:
            self.send(user.encode(), value)
            self.before.append((user.encode(), value, None))
        elif record["beats"] is not None:
            partition = wire.partition_of(record["beats"][0]["user"], self.partitions)
            self.send(None, value, partition)
            self.before.append((None, value, partition))
        elif record["type"] == "tick":
            self.send(None, value, self.choice.randrange(self.partitions))
        else:
            for partition in range(self.partitions):
                self.send(None, value, partition)

    # Events.

    def who(self):
        link = {
            "user": self.choice.choice(self.users),
            "platform": self.choice.choices(PLATFORMS, (20, 15, 10, 12, 25, 10, 8, 1))[0],
            "device": self.choice.choice(DEVICES),
        }
        if self.links and self.choice.random() < 0.5:
            link |= {name: self.choice.choice(self.links)[name] for name in ("user", "platform", "device")}
        return link

    def link(self):
        """A connection that was made, mostly a late one."""
        if not self.links or self.choice.random() < 0.03:
            return self.who() | self.gateways.connection(self.choice)
        for _ in range(5):
            link = self.links[self.choice.randrange(max(0, len(self.links) - 80), len(self.links))]
            if link["epoch"] == self.gateways.epochs[link["gateway"]]:
                return link
        return self.choice.choice(self.links)

    def happening(self, kind):
        choice = self.choice
        if kind == "connect":
            link = self.who() | self.gateways.connection(choice)
            self.links.append(link)
            intent = choice.choice(("login", "resume"))
            return event(kind, **link, intent=intent, client=choice.choice(CLIENTS))
        if kind in ("heartbeat", "background", "foreground", "logout"):
            return event(kind, **self.link())
        if kind == "heartbeats":
            first = self.link()
            home = wire.partition_of(first["user"], self.partitions)
            links = [first]
            for link in list(self.links)[-60:]:
                same = (link["gateway"], link["epoch"]) == (first["gateway"], first["epoch"])
                if same and wire.partition_of(link["user"], self.partitions) == home:
                    links.append(link)
            beats = [{name: link[name] for name in ("user", "platform", "device", "conn")} for link in links]
            return event(kind, gateway=first["gateway"], epoch=first["epoch"], beats=beats)
        if kind == "disconnect":
            return event(kind, **self.link(), reason=choice.choice(("closed", "exit")))
        if kind == "kick":
            who = self.who()
            names = choice.choice((("user",), ("user", "platform"), ("user", "platform", "device")))
            return event(kind, **{name: who[name] for name in names})
        if kind == "custom_status":
            return event(kind, user=self.who()["user"], text=choice.choice(TEXTS))
        if kind == "forget":
            return event(kind, user=self.who()["user"])
        if kind == "lease":
            return self.gateways.lease(choice)
        if kind == "policy":
            return event(kind, policy=json.dumps(policy(choice)))
        return event("tick")

    def poison(self):
        """A malformed record, of a random kind."""
        choice = self.choice
        link = self.link()
        good = wire.FORMATS["Event"].encode(event("heartbeat", **link))
        wrong = lambda **fields: wire.FORMATS["Event"].encode(event("heartbeat", **link) | fields)
        return link["user"].encode(), choice.choice(
            (
                None,
                b"",
                b"\xc3\x01",
                b"this is no event",
                good[: choice.randrange(len(good))],
                good + b"\x00",
                b"\xc3\x01" + bytes(8) + good[10:],
                choice.randbytes(choice.randrange(200)),
                wrong(type="sleep"),
                wrong(epoch=-1),
                wrong(device=""),
                wrong(platform="p" * 65),
                wrong(conn=None),
                wire.FORMATS["Event"].encode(event("policy", policy='{"login":"none"}')),
                wire.FORMATS["Event"].encode(event("policy", policy="{")),
                wire.FORMATS["Event"].encode(event("lease", gateway="g1", epoch=1, ttl_ms=86_400_001)),
                choice.randbytes(choice.choice((5_000, 60_000))) if choice.random() < 0.1 else b"\xff" * 40,
            )
        )

    def write(self, kind):
        choice = self.choice
        self.counts[kind] += 1
        if kind == "again" and self.before:
            self.send(*choice.choice(self.before))
        elif kind == "late" and self.before:
            # Held back, and sent after what came later.
            self.held.append((time.monotonic() + choice.uniform(0.01, 3), choice.choice(self.before)))
        elif kind == "poison":
            key, value = self.poison()
            self.send(key, value, choice.choice((None, choice.randrange(self.partitions))))
        elif kind == "wrong_key":
            value = wire.FORMATS["Event"].encode(event("heartbeat", **self.link()))
            self.send(choice.choice((None, b"somebody else")), value, choice.randrange(self.partitions))
        elif kind == "wrong_partition":
            record = self.happening("connect")
            home = wire.partition_of(record["user"], self.partitions)
            other = (home + 1 + choice.randrange(max(self.partitions - 1, 1))) % self.partitions
            self.send(record["user"].encode(), wire.FORMATS["Event"].encode(record), other)
        elif kind == "transaction":
            self.transaction()
        elif kind not in ("again", "late"):
            record = self.happening(kind)
            if self.args.http and kind not in ("heartbeats", "tick") and choice.random() < 0.2:
                self.over_http(record)
            else:
                self.publish(record)

    def transaction(self):
        """A lease or a policy to every partition in one transaction, which may be aborted: then the events do not exist."""
        record = self.gateways.lease(self.choice)
        if self.choice.random() < 0.2 and not self.args.keep_policy:
            record = self.happening("policy")
        value = wire.FORMATS["Event"].encode(record)
        try:
            if self.transactional is None:
                settings = self.settings | {
                    "transactional.id": self.transactional_id,
                    "transaction.timeout.ms": 10_000,
                    "message.timeout.ms": 10_000,
                }
                self.transactional = kafka.Producer(settings)
                self.transactional.init_transactions(20)
            self.transactional.begin_transaction()
            sent = []
            delivered = lambda error, message: sent.append(message) if error is None else None
            for partition in range(self.partitions):
                self.transactional.produce(self.topic, value, partition=partition, on_delivery=delivered)
            if self.choice.random() < 0.3:
                self.transactional.flush(5)
                self.transactional.abort_transaction(20)
                self.counts["aborted"] += 1
            else:
                self.transactional.commit_transaction(20)
                for message in sent:
                    self.ends.acknowledged(message.partition(), message.offset())
        except kafka.KafkaException:
            # The transaction may be open, committed or aborted. The next producer with this id settles it.
            self.transactional = None
            self.counts["transactions_failed"] += 1

    def over_http(self, record):
        url = self.choice.choice(self.args.http)
        body = {name: field for name, field in record.items() if field is not None}
        if "policy" in body:
            body["policy"] = json.loads(body["policy"])
        request = urllib.request.Request(f"{url}/v1/events", json.dumps(body).encode(), {"content-type": "application/json"})
        self.counts["over_http"] += 1
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                for appended in json.load(answer)["appended"]:
                    # An event for every partition has a position in each.
                    for place in appended if isinstance(appended, list) else [appended]:
                        self.ends.acknowledged(place["partition"], place["offset"])
                self.counts["http_acknowledged"] += 1
        except urllib.error.HTTPError as error:
            if 400 <= error.code < 500 and error.code not in (408, 429):
                self.refused(f"{error.code} for {json.dumps(body)}: {error.read(500).decode(errors='replace')}")
            else:
                self.counts["http_not_acknowledged"] += 1
        except (OSError, ValueError, KeyError):
            # No engine answered or accepted the events: they were not published.
            self.counts["http_not_acknowledged"] += 1

    def run(self):
        left_out = ("policy",) if self.args.keep_policy else ()
        kinds, weights = zip(*(item for item in WEIGHTS.items() if item[0] not in left_out))
        begun = time.monotonic()
        until = begun + self.args.seconds
        every = self.args.writers / self.args.rate
        due = begun
        self.gateways.lease(self.choice)
        while (now := time.monotonic()) < until and not self.args.stopped.is_set():
            # A request over HTTP may take long: what is due then is not written after the end.
            while due <= now and not self.args.stopped.is_set():
                self.write(self.choice.choices(kinds, weights)[0])
                due += every
            # The delay of an outage is not made up for.
            due = max(due, now - 1)
            for _, late in [held for held in self.held if held[0] <= now]:
                self.send(*late)
            self.held = [held for held in self.held if held[0] > now]
            self.producer.poll(0.002)
        self.counts["not_acknowledged"] += self.producer.flush(120)


class Ends:
    """The last offset of each partition that was acknowledged to a writer."""

    def __init__(self):
        self.lock = threading.Lock()
        self.offsets = {}

    def acknowledged(self, partition, offset):
        # A retried record was in the log already: the broker does not return its offset.
        if offset is None:
            return
        with self.lock:
            self.offsets[partition] = max(offset, self.offsets.get(partition, -1))

    def copy(self):
        with self.lock:
            return dict(self.offsets)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", default="presence")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=1_000, help="events a second, of all writers together")
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--keep-policy", action="store_true")
    parser.add_argument("--http", action="append", default=[], help="address of an engine, any number of times")
    parser.add_argument("--attached", action="store_true")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--totals", metavar="FILE")
    args = parser.parse_args()
    args.stopped = threading.Event()
    if args.attached:
        threading.Thread(target=lambda: (sys.stdin.read(), args.stopped.set()), daemon=True).start()
    topic = f"{args.prefix}.events"
    topics = AdminClient({"bootstrap.servers": args.kafka}).list_topics(topic, timeout=60).topics
    partitions = len(topics[topic].partitions)
    if partitions == 0:
        sys.exit(f"there is no topic {topic}")
    gateways, ends = Gateways(args.epoch), Ends()
    writers = [Writer(number, args, partitions, gateways, ends) for number in range(args.writers)]
    # The policy comes first, so that deadlines are short from the beginning.
    if not args.keep_policy:
        writers[0].publish(event("policy", policy=json.dumps(policy(writers[0].choice))))
    threads = [threading.Thread(target=writer.run, daemon=True) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        while args.totals and thread.is_alive():
            thread.join(TOTALS_S)
            keep(args.totals, totals(writers, ends))
        thread.join()
    text = totals(writers, ends)
    if args.totals:
        keep(args.totals, text)
    print(text)


def totals(writers, ends):
    total = collections.Counter()
    for writer in writers:
        # Copied in one step, since its thread may add a kind.
        total.update(dict(writer.counts))
    refusals = [why for writer in writers for why in list(writer.refusals)]
    return json.dumps({"counts": total, "ends": ends.copy(), "refusals": refusals})


def keep(path, text):
    """Replaces the file as a whole, so that it has all of a text even if this process is killed now."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main()
