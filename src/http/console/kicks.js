// The console's list of kicks: the newest in the log, and new ones as they arrive.

import { $, on, num, plural, text, h, by, named, timeEl, arrows } from './dom.js';
import { Stream } from './server.js';
import { openUser } from './user.js';

/** What each reason of a kick means. */
export const WHY = {
  __proto__: null,
  replaced: 'another connection of this device took over',
  displaced: 'a login elsewhere displaced it',
  admin: 'an operator ended its login',
  stale: 'it is not the current connection of its device',
  forgotten: 'the user was forgotten',
  identify: 'the gateway is asked whose connection it is',
};

const KEPT = 100;
const list = $('kicks');
/* Kicks, oldest first; null marks a gap. */
let kicks = [], waiting = 0, soon = 0, focused = false, pointing = false;

const stream = new Stream('v1/kicks', 'kick', { item: add, lost: () => add(null), state: () => { list.dataset.state = stream.state; none(); summary(); } });

function summary() {
  const shown = kicks.filter((kick) => kick).length, parts = shown ? ['the newest ' + plural(shown, 'kick')] : [];
  if (stream.state === 'wait') parts.push('disconnected, retrying');
  else if (waiting && held()) parts.push(num(waiting) + ' newer, held back while you use the list');
  text($('ksum'), parts.join(' · '));
}

function add(kick) {
  let at = kicks.length;
  /* Kicks from before the page was opened arrive partition by partition. */
  while (kick && at > 0 && kicks[at - 1] && kicks[at - 1].at > kick.at) at--;
  kicks.splice(at, 0, kick);
  if (kicks.length > KEPT) kicks.splice(0, kicks.length - KEPT);
  waiting++;
  later();
}
/* Rows do not move while the pointer is over the list, a row has the focus, or the list is scrolled down. */
const held = () => focused || pointing || list.scrollTop > 8;
function later() { if (!soon && !document.hidden) soon = requestAnimationFrame(() => { soon = 0; draw(); }); }
function draw() {
  if (waiting && !held()) {
    list.replaceChildren(...kicks.map(row).reverse());
    waiting = 0;
  }
  summary();
}
function row(kick) {
  if (!kick) return h('li.row.gap', null, 'The list could not continue from its last position: the kicks in between are not shown.');
  /* A kick that names a connection by number alone has no user. */
  const user = kick.user == null ? h('span.mut', null, 'unknown user') : h('button.u', { type: 'button', tabIndex: -1, title: 'Look up ' + named(kick.user) }, by(kick.user));
  if (kick.user != null) user.dataset.user = kick.user;
  const device = kick.user == null ? 'connection ' + kick.conn : [by(kick.platform), ' ', by(kick.device)];
  return h('li.row', null, timeEl(kick.at, true), user, h('span.tr', null, kick.reason),
    h('span.what', null, device, ' on ', by(kick.gateway), ': ' + (WHY[kick.reason] || kick.reason)),
    h('span.pos', { title: 'kick ' + kick.id + '\ngateway ' + named(kick.gateway) + ', epoch ' + kick.epoch + ', connection ' + kick.conn }, by(kick.gateway), '/' + kick.conn));
}

/** Says that there are no kicks, once the server has answered. */
function none() {
  if (!kicks.length) list.replaceChildren(h('li.empty', null, stream && stream.ever ? 'The log has no kicks yet. They appear here as they happen.' : 'The kicks have not been read yet.'));
}
none();
on(list, 'click', (event) => { const user = event.target.closest('.u'); if (user) openUser(user.dataset.user); });
on(list, 'pointerenter', (event) => { pointing = event.pointerType === 'mouse'; });
on(list, 'pointerleave', () => { pointing = false; later(); });
on(list, 'focusin', (event) => { focused = event.target !== list && event.target.matches(':focus-visible'); });
on(list, 'focusout', () => { focused = false; later(); });
on(list, 'scroll', later, { passive: true });
arrows(list);
on(document, 'rollcall-start', later);
on(document, 'rollcall-replaced', () => { kicks = []; waiting = 0; none(); summary(); }, true);
