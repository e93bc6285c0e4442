#!/usr/bin/env python3
"""Reads the tables of a lake with pyarrow, as of its last commit.

    python3 examples/analytics/lake.py lake
    python3 examples/analytics/lake.py s3://bucket/lake     # with the variables AWS_…, and AWS_ENDPOINT_URL for other stores than Amazon's
"""

import json
import os
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq


def table(lake, files):
    """The rows of some files of the manifest; None without files."""
    tables = [pq.ParquetFile(lake.open_input_file(file["path"])).read() for file in files]
    return pa.concat_tables(tables) if tables else None


def key(rows):
    """What names an interval: the change that began it, and whose it is."""
    # Names may have any character, so the length of the platform goes along: no two intervals have the same key.
    platform = pc.fill_null(rows["platform"], "")
    length = pc.cast(pc.binary_length(platform), pa.string())
    return pc.binary_join_element_wise(rows["change"], length, platform, pc.fill_null(rows["device"], ""), " ")


def intervals(lake, files):
    """All intervals; `valid_to` is null while one holds."""
    ended, holding = table(lake, files["ended"]), table(lake, files["open"])
    since = table(lake, [file for file in files["ended"] if file["last"] > files["open_since"]])
    if holding is not None and since is not None:
        holding = holding.filter(pc.invert(pc.is_in(key(holding), value_set=key(since).combine_chunks())))
    return pa.concat_tables([rows for rows in (ended, holding) if rows is not None])


def opened(place):
    """A directory or a prefix of a bucket as a file system."""
    if place.startswith("s3://"):
        objects = fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL"))
        return fs.SubTreeFileSystem(place.removeprefix("s3://"), objects)
    return fs.SubTreeFileSystem(place, fs.LocalFileSystem())


def main(place):
    lake = opened(place)
    # The manifest is read once: its files are those of one moment, and stay for ten minutes after a newer one.
    with lake.open_input_file("manifest.json") as file:
        manifest = json.loads(file.read())
    changes = table(lake, manifest["changes"])
    minutes = table(lake, manifest["concurrency"]["ended"] + manifest["concurrency"]["unfinished"])
    counts = changes.num_rows, intervals(lake, manifest["intervals"]).num_rows, minutes.num_rows
    print("{} changes, {} intervals, {} minutes".format(*counts))


main(*sys.argv[1:])
