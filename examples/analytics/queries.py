#!/usr/bin/env python3
"""Runs the queries of docs/analytics.md with DuckDB over an export and compares what they give with what the document shows.

    python3 examples/analytics/queries.py docs/analytics.md tables
    python3 examples/analytics/queries.py docs/analytics.md tables --write    # the document shows what they give now
    python3 examples/analytics/queries.py docs/analytics.md tables --views views.sql    # with what `rollcall lake --sql` prints
"""

import difflib
import re
import sys

import duckdb

BLOCK = re.compile(r"```sql\n([^`]*)```\n\n```text\n[^`]*```\n")


def connect(export, views):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    if views:
        with open(views) as file:
            connection.execute(file.read())
    for table in ["events"] if views else ["intervals", "changes", "events"]:
        files = f"{export}/{table}/*/*.parquet".replace("'", "''")
        connection.execute(f"CREATE VIEW {table} AS FROM read_parquet('{files}', hive_partitioning = true)")
    return connection


def table(connection, query):
    result = connection.sql(query)
    names = result.columns
    rows = result.project(", ".join(f'"{name}"::VARCHAR' for name in names)).fetchall()
    rows = [tuple(names)] + [tuple("" if cell is None else cell for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def main(path, export, *flags):
    with open(path) as file:
        document = file.read()
    connection = connect(export, flags[1] if flags[:1] == ("--views",) else None)
    count = 0

    def run(block):
        nonlocal count
        count += 1
        return f"```sql\n{block[1]}```\n\n```text\n{table(connection, block[1])}```\n"

    found = BLOCK.sub(run, document)
    if "--write" in flags:
        with open(path, "w") as file:
            file.write(found)
    elif found != document:
        sys.stdout.writelines(difflib.unified_diff(document.splitlines(True), found.splitlines(True), path, "what they give"))
        sys.exit("the document does not show what its queries give; run this again with --write and read the difference")
    print(f"{count} queries")


main(*sys.argv[1:])
