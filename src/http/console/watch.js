// The console's figures: requests them every second and shows them.

import { $, on, mono, num, text, h, by, plain, plural, persec, clock, dur, say, rows, same, fill } from './dom.js';
import { Failed, api, backoff, isLocked, logNow, observe, started } from './server.js';
import { addHistory, addSample, describe, forgetSamples, drawChart, latest, pace, since } from './chart.js';
import { stream } from './changes.js';
import { drawLook } from './user.js';

/** Shared with the other scripts: the newest answers, and the number of failed requests since the last success. */
export const watch = { stats: null, gateways: [], gatewaysAt: 0, policy: null, fails: 0, isKafka: false };
const poll = { timer: 0, retryAt: 0, busy: false, okAt: 0, err: '', firstFail: 0 };
const began = mono();

export async function pollStats() {
  clearTimeout(poll.timer);
  if (poll.busy || document.hidden || isLocked()) return;
  poll.busy = true;
  poll.retryAt = 0;
  if (watch.fails) showState();
  let next;
  try {
    const s = await api('v1/stats');
    const back = watch.fails > 0, lost = poll.firstFail;
    watch.fails = 0;
    poll.okAt = Date.now();
    poll.err = '';
    onStats(s);
    if (back) {
      if (stream.state === 'open' && stream.bytesAt < lost) stream.stop();
      started();
      pollRest();
    }
    next = mono() - began < 8000 ? 500 : 1000;
  } catch (e) {
    if (!(e instanceof Failed)) throw e;
    if (!watch.fails) poll.firstFail = mono();
    if (!isLocked()) watch.fails++;
    poll.err = e.message;
    next = backoff(watch.fails);
    poll.retryAt = mono() + next;
  } finally {
    poll.busy = false;
  }
  if (!document.hidden && !isLocked()) poll.timer = setTimeout(pollStats, next);
  showState();
}
export function stopPolling() { clearTimeout(poll.timer); }

let policyAt = -1e9, historyAt = -1e9;
export async function pollRest() {
  if (document.hidden || isLocked() || watch.fails) return;
  const skip = (e) => { if (!(e instanceof Failed)) throw e; };
  /* Repeated regularly: while this page was in the background it took no samples. */
  if (watch.stats && mono() - historyAt > 30000) {
    try { const answer = await api('v1/stats/history'); historyAt = mono(); addHistory(answer, watch.stats.now + (mono() - latest().t)); const [first] = answer.samples || []; document.dispatchEvent(new CustomEvent('rollcall-history', { detail: { from: first ? first.at : watch.stats.now } })); } catch (e) { skip(e); }
  }
  try { watch.gateways = (await api('v1/gateways')).gateways || []; watch.gatewaysAt = mono(); drawGateways(); } catch (e) { skip(e); }
  if (mono() - policyAt > 60000) try { const p = await api('v1/policy'); policyAt = mono(); watch.policy = p.policy; drawPolicy(p); drawLook(); } catch (e) { skip(e); }
}
/** The history has a gap: requests it again at once. */
export function missed() { historyAt = -1e9; }

/* ---- connection state, in words ---- */
let lastState = '';
export function showState() {
  const t = mono(), sd = watch.fails > 0, cd = stream.isDown();
  const state = isLocked() ? 'locked' : sd || cd ? 'down' : watch.stats && stream.ever ? 'live' : 'connecting';
  const what = sd && (cd || stream.state !== 'open') ? 'Disconnected' : sd ? 'No figures' : 'No change stream';
  $('conn').className = 'conn ' + state;
  text($('connt'), { locked: 'Token needed', down: what === 'Disconnected' ? what : 'Partly connected', live: 'Live', connecting: 'Connecting' }[state]);
  document.body.classList.toggle('stale', state === 'down' && sd);
  $('banner').hidden = state !== 'down';
  if (state === 'down') {
    const due = Math.min((sd && poll.retryAt) || Infinity, (cd && stream.retryAt) || Infinity);
    const b = h('b', null, what + ' – ' + (due === Infinity || due <= t ? 'retrying now' : 'retrying in ' + Math.ceil((due - t) / 1000) + ' s'));
    const why = sd ? poll.err : stream.err;
    const old = !sd ? ' Counts are still arriving; changes are not.' : poll.okAt ? ' The figures below are old: from ' + clock(poll.okAt) + ', ' + dur(Date.now() - poll.okAt) + ' ago.' : ' There are no figures yet.';
    const s = '(' + why + ').' + old;
    if ($('btext').dataset.s !== b.textContent + s) { $('btext').dataset.s = b.textContent + s; $('btext').replaceChildren(b, ' ' + s); }
  }
  const key = state + (state === 'down' ? what : '');
  if (key !== lastState) {
    if (state === 'down') say(what + ', retrying. ' + (sd ? 'The figures are old.' : ''));
    else if (state === 'live') say(lastState.startsWith('down') ? 'Connected again.' : 'Connected.');
    lastState = key;
  }
  title();
}
function title() {
  const n = watch.stats && watch.stats.users && watch.stats.users.online;
  const s = (lastState.startsWith('down') ? 'Disconnected – ' : Number.isFinite(n) ? num(n) + ' online – ' : '') + 'Rollcall';
  if (document.title !== s) document.title = s;
}
on($('now'), 'click', () => { if (watch.fails) pollStats(); started(); });

/* ---- counts ---- */
const total = (counts) => Object.values(counts || {}).reduce((n, one) => n + one, 0);
/* The end of each partition's log, as last seen. */
const ends = new Map();
/** Whether this is another log than before: every partition that had records has fewer now. A log only grows. */
function wasReplaced(partitions) {
  const known = partitions.filter((p) => Number.isFinite(p.log_end) && ends.get(p.partition) > 0);
  const replaced = known.length > 0 && known.every((p) => p.log_end < ends.get(p.partition));
  if (replaced) ends.clear();
  for (const p of partitions) if (Number.isFinite(p.log_end)) ends.set(p.partition, p.log_end);
  return replaced;
}
/** Begins again: what was shown is of a log that is gone. */
function beginAgain() {
  forgetSamples();
  missed();
  leases.clear();
  watch.gateways = [];
  watch.gatewaysAt = 0;
  const what = 'The server has another log since ' + clock(Date.now()) + '. What was shown of the old one is gone.';
  text($('replaced'), what);
  $('replaced').hidden = false;
  say(what);
  document.dispatchEvent(new Event('rollcall-replaced'));
}
let saidAt = 0, order = ['android', 'iphone', 'ipad', 'mac', 'windows', 'linux', 'web', 'mini_program'];
function onStats(s) {
  watch.stats = s;
  const u = s.users || {}, t = mono(), known = u.known || 0, partitions = s.partitions || [];
  watch.isKafka = partitions.some((p) => p.owner);
  if (wasReplaced(partitions)) beginAgain();
  observe('server', s.now);
  for (const p of partitions) observe(p.partition, p.time);
  const malformed = (s.malformed || []).reduce((n, group) => n + group.count, 0);
  /* Missing figures must not look like a drop. */
  const hole = partitions.some((p) => !Number.isFinite(p.applied));
  addSample({ t, w: Date.now(), on: u.online || 0, push: u.push_online || 0, off: u.offline || 0, ch: s.changes, ig: total(s.ignored), mal: malformed, hole });
  const ref = since(60000) || latest(), span = t - ref.t, minute = span > 50000 ? '1 min' : Math.round(span / 1000) + ' s';
  const fig = (id, n, was, share) => {
    text($('n-' + id), num(n));
    const d = n - was, part = share && known ? ((n / known) * 100).toFixed(1) + ' %' : '';
    const mv = span < 5000 || hole ? '' : (d > 0 ? '+' + num(d) : d < 0 ? '−' + num(-d) : '±0') + ' in ' + minute;
    text($('d-' + id), [part, mv].filter(Boolean).join(' · '));
  };
  fig('online', u.online || 0, ref.on, true);
  fig('push', u.push_online || 0, ref.push, true);
  fig('off', u.offline || 0, ref.off, true);
  fig('known', known, ref.on + ref.push + ref.off, false);
  $('s-online').style.width = ((u.online / known) * 100 || 0) + '%';
  $('s-push').style.width = ((u.push_online / known) * 100 || 0) + '%';
  text($('ver'), 'Rollcall ' + (s.version || '') + (s.commit && s.commit !== 'unknown' ? ' (' + s.commit + ')' : ''));
  drawPlatforms(s.devices || {});
  drawPartitions(partitions, t);
  drawOdd(s, ref, minute, span);
  drawChart();
  text($('rate'), pace() >= 0 ? persec(pace()) + ' per second' : '');
  if (t - saidAt > 30000) {
    if (saidAt) say(plural(u.online || 0, 'user') + ' online, ' + num(u.push_online || 0) + ' push online, ' + num(u.offline || 0) + ' offline.');
    saidAt = t;
    text($('chart-t'), describe());
  }
}

/* ---- records without effect ---- */
const IGNORED = {
  __proto__: null,
  unknown_platform: 'The platform is not in the policy. The publisher is wrong, or the policy lacks it.',
  stale_epoch: 'From a gateway process that was replaced, or from one of two processes with the same name.',
  duplicate: 'Sent twice. Normal after a publisher’s retry.',
  superseded: 'From a connection that was replaced, such as a late disconnect. Normal.',
  kicked: 'From a device that was kicked.',
  unknown_connection: 'From an unknown connection, such as a disconnect that was sent twice. Normal.',
  closed: 'From a closed connection.',
  ended: 'A connect that arrived after its own disconnect.',
  unknown_user: 'About an unknown user.',
  no_effect: 'It changes nothing.',
  not_online: 'A custom status of a user who is not online.',
  platform_removed: 'A policy that lacks a platform of the policy in force.',
};
const MALFORMED = {
  __proto__: null,
  unreadable: 'The bytes are not an event, or a value is out of bounds.',
  unknown_schema: 'Written with a schema that neither this version nor the registry knows.',
  wrong_key: 'The record’s key is not its user.',
  wrong_partition: 'The user belongs to another partition: the publisher’s partitioner is not murmur2.',
};
function drawOdd(s, ref, minute, span) {
  const malformed = s.malformed || [], ignored = Object.entries(s.ignored || {}), now = latest();
  const recent = (n) => (span < 5000 || !(n >= 0) ? '' : num(n) + ' in ' + minute);
  text($('n-mal'), num(now.mal));
  text($('d-mal'), recent(now.mal - ref.mal));
  text($('n-ig'), num(now.ig));
  text($('d-ig'), recent(now.ig - ref.ig));
  $('tile-mal').classList.toggle('bad', now.mal > 0);
  const list = malformed.map((m) => ({ reason: m.reason, kind: 'malformed', count: m.count, why: MALFORMED[m.reason] }))
    .concat(ignored.sort((a, b) => b[1] - a[1]).map(([reason, count]) => ({ reason, kind: 'ignored', count, why: IGNORED[reason] })));
  rows($('t-odd'), list, (x) => x.reason, ['l', ''], (x, c, r) => {
    fill(c, [x.kind, num(x.count)]);
    c[0].className = x.kind === 'malformed' ? 'l badt' : 'l mut';
    if (!r.why) r.tr.firstChild.append((r.why = h('span.reason')));
    text(r.why, x.why || '');
  });
  const newest = malformed[malformed.length - 1], quarantine = 'rollcall log quarantine ' + (watch.isKafka ? '--kafka BROKERS ' : '');
  $('mal-new').hidden = !newest;
  if (newest) $('mal-new').replaceChildren(h('b', null, 'Malformed, partition ' + newest.partition + ', offset ' + num(newest.offset) + ': '), by(newest.error), ' See ', h('code', null, quarantine + '--partition ' + newest.partition), '.');
}

/* ---- platforms, partitions, gateways, policy ---- */
const PS = ['online', 'push_online']; /* offline devices come and go silently and are not counted */
function drawPlatforms(dv) {
  const get = (s, k) => (dv[s] && dv[s][k]) || 0, idx = (k) => order.indexOf(k) + 1 || 999, sum = (k) => PS.reduce((n, s) => n + get(s, k), 0);
  const list = [...new Set(PS.flatMap((s) => Object.keys(dv[s] || {})))].sort((a, b) => idx(a) - idx(b) || (a < b ? -1 : 1)), max = Math.max(1, ...list.map(sum));
  rows($('t-plat'), list, same, ['pb', '', ''], (k, c, r) => {
    if (!r.bars) { r.bars = PS.map((s) => h('i.bg-' + s)); c[0].append(h('div', null, ...r.bars)); c[0].setAttribute('aria-hidden', 'true'); }
    PS.forEach((s, i) => { text(c[i + 1], num(get(s, k))); r.bars[i].style.width = (get(s, k) / max) * 100 + '%'; });
  });
}
const applied = new Map();     /* partition -> [{t, n}], for records a second */
const host = (url) => String(url || '').replace(/^https?:\/\//, '');
function drawPartitions(ps, t) {
  let lag = 0, rate = 0;
  $('t-part').parentNode.classList.toggle('alone', !watch.isKafka);
  rows($('t-part'), ps, (p) => p.partition, ['l', 'l own', 'xw', '', 'xw', '', ''], (p, c) => {
    let a = applied.get(p.partition);
    if (!a) applied.set(p.partition, (a = []));
    /* A partition that waits for its log, or moves, has no figures; earlier figures say nothing about its rate. */
    if (!Number.isFinite(p.applied) || (a.length && a[a.length - 1].n > p.applied)) a.length = 0;
    if (Number.isFinite(p.applied)) a.push({ t, n: p.applied });
    while (a.length > 2 && a[0].t < t - 10000) a.shift();
    const r = a.length > 1 ? Math.max(0, ((p.applied - a[0].n) / (t - a[0].t)) * 1000) : NaN;
    lag += p.lag || 0;
    rate += r || 0;
    fill(c, [p.state, p.owner ? plain(host(p.owner)) : '–', num(p.log_end), num(p.applied), num(p.committed), num(p.lag), persec(r)]);
    c[0].classList.toggle('warn', p.state !== 'live');
    c[0].title = plain(p.error || p.warning || '');
    c[1].title = plain(p.owner || '');
    c[5].classList.toggle('warn', p.lag >= 1000 && p.lag > 5 * (r || 0));
  });
  const nodes = new Set(ps.map((p) => p.owner).filter(Boolean)).size;
  text($('psum'), ps.length ? (nodes ? plural(nodes, 'node') + ' · ' : '') + 'lag ' + num(lag) + ' · ' + num(Math.round(rate)) + ' records/s' : '');
  const late = ps.filter((p) => p.state !== 'live'), one = late.length === 1, warned = ps.find((p) => p.warning);
  $('note').hidden = !late.length && !warned;
  if (late.length) text($('note'), (one ? 'Partition ' + late[0].partition + ' is ' + late[0].state + (late[0].error ? ' (' + plain(late[0].error) + ')' : '') + ': its' : late.length + ' of ' + ps.length + ' partitions are not live: their') + ' users may be missing from these figures, or old.');
  else if (warned) text($('note'), 'Partition ' + warned.partition + ': ' + plain(warned.warning));
}
/* The last lease of each gateway process, since the engine forgets a lease that has ended. */
const leases = new Map();
export function drawGateways() {
  if (!watch.gatewaysAt) return;
  const now = logNow();
  for (const g of watch.gateways) if (g.lease_until != null) leases.set(g.gateway + '/' + g.epoch, g.lease_until);
  const until = (g) => g.lease_until ?? leases.get(g.gateway + '/' + g.epoch);
  const left = (g) => (until(g) == null || now == null ? NaN : until(g) - now);
  const alive = watch.gateways.filter((g) => !g.ended && left(g) >= 0).length;
  text($('gsum'), watch.gateways.length ? alive + ' of ' + watch.gateways.length + ' alive' : '');
  rows($('t-gw'), watch.gateways, (g) => g.gateway, ['ep', 'l', ''], (g, c, r) => {
    const ms = left(g), state = g.ended ? 'stopped' : ms >= 0 ? 'alive' : 'dead';
    fill(c, [String(g.epoch), state, g.ended ? '–' : ms < 0 ? 'ended ' + dur(-ms) + ' ago' : ms >= 0 ? dur(ms) : 'ended']);
    r.tr.title = 'epoch ' + g.epoch;
    c[1].className = state === 'alive' ? 'l' : state === 'dead' ? 'l warn' : 'l mut';
  });
}
function drawPolicy(p) {
  const y = watch.policy || {}, pf = y.platforms || {}, names = Object.keys(pf), og = y.outage || {};
  order = order.filter((k) => pf[k]).concat(names.filter((k) => !order.includes(k)).sort());
  const m = 'android, iphone, ipad', k = 'mac, windows, linux', groups = y.exclusive ? y.exclusive.map((g) => g.join(', ')) : { single: [m + ', ' + k + ', web'], dual: [m + ', ' + k], triple: [m, k] }[y.login] || [];
  const many = Object.entries(y.instances || {}).filter((e) => e[1] > 1).map((e) => e[1] + ' ' + e[0]).join(', ');
  const since = (p.since || []).filter((s) => s.offset).map((s) => s.partition + '@' + s.offset).join(', ');
  $('pol').replaceChildren(h('b', null, y.exclusive ? 'Own groups' : 'Login “' + y.login + '”'), ': ' + (groups.length ? 'one at a time of ' + plain(groups.join('; and one of ')) : 'all platforms side by side') + '. '
    + (many ? 'Up to ' + plain(many) + ' at once; one device of every other kind.' : 'One device of each kind.')
    + (og.silence_ms ? ' After a silence of ' + dur(og.silence_ms) + ', heartbeats and leases get ' + dur(og.grace_ms) + ' of grace.' : '')
    + (since ? ' In force since ' + since + ' (partition@offset).' : ' In force from the start of the log.'));
  $('pold').hidden = false;
  rows($('t-pol'), order, same, ['', '', 'l'], (name, c) => { const x = pf[name]; fill(c, [dur(x.heartbeat_ms), dur(x.timeout_ms), x.away_ms ? (x.push ? 'push online, ' : 'offline, ') + dur(x.away_ms) : 'logged out']); });
}
