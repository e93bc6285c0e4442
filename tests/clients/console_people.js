// Scenes of the console's test about what people choose: ids that are hard to show or to ask for, and tokens. See console.js.

const assert = require('node:assert/strict');
const path = require('node:path');

const WIDE = 'W'.repeat(128);
/** Each id, and what the page shows of it. */
const SHOWN = {
  '.': '.',
  '..': '..',
  query: 'query',
  'a/b?c#d%20e&f=+': 'a/b?c#d%20e&f=+',
  ' lead': '\\u{20}lead',
  'trail ': 'trail\\u{20}',
  'x  y': 'x  y',
  'x y': 'x y',
  '\u00a0': '\\u{a0}',
  '\u200b': '\\u{200b}',
  '\u202eevil': '\\u{202e}evil',
  'new\nline\ttab': 'new\\u{a}line\\u{9}tab',
  'مرحبا': 'مرحبا',
  '👩‍👩‍👧❤️': '👩‍👩‍👧❤️',
  'a\u200db': 'a\\u{200d}b',
  [WIDE]: WIDE,
};

const shown = (page) => page.locator('#look-h').innerText();

/** Waits until the panel is about this user, with its state, its past and its changes. */
async function lookedUp(page, user) {
  await page.locator('#look-h', { hasText: SHOWN[user] }).waitFor();
  assert.equal(await shown(page), SHOWN[user]);
  await page.locator('#look .big', { hasText: 'since' }).waitFor();
  await page.locator('#past .bar').first().waitFor({ state: 'attached' });
  await page.locator('#look .hist li').first().waitFor();
}

/** What is cut off at the right of the panel, or of the page. */
const cutOff = (page) =>
  page.evaluate(() => {
    const frame = document.getElementById('look'), right = frame.getBoundingClientRect().right;
    const out = [...frame.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > right + 1 && !one.closest('.sr'));
    const wide = [[document.documentElement, innerWidth], [frame, frame.clientWidth]].filter(([one, width]) => one.scrollWidth > width);
    return [...out, ...wide.map(([one]) => one)].map((one) => `${one.tagName} ${one.className}: ${one.textContent.slice(0, 60)}`);
  });

/** Every id that the server takes can be looked up, explained, kicked and forgotten. */
async function everyIdCanBeAskedFor(page) {
  const rows = await page.locator('#rows .u').evaluateAll((list) => list.map((one) => one.dataset.user));
  assert.deepEqual(Object.keys(SHOWN).filter((user) => !rows.includes(user)), []);
  for (const user of Object.keys(SHOWN)) {
    await page.evaluate((of) => [...document.querySelectorAll('#rows .u')].find((one) => one.dataset.user === of).click(), user);
    await lookedUp(page, user);
    await page.locator('#why-ask').click();
    await page.locator('#why .chain li').first().waitFor();
    // What the page wrote into the field is this user again, also if the field cannot hold the id.
    await page.locator('#who').press('Enter');
    await lookedUp(page, user);
    assert.equal(await page.evaluate(() => decodeURIComponent(location.hash)), `#user=${user}`);
  }
  for (const user of ['.', ' lead', 'trail ', 'query']) {
    await page.locator('#who').fill(user);
    await page.locator('#who').press('Enter');
    await lookedUp(page, user);
  }
  for (const [user, act] of [['.', 'Kick'], ['\u202eevil', 'Kick'], ['..', 'Forget']]) {
    await page.evaluate((of) => { location.hash = '#user=' + encodeURIComponent(of); }, user);
    await lookedUp(page, user);
    await page.getByRole('button', { name: `${act}…` }).click();
    const curl = await page.locator('.ops pre').innerText();
    const [event] = JSON.parse(curl.slice(curl.indexOf("-d '") + 4, -1));
    assert.deepEqual([event.type, event.user], [act.toLowerCase(), user], 'the command names the user');
    assert.ok(/^[\x20-\x7e]*$/.test(curl), `nothing in the command is invisible: ${curl}`);
    await page.locator('.ops .btn.bad').click();
    await page.locator('.ops', { hasText: 'Published at partition' }).waitFor();
    if (act === 'Kick') await page.locator('#look .hist', { hasText: 'was kicked by an operator' }).waitFor();
    else await page.locator('#look-b', { hasText: 'This user is not known.' }).waitFor();
  }
  // Spaces are part of an id; an id that was copied with spaces around it is offered without them.
  await page.locator('#who').fill(' query ');
  await page.locator('#who').press('Enter');
  await page.locator('#look-b').getByRole('button', { name: 'Look up query' }).click();
  await lookedUp(page, 'query');
}

/** Long names wrap: in the panel with an open action, and in the page behind it. */
async function longNamesFit(page, directory) {
  for (const width of [1280, 390]) {
    await page.setViewportSize({ width, height: 900 });
    await page.evaluate((of) => { location.hash = '#user=' + of; }, WIDE);
    await lookedUp(page, WIDE);
    for (const act of ['Kick', 'Forget']) {
      await page.getByRole('button', { name: `${act}…` }).click();
      assert.deepEqual(await cutOff(page), [], `${act} at ${width} px`);
      const run = await page.locator('.ops .btn.bad').boundingBox();
      assert.ok(run.x >= 0 && run.x + run.width <= width, `the button is in view at ${width} px: ${JSON.stringify(run)}`);
      await page.screenshot({ path: path.join(directory, `long-names-${act}-${width}.png`), fullPage: width < 1000 });
      await page.locator('.ops').getByRole('button', { name: 'Cancel' }).click();
    }
    await page.locator('#past .hit').last().click({ force: true });
    await page.locator('#past-about dl').waitFor();
    assert.deepEqual(await cutOff(page), [], `the timeline at ${width} px`);
    await page.getByRole('button', { name: 'Close the look-up' }).click();
    for (const tab of ['Watch', 'Try it']) {
      await page.getByRole('tab', { name: tab }).click();
      const wide = await page.evaluate(() => [document.documentElement, ...document.querySelectorAll('.panel, .rows, .scroll')]
        .filter((one) => !(one.matches('.scroll') && [...one.querySelectorAll('bdi')].every((name) => name.textContent.length < 40)))
        .filter((one) => one.scrollWidth > one.clientWidth && one.clientWidth).map((one) => `${one.tagName} ${one.id || one.className} ${one.textContent.slice(0, 30)} ${one.scrollWidth} > ${one.clientWidth}`));
      assert.deepEqual(wide, [], `${tab} at ${width} px`);
      await page.screenshot({ path: path.join(directory, `long-names-${tab.slice(0, 3)}-${width}.png`), fullPage: true });
    }
    await page.getByRole('tab', { name: 'Watch' }).click();
  }
  await page.setViewportSize({ width: 1280, height: 900 });
}

/** What people chose is never bare beside the page's own words, and nothing in it is invisible. */
async function namesAreKeptApart(page) {
  const unseen = () => page.evaluate(() => {
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const bad = /[\p{Cc}\u00a0\u00ad\u200b\u200e\u200f\u202a-\u202e\u2028\u2029]/u;
    while (texts.nextNode()) if (bad.test(texts.currentNode.data.replaceAll('\n', '')) || /\S\n\S/.test(texts.currentNode.data)) found.push(texts.currentNode.data);
    for (const one of document.querySelectorAll('[title], [aria-label]')) for (const name of ['title', 'aria-label']) if (bad.test((one.getAttribute(name) ?? '').replaceAll('\n', ''))) found.push(one.getAttribute(name));
    return found.filter((data) => data.trim());
  });
  await page.locator('#rows .row', { hasText: 'set the custom status “\\u{202e}backwards”' }).first().waitFor();
  assert.deepEqual(await unseen(), []);
  await page.evaluate(() => { location.hash = '#user=%E2%80%AEevil'; });
  await page.locator('#look .hist', { hasText: 'set the custom status “\\u{202e}backwards”' }).waitFor();
  assert.deepEqual(await unseen(), []);
  // A name in another direction changes nothing around it.
  const apart = await page.evaluate(() => [...document.querySelectorAll('#rows .u, #rows .what bdi, #look .hist .what bdi, #look-h bdi')]
    .map((one) => getComputedStyle(one.querySelector('bdi') ?? one).unicodeBidi).filter((value) => value !== 'isolate'));
  assert.deepEqual(apart, []);
  await page.getByRole('button', { name: 'Close the look-up' }).click();
}

/** A token that may not read gets the form and the reason again, like an unknown one; one that may gets the figures. */
async function tokens(page, given) {
  const [reader, others] = [given.read, Object.entries(given).filter(([name]) => name !== 'read')];
  const form = page.locator('#auth'), use = async (token) => {
    await page.getByLabel('Bearer token').fill(token);
    await page.getByRole('button', { name: 'Use token' }).click();
  };
  await form.waitFor();
  assert.equal(await page.locator('#autherr').isVisible(), false);
  for (const [name, token] of [['unknown', 'unknown-token-of-nobody'], ...others]) {
    await use(token);
    await page.locator('#autherr', { hasText: name === 'unknown' ? /did not accept this token: .+/ : /did not accept this token: .*scope `?"?read/ }).waitFor();
    await form.waitFor();
    assert.equal(await page.locator('#main').isVisible(), false, `${name}: no figures without a right to them`);
    assert.equal(await page.locator('#conn').innerText(), 'Token needed');
  }
  await use(reader);
  await page.locator('#conn.live').waitFor();
  assert.equal(await form.isVisible(), false);
  // An action that needs more asks for another token, and leaves the page as it is.
  await page.locator('#who').fill('alice');
  await page.locator('#who').press('Enter');
  await page.getByRole('button', { name: 'Kick…' }).click();
  await page.locator('.ops .btn.bad').click();
  await page.locator('.ops .err', { hasText: 'scope' }).waitFor();
  assert.equal(await form.isVisible(), false);
  assert.equal(await page.locator('#conn').innerText(), 'Live');
}

/** A user with very many changes: the page stays small, the timeline is one Tab stop, and a burst of changes is drawn once. */
async function longHistory(page, url, directory) {
  // 5,000 changes of the last hour, so that all of them are in view however long this takes.
  const now = Date.now(), minute = 60_000, count = 5_000, begin = now - 50 * minute, each = (45 * minute) / count;
  const stretches = (platform, device) => Array.from({ length: count }, (_, at) => {
    const from = Math.round(begin + at * each), one = { user: 'flapper', platform, device, from, change: `0-${at}-0`, evidence: at };
    const to = at + 1 < count ? Math.round(begin + (at + 1) * each) : null, end = to && { end_cause: 'logout', end_change: `0-${at + 1}-0`, end_evidence: at + 1 };
    return { ...one, to, status: at % 2 ? 'offline' : 'online', cause: at % 2 ? 'logout' : 'login', ...end };
  });
  const intervals = [...stretches(null, null), ...stretches('web', 'tab')];
  await page.route('**/v1/user/history*', (route) => route.fulfill({ json: { intervals } }));
  await page.evaluate(() => { location.hash = '#user=flapper'; });
  const own = intervals.filter((one) => one.platform === null).length;
  assert.ok(own >= 4000, `there are many: ${own}`);
  const parts = page.locator('#past .hit');
  await parts.first().waitFor({ state: 'attached' });
  const labels = () => parts.evaluateAll((list) => list.map((one) => one.getAttribute('aria-label')));
  const said = (await labels()).filter((one) => one.startsWith('The user'));
  const many = (one) => Number(/: ([\d,]+) changes from .* to .*, (online|offline) for /.exec(one)?.[1].replaceAll(',', '') ?? 1);
  assert.equal(said.reduce((sum, one) => sum + many(one), 0), own, `the parts stand for all of them: ${said.slice(0, 3)}`);
  for (const width of [1280, 390]) {
    await page.setViewportSize({ width, height: 900 });
    const elements = await page.locator('#look *').count();
    assert.ok(elements < 2 * width + 500, `${elements} elements at ${width} px`);
    await page.locator('.past').screenshot({ path: path.join(directory, `long-history-${width}.png`) });
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  // One Tab stop, in which arrow keys move.
  const stop = page.locator('#past [tabindex="0"]');
  const isAt = () => page.evaluate(() => document.activeElement.getAttribute('aria-label'));
  assert.equal(await stop.count(), 1);
  await page.getByLabel('How far back the timeline goes').focus();
  await page.keyboard.press('Tab');
  assert.match(await isAt(), /^The user: .* to now/);
  await page.keyboard.press('Home');
  const first = await isAt();
  assert.doesNotMatch(first, /to now/);
  await page.keyboard.press('ArrowDown');
  assert.match(await isAt(), /^web tab: /);
  await page.keyboard.press('ArrowUp');
  await page.keyboard.press('Home');
  assert.equal(await isAt(), first);
  const group = said.find((one) => many(one) > 10);
  for (let at = 0; (await isAt()) !== group; at++) {
    assert.ok(at < said.length, 'the arrow keys reach every part');
    await page.keyboard.press('ArrowRight');
  }
  await page.keyboard.press('Enter');
  await page.locator('#past-about', { hasText: `${many(group).toLocaleString('en')} changes, too close together to be drawn apart` }).waitFor();
  await page.locator('#past-about li').nth(9).waitFor();
  assert.equal(await page.locator('#past-about li').count(), 10);
  assert.equal(await stop.count(), 1);
  await page.locator('#look').screenshot({ path: path.join(directory, 'long-history-group.png') });
  // A burst of changes is drawn a few times, and takes the focus from nobody.
  await page.evaluate(() => {
    window.drawn = 0;
    new MutationObserver(() => { window.drawn += 1; }).observe(document.getElementById('past'), { childList: true });
  });
  const events = Array.from({ length: 400 }, (_, at) => {
    const one = { user: 'flapper', platform: 'web', device: 'tab', gateway: 'g1', epoch: 1, conn: 100_000 + at };
    return [{ type: 'connect', intent: 'login', ...one }, { type: 'logout', ...one }];
  });
  const focused = await isAt();
  await page.request.post(new URL('v1/events?wait=applied', url).href, { data: events.flat() });
  const version = (await (await page.request.get(new URL('v1/user?id=flapper', url).href)).json()).version.toLocaleString('en');
  await page.locator('#look .kv dd', { hasText: version }).first().waitFor();
  assert.equal(await isAt(), focused);
  const drawn = await page.evaluate(() => window.drawn);
  assert.ok(drawn < 100, `drawn ${drawn} times for 800 changes`);
  // Also what the panel makes again keeps the focus.
  await page.locator('#why-ask').focus();
  await page.request.post(new URL('v1/events?wait=applied', url).href, { data: [{ ...events[0][0], conn: 200_000 }] });
  await page.locator('#look .big', { hasText: 'online' }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), 'why-ask');
  await page.unrouteAll({ behavior: 'ignoreErrors' });
}

/** Until the server has answered, the page does not say that there is nothing. */
async function nothingIsSaidUnasked(page) {
  const facts = /None yet|has no changes|has no kicks|No mass departure/;
  const routes = ['**/v1/gateways', '**/v1/changes*', '**/v1/kicks*', '**/v1/incidents'];
  for (const route of routes) await page.route(route, () => new Promise(() => {}));
  await page.reload();
  await page.locator('#n-online', { hasText: /^\d/ }).waitFor();
  // The gateways are drawn once a second.
  await page.waitForTimeout(1500);
  const said = await page.locator('#t-gw, #rows, #kicks, #incidents-none').allInnerTexts();
  assert.deepEqual(said.filter((one) => facts.test(one)), []);
  await page.unrouteAll({ behavior: 'ignoreErrors' });
  await page.reload();
  await page.locator('#conn.live').waitFor();
  await page.locator('#incidents-none', { hasText: facts }).waitFor();
}

module.exports = { everyIdCanBeAskedFor, longNamesFit, namesAreKeptApart, longHistory, tokens, nothingIsSaidUnasked };
