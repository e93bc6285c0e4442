"""Publishes connection events to Rollcall, follows changes of presence, and asks who is online."""

from .client import Follower, Rollcall
from .errors import CursorTooOld, InvalidArgument, RequestFailed, RollcallError, Unreachable
from .types import (
    Appended,
    AsOf,
    Change,
    ChangedDevice,
    Kick,
    NewEvent,
    PublishAnswer,
    Unread,
    User,
    UserDevice,
    Users,
)

__all__ = [
    "Appended",
    "AsOf",
    "Change",
    "ChangedDevice",
    "CursorTooOld",
    "Follower",
    "InvalidArgument",
    "Kick",
    "NewEvent",
    "PublishAnswer",
    "RequestFailed",
    "Rollcall",
    "RollcallError",
    "Unreachable",
    "Unread",
    "User",
    "UserDevice",
    "Users",
]
