"""Reads and writes records of Rollcall's topics with third-party libraries.

Everything here comes from docs/rules.md and schemas/*.avsc: Avro by fastavro, Kafka's default partitioner, and the JSON
lines of `rollcall fold`. It shares no code with the engine, so that a mistake of the one is not repeated by the other.
"""

import io
import json
import pathlib
import urllib.request

import fastavro

SCHEMAS = pathlib.Path(__file__).resolve().parents[2] / "schemas"
FILES = {
    "Event": "event.avsc",
    "Change": "change.avsc",
    "Kick": "kick.avsc",
    "UserState": "user_state.avsc",
    "Quarantined": "quarantined.avsc",
}
TOPICS = ("events", "changes", "kicks", "current", "quarantine")


def plain(schema):
    """Removes logical types, so that times are the integers on the wire."""
    if isinstance(schema, dict):
        return {key: plain(value) for key, value in schema.items() if key != "logicalType"}
    return [plain(item) for item in schema] if isinstance(schema, list) else schema


class Malformed(Exception):
    """These bytes are not a record of the expected type."""


class Format:
    """One record type: its schema, and its two framings."""

    def __init__(self, file):
        text = json.loads(file.read_text())
        self.schema = fastavro.parse_schema(plain(text))
        canonical = fastavro.schema.to_parsing_canonical_form(text)
        fingerprint = fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
        # fastavro returns the digits in the order of the bytes on the wire.
        self.header = b"\xc3\x01" + bytes.fromhex(fingerprint)

    def datum(self, record):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self.schema, record)
        return out.getvalue()

    def encode(self, record):
        return self.header + self.datum(record)


FORMATS = {name: Format(SCHEMAS / FILES[name]) for name in FILES}
# A change as of the revision that only tests know.
REHEARSAL = Format(SCHEMAS.parent / "tests/rehearsal/change.avsc")


def form_of(name, record):
    """The format that a record has, by its fields."""
    return REHEARSAL if "rehearsal" in record else FORMATS[name]


class Registry:
    """Writers' schemas by their id, each requested once."""

    def __init__(self, url):
        self.url = url
        self.schemas = {}

    def schema(self, number):
        if self.url is None:
            raise Malformed(f"schema id {number}, and no registry was named")
        if number not in self.schemas:
            with urllib.request.urlopen(f"{self.url}/schemas/ids/{number}", timeout=10) as answer:
                self.schemas[number] = fastavro.parse_schema(plain(json.loads(json.load(answer)["schema"])))
        return self.schemas[number]


def unframe(name, value, registry=None):
    """The datum and the schema it was written with."""
    form = FORMATS[name]
    if value is None or value == b"":
        raise Malformed("no value")
    if name == "Change" and value.startswith(REHEARSAL.header):
        return value[len(REHEARSAL.header) :], REHEARSAL.schema
    if value.startswith(form.header):
        return value[len(form.header) :], form.schema
    if value[:1] == b"\x00" and len(value) >= 5:
        return value[5:], (registry or Registry(None)).schema(int.from_bytes(value[1:5], "big"))
    raise Malformed("another framing, or another schema")


def decode(name, value, registry=None):
    """Returns a record of that type. Raises Malformed for anything else, and for remaining bytes."""
    datum, writer = unframe(name, value, registry)
    source = io.BytesIO(datum)
    is_ours = writer in (FORMATS[name].schema, REHEARSAL.schema)
    reader = None if is_ours else FORMATS[name].schema
    try:
        record = fastavro.schemaless_reader(source, writer, reader)
    except Exception as error:  # fastavro raises any kind of exception for broken bytes
        raise Malformed(f"no {name}: {error!r}") from None
    if source.tell() != len(datum):
        raise Malformed(f"{len(datum) - source.tell()} bytes after the {name}")
    return record


def murmur2(data):
    """As Kafka's Java client computes it for a key."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    words = len(data) // 4
    for word in range(words):
        k = int.from_bytes(data[4 * word : 4 * word + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    rest = data[4 * words :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_of(user, partitions):
    return (murmur2(user.encode()) & 0x7FFFFFFF) % partitions


def line(record):
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


# Events about one user, who must be the record's key.
OF_A_USER = {
    "connect", "heartbeat", "background", "foreground", "disconnect", "logout", "kick", "custom_status", "forget",
}  # fmt: skip


def no_constant(name):
    raise ValueError(f"{name} is no JSON")


def unpack_conns(packed):
    """Growing numbers of connections: unsigned LEB128 in its shortest form, each the difference to the one before."""
    conns, number, shift = [], 0, 0
    for byte in packed:
        if byte == 0 and shift:
            raise Malformed("conns: not the shortest form")
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if conns and number == 0:
                raise Malformed("conns: a number comes twice")
            conns.append(number + (conns[-1] if conns else 0))
            number, shift = 0, 0
    if shift or not 1 <= len(conns) <= 100_000 or conns[-1] >= 1 << 63:
        raise Malformed("conns: an end within a number, too few or too many, or too large a number")
    return conns


def event_line(offset, ts, key, value, registry=None):
    """Returns a record of the events topic in the form that `rollcall fold` reads; a malformed record only moves time."""
    place = {"offset": offset, "ts": ts}
    try:
        event = decode("Event", value, registry)
        if event["type"] in OF_A_USER and (event["user"] is None or key != event["user"].encode()):
            raise Malformed("the key is not the user")
        if event["conns"] is not None:
            event["conns"] = unpack_conns(event["conns"]) if event["type"] == "alive" else None
        if event["policy"] is not None and event["type"] == "policy":
            event["policy"] = json.loads(event["policy"], parse_constant=no_constant)
    except (Malformed, ValueError):
        return line(place | {"type": "malformed"})
    return line(place | {name: field for name, field in event.items() if field is not None})


def change_line(change):
    return line({"type": "change"} | change)


def kick_line(kick):
    return line({"type": "kick"} | kick)


def order(identity):
    """Offset and index of an output's id, which is partition-offset-index."""
    _, offset, index = identity.split("-")
    return int(offset), int(index)


class Position:
    """The position that is committed with the outputs: base64 in the metadata of the group's offset."""

    def __init__(self, data):
        if len(data) != 112 or data[0] != 2:
            raise Malformed(f"no position: {data!r}")
        number = lambda at: int.from_bytes(data[at : at + 8], "big")
        self.next = number(1)
        self.outputs = number(9)
        self.time = number(18) if data[17] else None
        self.seq = number(26)
        self.chain = data[34:66]
        self.revision = int.from_bytes(data[66:70], "big")
