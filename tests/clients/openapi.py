"""Holds an OpenAPI document against its official validator, and answers of the server against the document.

openapi.py DOCUMENT ANSWERS: ANSWERS is a JSON list of {"method", "path", "status", "media", "body", "events"}, where path
is as in the document and events are the name and data of server-sent events. Prints how many of what it has checked, and
fails with the first that is wrong.
"""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

document = json.load(open(sys.argv[1], encoding="utf-8"))
answers = json.load(open(sys.argv[2], encoding="utf-8"))

OpenAPIV31SpecValidator(document).validate()


def strict(schema):
    """Readers skip what they do not know; the server writes nothing that is not described."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        schema.setdefault("additionalProperties", False)
    return schema


schemas = strict(document["components"]["schemas"])


def check(schema, value, what):
    whole = {**strict(schema), "components": {"schemas": schemas}}
    Draft202012Validator.check_schema(whole)
    errors = sorted(Draft202012Validator(whole).iter_errors(value), key=str)
    if errors:
        sys.exit(f"{what}: {errors[0]}")


seen, count, events = set(), 0, 0
for answer in answers:
    method, path = answer["method"].lower(), answer["path"]
    what = f"{answer['method']} {path} {answer['status']}"
    operation = document["paths"][path][method]
    responses = operation["responses"]
    response = responses.get(str(answer["status"]), responses["default"])
    media = answer["media"].split(";")[0]
    if media not in response["content"]:
        sys.exit(f"{what}: {media} is not among {list(response['content'])}")
    schema = response["content"][media]["schema"]
    body = json.loads(answer["body"]) if media == "application/json" else answer["body"]
    check(schema, body, what)
    for name, data in answer.get("events", []):
        check(response["x-events"][name], json.loads(data), f"{what} {name}")
        events += 1
    if answer["status"] == 200:
        seen.add((path, method))
    count += 1

expected = {(path, method) for path, methods in document["paths"].items() for method in methods}
if expected - seen:
    sys.exit(f"no success was checked of {sorted(expected - seen)}")
print(json.dumps({"valid": True, "routes": len(expected), "answers": count, "events": events}))
