// The console's list of incidents: the last mass departures, with exact counts by cause, gateway, platform and client.

import { $, on, num, plural, text, h, by, clock, timeEl, dur, say } from './dom.js';
import { Failed, api, isLocked } from './server.js';

const POLL_MS = 5000;
/* How many names of each kind are shown before "more". */
const SHOWN = 3;
const KINDS = [['causes', 'Cause'], ['gateways', 'Gateway'], ['platforms', 'Platform'], ['clients', 'Client']];
const list = $('incidents');
let newest = null, drawn = '';
/* The ids of incidents whose details are open: they stay open when the list is drawn again. */
const opened = new Set();

async function pollIncidents() {
  if (document.hidden || isLocked()) return;
  try {
    draw(await api('v1/incidents'));
  } catch (error) {
    if (!(error instanceof Failed)) throw error;
    text($('isum'), 'cannot be read at the moment');
  }
}

function draw(answer) {
  const incidents = answer.incidents || [];
  const first = incidents.length ? incidents[0].id : '';
  if (newest !== null && first && first !== newest) say('Incident: ' + plural(incidents[0].departures, 'departure') + ' at ' + clock(incidents[0].from) + '.');
  newest = first;
  const until = answer.looked_up_to ? 'looked for up to ' + clock(answer.looked_up_to) : '';
  text($('isum'), [incidents.length ? plural(incidents.length, 'incident') : 'none', until].filter(Boolean).join(' · '));
  text($('incidents-none'), 'No mass departure in the log: at no time 100 devices, and 5 % of those online, lost their link within 10 s.');
  const key = JSON.stringify(incidents);
  if (key === drawn) return;
  drawn = key;
  list.replaceChildren(...incidents.map(item));
  list.hidden = !incidents.length;
  $('incidents-none').hidden = incidents.length > 0;
}

const byCount = (counts) => Object.entries(counts || {}).sort(([one, many], [other, more]) => more - many || (one < other ? -1 : 1));

function item(incident) {
  const share = incident.online_before ? ' (' + Math.round((incident.devices / incident.online_before) * 100) + ' % of those online)' : '';
  const within = incident.to > incident.from ? ' within ' + dur(Math.max(1000, incident.to - incident.from)) : ' at once';
  const [gateway] = byCount(incident.gateways);
  const summary = h('summary', null, timeEl(incident.from), h('b', null, plural(incident.devices, 'device') + ' left' + within),
    h('span.mut', null, gateway ? [percent(gateway[1], incident) + ' on ', by(gateway[0])] : ''));
  const details = h('details', { open: opened.has(incident.id) }, summary,
    h('p.foot', null, plural(incident.departures, 'departure') + ' of ' + plural(incident.devices, 'device') + share + '; ' + num(incident.online_before) + ' were online ' + incident.window_s + ' s before. Incident ' + incident.id + '.'),
    h('div.scroll', { tabIndex: 0, role: 'group', ariaLabel: 'Departures by name' }, h('table', null,
      h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Kind'), h('th.l', { scope: 'col' }, 'Name'), h('th', { scope: 'col' }, 'Departures'), h('th', { scope: 'col' }, 'Share'))),
      h('tbody', null, ...KINDS.flatMap(([field, kind]) => named(kind, byCount(incident[field]), incident))))));
  on(details, 'toggle', () => { if (details.open) opened.add(incident.id); else opened.delete(incident.id); });
  return h('li', null, details);
}

function percent(count, incident) {
  const share = Math.floor((count * 100) / (incident.departures || 1));
  return share || !count ? share + ' %' : '< 1 %';
}

function named(kind, counts, incident) {
  const rows = counts.slice(0, SHOWN).map(([name, count]) => h('tr', null, h('th', { scope: 'row' }, kind), h('td.l.name', null, by(name)), h('td', null, num(count)), h('td', null, percent(count, incident))));
  const rest = counts.slice(SHOWN);
  if (rest.length) {
    const more = rest.reduce((sum, [, count]) => sum + count, 0);
    rows.push(h('tr', null, h('th', { scope: 'row' }, kind), h('td.l.mut', null, num(rest.length) + ' more'), h('td', null, num(more)), h('td', null, percent(more, incident))));
  }
  return rows;
}

setInterval(pollIncidents, POLL_MS);
on(document, 'visibilitychange', pollIncidents);
on(document, 'rollcall-start', pollIncidents);
