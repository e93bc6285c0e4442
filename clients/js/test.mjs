// Tests rollcall.js with a real server. tests/gateway/javascript.rs runs it; by hand, with Node 22 or later (20 with
// --experimental-websocket):
//
//   node --test clients/js/test.mjs        with the program as ROLLCALL, or `rollcall` on the path

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { Rollcall, RollcallError } from "./rollcall.js";

// Timers of a hidden page run seldom, and a page's events wake it. Node has no such events, so they are simulated here.
const page = new EventTarget();
globalThis.addEventListener = page.addEventListener.bind(page);
globalThis.removeEventListener = page.removeEventListener.bind(page);
const awake = (event) => page.dispatchEvent(new Event(event));

const program = process.env.ROLLCALL ?? "rollcall";
const data = mkdtempSync(join(tmpdir(), "rollcall-"));
let server;

async function start(command, args, wanted) {
  const child = spawn(program, [command, ...args, "--log-level", "error"], { stdio: ["ignore", "pipe", "inherit"] });
  const found = {};
  for await (const line of createInterface({ input: child.stdout })) {
    const [name, url] = line.split(/\s+/);
    found[name] = url;
    if (found[wanted]) return { child, ...found };
  }
  throw new Error(`${command} did not start`);
}

function stop({ child }) {
  return new Promise((resolve) => {
    child.on("exit", resolve);
    child.kill();
  });
}

before(async () => {
  const policy = join(data, "policy.json");
  writeFileSync(policy, JSON.stringify({ login: "multi", instances: { web: 1 } }));
  const args = ["--listen", "127.0.0.1:0", "--data", join(data, "engine"), "--policy", policy];
  server = await start("serve", [...args, "--gateway", "127.0.0.1:0", "--gateway-insecure"], "clients");
});

after(async () => {
  await stop(server);
  rmSync(data, { recursive: true });
});

function client(user, more = {}) {
  return new Rollcall({ url: server.clients, platform: "web", device: `${user}-tab`, user, app: "test/1", ...more });
}

/** Returns the next event with this name. */
function next(me, event, so = () => true) {
  return new Promise((resolve) => {
    const off = me.on(event, (value) => {
      if (!so(value)) return;
      off();
      resolve(value);
    });
  });
}

/**
 * Asks until the user is as wanted. A client is greeted when its connection is in the log, and an answer may be from just
 * before that. A user that never becomes so fails the test with the last answer.
 */
async function shown(me, user, wanted) {
  let seen;
  for (let asked = 0; asked < 1_000; asked++) {
    const [found] = (await me.query([user])).users;
    seen = Object.fromEntries(Object.keys(wanted).map((name) => [name, found?.[name]]));
    if (isDeepStrictEqual(seen, wanted)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.deepEqual(seen, wanted);
}

async function online(me, how = "login") {
  const greeted = next(me, "online");
  me[how]();
  return await greeted;
}

test("it is a package for import and for require", () => {
  const required = createRequire(import.meta.url)("./rollcall.cjs");
  assert.deepEqual(Object.keys(required), ["RollcallError", "Rollcall"]);
  assert.equal(new required.Rollcall({ url: "ws://host", platform: "web", device: "d" }).state, "closed");
});

test("options that cannot work are refused by name", () => {
  const good = { url: "ws://host", platform: "web", device: "d" };
  const refused = (more, name) =>
    assert.throws(() => new Rollcall({ ...good, ...more }), (error) => error.code === "bad_option" && error.message.startsWith(name));
  refused({ device: "f".repeat(129) }, "device");
  refused({ device: "é".repeat(65) }, "device");
  refused({ device: "" }, "device");
  refused({ device: 7 }, "device");
  // Without an id it needs a page that stores one.
  refused({ device: undefined }, "device");
  refused({ platform: undefined }, "platform");
  refused({ platform: "p".repeat(65) }, "platform");
  refused({ user: "u".repeat(129) }, "user");
  refused({ url: "edge" }, "url");
  assert.equal(new Rollcall({ ...good, device: "f".repeat(128) }).device.length, 128);
});

test("without a WebSocket it says so instead of trying for ever", () => {
  const me = client("nobody", { WebSocket: "none" });
  const errors = [];
  me.on("error", (error) => errors.push(error.code));
  for (const how of ["login", "resume"]) assert.throws(() => me[how](), { code: "no_websocket" });
  assert.deepEqual([errors, me.state], [["no_websocket", "no_websocket"], "closed"]);
});

test("a refused connection is an error event, also where an error without a listener ends the process", async () => {
  // The class of the npm package ws is an emitter: `error` without a listener throws.
  let made = 0;
  class Emitting {
    constructor() {
      made++;
      setTimeout(() => {
        if (!this.onerror) throw new Error("nobody listens");
        this.onerror({ message: "connect ECONNREFUSED" });
        this.onclose?.({ code: 1006, reason: "" });
      });
    }
    close() {}
    send() {}
  }
  const me = client("bot", { WebSocket: Emitting, claim: false });
  const refused = next(me, "error");
  me.login();
  const error = await refused;
  assert.equal(error.code, "cannot_connect");
  assert.match(error.message, /ECONNREFUSED/);
  assert.equal(me.state, "waiting");
  await next(me, "error");
  assert.ok(made >= 2);
  me.close();
  const failing = client("bot", { token: () => Promise.reject(new Error("no session")) });
  const without = next(failing, "error");
  failing.login();
  assert.deepEqual([(await without).code, failing.state], ["no_token", "waiting"]);
  failing.close();
});

test("a parameter that the gateway refuses ends it with an error that names it", async () => {
  const me = client("gina", { platform: "web" });
  // As an older client connects.
  me.options.platform = "w".repeat(65);
  const [said, left] = [next(me, "error"), next(me, "offline")];
  me.login();
  const error = await said;
  assert.equal(error.code, "bad_parameter");
  assert.match(error.message, /platform/);
  assert.deepEqual(await left, { code: 4007, reason: "bad_request", comesBack: false });
});

test("of two with one device id the one that holds it keeps it", async () => {
  const [first, copy] = [client("dup"), client("dup")];
  await online(first);
  const other = next(copy, "device");
  copy.resume();
  assert.notEqual(await other, "dup-tab");
  assert.notEqual(copy.device, first.device);
  assert.equal(first.device, "dup-tab");
  copy.close();
  await shown(first, "dup", { status: "online" });
  assert.equal(first.state, "online");
  // Once it is closed, the id is free again.
  first.close();
  const again = client("dup");
  await online(again, "resume");
  assert.equal(again.device, "dup-tab");
  again.close();
});

test("one that was replaced comes back when its page is used again", async () => {
  const alone = { claim: false };
  const [one, two] = [client("hugo", alone), client("hugo", alone)];
  await online(one);
  const replaced = next(one, "offline");
  await online(two);
  assert.deepEqual(await replaced, { code: 4001, reason: "replaced", comesBack: false });
  assert.equal(one.state, "closed");
  two.close();
  const back = next(one, "online");
  awake("focus");
  await back;
  await shown(one, "hugo", { status: "online" });
  one.close();
  // A client that closed its connection must connect explicitly.
  awake("focus");
  assert.equal(one.state, "closed");
});

test("it logs in, asks, watches and logs out", async () => {
  const [alice, bob] = [client("alice"), client("bob")];
  const hello = await online(alice);
  assert.equal(hello.user, "alice");
  const standing = await alice.subscribe(["bob"]);
  assert.deepEqual(standing.unknown, ["bob"]);
  const change = next(alice, "change");
  await online(bob);
  assert.deepEqual([(await change).user, (await change).status], ["bob", "online"]);
  await bob.setCustomStatus("here");
  await bob.background();
  await bob.foreground();
  await shown(alice, "bob", { status: "online", custom_status: "here" });
  const left = next(bob, "offline");
  const logout = next(alice, "change", ({ cause }) => cause === "logout");
  await bob.logout();
  assert.deepEqual(await left, { code: 1000, reason: "logged_out", comesBack: false });
  await logout;
  assert.equal(bob.state, "closed");
  await assert.rejects(bob.query(["alice"]), (error) => error instanceof RollcallError && error.code === "disconnected");
  await assert.rejects(alice.query([]), (error) => error.code === "bad_frame");
  alice.close();
});

test("one that is displaced or kicked does not come back by itself", async () => {
  const [first, second] = [client("carol"), client("carol", { device: "another" })];
  await online(first);
  const displaced = next(first, "offline");
  await online(second);
  assert.deepEqual(await displaced, { code: 4002, reason: "displaced", comesBack: false });
  assert.equal(first.state, "closed");
  const kicked = next(second, "offline");
  const body = JSON.stringify([{ type: "kick", user: "carol" }]);
  await fetch(new URL("/v1/events", server.console), { method: "POST", body });
  assert.equal((await kicked).code, 4003);
  assert.equal(second.state, "closed");
});

test("one that is cut off comes back, and is subscribed as before", async () => {
  // A proxy that can cut the connection.
  const through = new Set();
  const target = new URL(server.clients);
  const proxy = createServer((near) => {
    const far = connect(target.port, target.hostname);
    near.pipe(far).pipe(near);
    for (const end of [near, far]) end.on("error", () => {});
    through.add(near);
  });
  await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const dave = client("dave", { url: `ws://127.0.0.1:${proxy.address().port}` });
  await online(dave);
  await dave.subscribe(["erin"]);
  const [offline, back, standing] = [next(dave, "offline"), next(dave, "online"), next(dave, "standing")];
  const erin = client("erin");
  await online(erin);
  await shown(erin, "erin", { status: "online" });
  for (const near of through) near.destroy();
  assert.equal((await offline).comesBack, true);
  await back;
  assert.deepEqual([(await standing).user, (await standing).status], ["erin", "online"]);
  const change = next(dave, "change", ({ user, status }) => user === "erin" && status === "offline");
  erin.close();
  await change;
  dave.close();
  proxy.close();
});

test("when the network is back it is online at once, whether the link seemed open or not", async () => {
  let up = true;
  const ends = new Set();
  const target = new URL(server.clients);
  const proxy = createServer((near) => {
    if (!up) return near.destroy();
    const far = connect(target.port, target.hostname);
    const link = { near, far, dead: false };
    ends.add(link);
    near.on("data", (data) => link.dead || far.write(data));
    far.on("data", (data) => link.dead || near.write(data));
    near.on("close", () => link.dead || far.destroy());
    far.on("close", () => link.dead || near.destroy());
    for (const end of [near, far]) end.on("error", () => {});
  });
  await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const lara = client("lara", { url: `ws://127.0.0.1:${proxy.address().port}`, platform: "linux" });
  await online(lara);
  // The link is lost without a close, as when a lid is closed: the next heartbeat would be due in two minutes.
  for (const link of ends) link.dead = true;
  let back = next(lara, "online");
  awake("online");
  await back;
  // Cut, and restored after so many attempts that the next one would be much later.
  up = false;
  for (const link of ends) link.near.destroy();
  await next(lara, "state", (state) => state === "waiting");
  lara.attempts = 12;
  await next(lara, "state", (state) => state === "waiting");
  up = true;
  back = next(lara, "online");
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  awake("pageshow");
  await back;
  lara.close();
  for (const { near, far } of ends) [near, far].forEach((end) => end.destroy());
  proxy.close();
});

test("another token is asked for a few times when one was refused", async () => {
  const secret = join(data, "secret");
  writeFileSync(secret, "a secret of at least thirty-two bytes");
  const gateway = await start("gateway", ["--listen", "127.0.0.1:0", "--engine", server.console, "--data", join(data, "gateways"),
    "--gateway-name", "tokens", "--jwt-key", secret], "clients");
  const asked = [];
  const me = client("mona", { url: gateway.clients, token: (request) => (asked.push(request), "no.token.yet") });
  const closed = next(me, "state", (state) => state === "closed");
  me.login();
  await closed;
  assert.equal(asked.length, 4);
  assert.deepEqual([asked[0].device, asked[0].platform, asked[0].refused], ["mona-tab", "web", null]);
  assert.equal(typeof asked[1].refused, "string");
  const once = client("mona", { url: gateway.clients, token: "no.token.ever" });
  const left = next(once, "offline");
  once.login();
  assert.deepEqual(await left, { code: 4010, reason: "unauthorized", comesBack: false });
  await stop(gateway);
});

test("it goes to another gateway before it leaves one that stops", async () => {
  const gateway = (name) =>
    start("gateway", ["--listen", "127.0.0.1:0", "--engine", server.console, "--data", join(data, "gateways"),
      "--gateway-name", name, "--gateway-insecure", "--drain-ms", "4000"], "clients");
  const [one, two] = [await gateway("one"), await gateway("two")];
  const frank = client("frank", { url: one.clients });
  assert.equal((await online(frank)).gateway, "one");
  const states = [];
  frank.on("state", (state) => states.push(state));
  frank.on("offline", () => states.push("offline"));
  frank.options.url = two.clients;
  const there = next(frank, "online");
  const stopped = stop(one);
  assert.equal((await there).gateway, "two");
  await stopped;
  assert.ok(!states.includes("offline"), states.join());
  // Both connections are in the log; the second one is folded a moment later.
  for (let asked = 0; ; asked++) {
    const user = await (await fetch(new URL("/v1/users/frank", server.console))).json();
    if (user.devices?.[0].gateway === "two") break;
    assert.ok(asked < 1_000, JSON.stringify(user));
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const changes = await (await fetch(new URL("/v1/users/frank/changes", server.console))).json();
  assert.deepEqual(changes.changes.map(({ cause }) => cause), ["login"]);
  frank.close();
  await stop(two);
});
