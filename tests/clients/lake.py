"""Prints the rows of a table of a lake as DuckDB reads them, as JSON lines like those of `rollcall audit export --format jsonl`.

    lake.py VIEWS.sql TABLE
"""

import importlib
import json
import os
import sys
from pathlib import Path

import duckdb


def with_bucket(connection):
    """Lets DuckDB read s3:// by pyarrow, since its own extension comes from the network."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    objects = S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL"))
    connection.register_filesystem(ArrowFSWrapper(objects))


def with_iceberg(connection):
    """Loads the extensions that PyPI has, and DuckDB checks whose they are."""
    for name in ("avro", "iceberg"):
        package = importlib.import_module(f"duckdb_extension_{name}")
        [file] = Path(package.__file__).parent.rglob("*.duckdb_extension")
        connection.execute(f"LOAD '{file}'")


def main(views, table):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    with open(views) as file:
        statements = file.read()
    if "'s3://" in statements:
        with_bucket(connection)
    if "iceberg_scan(" in statements:
        with_iceberg(connection)
    connection.execute(statements)
    result = connection.sql(f"FROM {table}")
    # Python's times need another package, so DuckDB writes them itself.
    shown = [
        f"strftime(\"{name}\", '%Y-%m-%dT%H:%M:%S.%gZ') AS \"{name}\"" if str(kind).startswith("TIMESTAMP WITH") else f'"{name}"'
        for name, kind in zip(result.columns, result.types)
        if name != "day"
    ]
    result = result.project(", ".join(shown))
    for row in result.fetchall():
        print(json.dumps(dict(zip(result.columns, row))))


main(*sys.argv[1:])
