"""Writes the files of a lake again without ids of columns, as they were before columns had any.

    without_ids.py LAKE
"""

import json
import sys
from pathlib import Path

import pyarrow
from pyarrow import parquet


def without_id(field):
    kind = field.type
    if pyarrow.types.is_list(kind):
        kind = pyarrow.list_(without_id(kind.value_field))
    elif pyarrow.types.is_struct(kind):
        kind = pyarrow.struct([without_id(one) for one in kind])
    return pyarrow.field(field.name, kind, field.nullable)


def has_id(field):
    return b"PARQUET:field_id" in (field.metadata or {})


def write_again(path):
    table = parquet.read_table(path)
    assert all(has_id(field) for field in table.schema)
    schema = pyarrow.schema([without_id(field) for field in table.schema])
    parquet.write_table(pyarrow.Table.from_pylist(table.to_pylist(), schema), path, store_schema=False)
    assert not any(has_id(field) for field in parquet.read_schema(path))


def files(value):
    """The files that a manifest names."""
    if isinstance(value, dict) and "bytes" in value:
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from files(one)


def main(lake):
    manifest = json.loads((lake / "manifest.json").read_text())
    for file in files(manifest):
        write_again(lake / file["path"])
        file["bytes"] = (lake / file["path"]).stat().st_size
    (lake / "manifest.json").write_text(json.dumps(manifest))


main(Path(sys.argv[1]))
