// A client of Rollcall's WebSocket gateway (docs/gateway.md) for browsers and other runtimes with a WebSocket; one file, no
// dependencies.
//
// It keeps a device online: it sends heartbeats at the rate of its platform, and reconnects with `resume`, exponential back-off
// and random jitter, but never after a close that requires a person's login. When the page is used again or the network is
// back, it reconnects at once, and checks a connection that is still open. Subscriptions survive a reconnect. One device id has
// one holder: a duplicated tab gets a new id. It never throws from a timer; it reports everything as an event, and every
// failure as an `error`.
//
//   const me = new Rollcall({ url: "wss://edge.example.com", platform: "web", token: () => getToken() });
//   me.on("change", (change) => show(change.user, change.status));
//   me.on("error", (error) => console.warn(error.code, error.message));
//   me.login();
//   await me.subscribe(["alice", "bob"]);

const MAY_COME_BACK = new Set([1012, 1013, 4005, 4006, 4008, 4009]);
const STAYS_AWAY = new Set([1000, 1003, 1009, 4001, 4002, 4003, 4004, 4007, 4010, 4011]);
const REPLACED = 4001;
const UNAUTHORIZED = 4010;
const BACK_OFF_MS = [500, 30_000];
const ANSWER_MS = 10_000;
/** How long a socket may take to close after its error. */
const CLOSE_MS = 500;
/** Time limit for an answer when the page is used again: a socket may seem open although the machine slept. */
const AWAKE_ANSWER_MS = 2_000;
/** Only one of the page's events within this time counts. */
const AWAKE_EVERY_MS = 1_000;
/** How many times a new token is requested after one was refused. */
const TOKENS_MAX = 3;
/** How long another holder of a device id may take to answer: one that is unloading, and one that stays. */
const LOCK_MS = 700;
const ASK_MS = 150;
const DEVICE_KEY = "rollcall.device";
const BYTES = { platform: 64, device: 128, user: 128 };

/**
 * The error of failed requests and of `error` events. `code` is that of the gateway's `error` frame, or
 * `bad_option`, `no_websocket`, `no_token`, `cannot_connect`, `bad_frame`, `disconnected`, `no_answer`.
 */
export class RollcallError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "RollcallError";
    this.code = code;
  }
}

export class Rollcall {
  /**
   * Throws a RollcallError `bad_option` if an option is missing or too long.
   *
   * @param {object} options
   * @param {string} options.url where the gateway is, ws:// or wss://
   * @param {string} options.platform one of the policy's platforms
   * @param {string} [options.device] an id of this installation or tab, 1 to 128 bytes. Without it a page generates an
   *   id and keeps it in sessionStorage
   * @param {string|function} [options.token] a JWT, or a function (may be async) that returns one for each connection. It
   *   is called with {device, platform, refused}: why the previous token was refused, or null
   * @param {string} [options.user] for a gateway without tokens
   * @param {string} [options.app] name and version of the app
   * @param {function} [options.WebSocket] the class to connect with, if not the global one (for example of the npm package ws)
   * @param {boolean} [options.claim] false: do not check whether another tab holds the device id
   */
  constructor(options) {
    this.options = options = { ...options };
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    try {
      new URL(options.url);
    } catch {
      throw new RollcallError("bad_option", `url must be an address that begins with ws:// or wss://, not ${options.url}`);
    }
    this.ownDevice = options.device == null;
    /** The device id in use. It changes if another tab holds it already; then there is an event `device`. */
    this.device = options.device ?? storedDevice();
    if (this.device == null) {
      throw new RollcallError("bad_option", "device is missing, and there is no sessionStorage to keep a generated id; give options.device");
    }
    checked("platform", options.platform, true);
    checked("device", this.device, true);
    checked("user", options.user, false);
    /** `closed` (does not reconnect by itself), `connecting`, `online` or `waiting` (for the next attempt). */
    this.state = "closed";
    /** The last `hello`. */
    this.hello = null;
    this.intent = "login";
    this.listeners = new Map();
    this.subscribed = new Set();
    this.requests = new Map();
    this.nextId = 1;
    this.attempts = 0;
    this.retryAfterMs = 0;
    this.socket = null;
    this.opening = null;
    this.refused = null;
    this.tokensRefused = 0;
    this.replaced = false;
    this.claim = null;
    this.awakeAt = -Infinity;
    this.timers = { heartbeat: null, answer: null, attempt: null };
    this.awake = (event) => this.#awake(event);
  }

  /**
   * Events: `state` (the new state), `online` (hello), `offline` ({code, reason, comesBack}), `change`, `standing` (the
   * current status of a subscribed user, after each connect), `evicted` (user), `kicked` ({reason, reconnect}), `device` (a
   * new id, because another tab holds the previous one), `error` ({code, message}).
   * Returns a function that removes the listener.
   */
  on(event, listener) {
    if (!this.listeners.has(event)) this.listeners.set(event, new Set());
    this.listeners.get(event).add(listener);
    return () => this.listeners.get(event).delete(listener);
  }

  /** A person logs in: connects, and may displace the user's other devices. */
  login() {
    this.#begin("login");
  }

  /** The device was logged in before, for example before a page was reloaded: reconnects without displacing another device. */
  resume() {
    this.#begin("resume");
  }

  /** Logs out. Resolves when the logout is durable. */
  async logout() {
    await this.#request({ type: "logout" });
  }

  /** Closes the connection and does not reconnect. For others this device has lost its link. */
  close() {
    this.#leave(1000, "closed by the client", false);
  }

  background() {
    return this.#request({ type: "background" });
  }

  foreground() {
    return this.#request({ type: "foreground" });
  }

  /** Sets the user's custom status; null clears it. */
  setCustomStatus(text) {
    return this.#request({ type: "custom_status", text });
  }

  /** Returns the status of up to 200 users: {users, unknown}. */
  query(users) {
    return this.#request({ type: "query", users });
  }

  /** Subscribes to up to 200 users: {users, unknown, evicted}. Repeated automatically after each reconnect. */
  async subscribe(users) {
    for (const user of users) {
      this.subscribed.delete(user);
      this.subscribed.add(user);
    }
    if (this.state !== "online") return { users: [], unknown: [], evicted: [] };
    return await this.#subscribe(users);
  }

  async unsubscribe(users) {
    for (const user of users) this.subscribed.delete(user);
    if (this.state === "online") await this.#request({ type: "unsubscribe", users });
  }

  async #subscribe(users) {
    const answer = await this.#request({ type: "subscribe", users });
    for (const user of answer.evicted) {
      this.subscribed.delete(user);
      this.#emit("evicted", user);
    }
    for (const standing of answer.users) this.#emit("standing", standing);
    return answer;
  }

  #emit(event, value) {
    for (const listener of this.listeners.get(event) ?? []) {
      try {
        listener(value);
      } catch (error) {
        // An error in a listener must not break the connection.
        console.error(error);
      }
    }
  }

  #fail(code, message) {
    const error = new RollcallError(code, message);
    this.#emit("error", error);
    return error;
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.#emit("state", state);
  }

  #begin(intent) {
    if (typeof this.WebSocket !== "function") {
      throw this.#fail("no_websocket", "this runtime has no global WebSocket (Node has one from version 22 on); " +
        "give the class of the npm package ws as options.WebSocket");
    }
    this.attempts = 0;
    this.intent = intent;
    this.refused = null;
    this.tokensRefused = 0;
    this.#listen(true);
    this.#connect();
  }

  async #connect() {
    this.#stopTimers();
    this.replaced = false;
    this.#become("connecting");
    const attempt = (this.attempt = {});
    this.attemptAt = Date.now();
    // The application may close or log in again while this waits.
    const goesOn = () => attempt === this.attempt;
    if (!this.claim && this.options.claim !== false) {
      const claim = await claimDevice(this.device, this.options);
      if (!goesOn() || this.claim) {
        claim.release();
        if (!goesOn()) return;
      } else {
        this.claim = claim;
        if (claim.device !== this.device) {
          this.device = claim.device;
          if (this.ownDevice) storeDevice(this.device);
          this.#emit("device", this.device);
        }
      }
    }
    let token;
    try {
      const given = this.options.token;
      const { platform } = this.options;
      token = typeof given === "function" ? await given({ device: this.device, platform, refused: this.refused }) : given;
    } catch (error) {
      if (goesOn()) this.#failed("no_token", `the token function failed: ${error?.message ?? error}`);
      return;
    }
    if (!goesOn()) return;
    let socket;
    try {
      const url = new URL(this.options.url);
      for (const name of ["platform", "user", "app"]) {
        if (this.options[name]) url.searchParams.set(name, this.options[name]);
      }
      url.searchParams.set("device", this.device);
      url.searchParams.set("intent", this.intent);
      socket = new this.WebSocket(url.href, token ? ["rollcall.v1", `bearer.${token}`] : ["rollcall.v1"]);
    } catch (error) {
      this.#failed("cannot_connect", `cannot connect to ${this.options.url}: ${error?.message ?? error}`);
      return;
    }
    let trouble = "";
    socket.onmessage = ({ data }) => this.#hear(socket, data);
    // Without a listener some WebSocket classes end the process; and some emit no further event after an error.
    socket.onerror = (event) => {
      trouble = event?.message ?? event?.error?.message ?? "";
      setTimeout(() => this.#closed(socket, 1006, trouble), CLOSE_MS);
    };
    socket.onclose = ({ code, reason }) => this.#closed(socket, code, reason || trouble);
    if (this.opening) this.#drop(this.opening);
    this.opening = socket;
    this.timers.attempt = setTimeout(() => this.#closed(socket, 1006, "no hello arrived"), ANSWER_MS);
  }

  /** This attempt failed before there was a socket. */
  #failed(code, message) {
    this.#fail(code, message);
    if (this.socket) this.#stay();
    else this.#comeBack();
  }

  /** The move to another gateway failed; the open connection stays until it is closed. */
  #stay() {
    this.#beat();
    this.#become("online");
    this.timers.attempt = setTimeout(() => this.#connect(), this.#pause());
  }

  #hear(socket, data) {
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      this.#fail("bad_frame", "the gateway sent a message that is not JSON");
      return;
    }
    if (socket === this.socket) {
      // Every message shows that the link works.
      clearTimeout(this.timers.answer);
      this.timers.answer = null;
    }
    if (frame.type === "hello" && socket === this.opening) {
      clearTimeout(this.timers.attempt);
      const before = this.socket;
      this.opening = null;
      this.socket = socket;
      this.hello = frame;
      // The login is done; from now on the device reconnects with `resume`.
      this.intent = "resume";
      this.attempts = 0;
      this.retryAfterMs = 0;
      this.refused = null;
      this.tokensRefused = 0;
      // The previous connection is closed only now, so that the device always has a connection.
      if (before) this.#drop(before);
      this.#beat();
      this.#become("online");
      this.#emit("online", frame);
      this.#renew();
      return;
    }
    if (frame.type === "error") {
      if (frame.retry_after_ms) this.retryAfterMs = frame.retry_after_ms;
      if (frame.code === "unauthorized") this.refused = frame.message;
    }
    if (socket !== this.socket && frame.type !== "error") return;
    switch (frame.type) {
      case "alive":
      case "pong":
        break;
      case "change":
        this.#emit("change", frame);
        break;
      case "kicked":
        this.#emit("kicked", frame);
        break;
      case "reconnect":
        // If the gateway closes earlier, the client still waits this long.
        this.retryAfterMs = frame.after_ms;
        clearTimeout(this.timers.attempt);
        this.timers.attempt = setTimeout(() => this.#connect(), frame.after_ms);
        break;
      default:
        this.#answered(frame);
    }
  }

  #answered(frame) {
    const request = this.requests.get(frame.id);
    if (request) {
      this.requests.delete(frame.id);
      clearTimeout(request.timer);
      if (frame.type === "error") request.reject(new RollcallError(frame.code, frame.message));
      else request.resolve(frame);
    } else if (frame.type === "error") {
      this.#fail(frame.code, frame.message);
    }
  }

  async #renew() {
    const users = [...this.subscribed];
    // Only the newest ones, if there are more than a connection may have.
    const young = users.slice(-200);
    if (young.length > 0) {
      try {
        await this.#subscribe(young);
      } catch (error) {
        this.#emit("error", error);
        if (error.code === "not_ready") setTimeout(() => this.state === "online" && this.#renew(), 2_000);
      }
    }
  }

  #request(frame) {
    if (this.state !== "online") {
      return Promise.reject(new RollcallError("disconnected", "the device is not connected at the moment"));
    }
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      const give_up = () => {
        this.requests.delete(id);
        reject(new RollcallError("no_answer", `no answer to ${frame.type}`));
      };
      this.requests.set(id, { resolve, reject, timer: setTimeout(give_up, 2 * ANSWER_MS) });
      this.#send(this.socket, { ...frame, id });
    });
  }

  /** A closing socket accepts no data; its close event reports this. */
  #send(socket, frame) {
    try {
      socket.send(JSON.stringify(frame));
    } catch {
      // As above.
    }
  }

  #beat() {
    clearInterval(this.timers.heartbeat);
    clearTimeout(this.timers.answer);
    this.timers.answer = null;
    const socket = this.socket;
    const { heartbeat_ms, ping_ms } = this.hello;
    let beatAt = Date.now();
    // A page cannot see the gateway's pings, so it tests the link as often as the gateway does.
    this.timers.heartbeat = setInterval(() => {
      const due = !ping_ms || Date.now() - beatAt > heartbeat_ms - ping_ms / 2;
      if (due) beatAt = Date.now();
      this.#ask(due ? "heartbeat" : "ping", ANSWER_MS, () => this.#closed(socket, 1006, "no answer"));
    }, Math.min(heartbeat_ms, ping_ms ?? heartbeat_ms));
  }

  /** A half-open link accepts data but never answers. */
  #ask(type, withinMs, otherwise) {
    this.#send(this.socket, { type });
    this.timers.answer ??= setTimeout(otherwise, withinMs);
  }

  /** The page is used again, or the network is back. */
  #awake(event) {
    const hidden = globalThis.document?.visibilityState === "hidden";
    const now = Date.now();
    if (hidden && event?.type !== "online") return;
    if (now - this.awakeAt < AWAKE_EVERY_MS) return;
    this.awakeAt = now;
    if (this.state === "closed") {
      // A person who uses this page again has left the other one.
      if (this.replaced && !hidden) this.resume();
    } else if (this.opening || this.state === "connecting") {
      // The attempt may have begun without a network.
      if (now - this.attemptAt > AWAKE_ANSWER_MS) this.#connect();
    } else if (this.state === "online") {
      clearTimeout(this.timers.answer);
      this.timers.answer = null;
      // The connection that does not answer is closed when the next one is open.
      this.#ask("heartbeat", AWAKE_ANSWER_MS, () => this.#connect());
    } else if (!this.retryAfterMs) {
      this.#connect();
    }
  }

  #listen(wanted) {
    const how = wanted ? "addEventListener" : "removeEventListener";
    for (const name of ["online", "focus", "pageshow"]) globalThis[how]?.(name, this.awake);
    for (const name of ["visibilitychange", "resume"]) globalThis.document?.[how]?.(name, this.awake);
  }

  #closed(socket, code, reason) {
    if (socket !== this.socket && socket !== this.opening) return;
    if (socket === this.opening && this.socket) {
      this.opening = null;
      this.#drop(socket);
      this.#stay();
      return;
    }
    if (socket === this.socket && this.opening) {
      // The next connection is already being opened.
      this.socket = null;
      this.#drop(socket);
      return;
    }
    if (socket === this.opening && !STAYS_AWAY.has(code) && !MAY_COME_BACK.has(code)) {
      this.#fail("cannot_connect", `cannot connect to ${this.options.url}: ${reason || `it closed with ${code}`}`);
    }
    // Keys change, and a function may return another token.
    const another = code === UNAUTHORIZED && typeof this.options.token === "function" && this.tokensRefused++ < TOKENS_MAX;
    this.#leave(code, reason, another || MAY_COME_BACK.has(code) || !STAYS_AWAY.has(code));
  }

  #leave(code, reason, comesBack) {
    this.attempt = null;
    for (const socket of [this.socket, this.opening]) if (socket) this.#drop(socket);
    this.socket = this.opening = null;
    this.#stopTimers();
    for (const request of this.requests.values()) {
      clearTimeout(request.timer);
      request.reject(new RollcallError("disconnected", "the connection ended before an answer arrived"));
    }
    this.requests.clear();
    this.replaced = code === REPLACED;
    if (!comesBack && !this.replaced) {
      this.#listen(false);
      this.claim?.release();
      this.claim = null;
    }
    if (this.state !== "closed") this.#emit("offline", { code, reason, comesBack });
    if (comesBack) this.#comeBack();
    else this.#become("closed");
  }

  #drop(socket) {
    socket.onmessage = socket.onclose = null;
    // Errors of an abandoned socket are ignored.
    socket.onerror = () => {};
    socket.close();
  }

  /** Half of the pause is random, so that clients that were cut off together do not reconnect together. */
  #pause() {
    const [least, most] = BACK_OFF_MS;
    const pause = Math.max(Math.min(most, least * 2 ** this.attempts++), this.retryAfterMs);
    return pause / 2 + (Math.random() * pause) / 2 + this.retryAfterMs / 2;
  }

  #comeBack() {
    this.#become("waiting");
    this.timers.attempt = setTimeout(() => {
      this.retryAfterMs = 0;
      this.#connect();
    }, this.#pause());
  }

  #stopTimers() {
    clearInterval(this.timers.heartbeat);
    clearTimeout(this.timers.answer);
    clearTimeout(this.timers.attempt);
    this.timers = { heartbeat: null, answer: null, attempt: null };
  }
}

function checked(name, value, isNeeded) {
  if (value == null && !isNeeded) return;
  const bytes = typeof value === "string" ? new TextEncoder().encode(value).length : 0;
  if (bytes < 1 || bytes > BYTES[name]) {
    const is = typeof value === "string" ? `${bytes} bytes` : value === undefined ? "nothing" : typeof value;
    throw new RollcallError("bad_option", `${name} must be text of 1 to ${BYTES[name]} bytes, not ${is}`);
  }
}

function randomId() {
  if (globalThis.crypto?.randomUUID) return globalThis.crypto.randomUUID();
  const bytes = new Uint8Array(16);
  if (globalThis.crypto?.getRandomValues) globalThis.crypto.getRandomValues(bytes);
  else bytes.forEach((_, at) => (bytes[at] = Math.random() * 256));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns the id that this tab had before it was reloaded, or a new one. */
function storedDevice() {
  try {
    const stored = globalThis.sessionStorage.getItem(DEVICE_KEY);
    if (stored) return stored;
    const device = randomId();
    globalThis.sessionStorage.setItem(DEVICE_KEY, device);
    return device;
  } catch {
    return null;
  }
}

function storeDevice(device) {
  try {
    globalThis.sessionStorage.setItem(DEVICE_KEY, device);
  } catch {
    // Without storage, the next load of this page has another id.
  }
}

/**
 * Claims a device id, or a new one if another client in this browser or process holds it. A duplicated tab has all data
 * of the original, so a random id may have two holders.
 */
async function claimDevice(device, { platform, user }) {
  const name = (id) => JSON.stringify(["rollcall", platform, user ?? null, id]);
  const claim = globalThis.navigator?.locks?.request ? lockDevice : askForDevice;
  const release = await claim(name(device));
  if (release) return { device, release };
  const other = randomId();
  return { device: other, release: (await claim(name(other))) ?? (() => {}) };
}

/** Claims with a lock, which ends with its page. A lock that is still held for a moment may be of the previous page. */
function lockDevice(name) {
  return new Promise((resolve) => {
    const tooLong = new AbortController();
    const timer = setTimeout(() => tooLong.abort(), LOCK_MS);
    const held = () => {
      clearTimeout(timer);
      return new Promise((release) => resolve(release));
    };
    globalThis.navigator.locks.request(name, { signal: tooLong.signal }, held).catch((error) => {
      clearTimeout(timer);
      // If the page may not use locks, other holders cannot be detected.
      resolve(error?.name === "AbortError" ? null : () => {});
    });
  });
}

/** Claims by asking all other clients, if there are no locks. */
async function askForDevice(name) {
  if (typeof globalThis.BroadcastChannel !== "function") return () => {};
  const channel = new BroadcastChannel("rollcall.device");
  const me = randomId();
  let isHeld = false;
  let isMine = false;
  channel.onmessage = ({ data }) => {
    if (data?.name !== name) return;
    if (data.ask) {
      // Of two that ask at the same time, the smaller one gets the id.
      if (isMine || me < data.ask) channel.postMessage({ name, held: data.ask });
    } else if (data.held === me) {
      isHeld = true;
    }
  };
  // The channel must not keep a process alive.
  channel.unref?.();
  channel.postMessage({ name, ask: me });
  await new Promise((resolve) => setTimeout(resolve, ASK_MS));
  if (isHeld) {
    channel.close();
    return null;
  }
  isMine = true;
  return () => channel.close();
}
