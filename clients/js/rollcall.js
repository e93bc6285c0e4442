// A client of Rollcall's WebSocket edge (docs/gateway.md) for browsers and other runtimes with a WebSocket; one file,
// no dependencies.
//
// It keeps a device online: heartbeats at the pace of its platform, reconnecting by itself with chance and later and
// later, with `resume`, but never after a close that only a person's login may follow. Subscriptions survive a
// reconnect. It never throws from a timer; everything that happens is an event.
//
//   const me = new Rollcall({ url: "wss://edge.example.com", platform: "web", device: deviceId, token: () => getToken() });
//   me.on("change", (change) => show(change.user, change.status));
//   me.login();
//   await me.subscribe(["alice", "bob"]);

const MAY_COME_BACK = new Set([1012, 1013, 4005, 4006, 4008, 4009]);
const STAYS_AWAY = new Set([1000, 1003, 1009, 4001, 4002, 4003, 4004, 4007, 4010, 4011]);
const BACK_OFF_MS = [500, 30_000];
const ANSWER_MS = 10_000;

/** What a request fails with: `code` is that of the gateway's `error` frame, or `disconnected` or `no_answer`. */
export class RollcallError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "RollcallError";
    this.code = code;
  }
}

export class Rollcall {
  /**
   * @param {object} options
   * @param {string} options.url where the gateway is, ws:// or wss://
   * @param {string} options.platform one of the policy's platforms
   * @param {string} options.device an id that stays the same for this installation or tab
   * @param {string|function} [options.token] a JWT, or a function (perhaps async) that gives one for each connection
   * @param {string} [options.user] for a gateway that asks for no token
   * @param {string} [options.app] name and version of the app
   * @param {function} [options.WebSocket] the class to connect with, if not the global one
   */
  constructor(options) {
    this.options = options;
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    /** `closed` (nothing goes on by itself), `connecting`, `online` or `waiting` (for the next attempt). */
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
    this.timers = { heartbeat: null, answer: null, attempt: null };
  }

  /**
   * Events: `state` (the new one), `online` (hello), `offline` ({code, reason, comesBack}), `change`, `standing`
   * (how a subscribed user stands, after each connect), `evicted` (user), `kicked` ({reason, reconnect}), `error`.
   * Gives a function that takes the listener off.
   */
  on(event, listener) {
    if (!this.listeners.has(event)) this.listeners.set(event, new Set());
    this.listeners.get(event).add(listener);
    return () => this.listeners.get(event).delete(listener);
  }

  /** A person logs in: connects, and may displace the user's other devices. */
  login() {
    this.attempts = 0;
    this.intent = "login";
    this.#connect();
  }

  /** The device was logged in before, a page was loaded again say: comes back without displacing anybody. */
  resume() {
    this.attempts = 0;
    this.intent = "resume";
    this.#connect();
  }

  /** Logs out; done once that is safe. */
  async logout() {
    await this.#request({ type: "logout" });
  }

  /** Closes the connection and stays away. For others this device has lost its link. */
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

  /** How up to 200 users stand: {users, unknown}. */
  query(users) {
    return this.#request({ type: "query", users });
  }

  /** Subscribes to up to 200 users: {users, unknown, evicted}. Renewed by itself after each reconnect. */
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
      this.#tell("evicted", user);
    }
    for (const standing of answer.users) this.#tell("standing", standing);
    return answer;
  }

  #tell(event, value) {
    for (const listener of this.listeners.get(event) ?? []) {
      try {
        listener(value);
      } catch (error) {
        // One listener's mistake is not the connection's.
        console.error(error);
      }
    }
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.#tell("state", state);
  }

  async #connect() {
    this.#stopTimers();
    this.#become("connecting");
    const attempt = (this.attempt = {});
    let token;
    try {
      const given = this.options.token;
      token = typeof given === "function" ? await given() : given;
    } catch (error) {
      if (attempt === this.attempt) this.#comeBack(`no token: ${error}`);
      return;
    }
    // Somebody else may have decided otherwise meanwhile.
    if (attempt !== this.attempt) return;
    const url = new URL(this.options.url);
    for (const name of ["platform", "device", "user", "app"]) {
      if (this.options[name]) url.searchParams.set(name, this.options[name]);
    }
    url.searchParams.set("intent", this.intent);
    const protocols = token ? ["rollcall.v1", `bearer.${token}`] : ["rollcall.v1"];
    let socket;
    try {
      socket = new this.WebSocket(url.href, protocols);
    } catch (error) {
      this.#comeBack(String(error));
      return;
    }
    socket.onmessage = ({ data }) => this.#hear(socket, JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#closed(socket, code, reason);
    this.opening = socket;
    this.timers.attempt = setTimeout(() => this.#closed(socket, 1006, "no hello came"), ANSWER_MS);
  }

  #hear(socket, frame) {
    if (frame.type === "hello" && socket === this.opening) {
      clearTimeout(this.timers.attempt);
      const before = this.socket;
      this.opening = null;
      this.socket = socket;
      this.hello = frame;
      // The person has logged in; from now on the device comes back by itself.
      this.intent = "resume";
      this.attempts = 0;
      this.retryAfterMs = 0;
      // The one before is left only now, so that the device is never without a connection.
      if (before) this.#drop(before);
      this.#beat();
      this.#become("online");
      this.#tell("online", frame);
      this.#renew();
      return;
    }
    if (frame.type === "error" && frame.retry_after_ms) this.retryAfterMs = frame.retry_after_ms;
    if (socket !== this.socket && frame.type !== "error") return;
    switch (frame.type) {
      case "alive":
        clearTimeout(this.timers.answer);
        this.timers.answer = null;
        break;
      case "change":
        this.#tell("change", frame);
        break;
      case "kicked":
        this.#tell("kicked", frame);
        break;
      case "reconnect":
        // If it closes before, not earlier than this either.
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
      this.#tell("error", frame);
    }
  }

  async #renew() {
    const users = [...this.subscribed];
    // The youngest, if there are more than a connection may have.
    const young = users.slice(-200);
    if (young.length > 0) {
      try {
        await this.#subscribe(young);
      } catch (error) {
        this.#tell("error", error);
        if (error.code === "not_ready") setTimeout(() => this.state === "online" && this.#renew(), 2_000);
      }
    }
  }

  #request(frame) {
    if (this.state !== "online") {
      return Promise.reject(new RollcallError("disconnected", "there is no connection at the moment"));
    }
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      const give_up = () => {
        this.requests.delete(id);
        reject(new RollcallError("no_answer", `no answer to ${frame.type}`));
      };
      this.requests.set(id, { resolve, reject, timer: setTimeout(give_up, 2 * ANSWER_MS) });
      this.socket.send(JSON.stringify({ ...frame, id }));
    });
  }

  #beat() {
    clearTimeout(this.timers.heartbeat);
    clearTimeout(this.timers.answer);
    this.timers.answer = null;
    const socket = this.socket;
    this.timers.heartbeat = setInterval(() => {
      socket.send('{"type":"heartbeat"}');
      // A link that is half open takes everything and answers nothing.
      this.timers.answer ??= setTimeout(() => this.#closed(socket, 1006, "no answer"), ANSWER_MS);
    }, this.hello.heartbeat_ms);
  }

  #closed(socket, code, reason) {
    if (socket !== this.socket && socket !== this.opening) return;
    if (socket === this.opening && this.socket) {
      // Going elsewhere did not work; the connection that is there stays until it is closed.
      this.opening = null;
      this.#drop(socket);
      this.#become("online");
      this.timers.attempt = setTimeout(() => this.#connect(), this.#pause());
      return;
    }
    if (socket === this.socket && this.opening) {
      // The next connection is on its way already.
      this.socket = null;
      this.#drop(socket);
      return;
    }
    this.#leave(code, reason, MAY_COME_BACK.has(code) || !STAYS_AWAY.has(code));
  }

  #leave(code, reason, comesBack) {
    this.attempt = null;
    for (const socket of [this.socket, this.opening]) if (socket) this.#drop(socket);
    this.socket = this.opening = null;
    this.#stopTimers();
    for (const request of this.requests.values()) {
      clearTimeout(request.timer);
      request.reject(new RollcallError("disconnected", "the connection ended before an answer came"));
    }
    this.requests.clear();
    this.#tell("offline", { code, reason, comesBack });
    if (comesBack) this.#comeBack(reason);
    else this.#become("closed");
  }

  #drop(socket) {
    socket.onmessage = socket.onclose = null;
    // An error of a socket that nobody listens to is nobody's.
    socket.onerror = () => {};
    socket.close();
  }

  /** Half of the pause is chance, for those who were cut off together not to come back together. */
  #pause() {
    const [least, most] = BACK_OFF_MS;
    const pause = Math.max(Math.min(most, least * 2 ** this.attempts++), this.retryAfterMs);
    return pause / 2 + (Math.random() * pause) / 2 + this.retryAfterMs / 2;
  }

  #comeBack() {
    this.#become("waiting");
    this.timers.attempt = setTimeout(() => this.#connect(), this.#pause());
  }

  #stopTimers() {
    clearInterval(this.timers.heartbeat);
    clearTimeout(this.timers.answer);
    clearTimeout(this.timers.attempt);
    this.timers = { heartbeat: null, answer: null, attempt: null };
  }
}
