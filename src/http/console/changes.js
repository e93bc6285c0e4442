// The console's list of changes, each as a sentence: the newest in the log, and new ones as they arrive.

import { $, on, mono, num, text, h, by, named, timeEl, arrows } from './dom.js';
import { Stream, observe } from './server.js';
import { openUser, userChanged } from './user.js';
import { showState } from './watch.js';
import { pace } from './chart.js';
import { CAUSES, sentence, transition } from './sentences.js';

function rowOf(c, fresh) {
  if (c.gap) return h('li.row.gap', null, c.gap);
  const li = h('li', {className: fresh ? 'row new' : 'row'}), b = h('button.u', {type: 'button', tabIndex: -1, title: 'Look up ' + named(c.user)}, by(c.user));
  b.dataset.user = c.user;
  const pos = h('span.pos', {title: ['change ' + c.id, 'seq ' + c.seq, 'version ' + c.version, 'evidence ' + c.evidence].concat((c.devices || []).map(d => named(d.platform) + ' ' + named(d.device))).join('\n')}, c.partition + '@' + c.offset);
  li.append(timeEl(c.at, true), b, transition(c), h('span.what', null, sentence(c)), pos);
  return li;
}

const CAP = 200, BUF = 1000;
/* For this long after the stream was first opened, older changes still arrive, partition by partition. */
const PAST_MS = 3000;
const seen = [];               /* newest last, at most BUF */
let pending = [], waiting = 0, flushAt = 0, flushSoon = 0, paused = false, pointing = false, focused = false, openedAt = 0, sorted = true;
const list = $('rows');
const passes = (c) => { const f = $('filter').value; return c.gap || !f || (f === '*' ? c.before !== c.after : c.cause === f); };

export const stream = new Stream('v1/changes', 'change', {
  item: onChange,
  lost: () => gap('The stream could not continue from its last position: the changes in between are not shown.'),
  state: () => { if (stream && stream.state === 'open' && !openedAt) { openedAt = mono(); if (!seen.length) empty(); } showState(); },
});

function onChange(c) {
  if (!c || typeof c !== 'object' || c.user == null) return;
  observe(c.partition, c.logged_at);
  userChanged(c.user);
  document.dispatchEvent(new CustomEvent('rollcall-change', { detail: c }));
  push(c);
}
/* The streams begin again with the same event. */
on(document, 'rollcall-replaced', () => {
  seen.length = 0;
  openedAt = 0;
  redraw();
}, true);
export function gap(message) { push({ gap: message }); }
function push(c) {
  if (mono() - openedAt < PAST_MS && !c.gap) {
    let at = seen.length;
    while (at > 0 && seen[at - 1].logged_at > c.logged_at) at--;
    sorted = sorted && at === seen.length;
    seen.splice(at, 0, c);
  } else seen.push(c);
  if (seen.length > BUF + 200) seen.splice(0, seen.length - BUF);
  if (!passes(c)) return;
  pending.push(c);
  waiting++;
  if (pending.length > 2 * CAP) pending = pending.slice(-CAP);
  schedule();
}
export const holding = () => (paused ? 'paused' : list.scrollTop > 8 ? 'scroll' : focused ? 'focus' : pointing ? 'point' : '');
export function schedule() { if (!flushSoon && !document.hidden) flushSoon = requestAnimationFrame(frame); }
function frame(t) {
  flushSoon = 0;
  const why = holding();
  if (why) { showHeld(why); return; }
  if (t - flushAt < 200) { flushSoon = requestAnimationFrame(frame); return; }
  flushAt = t;
  flush();
}
function flush() {
  if (!sorted) { sorted = true; redraw(); return; }
  if (pending.length) {
    const batch = pending.slice(-CAP), fresh = !(pace() >= 4) && list.children.length > 12, f = document.createDocumentFragment();
    for (let i = batch.length - 1; i >= 0; i--) f.append(rowOf(batch[i], fresh));
    if (list.firstChild && list.firstChild.className === 'empty') list.firstChild.remove();
    if (batch.length === CAP) list.replaceChildren(f); else list.prepend(f);
    while (list.children.length > CAP) list.lastChild.remove();
    pending = [];
  }
  waiting = 0;
  showHeld('');
}
const HELD = { paused: 'Paused', scroll: 'Held while scrolled down', focus: 'Held while the list has the focus', point: 'Held while the pointer is over the list' };
export function showHeld(why) {
  $('newest').hidden = !why || !waiting;
  if (why && waiting) text($('newest'), HELD[why] + ' · show ' + num(waiting) + ' newer');
}
function empty() { list.replaceChildren(h('li.empty', null, !openedAt ? 'The changes have not been read yet.' : $('filter').value ? 'No change of this kind has been seen here.' : 'The log has no changes yet. They appear here as they happen.')); }
function redraw() {
  const l = seen.filter(passes).slice(-CAP).reverse();
  pending = [];
  waiting = 0;
  if (l.length) list.replaceChildren(...l.map((c) => rowOf(c))); else empty();
  list.scrollTop = 0;
  showHeld(paused ? 'paused' : '');
}
$('filter').append(h('option', { value: '' }, 'All changes'), h('option', { value: '*' }, 'User status changed'), ...CAUSES.map((k) => h('option', { value: k }, 'Cause: ' + k.replace('_', ' '))));
on($('filter'), 'change', redraw);
on($('pause'), 'click', () => {
  paused = !paused;
  $('pause').setAttribute('aria-pressed', paused);
  if (paused) showHeld('paused'); else { list.scrollTop = 0; flush(); }
});
on($('newest'), 'click', () => { list.scrollTop = 0; flush(); showHeld(holding()); (paused ? $('pause') : list).focus({ preventScroll: true }); });
const wake = () => { const why = holding(); if (why) showHeld(why); else { showHeld(''); if (pending.length) schedule(); } };
on(list, 'pointerenter', (e) => { if (e.pointerType === 'mouse') { pointing = true; wake(); } });
on(list, 'pointerleave', () => { pointing = false; wake(); });
on(list, 'focusin', (e) => { focused = e.target !== list && e.target.matches(':focus-visible'); wake(); });
on(list, 'focusout', () => { focused = false; wake(); });
on(list, 'scroll', wake, { passive: true });
on(list, 'click', (e) => { const b = e.target.closest('.u'); if (b) openUser(b.dataset.user); });
arrows(list);
empty();
