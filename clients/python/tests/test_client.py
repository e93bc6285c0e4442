"""The client against a real server, which is killed and started again. ROLLCALL_BIN names the program."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "src"))

from rollcall_client import CursorTooOld, InvalidArgument, NewEvent, RequestFailed, Rollcall, Unreachable

PATIENCE_S = 60.0
ADMIN, READER = "an-admins-token-0123456789", "a-readers-token-0123456789"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def connect(user: str, conn: int) -> NewEvent:
    return {"type": "connect", "user": user, "platform": "android", "device": "phone", "gateway": "g1", "epoch": 1,
            "conn": conn, "intent": "login"}


def disconnect(user: str, conn: int) -> NewEvent:
    return {"type": "disconnect", "user": user, "platform": "android", "device": "phone", "gateway": "g1", "epoch": 1,
            "conn": conn, "reason": "closed"}


class Server:
    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        tokens = pathlib.Path(self.directory.name, "tokens")
        tokens.write_text(f"{ADMIN} admin\n{READER} read\n")
        tokens.chmod(0o600)
        self.command = [
            os.environ["ROLLCALL_BIN"], "serve", "--data", self.directory.name + "/data", "--listen", f"127.0.0.1:{self.port}",
            "--partitions", "2", "--token-file", str(tokens), "--log-level", "error",
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        again = threading.Event()
        for _ in range(int(PATIENCE_S * 10)):
            asked = subprocess.run([os.environ["ROLLCALL_BIN"], "health", "--url", self.url], capture_output=True)
            if asked.returncode == 0:
                return
            again.wait(0.1)
        raise AssertionError("the server is not ready")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        self.directory.cleanup()


class ClientTest(unittest.TestCase):
    server: Server
    rollcall: Rollcall

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server()
        cls.rollcall = Rollcall(cls.server.url, token=lambda: ADMIN)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.end()

    def test_what_is_published_is_read(self) -> None:
        answer = self.rollcall.publish([connect("ann é/ä", 1), connect("ben", 2)], wait_applied=True)
        places = [place for place in answer["appended"] if isinstance(place, dict)]
        self.assertEqual([place["outcome"] for place in places], ["changed", "changed"])
        ann = self.rollcall.user("ann é/ä", at_least=places[0]["offset"])
        assert ann is not None
        self.assertEqual((ann["status"], ann["devices"][0]["device"]), ("online", "phone"))
        self.assertIsNone(self.rollcall.user("nobody"))
        asked = self.rollcall.users(["ben", "nobody"])
        self.assertEqual(([user["user"] for user in asked["users"]], asked["unknown"]), (["ben"], ["nobody"]))
        self.assertEqual([change["cause"] for change in self.rollcall.changes_of("ben")], ["login"])
        self.assertEqual(len(self.rollcall.stats()["partitions"]), 2)

    def test_a_refusal_names_the_event_and_the_field(self) -> None:
        bad = connect("", 3)
        with self.assertRaises(RequestFailed) as refused:
            self.rollcall.publish([connect("eve", 4), bad])
        error = refused.exception
        self.assertEqual((error.status, error.code, error.is_temporary), (400, "bad_event", False))
        self.assertEqual((error.body["error"]["event"], error.body["error"]["field"]), (1, "user"))
        self.assertIsNone(self.rollcall.user("eve"), "nothing was accepted")
        reader = Rollcall(self.server.url, token=READER)
        with self.assertRaises(RequestFailed) as refused:
            reader.publish(connect("eve", 5))
        self.assertEqual(refused.exception.code, "forbidden")
        with self.assertRaises(RequestFailed) as refused:
            next(iter(Rollcall(self.server.url).follow_changes()))
        self.assertEqual(refused.exception.code, "no_token", "waiting is no use")

    def test_what_no_server_could_take_is_not_tried_again_and_not_shown(self) -> None:
        # A token file ends with a line end.
        self.assertIsNone(Rollcall(self.server.url, token=lambda: READER + "\n").user("nobody at all"))
        for token in ["", "two words", "secret-\u00e4", "secret\nX-Other: 1"]:
            rollcall = Rollcall(self.server.url, token=token)
            for attempt in [lambda: rollcall.user("ann"), lambda: next(iter(rollcall.follow_changes()))]:
                with self.assertRaises(InvalidArgument) as refused:
                    attempt()
                self.assertNotIn("secret", str(refused.exception))
        for attempt in [
            lambda: self.rollcall.user("lone \ud800"),
            lambda: self.rollcall.publish(connect("lone \ud800", 6)),
            lambda: next(iter(self.rollcall.follow_changes(["lone \ud800"]))),
        ]:
            with self.assertRaises(InvalidArgument):
                attempt()
        for attempt in [lambda: self.rollcall.users("ann"), lambda: self.rollcall.follow_changes("ann")]:
            with self.assertRaises(TypeError):
                attempt()
        # It is for nobody, and not for all.
        with self.assertRaises(RequestFailed):
            next(iter(self.rollcall.follow_changes([])))

    def test_no_server_is_unreachable(self) -> None:
        with self.assertRaises(Unreachable):
            Rollcall(f"http://127.0.0.1:{free_port()}").user("ann")

    def test_a_follower_misses_nothing_and_repeats_nothing_while_the_server_is_killed(self) -> None:
        follower = self.rollcall.follow_changes(["kim"], after="earliest")
        records = iter(follower)
        versions: list[int] = []
        for round_number in range(3):
            conn = 100 + round_number
            self.rollcall.publish([connect("kim", conn), disconnect("kim", conn)], wait_applied=True)
            versions.append(next(records)["version"])
            if round_number == 1:
                # In the middle of what it follows.
                self.server.kill()
                self.server.start()
            versions.append(next(records)["version"])
        self.assertEqual(versions, [1, 2, 3, 4, 5, 6])
        self.assertRegex(follower.cursor or "", r"^\d:\d+$")

        # Another process continues where this one was.
        self.rollcall.publish(connect("kim", 200), wait_applied=True)
        later = self.rollcall.follow_changes(["kim"], after=follower.cursor or "")
        self.assertEqual(next(iter(later))["version"], 7)

    def test_a_follower_from_the_end_keeps_its_place_when_the_server_dies_before_the_first_record(self) -> None:
        follower = self.rollcall.follow_changes(after="latest")
        got: list[str] = []
        stopped = threading.Event()

        def follow() -> None:
            for change in follower:
                if change["user"] == "lea":
                    got.append(change["cause"])
                    stopped.set()
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        again = threading.Event()
        while follower.cursor is None:
            again.wait(0.05)
        self.server.kill()
        self.server.start()
        self.rollcall.publish(connect("lea", 300), wait_applied=True)
        thread.join(PATIENCE_S)
        self.assertEqual(got, ["login"])

    def test_a_follower_can_be_closed_from_another_thread(self) -> None:
        with self.rollcall.follow_kicks(["no-such-gateway"]) as follower:
            thread = threading.Thread(target=lambda: list(follower))
            thread.start()
            again = threading.Event()
            while follower.cursor is None:
                again.wait(0.05)
            follower.close()
            thread.join(PATIENCE_S)
            self.assertFalse(thread.is_alive())

    def test_a_cursor_that_is_ahead_of_the_topic_is_an_error(self) -> None:
        with self.assertRaises(RequestFailed) as refused:
            next(iter(self.rollcall.follow_changes(after="0:999999,1:999999")))
        self.assertEqual(refused.exception.code, "bad_cursor")
        self.assertNotIsInstance(refused.exception, CursorTooOld)


if __name__ == "__main__":
    unittest.main()
