// The console's view of the past: a user's timeline with causes, why a user has a status, and the totals at a chosen time
// beside those of now.

import { $, on, mono, num, text, h, by, named, plain, word, clock, timeEl, dur, say, plural, STATUS } from './dom.js';
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
const past = { user: null, partition: 0, intervals: null, error: null, cut: '', span: 3600000, chosen: null, at: null, reading: '', readAt: 0, cost: 0, wide: 0, fit: true };
const range = h('select.in', { id: 'past-range' }, ...SPANS.map(([ms, name]) => h('option', { value: ms, selected: ms === 3600000 }, name)));
const plot = svg('svg', { id: 'past', role: 'group', 'aria-label': 'Timeline of statuses. Arrow keys move between its parts, Enter shows what one stands for.' });
const about = h('div.past-about', { id: 'past-about' });
const note = h('p.mut', { id: 'past-note' });
export const timeline = h('section.past', { hidden: true }, h('div.past-h', h('h3', null, 'What was'), h('label.sr', { htmlFor: 'past-range' }, 'How far back the timeline goes'), range), plot, note, about);

/* The time between two reads of a history is at least this many times as long as a read takes: one of 10,000 changes, which a
 * new change every second would cause to be read again every second, has some megabytes. */
const REST = 10;

/** Shows the timeline of a user, read again. */
export async function showPast(user, partition) {
  if (past.user !== user) {
    Object.assign(past, { user, intervals: null, error: null, cut: '', chosen: null, at: null, readAt: 0, cost: 0, fit: true });
    about.replaceChildren();
  }
  past.partition = partition;
  timeline.hidden = false;
  const key = JSON.stringify([user, past.fit || past.span]), began = mono();
  if (past.reading === key || (past.readAt && began - past.readAt < REST * past.cost)) return;
  past.reading = key;
  const path = 'v1/user/history?id=' + encodeURIComponent(user), since = (ms) => api(path + '&from=-' + ms + 'ms', { ms: 20000 });
  try {
    let answer, cut = '';
    try {
      answer = await (past.fit ? api(path, { ms: 20000 }) : since(past.span));
    } catch (error) {
      if (past.reading !== key || !(error.status === 410 || (error.status === 400 && past.fit))) throw error;
      answer = await (error.status === 410 ? api(path, { ms: 20000 }) : since(past.span));
      cut = error.status === 410 ? 'The log does not reach back that far.' : 'This user has too many changes to show all of them.';
      if (error.status === 400) past.fit = false;
    }
    if (past.reading !== key) return;
    Object.assign(past, { intervals: answer.intervals, error: null, cut });
    if (past.fit && past.intervals.length) fit();
  } catch (error) {
    if (past.reading !== key) return;
    past.error = error.message;
  }
  past.reading = '';
  past.readAt = mono();
  past.cost = past.error ? 0 : past.readAt - began;
  drawPast();
}

/** Chooses how far back the timeline goes: all that is known, but no more than a day. */
function fit() {
  past.fit = false;
  const first = past.intervals.reduce((least, one) => Math.min(least, one.from), Infinity), age = (logNow(past.partition) || Date.now()) - first;
  past.span = (SPANS.find(([ms]) => ms >= age && ms <= 86400000) || [86400000])[0];
  range.value = past.span;
}

const name = (one) => one.platform == null ? 'The user' : named(one.platform) + ' ' + named(one.device);
const nameOf = (one) => one.platform == null ? 'The user' : [by(one.platform), ' ', by(one.device)];
const until = (one) => (one.to == null ? logNow(past.partition) || Date.now() : one.to);
const sentenceOf = ({ list }) => {
  const one = list[0], last = list[list.length - 1], from = ' from ' + clock(one.from) + ' to ' + (last.to == null ? 'now' : clock(last.to));
  if (list.length === 1) return name(one) + ': ' + word(one.status) + from + ', ' + because(one.cause);
  return name(one) + ': ' + plural(list.length, 'change') + from + ', ' + shares(list).map(([status, share]) => word(status) + ' for ' + percent(share)).join(', ') + ' of the time';
};
const percent = (share) => (share > 0 && share < 0.01 ? 'less than 1 %' : Math.round(share * 100) + ' %');
/** Returns which part of the time was spent in each status. */
function shares(list) {
  const times = { __proto__: null }, last = list[list.length - 1], whole = until(last) - list[0].from;
  /* Stretches that begin and end in the same millisecond count alike. */
  for (const one of list) times[one.status] = (times[one.status] || 0) + (whole > 0 ? Math.max(0, until(one) - one.from) / whole : 1 / list.length);
  return Object.entries(times).sort(([, one], [, other]) => other - one);
}

/* Stretches that are narrower than a thin one are drawn together if they begin within the width of a group. So the number of
 * elements depends on the width of the page and not on the length of the history. */
const THIN_PX = 2, GROUP_PX = 6;
/* How many devices have a row: those that changed last. */
const DEVICES = 20;

/** Returns what is drawn of a row, each as a list of stretches with its place. */
function partsOf(row, list, begin, end, X) {
  const parts = [];
  let group = null;
  /* Groups begin at fixed times, so they stay the same while time goes on. */
  const bucket = (GROUP_PX / X(end)) * (end - begin), bucketOf = (one) => Math.floor(one.from / bucket);
  for (const one of list) {
    const to = one.to == null ? end : one.to;
    if (to < begin) continue;
    const x = X(one.from), right = X(to);
    if (right - x >= THIN_PX) {
      group = null;
      parts.push({ row, x, right, list: [one] });
    } else if (group && bucketOf(one) === bucketOf(group.list[0])) {
      group.list.push(one);
      group.right = Math.max(group.right, right);
    } else parts.push((group = { row, x, right, list: [one] }));
  }
  return parts;
}

/** Returns as much of a name as there is room for: text in a drawing does not wrap. */
function label(of, room) {
  const all = [...plain(of)], most = Math.max(4, Math.floor(room / 9));
  return named(all.length > most ? all.slice(0, most - 1).join('') + '…' : of);
}

let soon = 0;
/** Draws the timeline with the next frame, however often it is asked to. */
export function drawPast() { if (!soon) soon = requestAnimationFrame(() => { soon = 0; draw(); }); }

/** Draws a row for the user and one for each device: a bar for each stretch of a status, with its cause where there is room. */
function draw() {
  const width = plot.clientWidth || timeline.clientWidth;
  if (!past.intervals || !width) { tellNote(0); plot.replaceChildren(); plot.setAttribute('height', 0); return; }
  past.wide = width;
  const end = logNow(past.partition) || Date.now(), begin = end - past.span, X = (t) => ((Math.min(end, Math.max(begin, t)) - begin) / past.span) * width;
  let rows = new Map();
  for (const one of past.intervals) {
    const key = one.platform == null ? '' : JSON.stringify([one.platform, one.device]);
    if (!rows.has(key)) rows.set(key, []);
    rows.get(key).push(one);
  }
  const devices = [...rows].filter(([key]) => key), newest = ([, list]) => list[list.length - 1].from;
  const kept = new Set(devices.sort((one, other) => newest(other) - newest(one)).slice(0, DEVICES).map(([key]) => key));
  rows = [...rows].filter(([key]) => !key || kept.has(key));
  tellNote(devices.length - kept.size);
  const ROW = 46, out = [], high = rows.length * ROW + 18;
  const step = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800].map((s) => s * 1000).find((ms) => past.span / ms <= Math.max(2, width / 90)) || 604800000;
  const offset = new Date(end).getTimezoneOffset() * 60000;
  for (let t = Math.ceil((begin - offset) / step) * step + offset; t < end; t += step) {
    const x = X(t), day = step >= 86400000, when = day ? clock(t).split(',')[0] : new Date(t).toTimeString().slice(0, step < 60000 ? 8 : 5);
    out.push(svg('line', { x1: x, x2: x, y1: 0, y2: high - 16, class: 'gl' }));
    if (x > 20 && x < width - 34) out.push(svg('text', { x, y: high - 3, 'text-anchor': 'middle' }, when));
  }
  out.push(svg('text', { x: width, y: high - 3, 'text-anchor': 'end' }, 'now'));
  const paths = { __proto__: null }, hits = [];
  const box = (kind, x, y, wide, tall) => { paths[kind] = (paths[kind] || '') + 'M' + x.toFixed(1) + ' ' + y.toFixed(1) + 'h' + wide.toFixed(1) + 'v' + tall.toFixed(1) + 'h' + (-wide).toFixed(1) + 'z'; };
  rows.forEach(([key, list], number) => {
    const y = number * ROW;
    out.push(svg('text', { x: 0, y: y + 12, class: 't' }, key ? label(list[0].platform, width / 2) + ' · ' + label(list[0].device, width / 2) : 'User'));
    let free = -1;
    for (const part of partsOf(key, list, begin, end, X)) {
      const { x, right } = part, wide = Math.max(2, right - x);
      const hit = svg('rect', { x: x.toFixed(1), width: Math.max(6, right - x).toFixed(1), y: y + 13, height: 20, class: 'hit', tabindex: -1, role: 'button', 'aria-label': sentenceOf(part) }, svg('title', {}, sentenceOf(part)));
      hit.stands = part;
      hits.push(hit);
      if (past.chosen && isSame(past.chosen, part)) hit.classList.add('chosen');
      /* In a group, how high a colour is says for how much of the time. */
      let top = y + 29;
      const statuses = part.list.length === 1 ? [[part.list[0].status, 1]] : shares(part.list);
      box('offline', x, y + 22, wide, 2);
      for (const status of ['online', 'push_online']) {
        const share = (statuses.find(([one]) => one === status) || [])[1];
        if (share) { const tall = Math.max(1, 12 * share); top -= tall; box(status, x, top, wide, tall); }
      }
      const first = part.list[0];
      if (first.from >= begin) {
        paths.mark = (paths.mark || '') + 'M' + x.toFixed(1) + ' ' + (y + 15) + 'v18';
        const cause = part.list.length > 1 ? plural(part.list.length, 'change') : because(first.cause), long = cause.length * 5.9;
        /* At the right edge it is written to the left of its mark. */
        const left = x + long + 3 > width, start = left ? x - long - 3 : x + 3;
        if (start > free) { out.push(svg('text', { x: left ? x - 3 : x + 3, y: y + 41, class: 'c', 'text-anchor': left ? 'end' : 'start' }, cause)); free = start + long + 5; }
      }
    }
  });
  for (const kind in paths) out.push(svg('path', { d: paths[kind], class: kind === 'mark' ? kind : 'bar ' + kind }));
  const hadFocus = plot.contains(document.activeElement);
  plot.setAttribute('height', high);
  plot.setAttribute('viewBox', '0 0 ' + width + ' ' + high);
  plot.replaceChildren(...out, ...hits);
  const here = hits.find((hit) => past.at && isSame(past.at, hit.stands)) || hits.findLast((hit) => hit.stands.row === (past.at ? past.at.row : '')) || hits[0];
  if (here) here.setAttribute('tabindex', 0);
  if (here && hadFocus) here.focus({ preventScroll: true });
}
/* A group may have grown or been drawn apart meanwhile, and the history been read again. */
function isSame(before, now) {
  const { change } = before.list[before.list.length - 1];
  return before.row === now.row && now.list.some((one) => one.change === change);
}

function tellNote(more) {
  const less = more ? 'The ' + DEVICES + ' devices that changed last are shown, of ' + num(more + DEVICES) + '.' : '';
  text(note, past.error ? 'The history cannot be read: ' + past.error : past.intervals && !past.intervals.length ? 'Nothing is known of this time.' : [past.cut, less].filter(Boolean).join(' '));
}

/* One part of the timeline is a Tab stop; arrow keys move within its row, and to the rows above and below. */
function goTo(hit) {
  for (const other of plot.querySelectorAll('.hit[tabindex="0"]')) other.setAttribute('tabindex', -1);
  hit.setAttribute('tabindex', 0);
  past.at = hit.stands;
  hit.focus({ preventScroll: true });
}
on(plot, 'keydown', (e) => {
  const part = e.target.stands;
  if (!part) return;
  if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); choose(part); return; }
  const hits = [...plot.querySelectorAll('.hit')], row = hits.filter((hit) => hit.stands.row === part.row), at = row.indexOf(e.target);
  const names = [...new Set(hits.map((hit) => hit.stands.row))], beside = names[names.indexOf(part.row) + { ArrowUp: -1, ArrowDown: 1 }[e.key]];
  const far = (hit) => Math.max(hit.stands.x - part.x, part.x - hit.stands.right, 0);
  const to = beside === undefined ? row[{ ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: row.length - 1 }[e.key]]
    : hits.filter((hit) => hit.stands.row === beside).reduce((best, hit) => (far(hit) < far(best) ? hit : best));
  if (to) { e.preventDefault(); goTo(to); }
});
on(plot, 'click', (e) => { const hit = e.target.closest('.hit'); if (hit) { goTo(hit); choose(hit.stands); } });

/* How many changes of a group are listed. */
const LISTED = 10;
/** Shows what a part of the timeline stands for: a stretch, of which it offers why, or several. */
function choose(part) {
  past.chosen = past.at = part;
  if (part.list.length > 1) showGroup(part); else showStretch(part.list[0]);
  say(sentenceOf(part));
  drawPast();
}

function showGroup(part) {
  const { list } = part, last = list[list.length - 1], rest = list.length - LISTED;
  about.replaceChildren(h('p', h('b', null, nameOf(list[0])), ': ' + plural(list.length, 'change') + ', too close together to be drawn apart'),
    h('dl.kv', null, h('dt', 'From'), h('dd', timeEl(list[0].from)), h('dt', 'To'), h('dd', last.to == null ? 'now' : timeEl(last.to)),
      shares(list).flatMap(([status, share]) => [h('dt', word(status)), h('dd', percent(share) + ' of the time')])),
    h('ol.hist', null, list.slice(-LISTED).reverse().map((one) => h('li', null, timeEl(one.from), h('div', word(one.status) + ', ' + because(one.cause))))),
    rest > 0 ? h('p.mut', 'and ' + plural(rest, 'change') + ' before.' + (past.span > SPANS[0][0] ? ' A shorter time above draws the newest apart.' : '')) : '');
}

function showStretch(one) {
  const list = h('dl.kv', h('dt', 'From'), h('dd', null, timeEl(one.from), ', ' + because(one.cause) + ' (record ' + num(one.evidence) + ', change ' + one.change + ')'));
  if (one.to != null) list.append(h('dt', 'To'), h('dd', null, timeEl(one.to), ', ' + because(one.end_cause) + ' (record ' + num(one.end_evidence) + ', change ' + one.end_change + ')'));
  list.append(h('dt', 'Lasted'), h('dd', null, dur(until(one) - one.from) + (one.to == null ? ' so far' : '')));
  const answer = h('div.why');
  const ask = h('button.btn', { type: 'button' }, 'Why was the user ' + word(one.status) + '?');
  // Of what still holds nearly every answer is there without a fold of the partition.
  on(ask, 'click', () => why(past.user, one.to == null ? null : one.from, answer));
  about.replaceChildren(h('p', h('b', null, nameOf(one)), ': ' + word(one.status)), list, ...(one.platform == null ? [ask, answer] : []));
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

on(range, 'change', () => { past.span = Number(range.value); past.fit = false; past.readAt = 0; if (past.user != null) showPast(past.user, past.partition); });
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
let preset = ($('at-time').value = local(Date.now() - 600000));
/* Not before the process began: there may be no log of before. */
on(document, 'rollcall-history', ({ detail }) => {
  if ($('at-time').value === preset && detail.from > new Date(preset).getTime()) preset = $('at-time').value = local(detail.from + 999);
});
