"""Says which events of aborted transactions the brokers' files would show to a reader as if they were committed.

  aborted.py --brokers DIR --kafka HOST:PORT --prefix P        DIR/node-N/data/P.events-PARTITION/

A leader tells a reader which transactions within its answer were aborted. It looks them up in an index that has an entry for each
aborted transaction, with the last stable offset as of its end, and stops at the first entry whose last stable offset is not
before the end of the answer: all later ones are expected to begin after it. A follower that catches up on several transactions
of one producer at once writes too great an offset there (see docs/faults.md), so that its index, once it leads, ends too early.

This program reads the files of each replica as a broker does, in answers of several sizes, and compares the transactions that the
index gives with those that the markers in the log say were aborted. It prints one sentence, as a JSON string.
"""

import argparse
import bisect
import collections
import glob
import json
import os
import struct

# Base offset, length; epoch of the leader, magic, checksum, attributes, last offset, two times, producer, its epoch, sequence, count.
BATCH = struct.Struct(">qi ibIhi qq qhi i")
LENGTH_BYTES = 12
TRANSACTIONAL, CONTROL = 0x10, 0x20
ABORT = 0
# Version, producer, first and last offset of the transaction, last stable offset.
ENTRY = struct.Struct(">h qqqq")
INDEXED = struct.Struct(">ii")

# The engine's own, the independent reader's, librdkafka's default, and some near it.
SIZES = [4 << 20, 64 << 20, 16_000, 64_000, 262_144, 700_001, *range(900_000, 1_200_000, 20_000)]

Batch = collections.namedtuple("Batch", "first last position size producer is_data marker")


def number(data, at):
    """A number of variable length, and where it ends."""
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (result >> 1) ^ -(result & 1), at


def marker_of(data, at):
    """The type of a control batch's record: its key is a version and the type."""
    _, at = number(data, at)
    at += 1
    for _ in range(3):
        _, at = number(data, at)
    return struct.unpack_from(">hh", data, at)[1]


def batches(path):
    with open(path, "rb") as file:
        data = file.read()
    found, at = [], 0
    while at + BATCH.size <= len(data):
        first, length, _, _, _, attributes, last, _, _, producer, _, _, _ = BATCH.unpack_from(data, at)
        if length <= 0:
            break
        is_control = attributes & CONTROL
        marker = marker_of(data, at + BATCH.size) if is_control else None
        is_data = bool(attributes & TRANSACTIONAL) and not is_control
        found.append(Batch(first, first + last, at, length + LENGTH_BYTES, producer, is_data, marker))
        at += length + LENGTH_BYTES
    return found


def aborted(found):
    """By the markers: the batches of aborted transactions, as (their place among the batches, producer, first offset)."""
    begun, of_aborted = {}, []
    for place, batch in enumerate(found):
        if batch.is_data:
            begun.setdefault(batch.producer, []).append(place)
        elif batch.marker is not None:
            of_it = begun.pop(batch.producer, [])
            if batch.marker == ABORT and of_it:
                of_aborted += [(one, batch.producer, found[of_it[0]].first) for one in of_it]
    return sorted(of_aborted)


def entries(path):
    with open(path, "rb") as file:
        data = file.read()
    return [ENTRY.unpack_from(data, at)[1:] for at in range(0, len(data) - ENTRY.size + 1, ENTRY.size)]


def positions(path, base):
    """Of the index of a segment: positions, and the offsets there. The file has zeros at its end."""
    with open(path, "rb") as file:
        data = file.read()
    found = [(0, base)]
    for at in range(0, len(data) - INDEXED.size + 1, INDEXED.size):
        offset, position = INDEXED.unpack_from(data, at)
        if position <= found[-1][0]:
            break
        found.append((position, base + offset))
    return [position for position, _ in found], [offset for _, offset in found]


def too_great(index):
    """How many entries have a last stable offset at or behind which a later entry's transaction begins already."""
    count, least = 0, None
    for _, first, _, stable in reversed(index):
        if least is not None and least < stable:
            count += 1
        least = first if least is None else min(least, first)
    return count


def shown(found, of_aborted, index, indexed, end, size):
    """The offsets of aborted events that a reader is shown whose answers have at most so many bytes."""
    at, offsets = indexed
    ends = [batch.position + batch.size for batch in found]
    result, here = [], 0
    while here < len(found):
        begin = found[here].position
        # At least one batch is given; one that is cut off at the end is asked for again.
        after = max(bisect.bisect_right(ends, begin + size), here + 1)
        place = bisect.bisect_left(at, begin + min(max(size, found[here].size), ends[-1] - begin))
        bound = offsets[place] if place < len(at) else end
        listed = set()
        for producer, first, last, stable in index:
            if last >= found[here].first and first < bound:
                listed.add((producer, first))
            if stable >= bound:
                break
        low = bisect.bisect_left(of_aborted, (here,))
        high = bisect.bisect_left(of_aborted, (after,))
        result += [found[one].first for one, producer, first in of_aborted[low:high] if (producer, first) not in listed]
        here = after
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--kafka")
    parser.add_argument("--prefix", required=True)
    args = parser.parse_args()
    replicas = transactions = wrong = readings = with_shown = 0
    examples = []
    for log in sorted(glob.glob(f"{args.brokers}/node-*/data/{args.prefix}.events-*/*.log")):
        base = int(os.path.basename(log)[:-4])
        found = batches(log)
        if not found:
            continue
        replicas += 1
        of_aborted = aborted(found)
        index_path = log[:-4] + ".txnindex"
        index = entries(index_path) if os.path.exists(index_path) else []
        indexed = positions(log[:-4] + ".index", base)
        transactions += len(index)
        wrong += too_great(index)
        for size in SIZES:
            offsets = shown(found, of_aborted, index, indexed, found[-1].last + 1, size)
            readings += 1
            with_shown += bool(offsets)
            if offsets and len(examples) < 5:
                broker, partition = log.split(os.sep)[-4], log.split(os.sep)[-2].rpartition("-")[2]
                examples.append(f"offset {offsets[0]} of partition {partition} by {broker} with answers of {size} bytes")
    sentence = (
        f"{replicas} replicas of events, {transactions} entries of aborted transactions, {wrong} of them with too great a last stable "
        f"offset; in {with_shown} of {readings} readings ({len(SIZES)} sizes of answers) an aborted event would be shown"
    )
    print(json.dumps("; ".join([sentence, *examples])))


if __name__ == "__main__":
    main()
