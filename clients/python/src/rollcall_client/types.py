"""The server's JSON. Times are milliseconds of log time, offsets are integers. A server may add fields."""

from __future__ import annotations

from typing import Literal, TypedDict

Status = Literal["online", "push_online", "offline"]


class _NewEvent(TypedDict):
    type: str


class NewEvent(_NewEvent, total=False):
    """An event to publish. Section 3 of docs/rules.md says which fields each type needs."""

    user: str
    platform: str
    device: str
    gateway: str
    epoch: int
    conn: int
    conns: list[int]
    partition: int
    intent: Literal["login", "resume"]
    reason: str
    client: str
    auth_at: int
    text: str
    ttl_ms: int
    beats: list[dict[str, object]]
    policy: dict[str, object]


class _Appended(TypedDict):
    partition: int
    offset: int


class Appended(_Appended, total=False):
    """Where an event is in the log; with `wait_applied` also its outcome."""

    outcome: Literal["changed", "accepted", "ignored", "malformed", "unknown"]
    reason: str
    hint: str
    ignored: int


class _PublishAnswer(TypedDict):
    # A list for events that go to several partitions: lease, policy, heartbeats.
    appended: list[Appended | list[Appended]]


class PublishAnswer(_PublishAnswer, total=False):
    unknown_fields: list[str]


class AsOf(TypedDict):
    partition: int
    offset: int | None
    time: int | None


class UserDevice(TypedDict):
    platform: str
    device: str
    state: str
    status: Status
    gateway: str
    epoch: int
    conn: int
    since: int
    login_at: int
    last_seen: int | None
    evidence: int | None
    deadline: int


class User(TypedDict):
    user: str
    version: int
    status: Status
    since: int
    last_seen: int
    custom_status: str | None
    devices: list[UserDevice]
    as_of: AsOf


class Unread(TypedDict):
    user: str
    why: str


class _Users(TypedDict):
    users: list[User]
    unknown: list[str]


class Users(_Users, total=False):
    # On Kafka, while partitions move: who could not be looked up.
    unread: list[Unread]


class ChangedDevice(TypedDict):
    platform: str
    device: str
    gateway: str
    before: Status
    after: Status


class Change(TypedDict):
    type: Literal["change"]
    id: str
    partition: int
    offset: int
    seq: int
    user: str
    version: int
    at: int
    logged_at: int
    # New causes may be added.
    cause: str
    before: Status
    after: Status
    devices: list[ChangedDevice]
    custom_status: str | None
    evidence: int


class Kick(TypedDict):
    type: Literal["kick"]
    id: str
    gateway: str
    epoch: int
    conn: int
    user: str | None
    platform: str | None
    device: str | None
    reason: str
    at: int
