"""Checks of one partition, with a sentence for each failure."""

import collections
import json

import blake3
import confluent_kafka as kafka

import wire

COUNTED = (
    "events", "malformed", "changes", "kicks", "lost", "doubled", "out_of_order", "altered", "unexpected", "wrong",
    "longest_stall_ms",
)  # fmt: skip
# Only the first complaints of each kind about a partition are shown; all are counted.
SHOWN_MAX = 5


def in_hex(quarantined):
    """Converts bytes for JSON."""
    return {name: field.hex() if isinstance(field, bytes) else field for name, field in quarantined.items()}


class Sequence:
    """The expected outputs of a topic, and the outputs in it."""

    def __init__(self, name, report):
        self.name = name
        self.report = report
        self.expected = {}  # order: (rank, line)
        self.found = {}  # order: offset in the topic, of the first
        self.last_rank = -1
        self.last = None

    def expect(self, order, line):
        self.expected[order] = (len(self.expected), line)

    def find(self, offset, order, line):
        """Whether it was expected and was not found before."""
        name = f"{order[0]}-{order[1]}"
        place = f"offset {offset} of {self.name}"
        if order in self.found:
            self.report("doubled", f"{place} is output {name} again, which is at offset {self.found[order]} already")
            return False
        self.found[order] = offset
        if order not in self.expected:
            self.report("unexpected", f"{place} is output {name}, which the fold does not give: {line}")
            return False
        rank, wanted = self.expected[order]
        if line != wanted:
            self.report("altered", f"{place} is output {name} but is not what the fold gives\n  is     {line}\n  must be {wanted}")
        if rank < self.last_rank:
            self.report("out_of_order", f"{place} is output {name} but {self.last[0]}-{self.last[1]} came before it")
        else:
            self.last_rank, self.last = rank, order
        return True

    def finish(self):
        for order, (_, line) in self.expected.items():
            if order not in self.found:
                self.report("lost", f"output {order[0]}-{order[1]} is not in {self.name}: {line}")


class Partition:
    """Gets the records of a partition, topic after topic, each from its beginning to its end."""

    def __init__(self, number):
        self.number = number
        self.counts = collections.Counter()
        self.complaints = []
        self.wrong = 0
        self.shown = collections.Counter()
        self.changes = Sequence("changes", self.report)
        self.kicks = Sequence("kicks", self.report)
        self.events = {}  # offset: (timestamp, digest of key and value)
        self.events_again = {}  # the same, by other fetches
        self.epochs = {}  # offset: the epoch of the leader that accepted the event
        self.malformed = collections.deque()
        self.users = {}  # the fold's state: the line of --state
        self.seq = 0
        self.versions = {}
        self.states = []  # (user, change), the expected records of `current`
        self.ranks = {}  # (user, version, offset): place in the list above
        self.forgotten = collections.defaultdict(list)  # user: places in it
        self.last_state = collections.defaultdict(lambda: -1)  # user: place in it
        self.latest = {}  # user: the last record in `current`
        self.has_positions = False
        self.is_whole = False
        self.chain = bytes(32)
        self.longest_stall_ms = 0

    def report(self, kind, sentence):
        self.wrong += 1
        self.counts[kind] += 1
        self.shown[kind] += 1
        if self.shown[kind] <= SHOWN_MAX:
            self.complaints.append(f"partition {self.number}: {kind}: {sentence}")

    # The position.

    def position(self, committed, acknowledged):
        """The next offset, and how many outputs of its record are published."""
        if committed is None:
            if acknowledged is not None:
                self.report("position", "nothing was ever committed")
            return 0, 0
        offset, self.committed = committed
        self.has_positions = True
        if offset != self.committed.next:
            self.report("position", f"the group's offset is {offset} and its metadata says {self.committed.next}")
        if acknowledged is not None and self.committed.next <= acknowledged:
            self.report(
                "position",
                f"folded up to {self.committed.next} only, but offset {acknowledged} was acknowledged to a writer",
            )
        return self.committed.next, self.committed.outputs

    # The input.

    def event(self, message, registry):
        kind, ts = message.timestamp()
        if kind != kafka.TIMESTAMP_LOG_APPEND_TIME:
            self.report("timestamp", f"offset {message.offset()} of events has its writer's time, not the log's")
        self.counts["events"] += 1
        self.events[message.offset()] = (ts, message.key(), message.value())
        self.epochs[message.offset()] = message.leader_epoch()
        return wire.event_line(message.offset(), ts, message.key(), message.value(), registry) + "\n"

    def event_again(self, message):
        self.events_again[message.offset()] = (message.timestamp()[1], message.key(), message.value())

    def compare_readings(self, fetch_bytes, other_fetch_bytes):
        """What was read must not depend on where fetches end."""
        for offset in sorted(self.events.keys() | self.events_again.keys()):
            if self.events.get(offset) == self.events_again.get(offset):
                continue
            place = f"offset {offset} of events, read with fetches of {fetch_bytes} and of {other_fetch_bytes} bytes,"
            if offset not in self.events:
                self.report("readings", f"{place} is there with the second only")
            elif offset not in self.events_again:
                self.report("readings", f"{place} is there with the first only")
            else:
                self.report("readings", f"{place} differs")
        self.events_again = {}

    def folded(self, lines, next_offset, outputs):
        self.is_whole = outputs == 0
        merged = []
        for text in lines:
            record = json.loads(text)
            kind = record["type"]
            if kind in ("change", "kick"):
                order = wire.order(record["id"])
                if order >= (next_offset, outputs):
                    continue
                sequence = self.changes if kind == "change" else self.kicks
                sequence.expect(order, text)
                merged.append(record)
            elif kind == "malformed" and record["offset"] < next_offset:
                self.malformed.append(record["offset"])
            elif kind == "user":
                self.users[record["user"]] = record
        self.counts["malformed"] = len(self.malformed)
        for record in merged:
            kind = "Change" if record.pop("type") == "change" else "Kick"
            self.chain = blake3.blake3(self.chain + wire.form_of(kind, record).datum(record)).digest()
        # The bytes are needed only for malformed records; of the others only the time.
        kept = set(self.malformed)
        self.events = {
            offset: event if offset in kept else (event[0], None, None) for offset, event in self.events.items()
        }

    # The outputs.

    def decoded(self, name, message, key, registry):
        """Decodes a record. None, with a complaint, if it is not a record of this topic."""
        place = f"offset {message.offset()} of {message.topic()}"
        try:
            record = wire.decode(name, message.value(), registry)
        except wire.Malformed as malformed:
            self.report("altered", f"{place} cannot be read: {malformed}")
            return None
        datum, writer = wire.unframe(name, message.value(), registry)
        if writer is wire.form_of(name, record).schema and datum != wire.form_of(name, record).datum(record):
            self.report("altered", f"{place} is not encoded as others encode it")
        if key is not None and message.key() != record[key].encode():
            self.report("altered", f"{place} has the key {message.key()!r}, not its {key}")
        return record

    def change(self, message, registry):
        self.counts["changes"] += 1
        change = self.decoded("Change", message, "user", registry)
        if change is None:
            return
        order = wire.order(change["id"])
        if not self.changes.find(message.offset(), order, wire.change_line(change)):
            return
        place = f"offset {message.offset()} of changes"
        if change["seq"] != self.seq + 1:
            self.report("seq", f"{place} has seq {change['seq']} after {self.seq}")
        self.seq = change["seq"]
        user = change["user"]
        version = self.versions.get(user, 0)
        if change["version"] != version + 1:
            self.report("version", f"{place} has version {change['version']} of {user!r} after {version}")
        self.versions[user] = change["version"]
        if change["cause"] == "forgotten":
            del self.versions[user]
        if change["cause"] == "forgotten":
            self.forgotten[user].append(len(self.states))
        else:
            self.ranks[user, change["version"], change["offset"]] = len(self.states)
        self.states.append((user, change))
        appended = self.events.get(change["offset"])
        if appended is not None:
            self.longest_stall_ms = max(self.longest_stall_ms, message.timestamp()[1] - appended[0])

    def kick(self, message, registry):
        self.counts["kicks"] += 1
        kick = self.decoded("Kick", message, "gateway", registry)
        if kick is not None:
            self.kicks.find(message.offset(), wire.order(kick["id"]), wire.kick_line(kick))

    def current(self, message, registry):
        """Each record belongs to a change. The records of a user are in the order of the changes; all but the last may be missing."""
        place = f"offset {message.offset()} of current"
        state = None if message.value() is None else self.decoded("UserState", message, "user", registry)
        user = message.key().decode()
        if state is None:
            rank = next((rank for rank in self.forgotten[user] if rank > self.last_state[user]), None)
        else:
            rank = self.ranks.get((user, state["version"], state["offset"]))
        if rank is None:
            self.report("current", f"{place}, of {user!r}, belongs to no change: {state}")
            return
        if rank <= self.last_state[user]:
            self.report("current", f"{place}, of {user!r}, is older than what is before it: {state}")
        self.last_state[user] = max(self.last_state[user], rank)
        self.latest[user] = (message.offset(), state)
        if state is None:
            return
        change = self.states[rank][1]
        for name, wanted in (
            ("status", change["after"]),
            ("custom_status", change["custom_status"]),
            ("partition", self.number),
        ):
            if state[name] != wanted:
                self.report("current", f"{place}, of {user!r}, has {name} {state[name]!r} and not {wanted!r}")

    def quarantined(self, message, registry):
        place = f"offset {message.offset()} of quarantine"
        record = self.decoded("Quarantined", message, None, registry)
        if record is None:
            return
        if not self.malformed or self.malformed[0] != record["offset"]:
            wanted = self.malformed[0] if self.malformed else "none"
            self.report("quarantine", f"{place} holds the event at {record['offset']}; the next malformed one is {wanted}")
            while self.malformed and self.malformed[0] < record["offset"]:
                self.malformed.popleft()
        if self.malformed and self.malformed[0] == record["offset"]:
            self.malformed.popleft()
            ts, key, value = self.events[record["offset"]]
            if (record["partition"], record["ts"], record["key"], record["value"]) != (self.number, ts, key, value):
                self.report("quarantine", f"{place} does not hold the event at {record['offset']} whole")
            if not record["error"]:
                self.report("quarantine", f"{place} does not say what is wrong")

    # The result.

    def finish(self):
        self.changes.finish()
        self.kicks.finish()
        for offset in self.malformed:
            self.report("quarantine", f"the malformed event at {offset} is not in quarantine")
        for user, change in dict(self.states).items():
            offset, state = self.latest.get(user, (None, None))
            if change["cause"] != "forgotten" and (state is None or state["version"] != change["version"]):
                self.report("current", f"the change {change['id']} of {user!r} has nothing in current")
            elif change["cause"] == "forgotten" and state is not None:
                self.report("current", f"the change {change['id']} of {user!r} has no null in current")
            elif self.is_whole:
                self.compare(user, offset, state)
        lost = next((order for order in self.changes.expected if order not in self.changes.found), None)
        if lost is not None:
            around = range(lost[0] - 3, lost[0] + 4)
            there = [(offset, self.events[offset][0], self.epochs[offset]) for offset in around if offset in self.events]
            self.report("events", f"around the lost output: (offset, timestamp, leader epoch) {there}")
        if self.has_positions:
            if self.committed.seq != len(self.changes.expected):
                self.report("position", f"it says {self.committed.seq} changes, not {len(self.changes.expected)}")
            if self.committed.chain != self.chain:
                self.report("position", "its chain is not that of the outputs")

    def compare(self, user, offset, state):
        """The current record of a user equals the fold's state, except for devices that were removed without a change."""
        wanted = self.users.get(user)
        if state is None or wanted is None:
            if state is not None or wanted is not None:
                self.report("current", f"it and the fold do not agree whether {user!r} is forgotten")
            return
        place = f"offset {offset} of current, the last of {user!r},"
        for name in ("version", "status", "since", "custom_status"):
            if state[name] != wanted[name]:
                self.report("current", f"{place} has {name} {state[name]!r} and not {wanted[name]!r}")
        devices = {(device["platform"], device["device"]): device["status"] for device in state["devices"]}
        known = {(device["platform"], device["device"]): device["status"] for device in wanted["devices"]}
        left = {device: status for device, status in devices.items() if device not in known}
        if any(devices.get(device) != status for device, status in known.items()) or set(left.values()) - {"offline"}:
            self.report("current", f"{place} has the devices {devices} and not {known}")
