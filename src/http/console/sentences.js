// Describes changes in sentences.

import { h, by, join, word, glyph, dur, STATUS } from './dom.js';

export const CAUSES = 'login resume revive logout closed exit background timeout gateway_lost push_expired kicked custom_status forgotten'.split(' ');
export const LOST = {closed: 'the connection closed', exit: 'the client exited', background: 'it was in the background too long', timeout: 'heartbeats stopped', gateway_lost: 'its gateway was lost'};
/** Returns the sentence of a change, in pieces: texts, and elements for what people chose. */
export function sentence(c) {
  const dv = Array.isArray(c.devices) ? c.devices : [];
  const where = d => [by(d.platform), d.gateway ? [' (', by(d.gateway), ')'] : ''], list = a => join(a.map(where), ', ');
  const came = dv.filter(d => d.after === 'online'), rest = dv.filter(d => d.after !== 'online'), all = list(dv), d = dv[0];
  const who = d ? where(d) : 'a device', then = d && dv.length === 1 && d.after !== c.after && d.after in STATUS ? '; that device is ' + word(d.after) + ' now' : '';
  let x;
  switch (c.cause) {
    case 'login': x = [came.length ? ['logged in on ', list(came)] : 'logged in again', rest.length ? ['; this displaced ', list(rest)] : '']; break;
    case 'resume': x = ['came back on ', came.length ? list(came) : all]; break;
    case 'revive': x = ['showed life again on ', who]; break;
    case 'logout': x = ['logged out on ', who]; break;
    case 'closed': x = ['connection closed on ', who, then]; break;
    case 'exit': x = ['exited on ', who, then]; break;
    case 'background': x = ['was in the background too long on ', who, then]; break;
    case 'timeout': x = ['heartbeats stopped on ', who, then]; break;
    case 'gateway_lost': x = ['gateway ', d ? by(d.gateway) : '', ' was lost, and with it ', d ? by(d.platform) : 'a device', then]; break;
    case 'push_expired': x = ['the push time ended on ', who]; break;
    case 'kicked': x = ['was kicked by an operator', d ? [' on ', all] : '']; break;
    case 'custom_status': x = c.custom_status == null ? 'cleared the custom status' : ['set the custom status “', by(c.custom_status), '”']; break;
    case 'forgotten': x = ['was forgotten: everything about the user is erased', d ? ['; was on ', all] : '']; break;
    default: x = [String(c.cause), d ? [' on ', all] : ''];
  }
  const late = c.logged_at - c.at;
  return [x, late >= 1000 ? '; noticed ' + dur(late) + ' later' : ''];
}
export function transition(c) {
  if (c.before === c.after) return h('span.tr.mut', glyph(c.after), 'stays ' + word(c.after));
  return h('span.tr', glyph(c.before), word(c.before), h('span.ar', '→'), glyph(c.after), word(c.after));
}
