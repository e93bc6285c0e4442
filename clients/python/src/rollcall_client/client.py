"""Requests to a server, one connection each, and followers that reconnect."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from .errors import CursorTooOld, InvalidArgument, RequestFailed, Unreachable
from .types import Change, Kick, NewEvent, PublishAnswer, User, Users

Record = TypeVar("Record", Change, Kick)

# The server sends at least a comment every ten seconds.
FOLLOW_TIMEOUT_S = 30.0
BACK_OFF_S = (0.5, 30.0)


class Rollcall:
    """A server. Threads may share it: each request has a connection of its own.

    `token` may be a function, which is called for each request. `timeout_s` bounds each wait for the server, not a whole answer.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        token: str | Callable[[], str] | None = None,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http://HOST:PORT or https://HOST:PORT, not {url!r}")
        self._parts = parts
        self._token = token
        self._timeout_s = timeout_s
        self._tls = tls

    def publish(
        self, events: Iterable[NewEvent] | NewEvent, *, wait_applied: bool = False, strict: bool = False
    ) -> PublishAnswer:
        """Appends 1 to 10,000 events and returns when they are durable; with `wait_applied`, when they are folded and committed.

        With `strict`, unknown fields are refused instead of skipped. All events are checked before any is appended.
        """
        query: dict[str, str] = {}
        if wait_applied:
            query["wait"] = "applied"
        if strict:
            query["strict"] = "true"
        body = events if isinstance(events, dict) else list(events)
        return cast(PublishAnswer, self._request("POST", "/v1/events", query, body))

    def user(self, user: str, *, at_least: int | None = None) -> User | None:
        """Returns the current state of a user, or None if no user of this name is known.

        `at_least` waits until this offset of the user's partition is folded: with the offset from `publish` you read your own
        writes.
        """
        query = {"id": user}
        if at_least is not None:
            query["at_least"] = str(at_least)
        try:
            return cast(User, self._request("GET", "/v1/user", query))
        except RequestFailed as error:
            if error.code == "unknown_user":
                return None
            raise

    def users(self, users: Sequence[str]) -> Users:
        """Returns up to 1,000 users."""
        return cast(Users, self._request("POST", "/v1/users/query", {}, {"users": _names(users)}))

    def changes_of(self, user: str, *, limit: int = 20) -> list[Change]:
        """Returns a user's newest changes, the newest first."""
        answer = self._request("GET", "/v1/user/changes", {"id": user, "limit": str(limit)})
        return cast("list[Change]", answer["changes"])

    def stats(self) -> dict[str, Any]:
        """Returns counts of users and devices, and the state of each partition."""
        return self._request("GET", "/v1/stats", {})

    def follow_changes(
        self, users: Sequence[str] | None = None, *, partition: int | None = None, after: str = "latest"
    ) -> Follower[Change]:
        """Follows changes: of these users, or of all. `after` is `latest`, `latest-50`, `earliest` or a cursor."""
        return Follower(self, "changes", "users", users, partition, after)

    def follow_kicks(
        self, gateways: Sequence[str] | None = None, *, partition: int | None = None, after: str = "latest"
    ) -> Follower[Kick]:
        """Follows kicks: those for these gateways, or all."""
        return Follower(self, "kicks", "gateways", gateways, partition, after)

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = cast(str, self._parts.hostname), self._parts.port
        if self._parts.scheme == "https":
            tls = self._tls or ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, query: dict[str, str], body: Any
    ) -> http.client.HTTPResponse:
        """Sends a request and returns the successful answer, whose body is not read yet."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        token = self._token() if callable(self._token) else self._token
        if token is not None:
            headers["Authorization"] = f"Bearer {_checked_token(token)}"
        try:
            target = self._parts.path.rstrip("/") + path + ("?" + urlencode(query) if query else "")
            encoded = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        except ValueError as error:
            # A lone surrogate, most likely. To try again is of no use.
            raise InvalidArgument(f"{method} {path}: this cannot be sent as JSON: {error}") from error
        connection.request(method, target, encoded, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise _failed(answer)
        return answer

    def _request(self, method: str, path: str, query: dict[str, str], body: Any = None) -> dict[str, Any]:
        connection = self._connect(self._timeout_s)
        try:
            answer = self._send(connection, method, path, query, body)
            return cast("dict[str, Any]", json.loads(answer.read()))
        except InvalidArgument:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()


def _names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"a list of names is expected, such as [{names!r}], and not a text")
    return list(names)


def _checked_token(token: str) -> str:
    """Returns the token without the line end that a file has. It is not shown."""
    token = token.strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise InvalidArgument("the token is empty, or has other than visible ASCII characters")
    return token


def _failed(answer: http.client.HTTPResponse) -> RequestFailed:
    text = answer.read()
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    error = body.get("error") or {}
    if not isinstance(error, dict):
        error = {}
    after = answer.getheader("Retry-After")
    retry_after_s = float(after) if after is not None and after.isdigit() else None
    code = str(error.get("code", "unreadable"))
    message = str(error.get("message", text[:200].decode(errors="replace")))
    kind = CursorTooOld if code == "gone" else RequestFailed
    return kind(answer.status, code, message, body, retry_after_s)


class Follower(Generic[Record]):
    """Yields records in the order of their partition, and reconnects. `cursor` is behind the last record that it yielded.

    Store `cursor` together with your result. It is None until the server has answered for the first time, unless `after` was a
    cursor.
    """

    def __init__(
        self, server: Rollcall, topic: str, key: str, only: Sequence[str] | None, partition: int | None, after: str
    ) -> None:
        self._server = server
        self._topic = topic
        self._body: dict[str, Any] = {}
        if only is not None:
            self._body[key] = _names(only)
        if partition is not None:
            self._body["partition"] = partition
        self._after = after
        self.cursor: str | None = after if ":" in after else None
        self._closed = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Ends the follower, also from another thread: a `for` over it ends."""
        self._closed.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                # A read in another thread returns at once.
                connection.sock.shutdown(2)
            except OSError:
                pass

    def __enter__(self) -> Follower[Record]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Record]:
        failures = 0
        while not self._closed.is_set():
            wait_s: float | None = None
            try:
                for record in self._stream():
                    failures = 0
                    yield record
                # The server ended the stream: it stops, or moves.
            except RequestFailed as error:
                if not error.is_temporary:
                    raise
                wait_s = error.retry_after_s
            except InvalidArgument:
                raise
            except (OSError, http.client.HTTPException, ValueError):
                # Also from a connection that `close` shut down, or that the server broke off.
                pass
            if wait_s is None:
                least, most = BACK_OFF_S
                wait_s = min(most, least * 2**failures) * random.uniform(0.5, 1.0)
            failures = min(failures + 1, 10)
            self._closed.wait(wait_s)

    def _stream(self) -> Iterator[Record]:
        """Yields the records of one connection."""
        connection = self._server._connect(FOLLOW_TIMEOUT_S)
        self._connection = connection
        try:
            body = {**self._body, "after": self.cursor or self._after}
            answer = self._server._send(connection, "POST", f"/v1/{self._topic}/query", {}, body)
            for event, cursor, data in _events(answer):
                if event == "error":
                    raise _error_of(data)
                if event == "from":
                    self.cursor = cursor if self.cursor is None else self.cursor
                    continue
                record = json.loads(data) if data else None
                if cursor is not None:
                    self.cursor = cursor
                if record is not None:
                    yield cast(Record, record)
                if self._closed.is_set():
                    return
        finally:
            self._connection = None
            connection.close()


def _error_of(data: str) -> RequestFailed:
    """The error with which the server ends a stream that has begun."""
    body = json.loads(data)
    error = body["error"]
    kind = CursorTooOld if error["code"] == "gone" else RequestFailed
    status = 410 if error["code"] == "gone" else 503
    return kind(status, error["code"], error["message"], body, None)


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str | None, str]]:
    """Yields the server-sent events of an answer: name, cursor and data. The first comment, `from CURSOR`, is an event too."""
    event = "message"
    cursor: str | None = None
    data: list[str] = []
    while True:
        line = answer.readline()
        if not line:
            return
        text = line.decode().rstrip("\r\n")
        if text.startswith(": from "):
            yield "from", text.removeprefix(": from "), ""
        elif not text:
            if cursor is not None or data:
                yield event, cursor, "\n".join(data)
            event, cursor, data = "message", None, []
        elif not text.startswith(":"):
            field, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                event = value
            elif field == "id":
                cursor = value
            elif field == "data":
                data.append(value)
