// The console's actions for operators: kick and forget a user. Each shows the event as a curl command before it publishes it.

import { on, h, by, text, say } from './dom.js';
import { api, hasToken } from './server.js';

const ACTS = [
  { label: 'Kick', type: 'kick', what: 'Ends every login of the user. Clients that reconnect by themselves are refused; a new login is accepted.' },
  { label: 'Forget', type: 'forget', what: 'Erases everything about the user from the state and ends every connection. This cannot be undone. The log keeps the user’s events until its retention drops them.' },
];
/* Kept while the page is open, if the page's own token has not the scope admin. */
let adminToken = '';
/* The open action: it must survive when the panel is drawn again after a change of the user. */
let open = null;

/* The same event, in which nothing is invisible. */
const json = (value) => JSON.stringify(value).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]|(?! )\p{Zs}/gu, (c) => c.split('').map((unit) => '\\u' + unit.charCodeAt(0).toString(16).padStart(4, '0')).join(''));
const quoted = (s) => "'" + s.replaceAll("'", "'\\''") + "'";
function curl(event) {
  const token = hasToken() || adminToken ? ` -H "Authorization: Bearer $TOKEN"` : '';
  return `curl${token} ${quoted(new URL('v1/events', location.href).href)} -d ${quoted(json([event]))}`;
}

/** Returns the part of the panel with the operator's actions. */
export function actions(user) {
  if (open && open.user === user) return open.element;
  const element = h('section.ops');
  open = { user, element };
  const begin = (act) => {
    const event = { type: act.type, user }, problem = h('p.err', { role: 'alert' });
    const token = h('input.in', { type: 'password', autocomplete: 'off', id: 'ops-token', value: adminToken });
    const run = h('button.btn.bad', { type: 'submit' }, act.label + ' ', by(user)), cancel = h('button.btn', { type: 'button' }, 'Cancel');
    const form = h('form', null, h('p', null, act.what), h('pre', null, curl(event)),
      hasToken() || adminToken ? h('div.fld', null, h('label', { htmlFor: 'ops-token' }, 'Admin token, if the page’s token has no scope admin'), token) : null,
      h('div.acts', null, run, cancel), problem);
    on(cancel, 'click', choose);
    on(form, 'submit', async (e) => {
      e.preventDefault();
      run.disabled = true;
      adminToken = token.value.trim();
      try {
        const answer = await api('v1/events?wait=applied', { body: [event], given: adminToken || undefined });
        const at = answer.appended && answer.appended[0];
        say(act.label + ': published.');
        choose();
        element.append(h('p.mut', null, 'Published' + (at && at.offset !== undefined ? ' at partition ' + at.partition + ', offset ' + at.offset : '') + (at && at.outcome ? ': ' + at.outcome + (at.reason ? ' (' + at.reason + ')' : '') + '.' : '; the change follows.')));
      } catch (error) {
        run.disabled = false;
        text(problem, error.message + '.');
        if ([401, 403].includes(error.status) && !form.contains(token)) form.insertBefore(h('div.fld', null, h('label', { htmlFor: 'ops-token' }, 'Admin token'), token), form.lastChild);
      }
    });
    element.replaceChildren(h('h3', null, act.label), form);
    run.focus();
  };
  function choose() {
    element.replaceChildren(h('h3', null, 'Operator'), h('div.acts', null, ...ACTS.map((act) => {
      const button = h('button.btn', { type: 'button', title: act.what }, act.label + '…');
      on(button, 'click', () => begin(act));
      return button;
    })));
  }
  choose();
  return element;
}
