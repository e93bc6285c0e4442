// Holds rollcall.js against a real server. Run by hand, with Node 22 or later (20 with --experimental-websocket):
//
//   node --test clients/js/test.mjs        with the program as ROLLCALL, or `rollcall` on the path

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { Rollcall, RollcallError } from "./rollcall.js";

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

/** The next event of a name. */
function next(me, event, so = () => true) {
  return new Promise((resolve) => {
    const off = me.on(event, (value) => {
      if (!so(value)) return;
      off();
      resolve(value);
    });
  });
}

async function online(me, how = "login") {
  const greeted = next(me, "online");
  me[how]();
  return await greeted;
}

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
  const { users } = await alice.query(["bob"]);
  assert.equal(users[0].custom_status, "here");
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
  // Somebody in between, who can cut.
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
  const changes = await (await fetch(new URL("/v1/users/frank/changes", server.console))).json();
  assert.deepEqual(changes.changes.map(({ cause }) => cause), ["login"]);
  frank.close();
  await stop(two);
});
