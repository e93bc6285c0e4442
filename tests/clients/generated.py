"""Posts an event and reads the user with a client that openapi-python-client has made of the document.

generated.py DOCUMENT DIRECTORY URL TOKEN: the client is made below DIRECTORY. Prints what the server says as JSON.
"""

import json
import pathlib
import subprocess
import sys

document, directory, url, token = sys.argv[1:]
directory = pathlib.Path(directory)
config = directory / "config.json"
# Nothing is to be formatted, and nobody else's formatter is needed.
config.write_text(json.dumps({"post_hooks": [], "package_name_override": "rollcall_client"}))
made = subprocess.run(
    [sys.executable, "-m", "openapi_python_client", "generate", "--path", document, "--meta", "none",
     "--output-path", directory / "rollcall_client", "--config", config, "--fail-on-warning"],
    capture_output=True, text=True,
)
if made.returncode != 0:
    sys.exit(f"openapi-python-client: {made.stdout}{made.stderr}")
sys.path.insert(0, str(directory))

from rollcall_client import AuthenticatedClient  # noqa: E402
from rollcall_client.api.default import changes, changes_query, events, user, user_by_id  # noqa: E402
from rollcall_client.models import EventIntent, EventsWait, EventType, FollowQuery, NewEvent, User  # noqa: E402

with AuthenticatedClient(base_url=url, token=token) as client:
    connect = NewEvent(
        type_=EventType.CONNECT, user="alice", platform="web", device="tab", gateway="g1", epoch=1, conn=7,
        intent=EventIntent.LOGIN,
    )
    place = events.sync(client=client, body=[connect], wait=EventsWait.APPLIED).appended[0]
    found = user.sync("alice", client=client, at_least=place.offset)
    if not isinstance(found, User):
        sys.exit(f"not a user: {found}")
    nobody = user_by_id.sync(client=client, id="nobody")
    # What it would send: it has no reader of event streams.
    resumed = [
        changes._get_kwargs(last_event_id="0:7"),
        changes_query._get_kwargs(body=FollowQuery(), last_event_id="0:8"),
    ]
    print(json.dumps({
        "outcome": place.outcome,
        "status": found.status,
        "device": found.devices[0].device,
        "nobody": getattr(getattr(nobody, "error", None), "code", None),
        "headers": [request["headers"].get("Last-Event-ID") for request in resumed],
    }))
