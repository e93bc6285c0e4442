"""Prints the rows of a table of a lake as DuckDB reads them, as JSON lines like those of `rollcall audit export --format jsonl`.

    lake.py VIEWS.sql TABLE
"""

import json
import sys

import duckdb


def main(views, table):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    with open(views) as file:
        connection.execute(file.read())
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
