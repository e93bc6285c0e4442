// The console's tab "Try it": each device is a real client of this process's gateway, with clients/js/rollcall.js.

import { Rollcall } from '../rollcall.js';
import { WHY } from './kicks.js';

import { $, on, h, by, plain, text, dur, clock, glyph, word, say } from './dom.js';
import { api } from './server.js';
import { openUser } from './user.js';
import { watch } from './watch.js';

const KEPT = 200;
const STATE = { closed: 'not connected', connecting: 'connecting', online: 'online', waiting: 'waiting to come back' };
const PLATFORMS = ['android', 'iphone', 'ipad', 'mac', 'windows', 'linux', 'web', 'mini_program'];
const devices = [];
let edge = null, made = 0;

/* Runs whenever the tab is opened, since a gateway may have started or stopped. */
async function look() {
  const about = $('try-about');
  try {
    ({ edge } = await api('v1/edge'));
  } catch (error) {
    if (!edge) about.replaceChildren('Cannot find out where the gateway is: ' + error.message + '. To retry, open this tab again.');
    return;
  }
  $('try-add').hidden = !edge;
  if (edge) {
    about.replaceChildren('Each device below is a real client of the gateway at ', h('code', null, edge.url),
      ': its events are in the log, and every subscriber sees its changes.' + (edge.token ? ' The gateway requires a token, which names the user.' : ''));
    if (!devices.length) add();
  } else {
    const here = new URL('/', location.href).href.replace(/\/$/, '');
    about.replaceChildren(...(watch.isKafka
      ? ['On Kafka the gateway is a separate process, which this page cannot reach. Start one with ', h('code', null, 'rollcall gateway --engine ' + here + ' --listen 127.0.0.1:8090 --gateway-insecure'),
        ' and connect to it with the clients in clients/, or with ', h('code', null, 'rollcall load'), '. Below, this page simulates a gateway.']
      : ['This process has no gateway, so there is nothing to connect to. Start it with ',
        h('code', null, 'rollcall serve --gateway 127.0.0.1:8090 --gateway-insecure'), ' and load this page again. Below, this page simulates a gateway.']));
  }
}

/** One device: its settings, its actions, and its events. */
class Device {
  constructor(before) {
    this.number = ++made;
    this.client = null;
    const name = 'Device ' + this.number, id = 'try-' + this.number;
    this.state = h('span.st', { role: 'status' });
    this.user = h('input.in', { value: before ? before.user.value : 'alice', maxLength: 128 });
    const known = Object.keys((watch.policy || {}).platforms || {}), all = known.length ? known : PLATFORMS;
    this.platform = h('select.in', null, ...PLATFORMS.filter((p) => all.includes(p)).concat(all.filter((p) => !PLATFORMS.includes(p))).map((p) => h('option', null, p)));
    if (before) this.platform.value = before.platform.value;
    this.device = h('input.in', { value: 'try-' + Math.random().toString(36).slice(2, 8), maxLength: 128 });
    this.token = h('input.in', { type: 'password', value: before ? before.token.value : '' });
    this.status = h('input.in', { maxLength: 100, placeholder: 'empty clears it' });
    this.other = h('input.in', { maxLength: 128, placeholder: 'user id' });
    for (const input of [this.user, this.device, this.token, this.status, this.other]) {
      Object.assign(input, { autocomplete: 'off', autocapitalize: 'none', spellcheck: false });
    }
    /* The label does not enclose the input: the options of a list would become part of its accessible name. */
    const field = (label, input) => {
      input.id = id + '-' + label.toLowerCase().replaceAll(' ', '-');
      return h('div.fld', null, h('label', { htmlFor: input.id }, label), input);
    };
    const button = (label, title, act, type = 'button') => {
      const made = h('button.btn', { type, title }, label);
      if (act) on(made, 'click', act);
      return made;
    };
    this.connect = button('Connect', 'A person logs in; this may displace other devices', null, 'submit');
    this.back = button('Come back', 'Reconnects by itself, as after a reload; displaces no other device', () => this.open('resume'));
    this.drop = button('Drop', 'Closes the connection without logging out', () => this.client.close());
    const ask = (label, title, what) => button(label, title, () => this.ask(label, what));
    this.asks = [
      ask('Background', 'The app goes to the background', (client) => client.background()),
      ask('Foreground', 'The app returns to the foreground', (client) => client.foreground()),
      ask('Log out', 'Ends the login', (client) => client.logout()),
      button('Set', 'Sets the custom status of the user', null, 'submit'),
      button('Subscribe', 'Shows this user’s status and every change of it', null, 'submit'),
    ];
    const [background, foreground, logout, set, subscribe] = this.asks;
    const connecting = h('form.flds', null, edge.token ? field('Token', this.token) : field('User', this.user), field('Platform', this.platform), field('Device', this.device),
      h('div.acts', null, this.connect, this.back, this.drop));
    const saying = h('form.one', null, field('Custom status', this.status), set);
    const watching = h('form.one', null, field('Watch a user', this.other), subscribe);
    on(connecting, 'submit', (event) => { event.preventDefault(); this.open('login'); });
    on(saying, 'submit', (event) => {
      event.preventDefault();
      this.ask('Custom status', (client) => client.setCustomStatus(this.status.value || null));
    });
    on(watching, 'submit', (event) => { event.preventDefault(); this.watch(this.other.value); });
    this.end = h('p.note', { hidden: true });
    this.hello = h('dl.kv');
    this.events = h('ol.evs', { tabIndex: 0 }, h('li.mut', null, 'No events yet.'));
    this.events.setAttribute('role', 'log');
    this.events.setAttribute('aria-label', name + ': events, newest first');
    const remove = h('button.x', { type: 'button', title: 'Remove' }, '×');
    remove.setAttribute('aria-label', 'Remove ' + name);
    on(remove, 'click', () => this.remove());
    this.look = button('Look up', 'Looks the user up', () => { if (this.who()) openUser(this.who()); else this.token.focus(); });
    this.panel = h('section.panel.try', null,
      h('header', null, h('h2', { id }, name), this.state, h('div.end', null, this.look, remove)),
      h('div.body', null, connecting, this.end, this.hello, h('div.acts', null, background, foreground, logout), saying, watching), this.events);
    this.panel.setAttribute('aria-labelledby', id);
    $('tries').append(this.panel);
    this.paint('closed');
  }

  who() { return edge.token ? (this.client && this.client.hello ? this.client.hello.user : '') : this.user.value; }

  open(how) {
    if (!edge.token && !this.user.value) { this.user.focus(); return; }
    const client = (this.client = new Rollcall({
      url: edge.url, platform: this.platform.value, device: this.device.value, app: 'console', claim: false,
      ...(edge.token ? { token: this.token.value } : { user: this.user.value }),
    }));
    this.hello.replaceChildren();
    this.end.hidden = true;
    const listen = (event, handle) => client.on(event, (value) => { if (this.client === client) handle(value); });
    listen('state', (state) => { this.paint(state); if (state === 'connecting' || state === 'waiting') this.log('state', STATE[state]); });
    listen('online', (hello) => {
      this.log('hello', ['user ', by(hello.user), ', gateway ', by(hello.gateway), ', epoch ' + hello.epoch + ', connection ' + hello.conn]);
      this.hello.replaceChildren(...[['Connection', [h('code', null, by(hello.gateway)), ', epoch ' + hello.epoch + ', connection ' + hello.conn]],
        ['Heartbeats', 'automatic, every ' + dur(hello.heartbeat_ms) + '; lost after ' + dur(hello.timeout_ms) + ' of silence'],
      ].flatMap(([key, value]) => [h('dt', null, key), h('dd', null, value)]));
      say(name(this) + ' is online.');
    });
    listen('change', (change) => this.log('change', [stands(change), ' (' + change.cause + ')']));
    listen('standing', (user) => this.log('standing', stands(user)));
    listen('evicted', (user) => this.log('evicted', ['no longer subscribed to ', by(user)]));
    listen('kicked', ({ reason, reconnect }) => {
      const why = reason + ': ' + (WHY[reason] || 'no description') + '. ' + (reconnect ? 'The client may reconnect by itself.' : 'The client may not reconnect by itself.');
      this.log('kicked', why);
      this.ended('Kicked, ' + why);
    });
    listen('offline', ({ code, reason, comesBack }) => {
      this.hello.replaceChildren();
      this.log('closed', code + (reason ? ' ' + plain(reason) : '') + (comesBack ? '; reconnects by itself' : ''));
    });
    listen('error', (error) => this.log('error', error.code + ': ' + plain(error.message)));
    client[how]();
  }

  async ask(what, request) {
    try {
      await request(this.client);
      this.log('done', what);
    } catch (error) {
      this.log('error', [what, ': ' + (error.code ? error.code + ', ' : '') + plain(error.message)]);
    }
  }

  async watch(user) {
    if (!user) { this.other.focus(); return; }
    await this.ask(['Subscribe to ', by(user)], async (client) => {
      const { unknown } = await client.subscribe([user]);
      if (unknown.length) this.log('standing', [by(user), ' is not known yet; a login will be shown as a change']);
    });
  }

  ended(why) { text(this.end, why); this.end.hidden = false; say(name(this) + ': ' + why); }

  log(kind, what) {
    const { events } = this, entry = h('li', null, h('time', null, clock(Date.now(), true)), h('b', null, kind), h('span', null, what));
    entry.dataset.kind = kind;
    if (events.firstChild.className === 'mut') events.firstChild.remove();
    events.prepend(entry);
    while (events.children.length > KEPT) events.lastChild.remove();
  }

  paint(state) {
    const focus = document.activeElement, mine = this.panel.contains(focus), closed = state === 'closed';
    this.panel.dataset.state = state;
    this.state.replaceChildren(glyph(state === 'online' ? 'online' : 'offline'), ' ' + STATE[state]);
    for (const input of [this.user, this.platform, this.device, this.token, this.connect, this.back]) input.disabled = !closed;
    this.drop.disabled = closed;
    for (const button of this.asks) button.disabled = state !== 'online';
    /* Keep the keyboard focus within the panel. */
    if (mine && focus.disabled) (closed ? this.connect : this.drop).focus();
  }

  remove() {
    const { client } = this;
    this.client = null;
    if (client && client.state !== 'closed') client.close();
    devices.splice(devices.indexOf(this), 1);
    this.panel.remove();
    $('try-add').focus();
  }
}

const name = (device) => 'Device ' + device.number;
const stands = ({ user, status, custom_status: custom }) => [by(user), ' is ' + word(status), custom == null ? '' : [', “', by(custom), '”']];
function add() {
  const device = new Device(devices[devices.length - 1]);
  devices.push(device);
  return device;
}

on($('try-add'), 'click', () => add().device.focus());
/* The page's content security policy names the gateway at the time of loading. */
on(document, 'securitypolicyviolation', ({ effectiveDirective }) => {
  if (effectiveDirective !== 'connect-src') return;
  for (const device of devices) {
    if (device.client && ['connecting', 'waiting'].includes(device.client.state)) {
      device.client.close();
      device.ended('The gateway started or moved after this page was loaded. Load the page again.');
    }
  }
});
on(document, 'rollcall-try', look);
if (!$('p-try').hidden) look();
