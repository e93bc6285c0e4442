// The console's list of kicks: what comes of GET /v1/kicks while the page is open, newest first.

const { $, on, h, text, num, plural, timeEl, arrows, auth, token, lock, sse, backoff, openUser, isLocked } = window.rollcall;

/** What each reason of a kick means. */
export const WHY = {
  __proto__: null,
  replaced: 'another connection of this device took over',
  displaced: 'a login elsewhere displaced it',
  admin: 'an operator ended its login',
  stale: 'it was not, or no longer, the connection that counts',
  forgotten: 'the user was forgotten',
};

const KEPT = 100;
/* The server says something every ten seconds; a link that is silent for longer is dead. */
const SILENCE_MS = 30000;
const list = $('kicks');
const stream = { cursor: null, base: 1000 };
let control = null, timer = 0, fails = 0, count = 0, pending = [], soon = 0, focused = false, pointing = false;

function become(state) {
  list.dataset.state = state;
  summary();
}
function summary() {
  const parts = count ? [plural(count, 'kick') + ' since this page was opened'] : [];
  if (list.dataset.state === 'waiting') parts.push('disconnected, trying again');
  else if (pending.length && held()) parts.push(num(pending.length) + ' newer, held while you are in the list');
  text($('ksum'), parts.join(' · '));
}

async function open() {
  clearTimeout(timer);
  const mine = (control = new AbortController()), used = token();
  let dog = 0;
  const alive = () => { clearTimeout(dog); dog = setTimeout(() => mine.abort(), SILENCE_MS); };
  become('connecting');
  alive();
  try {
    const headers = { Accept: 'text/event-stream', ...auth() };
    if (stream.cursor) headers['Last-Event-ID'] = stream.cursor;
    const response = await fetch('v1/kicks', { headers, cache: 'no-store', signal: mine.signal });
    if (control !== mine) return;
    if (response.status === 401) { lock(used); return; }
    if (!response.ok) {
      if (stream.cursor && response.status >= 400 && response.status < 500) lose();
      throw new Error('the server answered ' + response.status);
    }
    become('open');
    const reader = response.body.getReader(), decoder = new TextDecoder();
    const parse = sse(stream, ({ name, data }) => {
      if (name === 'error') lose();
      if (name !== 'kick') return;
      fails = 0;
      add(JSON.parse(data));
    });
    for (;;) {
      const { done, value } = await reader.read();
      if (control !== mine) return;
      if (done) break;
      alive();
      parse(decoder.decode(value, { stream: true }));
    }
  } catch (error) {
    if (control !== mine) return;
  } finally { clearTimeout(dog); }
  fails++;
  become('waiting');
  timer = setTimeout(open, Math.max(backoff(fails), stream.base));
}
function close() {
  clearTimeout(timer);
  const was = control;
  control = null;
  if (was) was.abort();
  become('closed');
}
function lose() {
  if (!stream.cursor) return;
  stream.cursor = null;
  add(null);
}

/** A kick; null where some are missing. */
function add(kick) {
  if (kick) count++;
  pending.push(kick);
  if (pending.length > KEPT) pending.splice(0, pending.length - KEPT);
  later();
}
/* Rows do not move under whoever points at one, has one in focus, or reads older ones. */
const held = () => focused || pointing || list.scrollTop > 8;
function later() { if (!soon && !document.hidden) soon = requestAnimationFrame(() => { soon = 0; draw(); }); }
function draw() {
  if (pending.length && !held()) {
    if (list.firstChild.className === 'empty') list.firstChild.remove();
    list.prepend(...pending.reverse().map(row));
    while (list.children.length > KEPT) list.lastChild.remove();
    pending = [];
  }
  summary();
}
function row(kick) {
  if (!kick) return h('li.row.gap', null, 'The list could not go on from where it was left: kicks in between are not shown.');
  const user = h('button.u', { type: 'button', tabIndex: -1, title: 'Look up ' + kick.user }, kick.user);
  user.dataset.user = kick.user;
  return h('li.row', null, timeEl(kick.at, true), user, h('span.tr', null, kick.reason),
    h('span.what', null, kick.platform + ' ' + kick.device + ' on ' + kick.gateway + ': ' + (WHY[kick.reason] || kick.reason)),
    h('span.pos', { title: 'kick ' + kick.id + '\ngateway ' + kick.gateway + ', epoch ' + kick.epoch + ', connection ' + kick.conn }, kick.gateway + '/' + kick.epoch + '/' + kick.conn));
}

list.append(h('li.empty', null, 'No kicks since this page was opened. They appear here as they happen.'));
on(list, 'click', (event) => { const user = event.target.closest('.u'); if (user) openUser(user.dataset.user); });
on(list, 'pointerenter', (event) => { pointing = event.pointerType === 'mouse'; });
on(list, 'pointerleave', () => { pointing = false; later(); });
on(list, 'focusin', (event) => { focused = event.target !== list && event.target.matches(':focus-visible'); });
on(list, 'focusout', () => { focused = false; later(); });
on(list, 'scroll', later, { passive: true });
arrows(list);
/* With the page's other stream: it begins, or begins again; it ends, for want of a token or of anybody who looks. */
on(document, 'rollcall-start', () => { if (!control || list.dataset.state === 'waiting') open(); later(); });
on(document, 'rollcall-stop', ({ detail }) => { close(); if (detail.forget) lose(); });
if (!isLocked()) open();
