"""Prints the rows of an Iceberg table as pyiceberg reads them, as JSON lines like those of lake.py.

    iceberg.py TABLE [FILTER]       TABLE is the directory or the s3:// URL of a table, such as lake/changes
"""

import json
import os
import sys
from datetime import datetime

from pyiceberg.table import StaticTable


def shown(value):
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03}Z"
    return value


def main(location, *row_filter):
    properties = {}
    if location.startswith("s3://"):
        properties = {
            "s3.endpoint": os.environ["AWS_ENDPOINT_URL"],
            "s3.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
            "s3.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
            "s3.region": os.environ.get("AWS_REGION", "us-east-1"),
        }
    table = StaticTable.from_metadata(location, properties)
    for row in table.scan(*row_filter).to_arrow().to_pylist():
        print(json.dumps({name: shown(value) for name, value in row.items()}))


main(*sys.argv[1:])
