// The console's view of the past: a user's timeline with causes, why a user has a status, and the totals at a chosen time
// beside those of now.

import { $, on, num, text, h, by, named, plain, word, clock, timeEl, dur, say, plural, STATUS } from './dom.js';
import { api, logNow } from './server.js';

const NS = 'http://www.w3.org/2000/svg';
function svg(tag, attributes, ...kids) {
  const e = document.createElementNS(NS, tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  e.append(...kids);
  return e;
}

const BECAUSE = {
  login: 'login', resume: 'came back', revive: 'showed life again', logout: 'logout', closed: 'connection closed', exit: 'client exited', background: 'too long in the background',
  timeout: 'heartbeats stopped', gateway_lost: 'gateway lost', push_expired: 'push time ended', kicked: 'kicked', custom_status: 'custom status', forgotten: 'forgotten',
};
const because = (cause) => BECAUSE[cause] || String(cause);
const SPANS = [[60000, '1 minute'], [600000, '10 minutes'], [3600000, '1 hour'], [86400000, '1 day'], [604800000, '7 days'], [2592000000, '30 days']];

/* The timeline of one user. The element stays while the look-up is drawn again. */
const past = { user: null, partition: 0, intervals: null, error: null, span: 3600000, chosen: null, gen: 0, wide: 0, fit: true };
const range = h('select.in', { id: 'past-range' }, ...SPANS.map(([ms, name]) => h('option', { value: ms, selected: ms === 3600000 }, name)));
const plot = svg('svg', { id: 'past', role: 'group', 'aria-label': 'Timeline of statuses' });
const about = h('div.past-about', { id: 'past-about' });
const note = h('p.mut', { id: 'past-note' });
export const timeline = h('section.past', { hidden: true }, h('div.past-h', h('h3', null, 'What was'), h('label.sr', { htmlFor: 'past-range' }, 'How far back the timeline goes'), range), plot, note, about);

/** Shows the timeline of a user, read again. */
export async function showPast(user, partition) {
  if (past.user !== user) {
    Object.assign(past, { user, intervals: null, error: null, chosen: null, fit: true });
    about.replaceChildren();
  }
  past.partition = partition;
  timeline.hidden = false;
  const gen = ++past.gen, path = 'v1/user/history?id=' + encodeURIComponent(user);
  try {
    let answer, cut = '';
    try {
      answer = await api(path + (past.fit ? '' : '&from=-' + past.span + 'ms'));
    } catch (error) {
      if (error.status !== 410) throw error;
      answer = await api(path);
      cut = 'The log does not reach back that far.';
    }
    if (gen !== past.gen) return;
    Object.assign(past, { intervals: answer.intervals, error: null, cut });
    if (past.fit) fit();
  } catch (error) {
    if (gen !== past.gen) return;
    past.error = error.message;
  }
  drawPast();
}

/** Chooses how far back the timeline goes: all that is known, but no more than a day. */
function fit() {
  past.fit = false;
  const first = Math.min(...past.intervals.map((one) => one.from)), age = (logNow(past.partition) || Date.now()) - first;
  past.span = (SPANS.find(([ms]) => ms >= age && ms <= 86400000) || [86400000])[0];
  range.value = past.span;
}

const name = (one) => one.platform == null ? 'The user' : named(one.platform) + ' ' + named(one.device);
const nameOf = (one) => one.platform == null ? 'The user' : [by(one.platform), ' ', by(one.device)];
const sentenceOf = (one) => name(one) + ': ' + word(one.status) + ' from ' + clock(one.from) + ' to ' + (one.to == null ? 'now' : clock(one.to)) + ', ' + because(one.cause);

/** Returns as much of a name as there is room for: text in a drawing does not wrap. */
function label(of, room) {
  const all = [...plain(of)], most = Math.max(4, Math.floor(room / 9));
  return named(all.length > most ? all.slice(0, most - 1).join('') + '…' : of);
}

/** Draws a row for the user and one for each device: a bar for each stretch of a status, with its cause where there is room. */
export function drawPast() {
  const width = plot.clientWidth || timeline.clientWidth;
  text(note, past.error ? 'The history cannot be read: ' + past.error : past.intervals && !past.intervals.length ? 'Nothing is known of this time.' : past.cut || '');
  if (!past.intervals || !width) { plot.replaceChildren(); plot.setAttribute('height', 0); return; }
  past.wide = width;
  const end = logNow(past.partition) || Date.now(), begin = end - past.span, X = (t) => ((Math.min(end, Math.max(begin, t)) - begin) / past.span) * width;
  const rows = new Map();
  for (const one of past.intervals) {
    const key = one.platform == null ? '' : JSON.stringify([one.platform, one.device]);
    if (!rows.has(key)) rows.set(key, []);
    rows.get(key).push(one);
  }
  const ROW = 46, out = [], high = rows.size * ROW + 18;
  const step = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800].map((s) => s * 1000).find((ms) => past.span / ms <= Math.max(2, width / 90)) || 604800000;
  const offset = new Date(end).getTimezoneOffset() * 60000;
  for (let t = Math.ceil((begin - offset) / step) * step + offset; t < end; t += step) {
    const x = X(t), day = step >= 86400000, label = day ? clock(t).split(',')[0] : new Date(t).toTimeString().slice(0, step < 60000 ? 8 : 5);
    out.push(svg('line', { x1: x, x2: x, y1: 0, y2: high - 16, class: 'gl' }));
    if (x > 20 && x < width - 34) out.push(svg('text', { x, y: high - 3, 'text-anchor': 'middle' }, label));
  }
  out.push(svg('text', { x: width, y: high - 3, 'text-anchor': 'end' }, 'now'));
  [...rows.values()].forEach((list, number) => {
    const y = number * ROW;
    out.push(svg('text', { x: 0, y: y + 12, class: 't' }, list[0].platform == null ? 'User' : label(list[0].platform, width / 2) + ' · ' + label(list[0].device, width / 2)));
    let free = -1;
    for (const one of list) {
      const x = X(one.from), to = X(one.to == null ? end : one.to), off = one.status === 'offline';
      const bar = svg('rect', { x: x.toFixed(1), width: Math.max(2, to - x).toFixed(1), y: off ? y + 22 : y + 17, height: off ? 2 : 12, rx: off ? 0 : 2, class: 'bar ' + (one.status in STATUS ? one.status : '') });
      /* A thin bar is hard to hit. */
      const hit = svg('rect', { x: x.toFixed(1), width: Math.max(6, to - x).toFixed(1), y: y + 13, height: 20, class: 'hit', tabindex: 0, role: 'button', 'aria-label': sentenceOf(one) }, svg('title', {}, sentenceOf(one)));
      if (past.chosen && past.chosen.change === one.change && name(past.chosen) === name(one)) hit.classList.add('chosen');
      on(hit, 'click', () => choose(one));
      on(hit, 'keydown', (e) => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); choose(one); } });
      out.push(bar, hit);
      if (one.from >= begin) {
        out.push(svg('line', { x1: x, x2: x, y1: y + 15, y2: y + 33, class: 'mark' }));
        const cause = because(one.cause), wide = cause.length * 5.9;
        /* At the right edge it is written to the left of its mark. */
        const left = x + wide + 3 > width, start = left ? x - wide - 3 : x + 3;
        if (start > free) { out.push(svg('text', { x: left ? x - 3 : x + 3, y: y + 41, class: 'c', 'text-anchor': left ? 'end' : 'start' }, cause)); free = start + wide + 5; }
      }
    }
  });
  plot.setAttribute('height', high);
  plot.setAttribute('viewBox', '0 0 ' + width + ' ' + high);
  const focus = [...plot.querySelectorAll('.hit')].indexOf(document.activeElement);
  plot.replaceChildren(...out);
  if (focus >= 0) { const again = plot.querySelectorAll('.hit')[focus]; if (again) again.focus({ preventScroll: true }); }
}

/** Shows what a stretch is, and offers why. */
function choose(one) {
  past.chosen = one;
  const list = h('dl.kv', h('dt', 'From'), h('dd', null, timeEl(one.from), ', ' + because(one.cause) + ' (record ' + num(one.evidence) + ', change ' + one.change + ')'));
  if (one.to != null) list.append(h('dt', 'To'), h('dd', null, timeEl(one.to), ', ' + because(one.end_cause) + ' (record ' + num(one.end_evidence) + ', change ' + one.end_change + ')'));
  list.append(h('dt', 'Lasted'), h('dd', null, dur((one.to == null ? logNow(past.partition) || Date.now() : one.to) - one.from) + (one.to == null ? ' so far' : '')));
  const answer = h('div.why');
  const ask = h('button.btn', { type: 'button' }, 'Why was the user ' + word(one.status) + '?');
  // Of what still holds nearly every answer is there without a fold of the partition.
  on(ask, 'click', () => why(past.user, one.to == null ? null : one.from, answer));
  about.replaceChildren(h('p', h('b', null, nameOf(one)), ': ' + word(one.status)), list, ...(one.platform == null ? [ask, answer] : []));
  say(sentenceOf(one));
  drawPast();
}

/* ---- why ---- */
const whyAnswer = h('div.why', { id: 'why' });
let whyOf = null;
/** The button beside a user's status, and where its answer goes. */
export function whyNow(user) {
  if (whyOf !== user) { whyOf = user; whyAnswer.replaceChildren(); }
  const ask = h('button.btn', { type: 'button', id: 'why-ask' }, 'Why?');
  on(ask, 'click', () => why(user, null, whyAnswer));
  return [ask, whyAnswer];
}

const KIND = { heartbeat: 'heartbeat deadline', lease: 'end of the gateway’s lease', background: 'background deadline', linger: 'end of waiting for it to come back', away: 'end of the push time' };
function stepOf(step) {
  if (step.step === 'change') return ['Change ', h('code', null, step.id), ': ' + because(step.cause) + ', from ', timeEl(step.at), step.logged_at > step.at ? '. It was found out ' + dur(step.logged_at - step.at) + ' later, with the record at offset ' + num(step.offset) + '.' : ', with the record at offset ' + num(step.offset) + '.'];
  if (step.step === 'deadline') return ['The ' + (KIND[step.kind] || step.kind) + ' was at ', timeEl(step.deadline), '.'];
  const role = { evidence: 'The evidence is the ', login: 'The device had logged in with the ', lease: 'The gateway’s last lease is the ' }[step.role] || step.role + ': the ';
  return [role, h('code', null, step.type), ' at offset ' + num(step.offset) + ', written at ', timeEl(step.ts), '.'];
}

/** Asks for the records behind a status, and shows them as a chain. */
async function why(user, at, into) {
  into.replaceChildren(h('p.mut', 'Reading the log…'));
  try {
    const answer = await api('v1/user/why?id=' + encodeURIComponent(user) + (at == null ? '' : '&at=' + at), { ms: 20000 });
    if (!answer) { into.replaceChildren(h('p', 'Nothing was known of this user.')); return; }
    const chain = h('ol.chain', ...answer.steps.map((step) => h('li', null, ...stepOf(step))));
    const later = answer.pending.map((one) => h('li', 'Unless something comes before, ', nameOf(one), ': ' + because(one.then) + ', at ', timeEl(one.deadline), '.'));
    into.replaceChildren(h('p', h('b', null, word(answer.status)), ' since ', timeEl(answer.since), ', because:'), chain, ...(later.length ? [h('ul.later', ...later)] : []));
    say(word(answer.status) + ' because: ' + because(answer.steps[0].cause) + '. ' + plural(answer.steps.length, 'step') + '.');
  } catch (error) {
    into.replaceChildren(h('p.err', 'The log gives no answer: ' + error.message));
  }
}

on(range, 'change', () => { past.span = Number(range.value); if (past.user != null) showPast(past.user, past.partition); });
new ResizeObserver(() => { if (plot.clientWidth && plot.clientWidth !== past.wide) drawPast(); }).observe(timeline);

/* ---- totals at a time ---- */
const local = (ms) => { const d = new Date(ms - new Date(ms).getTimezoneOffset() * 60000); return d.toISOString().slice(0, 19); };
const PARTS = ['online', 'push_online'];
/** Shows users and devices at the chosen time beside those of now. */
async function showTotals() {
  const time = new Date($('at-time').value).getTime(), known = $('at-known').checked;
  if (!Number.isFinite(time)) { text($('at-note'), 'Choose a time.'); return; }
  text($('at-note'), 'Reading…');
  try {
    const [then, now] = await Promise.all([api('v1/at?time=' + time + '&as_known=' + known, { ms: 20000 }), api('v1/at?time=-0s')]);
    const rows = [...PARTS, 'offline'].map((status) => ['Users ' + word(status), then.users[status], now.users[status]]);
    for (const status of PARTS) {
      const platforms = new Set([...Object.keys(then.devices[status]), ...Object.keys(now.devices[status])]);
      for (const platform of [...platforms].sort()) rows.push([platform + ' ' + word(status), then.devices[status][platform] || 0, now.devices[status][platform] || 0]);
    }
    const most = Math.max(1, ...rows.flatMap((row) => row.slice(1)));
    const cell = (n, cls) => { const bar = h('i'); const count = h('span.atn', null, num(n)); bar.style.width = (100 * n / most).toFixed(1) + '%'; count.style.minWidth = num(most).length + 'ch'; return h('td.' + cls, h('span.atb', { 'aria-hidden': 'true' }, bar), count); };
    $('at-rows').replaceChildren(...rows.map(([what, a, b]) => h('tr', h('th', { scope: 'row' }, what), cell(a, 'then'), cell(b, 'now'), h('td', null, b === a ? '–' : (b > a ? '+' : '−') + num(Math.abs(b - a))))));
    text($('at-head'), clock(time));
    $('at-table').hidden = false;
    const behind = then.behind.length ? ' Log time of ' + plural(then.behind.length, 'partition') + ' is before that time.' : '';
    text($('at-note'), (known ? 'As this engine would have answered then.' : 'With everything that is known by now.') + behind);
  } catch (error) {
    $('at-table').hidden = true;
    text($('at-note'), 'No answer: ' + error.message);
  }
}
on($('at'), 'submit', (e) => { e.preventDefault(); showTotals(); });
$('at-time').value = local(Date.now() - 600000);
