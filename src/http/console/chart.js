// The console's chart: users online and push online, and changes per second, for the last minutes or the last hour.
//
// The server's history, with a sample every ten seconds, covers the time before the page was opened; from then on the page
// takes a sample every second. While partitions move, their users are not counted, and the lines have a gap.

import { $, on, mono, num, text, h, clock, dur, persec, rowHead } from './dom.js';

const KEEP_MS = 3600000;
/* Older samples than this are thinned to one in ten seconds. */
const FINE_MS = 600000;
/* {t, w, on, push, off, ch, ig, mal, old, hole}: the time, by our monotonic and our wall clock; counts; whether the sample is
 * from the history; whether some partitions were not counted. Oldest first. */
let samples = [];
let range = 600000;

export const latest = () => samples[samples.length - 1];
/** Returns the complete sample nearest to `ms` ago. */
export function since(ms) {
  const t = mono() - ms, whole = samples.filter((x) => !x.hole);
  return whole.reduce((a, b) => (a && Math.abs(a.t - t) <= Math.abs(b.t - t) ? a : b), undefined);
}

/** Forgets every sample: they are of another log. */
export function forgetSamples() { samples = []; }
export function addSample(sample) {
  samples.push(sample);
  const now = sample.t;
  let last = -Infinity;
  samples = samples.filter((x) => {
    if (x.t < now - KEEP_MS - 2000) return false;
    if (x.t < now - FINE_MS && x.t - last < 9000) return false;
    last = x.t;
    return true;
  });
}

/** Merges the server's history with the samples of this page; `now` is the server's clock. */
export function addHistory(answer, now) {
  const at = mono(), wall = Date.now();
  const old = (answer.samples || []).map((s) => ({
    t: at - (now - s.at), w: wall - (now - s.at), on: s.online, push: s.push_online, off: s.offline, ch: s.changes, ig: s.ignored, mal: s.malformed,
    old: true, hole: s.partitions < answer.partitions,
  }));
  const fresh = samples.filter((x) => !x.old);
  const between = old.filter((x) => x.t <= at && !fresh.some((y) => Math.abs(x.t - y.t) < 6000));
  samples = between.concat(fresh).sort((a, b) => a.t - b.t);
  soonChart();
}

/* ---- drawing ---- */
const NS = 'http://www.w3.org/2000/svg';
const s = (tag, at, txt) => {
  const e = document.createElementNS(NS, tag);
  for (const k in at) e.setAttribute(k, at[k]);
  if (txt != null) e.textContent = txt;
  return e;
};
const line = (x1, x2, y1, y2, c) => s('line', { x1, x2, y1, y2, class: c }), words = (x, y, a, t) => s('text', { x, y, 'text-anchor': a }, t);
let hover = null;
const label = (y, name, v, note) => {
  const e = s('text', { x: 0, y, class: 't' }, name);
  e.append(s('tspan', { dx: 7 }, v));
  if (note) e.append(s('tspan', { dx: 7, class: 'n' }, note));
  return e;
};
function nice(x) { const e = 10 ** Math.floor(Math.log10(x)), f = x / e; return (f <= 1 ? 1 : f <= 2 ? 2 : f <= 5 ? 5 : 10) * e; }
/* Whether there is a gap between two samples. */
const apart = (a, b) => a.hole || b.hole || b.t - a.t > (a.old || b.old ? 25000 : 6000);

/** Returns changes per second, in at most 64 steps, from the count of all changes. */
function rateBins(t1, win) {
  const bin = [1, 2, 5, 10, 15, 30, 60].find((b) => win / 1000 / b <= 64) * 1000, count = Math.ceil(win / bin);
  const out = Array.from({ length: count }, (_, i) => ({ a: t1 - (i + 1) * bin, n: 0, known: 0 }));
  for (let i = 1; i < samples.length; i++) {
    const a = samples[i - 1], b = samples[i];
    if (apart(a, b) || !(b.ch >= a.ch) || b.t <= a.t) continue;
    const rate = (b.ch - a.ch) / (b.t - a.t);
    for (let k = Math.max(0, Math.floor((t1 - b.t) / bin)); k < count && out[k].a + bin > a.t; k++) {
      const span = Math.min(b.t, out[k].a + bin) - Math.max(a.t, out[k].a);
      if (span > 0) { out[k].n += rate * span; out[k].known += span; }
    }
  }
  for (const one of out) one.n = one.known > 0 ? (one.n / one.known) * 1000 : NaN;
  return { bin, out };
}
/** Returns changes per second over the last ten seconds. */
export function pace() {
  const b = latest(), a = since(10000);
  return a && b && !b.hole && b.t - a.t > 2000 && b.ch >= a.ch ? ((b.ch - a.ch) / (b.t - a.t)) * 1000 : NaN;
}

export function drawChart() {
  const svg = $('chart'), W = svg.clientWidth, n = samples.length;
  if (!W || !n) return;
  const t1 = samples[n - 1].t, w1 = samples[n - 1].w, win = Math.min(range, Math.max(10000, t1 - samples[0].t)), t0 = t1 - win;
  const vis = samples.filter((x) => x.t >= t0 - 10500), g = [];
  const R = 12 + 7 * Math.max(4, num(Math.max(...vis.map((x) => Math.max(x.on, x.push)))).length), PW = W - R, X = (t) => ((t - t0) / win) * PW;
  text($('span'), win < 55000 ? Math.round(win / 1000) + ' seconds' : win < 90000 ? 'minute' : win > 3540000 ? 'hour' : Math.round(win / 60000) + ' minutes');
  const clip = s('clipPath', { id: 'cp' });
  clip.append(s('rect', { x: 0, y: 0, width: PW + 5, height: 304 }));
  g.push(clip);
  const steps = [2, 5, 10, 15, 30, 60, 120, 300, 600, 900].map((x) => x * 1000), tick = steps.find((x) => win / x <= Math.max(2, PW / 96)) || 900000;
  for (let w = Math.floor(w1 / tick) * tick; w > w1 - win; w -= tick) {
    const x = X(t1 - (w1 - w));
    g.push(line(x, x, 20, 284, 'gl'));
    if (x > 22 && x < PW - 18) g.push(words(x, 299, 'middle', tick < 60000 ? clock(w) : clock(w).slice(0, 5)));
  }
  g.push(words(W, 299, 'end', 'now'));
  const at = hover == null ? null : vis.reduce((a, b) => (Math.abs(X(b.t) - hover) < Math.abs(X(a.t) - hover) ? b : a)), cur = at || samples[n - 1];
  const band = (top, hgt, key, cls, name) => {
    const whole = vis.filter((x) => !x.hole), v = (whole.length ? whole : vis).map((x) => x[key]);
    let lo = Math.min(...v), hi = Math.max(...v);
    const need = Math.max(4, hi * 0.02);
    if (hi - lo < need) { const m = (hi + lo) / 2; lo = m - need / 2; hi = m + need / 2; }
    if (lo < hi * 0.6) lo = 0;
    const st = Math.max(1, nice((hi - lo) / 2.2));
    lo = Math.max(0, Math.floor(lo / st) * st);
    hi = Math.ceil((hi + (hi - lo) * 0.04) / st) * st;
    const y0 = top + 20, y1 = top + hgt, Y = (value) => y1 - ((value - lo) / (hi - lo)) * (y1 - y0), lines = Math.round((hi - lo) / st), every = lines > 4 ? 2 : 1;
    for (let i = 0; i <= lines; i += every) {
      const y = Y(lo + i * st);
      g.push(line(0, PW, y, y, i ? 'gl' : 'gl ax'), words(W, y + (i ? 4 : 0), 'end', num(lo + i * st)));
    }
    g.push(label(top + 11, name, cur.hole ? '–' : num(cur[key]), lo > 0 ? 'axis from ' + num(lo) : ''));
    /* A zigzag shows that the axis does not start at 0. */
    if (lo > 0) g.push(s('path', { d: `M0 ${y1}l4 -3l4 6l4 -6l4 3`, class: 'cut' }));
    const grp = s('g', { class: cls, 'clip-path': 'url(#cp)' }), f = (x) => x.toFixed(1);
    let d = '', fillPath = '', seg = [];
    const flush = () => {
      if (seg.length > 1) {
        const p = seg.map((x) => f(X(x.t)) + ' ' + f(Y(x[key]))).join('L');
        d += 'M' + p;
        fillPath += 'M' + f(X(seg[0].t)) + ' ' + y1 + 'L' + p + 'L' + f(X(seg[seg.length - 1].t)) + ' ' + y1 + 'Z';
      }
      seg = [];
    };
    for (const x of vis) {
      if (seg.length && apart(seg[seg.length - 1], x)) flush();
      if (!x.hole) seg.push(x);
    }
    flush();
    grp.append(s('path', { d: fillPath, class: 'f' }), s('path', { d, class: 'l' }));
    if (!cur.hole) grp.append(s('circle', { cx: X(cur.t), cy: Y(cur[key]), r: 4.5 }));
    g.push(grp);
  };
  band(0, 108, 'on', 'lo', 'Online');
  band(122, 84, 'push', 'lp', 'Push online');
  const rb = rateBins(t1, win), known = rb.out.filter((b) => b.n >= 0), top = nice(Math.max(1, ...known.map((b) => b.n))), y1 = 284, bh = 38;
  const curBin = at ? rb.out.find((b) => at.t >= b.a && at.t < b.a + rb.bin) : known[0];
  g.push(label(233, 'Changes per second', curBin ? persec(curBin.n) : '–'));
  g.push(line(0, PW, y1 - bh, y1 - bh, 'gl'), line(0, PW, y1, y1, 'gl ax'), words(W, y1 - bh + 4, 'end', num(top)), words(W, y1, 'end', '0'));
  let d = '';
  const bw = Math.max(1, (rb.bin / win) * PW - 1.5);
  for (const b of known) if (b.n) {
    const x = Math.max(0, X(b.a)), hh = (b.n / top) * bh;
    d += `M${x.toFixed(1)} ${y1}v${-hh.toFixed(1)}h${Math.max(0, Math.min(bw, PW - x)).toFixed(1)}v${hh.toFixed(1)}z`;
  }
  g.push(s('path', { d, class: 'bars' }));
  if (at) { const x = X(at.t); g.push(line(x, x, 16, 284, 'cx')); }
  text($('read'), at ? 'at ' + clock(at.w) : '');
  $('cg').replaceChildren(...g);
  if ($('cd').open) chartTable();
}

export function describe() {
  const whole = samples.filter((x) => !x.hole), n = whole.length;
  if (!n) return '';
  const f = (k, name) => {
    const v = whole.map((x) => x[k]);
    return name + ': now ' + num(v[n - 1]) + ', first ' + num(v[0]) + ', lowest ' + num(Math.min(...v)) + ', highest ' + num(Math.max(...v)) + '. ';
  };
  return 'Chart of the last ' + dur(whole[n - 1].t - whole[0].t) + '. ' + f('on', 'Users online') + f('push', 'Users push online') + 'The same figures are in the table below the chart.';
}

let tableAt = 0;
function chartTable(force) {
  if (!force && mono() - tableAt < 5000) return;
  tableAt = mono();
  const vis = samples.filter((x) => !x.hole && x.t >= mono() - range), n = vis.length, list = [];
  if (!n) return;
  const step = Math.max(1, Math.ceil(n / 12)), rb = rateBins(vis[n - 1].t, range).out;
  for (let i = n - 1; i >= 0; i -= step) list.push(vis[i]);
  $('ct').replaceChildren(...list.map((x) => {
    const b = rb.find((one) => x.t >= one.a);
    return h('tr', rowHead(clock(x.w)), ...[x.on, x.push, x.off].map((v) => h('td', null, num(v))), h('td.xw', null, b && b.n >= 0 ? b.n.toFixed(1) : '–'));
  }));
}

let chartSoon = 0;
export function soonChart() { if (!chartSoon) chartSoon = requestAnimationFrame(() => { chartSoon = 0; drawChart(); }); }
on($('cd'), 'toggle', () => chartTable(true));
on($('range'), 'change', () => { range = Number($('range').value); drawChart(); chartTable(true); });
on($('chart'), 'pointermove', (e) => { hover = e.clientX - $('chart').getBoundingClientRect().left; soonChart(); });
on($('chart'), 'pointerleave', () => { hover = null; soonChart(); });
new ResizeObserver(soonChart).observe($('chart'));
