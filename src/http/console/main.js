// The console: its tabs, the token, and the updates once a second. Other scripts in this folder have the parts.

import { $, on, mono, text, clock } from './dom.js';
import { forgetToken, hasToken, isLocked, logNow, started, stopped, unlock } from './server.js';
import { drawGateways, missed, pollRest, pollStats, showState, stopPolling, watch } from './watch.js';
import { gap, holding, schedule, showHeld } from './changes.js';
import { fetchLook, look, route, runTicks } from './user.js';
import './incidents.js';
import './kicks.js';
import './try.js';
import './pretend.js';

/* ---- the token ---- */
on(document, 'rollcall-locked', ({ detail }) => {
  text($('autherr'), detail.had ? 'The server did not accept this token' + (detail.why ? ': ' + detail.why : '') + '.' : '');
  $('autherr').hidden = !detail.had;
  $('auth').hidden = false;
  $('main').hidden = $('drop').hidden = $('look').hidden = $('find').hidden = true;
  stopPolling();
  $('tok').value = '';
  $('tok').focus();
  showState();
});
on($('authf'), 'submit', (e) => {
  e.preventDefault();
  const v = $('tok').value.trim();
  if (!v) return;
  if (!/^[\x21-\x7e]+$/.test(v)) { text($('autherr'), 'A token has only visible ASCII characters and no spaces.'); $('autherr').hidden = false; return; }
  unlock(v);
  $('auth').hidden = true;
  $('main').hidden = $('drop').hidden = $('find').hidden = false;
  $('main').focus({ preventScroll: true });
  scrollTo(0, 0);
  start();
});
on($('drop'), 'click', () => { forgetToken(); location.reload(); });
on($('skip'), 'click', (e) => { e.preventDefault(); $('main').focus({ preventScroll: true }); $('main').scrollIntoView(); });

/* ---- tabs ---- */
const tabs = ['watch', 'try'].map((name) => $('t-' + name));
function showTab(tab) {
  for (const t of tabs) { const me = t === tab; t.setAttribute('aria-selected', me); t.tabIndex = me ? 0 : -1; $(t.getAttribute('aria-controls')).hidden = !me; }
  if (tab.id === 't-try' && !isLocked()) document.dispatchEvent(new Event('rollcall-try'));
}
for (const tab of tabs) {
  on(tab, 'click', () => showTab(tab));
  on(tab, 'keydown', (e) => { const i = tabs.indexOf(tab), to = tabs[{ ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1 }[e.key]]; if (to) { e.preventDefault(); showTab(to); to.focus(); } });
}
function go() {
  if (location.hash === '#try') showTab($('t-try'));
  route();
}
on(window, 'hashchange', go);

/* ---- once a second ---- */
setInterval(() => {
  if (document.hidden || isLocked()) return;
  showState();
  runTicks();
  drawGateways();
  const l = logNow();
  if (l != null) text($('ltime'), 'Log time about ' + clock(l));
  if (look.user != null && mono() - look.at > 5000 && !watch.fails) fetchLook();
  if (holding()) showHeld(holding());
}, 1000);
setInterval(pollRest, 5000);

/* A page that is hidden for this long closes its streams. */
const ASLEEP_MS = 120000;
let hiddenAt = 0, asleep = 0;
on(document, 'visibilitychange', () => {
  if (document.hidden) {
    stopPolling();
    hiddenAt = Date.now();
    asleep = setTimeout(() => { if (document.hidden && !isLocked()) { stopped(true); asleep = -1; } }, ASLEEP_MS);
    return;
  }
  if (asleep === -1) gap('Changes since ' + clock(hiddenAt) + ' are not shown, because this tab was in the background.');
  clearTimeout(asleep);
  asleep = 0;
  if (isLocked()) return;
  watch.fails = 0;
  missed();
  start();
  schedule();
});
function start() {
  showState();
  pollStats().then(pollRest);
  started();
  if (look.user != null) { $('look').hidden = false; fetchLook(); }
}

new ResizeObserver(() => document.documentElement.style.setProperty('--top', $('top').offsetHeight + 'px')).observe($('top'));
try { text($('tz'), 'Times are in ' + (Intl.DateTimeFormat().resolvedOptions().timeZone || 'your time zone')); } catch (e) { /* The page then shows no time zone. */ }
$('drop').hidden = !hasToken();
go();
start();
