// The console's look-up of one user: status, devices, the next deadline of each, the last changes, and the operator's
// actions.

import { $, on, mono, num, text, h, by, named, word, glyph, plural, clock, timeEl, dur, say, STATUS } from './dom.js';
import { api, isLocked, logNow, observe } from './server.js';
import { watch } from './watch.js';
import { actions } from './operator.js';
import { LOST, sentence, transition } from './sentences.js';
import { drawPast, showPast, timeline, whyNow } from './past.js';

export const look = {user: null, data: null, changes: null, err: null, at: 0, gen: 0, busy: false, again: false, from: null, y: 0, key: ''};
let ticks = [];                /* functions run each second while the panel is open */
export function openUser(u) {
  u = String(u);
  const hash = '#user=' + encodeURIComponent(u);
  if (location.hash === hash && look.user === u) { fetchLook(); showLook(); } else location.hash = hash;
}
function hashUser() { const m = /^#user=(.+)$/.exec(location.hash); if (!m) return null; try { return decodeURIComponent(m[1]); } catch (e) { return m[1]; } }
/* The user whose id the page itself wrote into the field, which keeps no line breaks. */
let box = {};
export function route() {
  const u = hashUser();
  if (u === look.user) return;
  if (u == null) { if (location.hash === '' || location.hash === '#') closeLook(); return; }
  if (look.user == null) { look.from = document.activeElement; look.y = scrollY; }
  Object.assign(look, {user: u, data: null, changes: null, err: null, key: '', at: 0}); look.gen++; look.busy = false;
  $('who').value = u; box = {shown: $('who').value, user: u}; $('look-h').replaceChildren(by(u));
  drawLook(); showLook(); fetchLook(true);
}
function showLook() {
  if (isLocked()) return;
  $('look').hidden = false; $('look').scrollTop = 0;
  $('look-h').focus({preventScroll: true});
  if (getComputedStyle($('look')).position !== 'fixed') $('look').scrollIntoView({block: 'start'});
}
function closeLook() {
  if (look.user == null) return;
  const back = look.from, stacked = getComputedStyle($('look')).position !== 'fixed';
  look.user = null; look.gen++; look.from = null; ticks = []; $('look').hidden = true; $('look-b').replaceChildren();
  if (stacked) scrollTo(0, look.y);
  (back && back.isConnected && back !== document.body ? back : $('who')).focus({preventScroll: true});
}
on($('close'), 'click', leave);
function leave() { history.pushState(null, '', location.pathname + location.search); route(); }
on(window, 'keydown', e => { if (e.key === 'Escape' && look.user != null && $('look').contains(document.activeElement)) leave(); });
on($('find'), 'submit', e => { e.preventDefault(); const v = $('who').value; if (v) openUser(v === box.shown ? box.user : v); else $('who').focus(); });
on(document, 'rollcall-replaced', () => { look.key = ''; fetchLook(); });
let lookTimer = 0;
/** Refreshes the look-up soon, if it shows this user. */
export function userChanged(user) { if (look.user === user) lookSoon(); }
function lookSoon() { if (!lookTimer) lookTimer = setTimeout(() => { lookTimer = 0; fetchLook(); }, Math.max(150, 1000 - (mono() - look.at))); }
export async function fetchLook(announce) {
  if (look.user == null || isLocked() || document.hidden) return;
  if (look.busy) { look.again = true; return; }
  const gen = look.gen, id = '?id=' + encodeURIComponent(look.user);
  look.busy = true; look.at = mono();
  const asked = look.user;
  const [a, b] = await Promise.allSettled([api('v1/user' + id), api('v1/user/changes' + id + '&limit=20')]);
  if (gen !== look.gen) return;
  look.busy = false;
  if (a.status === 'fulfilled') {
    look.data = a.value; look.err = null; look.okAt = Date.now();
    if (a.value.as_of) observe(a.value.as_of.partition, a.value.as_of.time);
  } else { look.err = a.reason; if (a.reason.status === 404) look.data = null; }
  if (look.data) showPast(asked, look.data.as_of ? look.data.as_of.partition : 0); else timeline.hidden = true;
  if (b.status === 'fulfilled') look.changes = b.value.changes || [];
  if (announce) say(look.data ? named(look.user) + ' is ' + word(look.data.status) + ', ' + plural((look.data.devices || []).length, 'device') + '.' : look.err.status === 404 ? 'User ' + named(look.user) + ' is not known.' : 'The look-up failed.');
  drawLook();
  if (look.again) { look.again = false; lookSoon(); }
}
const LOSES = p => !p ? 'it loses its link' : p.away_ms === 0 ? 'it goes offline and its login ends' : p.push ? 'it becomes push online: messages reach it by push for ' + dur(p.away_ms) + ' more' : 'it goes offline; its login is kept for ' + dur(p.away_ms);
/* Describes a device's deadline: its name, its effect, and where its meter begins. */
function fate(d) {
  const p = watch.policy && watch.policy.platforms && watch.policy.platforms[d.platform], dl = d.deadline;
  if (d.state === 'online') {
    if (d.lingering) return {now: 'The link ended (' + (d.lingering === 'exit' ? 'the client exited' : 'it closed') + '); the device still counts as online for a moment.', name: 'Waiting for it to come back', then: 'Unless it comes back by then, ' + LOSES(p) + '.', from: dl - (p ? p[d.lingering + '_ms'] || 0 : 0)};
    const hb = p ? d.last_seen + p.timeout_ms : dl;
    if (dl >= hb) return {name: 'Heartbeat timeout', then: 'Unless a heartbeat arrives by then, ' + LOSES(p) + '.', from: d.last_seen};
    const g = watch.gateways.find(g => g.gateway === d.gateway && g.epoch === d.epoch);
    if (p.background_ms != null && dl <= d.last_seen + p.background_ms && !(g && g.lease_until === dl)) return {now: 'The app is in the background.', name: 'Background time ends', then: 'Unless it returns to the foreground by then, ' + LOSES(p) + '.', from: dl - p.background_ms};
    return {name: ['Lease of ', by(d.gateway), ' ends'], then: 'Unless the gateway renews its lease by then, it counts as lost with all its connections, and ' + LOSES(p) + '.', from: d.last_seen};
  }
  if (d.state === 'away') {
    const lost = LOST[d.lost_by] || d.lost_by, kept = 'Logged in, but away: ' + lost + '.';
    const push = d.status === 'push_online';
    return {now: kept, name: push ? 'Push ends' : 'Login is forgotten', then: 'Unless it comes back by then, ' + (push ? 'it goes offline and its login ends.' : 'its login ends without a change.'), from: d.since};
  }
  return {now: (d.reason === 'admin' ? 'Kicked by an operator.' : 'Displaced by a login elsewhere.') + ' A client that reconnects by itself is refused; a new login is accepted.', name: 'Kick is forgotten', then: 'Then this entry is removed without a change.', from: d.since};
}
const ago = (ms, part) => { const n = logNow(part); return n == null ? '' : n - ms < 1000 ? 'just now' : dur(n - ms) + ' ago'; };
const when = (ms, part) => ms == null ? null : h('span', timeEl(ms), ' · ', tick(h('span'), () => ago(ms, part)));
function pairs(...kv) { const dl = h('dl.kv'); for (let i = 0; i < kv.length; i += 2) if (kv[i + 1]) dl.append(h('dt', kv[i]), h('dd', kv[i + 1])); return dl; }
function tick(el, fn) { const f = () => text(el, fn()); f(); ticks.push(f); return el; }
export function drawLook(force) {
  if (look.user == null) return;
  const u = look.data, body = $('look-b'), sel = getSelection();
  const key = JSON.stringify([u && Object.assign({}, u, {as_of: 0}), look.changes, look.err && look.err.message, !!watch.policy]);
  if (!force && key === look.key) { runTicks(); return; }
  if (look.key && sel && !sel.isCollapsed && body.contains(sel.anchorNode)) return;
  look.key = key; ticks = [];
  const out = [];
  if (!u && !look.err) out.push(h('p.mut', 'Looking up…'));
  if (look.err) {
    if (look.err.status === 404) out.push(h('p', 'This user is not known. A user exists from the first change until forgotten; ids are case-sensitive, and spaces are part of them.'), trimmed());
    else out.push(h('p.err', 'Not refreshed: ' + look.err.message + '.' + (u ? ' Shown as of ' + clock(look.okAt) + '.' : '')));
  }
  if (u) {
    out.push(tick(h('p.err'), () => watch.fails ? 'Disconnected: as of ' + clock(look.okAt) + '.' : ''));
    const part = u.as_of ? u.as_of.partition : -1, ds = u.devices || [];
    const [why, because] = whyNow(u.user);
    out.push(h('p.big', glyph(u.status), h('b', null, word(u.status)), h('span.mut', 'since ', timeEl(u.since), ' · ', tick(h('span'), () => ago(u.since, part).replace(' ago', ''))), why));
    out.push(because);
    if (u.custom_status != null) out.push(h('p.quote', h('span.sr', 'Custom status: '), by(u.custom_status)));
    out.push(pairs('Last seen', when(u.last_seen, part), 'Version', num(u.version), 'Read at', u.as_of && 'partition ' + part + ', offset ' + num(u.as_of.offset)), h('h3', null, ds.length ? plural(ds.length, 'device') : 'Devices'));
    if (!ds.length) out.push(h('p.mut', 'No device is logged in.'));
    const ul = h('ul'); ds.forEach(d => ul.append(devOf(d, part))); out.push(ul);
  }
  if (u) out.push(timeline, actions(look.user));
  if (look.changes && look.changes.length) {
    const ol = h('ol.hist');
    for (const c of look.changes) ol.append(h('li', timeEl(c.at), h('div', null, transition(c), h('span.what', null, sentence(c)))));
    out.push(h('h3', 'Last changes'), ol);
  } else if (u && look.changes) out.push(h('h3', 'Last changes'), h('p.mut', 'No changes are kept here.'));
  const top = $('look').scrollTop, had = body.contains(document.activeElement) ? document.activeElement : null;
  body.replaceChildren(...out);
  /* What has the keyboard's focus keeps it: the same element, or the one that replaced it. */
  const again = had && (had.isConnected ? had : had.id && $(had.id));
  if (again) again.focus({preventScroll: true});
  $('look').scrollTop = top; drawPast();
}
/** Offers the id without the spaces around it, which come with copied text. */
function trimmed() {
  const user = look.user.trim();
  if (!user || user === look.user) return '';
  const other = h('button.btn', {type: 'button'}, 'Look up ', by(user));
  on(other, 'click', () => openUser(user));
  return h('p', other);
}
function devOf(d, part) {
  const f = fate(d), li = h('li', {className: 'dev ' + (d.status in STATUS ? d.status : '')});
  li.append(h('div.hd', h('b', null, by(d.platform)), h('code.mut', null, by(d.device)),
    h('span.st', glyph(d.status), d.state === 'kicked' ? 'kicked, offline' : word(d.status))));
  if (f.now) li.append(h('p.fate', null, f.now));
  if (d.deadline != null) {
    const bar = h('i'), m = h('div.meter', {'aria-hidden': 'true'}, bar), whole = Math.max(1, d.deadline - f.from);
    li.append(h('div.dl', h('span', null, f.name), tick(h('span.dlv', {title: 'at ' + clock(d.deadline)}), () => {
      const n = logNow(part); if (n == null) return 'at ' + clock(d.deadline);
      const left = d.deadline - n; bar.style.transform = 'scaleX(' + Math.min(1, Math.max(0, left / whole)).toFixed(3) + ')';
      return left > 0 ? 'in ' + dur(Math.max(left, 1000)) : 'due now';
    })), m, h('p.fate.mut', tick(h('span'), () => { const n = logNow(part); return n != null && d.deadline <= n ? 'It takes effect with the next record of partition ' + part + '.' : f.then; })));
  }
  li.append(pairs(d.state === 'online' && !d.lingering ? 'Connection' : 'Last connection', [h('code', null, by(d.gateway)), ', epoch ' + d.epoch + ', connection ' + d.conn], 'Client', d.client != null && by(d.client),
    d.state === 'kicked' ? 'Kicked' : d.state === 'away' ? 'Away since' : 'Online since', when(d.since, part), 'Logged in', d.login_at !== d.since && when(d.login_at, part),
    'Last seen', when(d.last_seen, part), 'Last event', d.evidence != null && 'at offset ' + num(d.evidence)));
  return li;
}
export function runTicks() { for (const f of ticks) f(); }