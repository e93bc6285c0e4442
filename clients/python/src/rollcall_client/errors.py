"""What can go wrong, by what the caller can do."""

from __future__ import annotations

from typing import Any


class RollcallError(Exception):
    """Base of all errors of this package."""


class InvalidArgument(RollcallError, ValueError):
    """This cannot be sent to any server, such as a token with a line end in the middle. To try again is of no use."""


class Unreachable(RollcallError):
    """The server did not answer. Of a request to publish: the events may or may not be in the log; send them again."""


class RequestFailed(RollcallError):
    """The server answered with an error.

    `status` is that of HTTP, `code` and `message` are the server's (docs/http.md lists the codes). `body` is the whole answer.
    """

    def __init__(self, status: int, code: str, message: str, body: dict[str, Any], retry_after_s: float | None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.body = body
        self.retry_after_s = retry_after_s

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later: the server, or a proxy before it, says so."""
        return self.status in (502, 503, 504)

    @property
    def appended(self) -> list[Any]:
        """With the code `partly_appended`: for each event its position, or the reason why it is not in the log."""
        return list(self.body.get("appended", []))


class CursorTooOld(RequestFailed):
    """The log no longer reaches back to the cursor. Continue at `oldest`; changes were missed."""

    @property
    def oldest(self) -> str | None:
        return (self.body.get("error") or {}).get("oldest")
