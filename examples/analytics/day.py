#!/usr/bin/env python3
"""Prints the events of two made-up days, for docs/analytics.md. Always the same ones: nothing is random, no clock is read.

    python3 examples/analytics/day.py > events.jsonl

100 users with a device each, on three gateways. What there is to find in it:

* phones with app 5.2.0 lose their link every few minutes and come back after some seconds;
* on the second day at 12:30:07 every device with app 5.2.0 is disconnected at once;
* on the second day at 20:15:00 the gateway gw-2 dies and comes back two minutes later;
* phones are out of reach for a while again and again (a tunnel, a lift), most of them shortly.
"""

import json

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
BEGIN = 1_795_392_000_000  # 2026-11-23, midnight in UTC
END = BEGIN + 2 * DAY + 4 * HOUR
GATEWAYS = ["gw-1", "gw-2", "gw-3"]
BAD_UPDATE = BEGIN + DAY + 12 * HOUR + 30 * MINUTE + 7_000
CRASH = BEGIN + DAY + 20 * HOUR + 15 * MINUTE
RESTART = CRASH + 2 * MINUTE


class Dice:
    """A linear congruential generator: the same numbers everywhere."""

    def __init__(self, seed):
        self.state = seed

    def below(self, end):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % end

    def chance(self, percent):
        return self.below(100) < percent

    def spread(self, mean):
        """Mostly less than the mean, sometimes much more."""
        return mean * (1 + self.below(100)) * (1 + self.below(100)) // 2_600


events = []  # (time, number, fields)


def event(at, kind, **fields):
    events.append((at, len(events), {"type": kind, **fields}))


class Device:
    def __init__(self, user, number, platform, version, dice):
        self.who = {"user": user, "platform": platform, "device": f"{platform}-{user}"}
        self.gateway = GATEWAYS[number % 3]
        self.client = f"app/{version} ({platform})"
        self.flaps = version == "5.2.0" and platform in ("android", "iphone")
        self.is_bad = version == "5.2.0"
        self.dice = dice
        self.has_logged_in = False

    def connect(self, at):
        Device.conns += 1
        epoch = 2 if self.gateway == "gw-2" and at >= RESTART else 1
        self.via = {"gateway": self.gateway, "epoch": epoch, "conn": Device.conns}
        intent = "resume" if self.has_logged_in else "login"
        self.has_logged_in = True
        event(at, "connect", **self.who, **self.via, intent=intent, client=self.client)

    def session(self, begin, end):
        """Is connected from begin to end, with whatever happens meanwhile."""
        dice, at = self.dice, begin
        self.connect(at)
        link_until = at + 2 * MINUTE + dice.below(5 * MINUTE) if self.flaps else end
        quiet_until = at
        while at < end:
            before, at = at, at + 55_000 + dice.below(10_000)
            if self.is_bad and before < BAD_UPDATE <= at:
                event(BAD_UPDATE, "disconnect", **self.who, **self.via, reason="closed")
                at = BAD_UPDATE + 20_000 + dice.below(40_000)
                self.connect(at)
            if self.gateway == "gw-2" and before < CRASH <= at:
                at = RESTART + dice.below(15_000)
                self.connect(at)
            if at >= link_until and self.flaps:
                event(at, "disconnect", **self.who, **self.via, reason="closed")
                at += 5_000 + dice.below(20_000)
                self.connect(at)
                link_until = at + 2 * MINUTE + dice.below(5 * MINUTE)
            if at >= end:
                break
            if self.who["platform"] == "android" and dice.chance(4):
                quiet_until = at + dice.spread(4 * MINUTE)
            if at >= quiet_until:
                event(at, "heartbeat", **self.who, **self.via)
        last = max(at, end)
        how = dice.below(10)
        if how < 6:
            event(last, "disconnect", **self.who, **self.via, reason="closed")
        elif how < 8:
            event(last, "disconnect", **self.who, **self.via, reason="exit")
        elif how < 9:
            event(last, "logout", **self.who, **self.via)
            self.has_logged_in = False
        # Otherwise it is never heard of again, and found out by its time-out.


Device.conns = 0


def main():
    dice = Dice(7)
    for gateway in GATEWAYS:
        at = BEGIN
        while at < END:
            if gateway != "gw-2" or not CRASH <= at < RESTART:
                epoch = 2 if gateway == "gw-2" and at >= RESTART else 1
                event(at, "lease", gateway=gateway, epoch=epoch, ttl_ms=90_000)
            at += MINUTE
    for number in range(100):
        user = f"user-{number:03}"
        platform = ["android", "android", "android", "iphone", "mac"][dice.below(5)]
        version = "5.2.0" if dice.chance(20) else "5.1.4"
        device = Device(user, number, platform, version, dice)
        for day in range(2):
            at = BEGIN + day * DAY + 7 * HOUR + dice.below(6 * HOUR)
            while at < BEGIN + day * DAY + 22 * HOUR:
                end = at + 5 * MINUTE + dice.spread(90 * MINUTE)
                device.session(at, end)
                at = end + 30 * MINUTE + dice.spread(5 * HOUR)
    event(END, "tick")
    events.sort(key=lambda one: one[:2])
    for offset, (at, _, fields) in enumerate(events):
        print(json.dumps({"offset": offset, "ts": at, **fields}, separators=(",", ":")))


main()
