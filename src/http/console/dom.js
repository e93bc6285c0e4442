// The console's helpers for elements, numbers and times. Data from the server only becomes text nodes and properties,
// never markup.

export const $ = (id) => document.getElementById(id);
export const on = (el, type, fn, opt) => el.addEventListener(type, fn, opt);
export const mono = () => performance.now();
const NF = new Intl.NumberFormat('en');
export const num = (n) => (Number.isFinite(n) ? NF.format(n) : '–');
export const text = (e, s) => { s = String(s); if (e.textContent !== s) e.textContent = s; };

/** Creates an element: h('li.row.new', {title: 't'}, child, 'text', …). */
export function h(tag, props, ...kids) {
  const [name, ...cls] = tag.split('.'), e = document.createElement(name);
  if (cls.length) e.className = cls.join(' ');
  if (typeof props === 'string' || Array.isArray(props) || props instanceof Node) kids.unshift(props);
  else for (const k in props) k in e ? (e[k] = props[k]) : e.setAttribute(k, props[k]);
  e.append(...kids.flat(Infinity).filter((k) => k != null && k !== ''));
  return e;
}

/* ---- texts that people chose: ids, names of devices and gateways, clients, custom statuses ---- */
/* What is invisible, or changes where and how the text around it appears. A joiner within an emoji is visible by its effect. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]|(?! )\p{Zs}/gu;
const escaped = (c) => '\\u{' + c.codePointAt(0).toString(16) + '}';
/* Alternatives, because Chromium 156 finds no emoji with a class before `$`. */
const isJoined = (c, before, after) => (c === '\u200d' && /(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\ufe0f)$/u.test(before) && /^\p{Extended_Pictographic}/u.test(after))
  || (c === '\ufe0f' && /(?:\p{Extended_Pictographic}|[\d#*])$/u.test(before));
/* Replaces each invisible character, and a space at an end, which cannot be seen either. */
const visible = (s, put) => String(s).replace(UNSEEN, (c, at, all) => (isJoined(c, all.slice(0, at), all.slice(at + c.length)) ? c : put(escaped(c)))).replace(/^ | $/g, () => put(escaped(' ')));
/** Returns a text in which control, format and invisible characters are escaped, as `\u{202e}`. */
export const plain = (s) => visible(s, (escape) => escape);
/** Returns an element with such a text. Its direction does not change the text around it. */
export const by = (s) => h('bdi', null, visible(s, (escape) => '\0' + escape + '\0').split('\0').map((piece, at) => (at % 2 ? h('span.esc', null, piece) : piece)));
/** Returns such a text for an attribute or an announcement, which have no elements. */
export const named = (s) => (/^[\x21-\x7e]*$/.test(s) ? String(s) : '\u2068' + visible(s, (escape) => '\u2066' + escape + '\u2069') + '\u2069');
/** Puts something between the items of a list. */
export const join = (list, between) => list.flatMap((one, at) => (at ? [between, one] : [one]));

export const STATUS = { __proto__: null, online: 'online', push_online: 'push online', offline: 'offline' };
export const word = (s) => STATUS[s] || String(s);
export const persec = (r) => (!(r >= 0) ? '–' : r < 10 ? r.toFixed(1) : num(Math.round(r)));
export const glyph = (s) => h('i.g.' + (s in STATUS ? s : 'offline'), { 'aria-hidden': 'true' });
export const plural = (n, one) => num(n) + ' ' + one + (n === 1 ? '' : 's');

/* ---- times ---- */
const fmt = (o) => new Intl.DateTimeFormat('en-GB', o);
const T1 = fmt({ timeStyle: 'medium' }), T2 = fmt({ day: 'numeric', month: 'short' }), T3 = fmt({ dateStyle: 'medium' });
const sane = (ms) => Number.isFinite(ms) && Math.abs(ms) < 8.64e15;
export function clock(ms, sub) {
  if (!sane(ms)) return String(ms);
  const d = new Date(ms), n = new Date();
  if (d.toDateString() === n.toDateString()) return T1.format(d) + (sub ? '.' + String(d.getMilliseconds()).padStart(3, '0') : '');
  return (d.getFullYear() === n.getFullYear() ? T2 : T3).format(d) + ', ' + T1.format(d);
}
export function timeEl(ms, sub) {
  const t = h('time', null, clock(ms, sub));
  if (sane(ms)) { t.dateTime = new Date(ms).toISOString(); t.title = t.dateTime; }
  return t;
}
export function dur(ms) {
  const s = Math.max(0, Math.round(ms / 1000)), m = Math.floor(s / 60), hr = Math.floor(m / 60), d = Math.floor(hr / 24);
  const two = (a, u, b, v) => a + ' ' + u + (b ? ' ' + b + ' ' + v : '');
  return d > 729 ? Math.round(d / 365) + ' years' : d > 1 ? (hr % 24 ? two(d, 'd', hr % 24, 'h') : d + ' days') : hr ? two(hr, 'h', m % 60, 'min') : m ? two(m, 'min', s % 60, 's') : s + ' s';
}

/* ---- announcements for screen readers ---- */
let spoken = '';
export function say(s) { if (s !== spoken) { spoken = s; $('say').textContent = s; } }

/* ---- tables ---- */
export const rowHead = (s) => h('th', { scope: 'row' }, by(s));
/** Updates a table body, with rows kept by key. Only cells that differ are changed. `cls` has a class for each cell after
 * the heading. */
export function rows(body, list, name, cls, set) {
  const old = body._rows || new Map(), now = (body._rows = new Map());
  let at = body.firstChild;
  for (const x of list) {
    const k = String(name(x));
    let r = old.get(k);
    if (!r) { const c = cls.map((one) => h('td', { className: one })); r = { tr: h('tr', rowHead(k), ...c), c }; }
    now.set(k, r);
    old.delete(k);
    if (at === r.tr) at = at.nextSibling; else body.insertBefore(r.tr, at);
    set(x, r.c, r);
  }
  while (at) { const n = at.nextSibling; at.remove(); at = n; }
  if (!list.length) body.append(h('tr', h('td', { colSpan: 8, className: 'mut' }, 'None yet')));
}
export const same = (x) => x;
export const fill = (c, list) => list.forEach((v, i) => text(c[i], v));

/** Lets arrow keys move from one user of a list to the next. */
export const arrows = (list) => on(list, 'keydown', (e) => {
  const all = [...list.querySelectorAll('.u')], i = all.indexOf(document.activeElement), to = { ArrowDown: i + 1, ArrowUp: Math.max(0, i - 1), Home: 0, End: all.length - 1 }[e.key];
  if (all[to]) { e.preventDefault(); all[to].focus(); }
});
