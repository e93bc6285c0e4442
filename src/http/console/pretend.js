// The console's simulated gateway: this page publishes the events of a gateway, so that failures can be tried on any server:
// a cut network, a late disconnect, a dead gateway.

import { $, on, h, by, text, dur, clock, glyph, word, say } from './dom.js';
import { api } from './server.js';
import { openUser } from './user.js';
import { watch } from './watch.js';
import { sentence } from './sentences.js';

const LEASE_MS = 15000, RENEW_MS = 5000, KEPT = 100;
const PLATFORM = 'web';
const box = $('pretend');
const name = 'page-' + Math.random().toString(36).slice(2, 6);
/* The simulated gateway process; a restart has a new epoch. */
let epoch = 0, alive = false, lastConn = 0, lease = 0;
/* The current connection, as the gateway knows it, and the one before. */
let link = null, before = null, cut = false, beat = 0;

const field = (label, value) => {
  const input = h('input.in', { id: 'pretend-' + label.toLowerCase(), value, maxLength: 128, autocomplete: 'off', autocapitalize: 'none', spellcheck: false });
  return [h('div.fld', null, h('label', { htmlFor: input.id }, label), input), input];
};
const [userField, user] = field('User', 'bob'), [deviceField, device] = field('Browser', 'tab-1');
const button = (label, title, act) => {
  const made = h('button.btn', { type: 'button', title }, label);
  on(made, 'click', act);
  return made;
};
const start = button('Start the gateway', 'Publishes a lease: this gateway is alive', begin);
const kill = button('Kill this gateway', 'The gateway publishes nothing more, and its lease ends', die);
const connect = button('Connect', 'Publishes a connect with intent login', () => open('login'));
const silence = button('Cut the network', 'The client sends nothing more, and no disconnect is published', hush);
const back = button('Come back', 'The client reconnects by itself', () => open('resume'));
const late = button('Late disconnect', 'Publishes the disconnect of the previous connection, which arrives only now', () => send(event('disconnect', before, { reason: 'closed' })));
const close = button('Close', 'Publishes the disconnect of the current connection', () => { send(event('disconnect', link, { reason: 'closed' })); ended(); });
const look = button('Look up', 'Looks the user up', () => openUser(user.value));
const state = h('span.st', { role: 'status' }), hint = h('p.mut');
const events = h('ol.evs', { tabIndex: 0, 'aria-label': 'Events of this gateway and their outcomes, newest first' }, h('li.mut', null, 'No event published yet.'));
events.setAttribute('role', 'log');

function log(kind, what) {
  if (events.firstChild.className === 'mut') events.firstChild.remove();
  const entry = h('li', null, h('time', null, clock(Date.now(), true)), h('b', null, kind), h('span', null, what));
  entry.dataset.kind = kind;
  events.prepend(entry);
  while (events.children.length > KEPT) events.lastChild.remove();
}

const event = (type, of, more) => ({ type, user: user.value, platform: PLATFORM, device: device.value, gateway: name, epoch: of.epoch, conn: of.conn, ...more });
async function send(one, quiet) {
  try {
    const answer = await api('v1/events?wait=applied', { body: [one] });
    const at = answer.appended && answer.appended[0];
    const where = Array.isArray(at) ? 'every partition' : at ? at.partition + '@' + at.offset : '';
    if (!quiet) log('event', [by(JSON.stringify(one)), (where ? ' → ' + where : '') + outcome(at)]);
    return true;
  } catch (error) {
    log('error', one.type + ': ' + error.message);
    return false;
  }
}

/** The outcome of an event, if the server returns it. */
const outcome = (at) => (!at || !at.outcome ? '' : ', ' + at.outcome + (at.reason ? ' (' + at.reason + ')' : ''));

const renew = (quiet) => send({ type: 'lease', gateway: name, epoch, ttl_ms: LEASE_MS }, quiet);
async function begin() {
  epoch = Math.max(Date.now(), epoch + 1);
  start.disabled = true;
  if (!(await renew())) { paint(); return; }
  alive = true;
  lastConn = 0;
  link = before = null;
  clearInterval(lease);
  lease = setInterval(() => renew(true), RENEW_MS);
  paint();
  say('The gateway of this page is alive.');
}
function die() {
  clearInterval(lease);
  clearInterval(beat);
  alive = false;
  paint();
  text(hint, 'The gateway publishes nothing more. When its lease ends, within ' + dur(LEASE_MS) + ', its user is lost with cause gateway_lost. If you restart the gateway, that happens at once.');
}
async function open(intent) {
  const next = { epoch, conn: ++lastConn };
  if (!(await send(event('connect', next, { intent, client: 'the console’s own gateway' })))) return;
  before = link || before;
  link = next;
  cut = false;
  clearInterval(beat);
  const pace = watch.policy && watch.policy.platforms && watch.policy.platforms[PLATFORM];
  beat = setInterval(() => send(event('heartbeat', link), true), Math.max(1000, (pace ? pace.heartbeat_ms : 20000) / 2));
  paint();
  if (before) text(hint, 'Connection ' + before.conn + ' was replaced by ' + link.conn + '. A late disconnect of it changes nothing.');
}
function hush() {
  clearInterval(beat);
  cut = true;
  paint();
  const pace = watch.policy && watch.policy.platforms && watch.policy.platforms[PLATFORM];
  text(hint, 'No more heartbeats arrive. ' + (pace ? 'After ' + dur(pace.timeout_ms) + ' of silence' : 'After the platform’s time-out') + ' the user is lost with cause timeout. If the client comes back before that, nothing changes.');
}
function ended() {
  clearInterval(beat);
  before = link;
  link = null;
  paint();
}

function paint() {
  state.replaceChildren(glyph(alive ? 'online' : 'offline'), ' ' + (alive ? 'alive' + (link ? cut ? ', its client’s network is cut' : ', connection ' + link.conn : '') : epoch ? 'dead' : 'not started'));
  text(start, epoch ? 'Restart the gateway' : 'Start the gateway');
  start.disabled = alive;
  kill.disabled = connect.disabled = !alive;
  silence.disabled = !alive || !link || cut;
  back.disabled = !alive || !(link || before);
  late.disabled = !alive || !before;
  close.disabled = !alive || !link || cut;
  user.disabled = device.disabled = alive && !!link;
}

on(document, 'rollcall-change', ({ detail }) => {
  if (epoch && detail.user === user.value) log('change', [word(detail.before) + ' → ' + word(detail.after) + ' (' + detail.cause + '): ', sentence(detail)]);
});
box.append(h('header', null, h('h2', { id: 'h-pretend' }, 'Simulated gateway'), state, h('div.end', null, look)),
  h('div.body', null, h('p.mut', null, 'This page publishes the events of a gateway ', h('code', null, name), ' to ', h('code', null, 'POST /v1/events'), ' and shows them. Use it to try on any server what happens when a network or a gateway fails.'),
    h('div.acts', null, start, kill), h('div.flds', null, userField, deviceField), h('div.acts', null, connect, silence, back, late, close), hint), events);
paint();
