// The console's connection to the server: the token, requests, streams, and the current log time.
//
// Events of the document: `rollcall-start` when the page is visible and has a token if one is needed; `rollcall-stop` when
// it is not (its detail says whether streams forget their position); `rollcall-locked` when the server requires a token;
// `rollcall-replaced` when the server has another log than before.

import { mono, plain } from './dom.js';

let token = null, locked = false;
try { token = sessionStorage.getItem('rollcall.token'); } catch (e) { /* Without session storage, the token lasts as long as the page. */ }

export const isLocked = () => locked;
export const hasToken = () => !!token;
const auth = (given) => { const used = given || token; return used ? { Authorization: 'Bearer ' + used } : {}; };

export class Failed extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

/** Sends a GET, or a POST of `body`; `given` is a token for this request only. */
export async function api(path, { ms = 8000, body, given } = {}) {
  if (locked) throw new Failed('a token is needed', 401);
  const c = new AbortController(), t = setTimeout(() => c.abort(), ms), used = token;
  const post = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) };
  try {
    const headers = { ...auth(given), ...(post.body ? { 'Content-Type': 'application/json' } : {}) };
    const r = await fetch(path, { ...post, headers, cache: 'no-store', signal: c.signal });
    let b = null;
    try { b = await r.json(); } catch (e) { /* Reported below. */ }
    if (!given) lockIfRefused(r.status, b, used, !!post.body);
    if (!r.ok) throw new Failed(plain((b && b.error && b.error.message) || 'the server answered ' + r.status), r.status);
    if (!b) throw new Failed('the answer is not JSON', 0);
    return b;
  } catch (e) {
    throw e instanceof Failed ? e : new Failed(e.name === 'AbortError' ? 'the server did not answer in time' : 'the server cannot be reached', 0);
  } finally { clearTimeout(t); }
}

export const started = () => document.dispatchEvent(new Event('rollcall-start'));
export const stopped = (forget) => document.dispatchEvent(new CustomEvent('rollcall-stop', { detail: { forget } }));
export const backoff = (n) => Math.min(20000, 1000 * 2 ** Math.min(n - 1, 5)) * (0.6 + 0.4 * Math.random());

/* A token that may not read is as good as unknown: the page can show nothing with it. An action needs more than that, and
 * asks for another token itself. */
function lockIfRefused(status, body, used, isAction) {
  const { code, message } = (body && body.error) || {};
  if (!(status === 401 || (status === 403 && code === 'forbidden' && used && !isAction)) || used !== token || locked) return;
  locked = true;
  const had = !!token;
  forgetToken();
  stopped(false);
  document.dispatchEvent(new CustomEvent('rollcall-locked', { detail: { had, why: message && plain(message) } }));
}
export function forgetToken() {
  token = null;
  try { sessionStorage.removeItem('rollcall.token'); } catch (e) { /* As above. */ }
}
export function unlock(given) {
  token = given;
  locked = false;
  try { sessionStorage.setItem('rollcall.token', given); } catch (e) { /* As above. */ }
}

/* ---- log time ---- */
/* Log time advances with records. The best estimate of "now" adds to our own clock the greatest lead that log time, or the
 * server's clock, has had over it. */
const clocks = new Map();
export function observe(partition, time) {
  if (!Number.isFinite(time)) return;
  const ahead = time - mono();
  if (!(clocks.get(partition) >= ahead)) clocks.set(partition, ahead);
}
export function logNow(partition) {
  const seen = [clocks.get('server'), partition === undefined ? undefined : clocks.get(partition)].filter((o) => o !== undefined);
  const all = seen.length ? seen : [...clocks.values()];
  return all.length ? Math.max(...all) + mono() : null;
}

/* ---- streams ---- */
/** Parses server-sent events. Stores the cursor and the retry time that the server sends in `to`. */
function sse(to, emit) {
  let buf = '', data = [], name = '', id = null;
  return (chunk) => {
    const lines = (buf + chunk).split(/\r\n|\n|\r(?!$)/);
    buf = lines.pop();
    for (const line of lines) {
      if (!line) {
        if (id !== null) { to.cursor = id; id = null; }
        if (data.length) emit(name || 'message', data.join('\n'));
        data = [];
        name = '';
        continue;
      }
      const [, f, v] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line);
      if (f === 'data') data.push(v);
      else if (f === 'event') name = v;
      else if (f === 'id') { if (/^[ -~]*$/.test(v)) id = v; }
      else if (f === 'retry' && /^\d+$/.test(v)) to.base = Math.min(30000, Math.max(200, +v));
    }
  };
}

/* The server sends something every ten seconds, so a link that is silent for this long is dead. */
const SILENCE_MS = 30000;
/* How many older records of each partition a new stream starts with. */
const BACK = 50;

/** One subscription, which reconnects at its last position whenever it ends. `notify` has three callbacks: `item` for each
 * record; `lost` when the stream cannot continue at its last position; `state` for each change of `state`, which is idle,
 * trying, open or wait. */
export class Stream {
  constructor(path, name, notify) {
    Object.assign(this, { path, name, notify, state: 'idle', cursor: null, base: 1000, ever: false, fails: 0, retryAt: 0, downAt: 0, bytesAt: 0, err: '' });
    Object.assign(this, { control: null, timer: 0 });
    document.addEventListener('rollcall-start', () => { if (this.state === 'idle' || this.state === 'wait') this.open(); });
    document.addEventListener('rollcall-replaced', () => { this.stop(); this.cursor = null; this.ever = false; this.open(); });
    document.addEventListener('rollcall-stop', ({ detail }) => { this.stop(); if (detail.forget) this.cursor = null; });
  }

  become(state) { this.state = state; this.notify.state(); }

  stop() {
    clearTimeout(this.timer);
    const was = this.control;
    this.control = null;
    if (was) was.abort();
    this.become('idle');
  }

  lose() { this.cursor = null; this.notify.lost(); }

  async open() {
    if (locked || this.state === 'open' || this.state === 'trying') return;
    clearTimeout(this.timer);
    const mine = (this.control = new AbortController()), used = token;
    this.retryAt = 0;
    this.become('trying');
    let dog = 0, why = 'the server ended the stream', openedAt = 0, got = false, refused = false;
    const alive = (ms) => { clearTimeout(dog); dog = setTimeout(() => mine.abort(), ms); };
    alive(15000);
    try {
      const headers = { ...auth() };
      if (this.cursor) headers['Last-Event-ID'] = this.cursor;
      const r = await fetch(this.path + (this.ever || this.cursor ? '' : '?after=latest-' + BACK), { headers, cache: 'no-store', signal: mine.signal });
      if (this.control !== mine) return;
      if (r.status === 401 || r.status === 403) {
        let body = null;
        try { body = await r.json(); } catch (e) { /* The status says enough. */ }
        lockIfRefused(r.status, body, used);
        if (locked || this.control !== mine) return;
      }
      if (!r.ok || !r.body) {
        if (this.cursor && r.status >= 400 && r.status < 500 && r.status !== 429) this.lose();
        throw new Failed('the server answered ' + r.status, r.status);
      }
      if (!/^text\/event-stream/i.test(r.headers.get('content-type') || '')) throw new Failed('the answer is not an event stream', 0);
      this.ever = true;
      this.err = '';
      openedAt = this.bytesAt = mono();
      this.become('open');
      const reader = r.body.getReader(), decoder = new TextDecoder(), parse = sse(this, (name, data) => {
        if (name === this.name) {
          got = true;
          this.fails = 0;
          let item = null;
          try { item = JSON.parse(data); } catch (e) { return; }
          this.notify.item(item);
        } else if (name === 'error') {
          refused = !got;
          why = data;
          try { const o = JSON.parse(data), x = o.error || o; why = x.message || x.code || why; } catch (e) { /* Not JSON: shown unchanged. */ }
          why = 'the server says: ' + plain(String(why).slice(0, 200));
        }
      });
      for (;;) {
        const { done, value } = await reader.read();
        if (this.control !== mine) return;
        if (done) break;
        this.bytesAt = mono();
        alive(SILENCE_MS);
        parse(decoder.decode(value, { stream: true }));
      }
    } catch (e) {
      if (this.control !== mine) return;
      why = e instanceof Failed ? e.message : openedAt ? 'the stream was interrupted' : 'the server cannot be reached';
    } finally { clearTimeout(dog); }
    if (refused && this.cursor) this.lose();
    const long = openedAt && mono() - openedAt > 10000;
    if (long) this.fails = 0;
    if (!this.fails || openedAt) this.downAt = mono();
    this.fails++;
    this.err = why;
    this.control = null;
    const wait = long ? this.base * (0.2 + 0.5 * Math.random()) : Math.max(backoff(this.fails), this.base * 0.6);
    this.retryAt = mono() + wait;
    this.timer = setTimeout(() => this.open(), wait);
    this.become('wait');
  }

  /** Whether the stream is down, except for a short interruption. */
  isDown() { return this.fails > 0 && this.state !== 'open' && (this.fails > 1 || mono() - this.downAt > 1500); }
}
