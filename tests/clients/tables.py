"""Prints the rows of an exported table as JSON lines, as `rollcall audit export --format jsonl` writes them.

    tables.py duckdb|pyarrow parquet|csv DIRECTORY
"""

import datetime
import glob
import json
import sys


def cell(value):
    if isinstance(value, datetime.datetime):
        assert value.tzinfo is not None, "a time without its zone"
        value = value.astimezone(datetime.timezone.utc)
        return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03}Z"
    return value


def with_pyarrow(path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path).read()
    for field in table.schema:
        is_time = field.name in ("valid_from", "valid_to") or field.name.endswith("_at")
        assert is_time == (field.type == pyarrow.timestamp("ms", tz="UTC")), field
    return table.to_pylist()


def with_duckdb(path, form):
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    result = connection.sql(f"FROM read_{form}('{path}', hive_partitioning = false)")
    # Python's times need another package, so DuckDB writes them itself.
    shown = [
        f"strftime(\"{name}\", '%Y-%m-%dT%H:%M:%S.%gZ') AS \"{name}\"" if str(kind).startswith("TIMESTAMP WITH") else f'"{name}"'
        for name, kind in zip(result.columns, result.types)
    ]
    result = result.project(", ".join(shown))
    rows = [dict(zip(result.columns, row)) for row in result.fetchall()]
    for row in rows:
        if form == "csv" and "devices" in row:
            row["devices"] = json.loads(row["devices"])
    return rows


def main(reader, form, directory):
    for path in sorted(glob.glob(f"{directory}/*/*.{form}")):
        rows = with_pyarrow(path) if reader == "pyarrow" else with_duckdb(path, form)
        for row in rows:
            print(json.dumps({name: cell(value) for name, value in row.items()}))


main(*sys.argv[1:])
