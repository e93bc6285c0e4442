// Drives the console in a headless Chromium: node console.js MODULES URL DIRECTORY SCENE [TOKEN] ends with 0 if every
// check passes, and otherwise prints what failed. Screenshots go to the directory. No check depends on timing: everything that
// is waited for must happen within a minute.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const people = require('./console_people.js');

const [modules, url, directory, scene, token] = process.argv.slice(2);
const PATIENCE_MS = 60_000;
const NAMES = ['chromium', 'chromium-browser', 'google-chrome'];

function browser() {
  for (const folder of (process.env.PATH ?? '').split(path.delimiter)) {
    for (const name of NAMES) {
      const file = path.join(folder, name);
      if (folder && fs.existsSync(file)) return file;
    }
  }
  throw new Error(
    `the console is tested in Chromium and there is none of ${NAMES.join(', ')} on the path; run scripts/setup, or` +
      " 'apt-get install chromium'",
  );
}

/** A page that must not log errors. */
async function open(chromium, options, complaints) {
  const context = await chromium.newContext(options);
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  await page.goto(url);
  if (scene === 'tokens') return page;
  await page.locator('#conn.live').waitFor();
  await page.locator('#kicks[data-state=open]').waitFor();
  return page;
}

/** The device with this number, found by its visible texts. */
class Device {
  constructor(page, number) {
    this.panel = page.getByRole('region', { name: `Device ${number}`, exact: true });
  }

  field(label) {
    return this.panel.getByLabel(label, { exact: true });
  }

  async press(label) {
    await this.panel.getByRole('button', { name: label, exact: true }).click();
  }

  async is(state) {
    await this.panel.and(this.panel.page().locator(`[data-state=${state}]`)).waitFor();
  }

  /** Waits for a line in the device's list of events. */
  async tells(kind, what) {
    await this.panel.locator(`.evs li[data-kind="${kind}"]`, { hasText: what }).first().waitFor();
  }
}

async function figures(page) {
  await page.waitForFunction(() => {
    const figure = (id) => Number(document.getElementById(`n-${id}`).innerText.replaceAll(',', ''));
    return figure('known') > 0 && figure('online') + figure('push') + figure('off') === figure('known');
  });
  const gateway = page.locator('#t-gw tr', { has: page.locator('th', { hasText: /^serve$/ }) });
  await gateway.locator('td', { hasText: /^alive$/ }).waitFor();
  await gateway.locator('td', { hasText: /^\d+ s$/ }).waitFor();
  assert.equal(await page.locator('#t-part tr').count(), 4);
}

/** A partition whose worker waits for its log has no figures, and the page shows this. */
async function waiting(page) {
  const error = 'no answer; it waits for the log';
  await page.route('**/v1/stats', async (route) => {
    const response = await route.fetch();
    const stats = await response.json();
    stats.partitions[2] = { partition: 2, state: 'waiting', error };
    await route.fulfill({ response, json: stats });
  });
  const row = page.locator('#t-part tr').nth(2);
  await row.locator('td.warn', { hasText: /^waiting$/ }).waitFor();
  await page.locator('#note', { hasText: `Partition 2 is waiting (${error}): its users may be missing` }).waitFor();
  assert.deepEqual(await row.locator('td').allInnerTexts(), ['waiting', '–', '–', '–', '–', '–', '–']);
  await page.unrouteAll({ behavior: 'wait' });
  await row.locator('td', { hasText: /^live$/ }).waitFor();
  await page.locator('#note').waitFor({ state: 'hidden' });
  // Its rate is counted from now on, without the time of missing figures.
  await page.waitForFunction(() => document.querySelectorAll('#t-part tr')[2].lastChild.textContent !== '–');
}

/** Changes the server's answer on its way to the page. */
async function pretendThat(page, change) {
  await page.route('**/v1/stats', async (route) => {
    const response = await route.fetch();
    const stats = await response.json();
    change(stats);
    await route.fulfill({ response, json: stats });
  });
}

/** Malformed records have a tile, with reasons and an example. */
async function malformed(page) {
  await page.locator('#n-mal', { hasText: /^0$/ }).waitFor();
  assert.equal(await page.locator('#mal-new').isVisible(), false);
  const error = 'user "u2" belongs to partition 2 of 4, not to 0';
  await pretendThat(page, (stats) => {
    stats.malformed = [{ reason: 'wrong_partition', count: 7, partition: 0, offset: 77, error }];
    stats.ignored = { stale_epoch: 5, superseded: 2 };
  });
  await page.locator('#tile-mal.bad #n-mal', { hasText: /^7$/ }).waitFor();
  await page.locator('#n-ig', { hasText: /^7$/ }).waitFor();
  const newest = `Malformed, partition 0, offset 77: ${error} See rollcall log quarantine --partition 0.`;
  assert.equal(await page.locator('#mal-new').innerText(), newest);
  const reasons = await page.locator('#t-odd tr').evaluateAll((rows) => rows.map((row) => [...row.children].map((cell) => (cell.querySelector('bdi') ?? cell).textContent)));
  // Each reason is explained on the page.
  for (const one of await page.locator('#t-odd .reason').allTextContents()) assert.match(one, /^[A-Z].*\.$/);
  assert.equal(await page.locator('#t-odd .reason').count(), 3);
  assert.deepEqual(reasons, [['wrong_partition', 'malformed', '7'], ['stale_epoch', 'ignored', '5'], ['superseded', 'ignored', '2']]);
  await page.unrouteAll({ behavior: 'wait' });
}

/** The chart begins with the server's history, and shows where its axis begins. */
async function past(page) {
  const now = Date.now();
  await page.route('**/v1/stats/history', (route) => {
    const sample = (ago, online, partitions) => ({ at: now - ago * 10_000, online, push_online: 0, offline: 0, changes: 100_000 - ago * 50, ignored: 0, malformed: 0, partitions });
    const samples = Array.from({ length: 360 }, (_, number) => sample(360 - number, 5_000 + (number % 20), number === 100 ? 2 : 4));
    return route.fulfill({ json: { every_ms: 10_000, partitions: 4, samples } });
  });
  await pretendThat(page, (stats) => Object.assign(stats, { now, changes: 100_000, users: { ...stats.users, online: 5_010 } }));
  await page.reload();
  await page.locator('#span', { hasText: /^10 minutes$/ }).waitFor();
  await page.locator('#chart tspan', { hasText: /^axis from \d,\d+$/ }).first().waitFor();
  await page.getByLabel('How far back').selectOption('1 hour');
  await page.locator('#span', { hasText: /^hour$/ }).waitFor();
  // While two of the partitions were moving there are no figures: the line has two pieces.
  const pieces = await page.locator('#chart .lo path.l').getAttribute('d');
  assert.equal(pieces.split('M').length - 1, 2, pieces.slice(0, 200));
  await page.locator('#d-online', { hasText: /in 1 min$/ }).waitFor();
  await page.unrouteAll({ behavior: 'wait' });
  await page.reload();
  await page.locator('#conn.live').waitFor();
}

/** Whether the parts of the timeline stand for this many changes. Runs in the page. */
const standFor = (count) => [...document.querySelectorAll('#past .hit')]
  .reduce((sum, hit) => sum + Number((/: ([\d,]+) changes from/.exec(hit.getAttribute('aria-label')) ?? [, '1'])[1].replaceAll(',', '')), 0) === count;

/** A user's timeline, why the user has its status, and the totals at a time. */
async function timeline(page, user) {
  await openTab(page, 'Watch');
  await page.locator('#who').fill(user);
  await page.locator('#who').press('Enter');
  await page.locator('#past .bar.online').first().waitFor();
  const rows = await page.locator('#past text.t').allTextContents();
  assert.equal(rows[0], 'User');
  assert.ok(rows.length > 1, `a row for each device: ${rows}`);
  // What a bar says is what the server says of it.
  const answer = await page.request.get(new URL(`v1/users/${user}/history`, url).href);
  const { intervals } = await answer.json();
  await page.waitForFunction(standFor, intervals.length);
  assert.ok(intervals.some((one) => one.platform !== null), 'devices have intervals');
  const causes = await page.locator('#past text.c').allTextContents();
  assert.ok(causes.includes('login'), `causes are written beside the bars: ${causes}`);
  const last = intervals.filter((one) => one.platform === null).length - 1;
  // The newest is wide enough to be drawn by itself once it has lasted for a moment.
  await page.locator('#past .hit[tabindex="0"][aria-label^="The user: offline"]').focus();
  await page.keyboard.press('Enter');
  await page.locator('#past-about', { hasText: `change ${intervals[last].change}` }).waitFor();
  await page.locator('#past-about').getByRole('button', { name: /^Why was the user/ }).click();
  await page.locator('#past-about .chain li').first().waitFor();
  await page.locator('#why-ask').click();
  const first = page.locator('#why .chain li').first();
  await first.waitFor();
  assert.match(await first.innerText(), /^Change \d+-\d+-\d+: .*, with the record at offset [\d,]+\.$/);
  await page.locator('#why .chain li', { hasText: 'The evidence is the' }).waitFor();
}

/** The user's panel in both colour schemes and both widths. */
async function timelineLooks(page) {
  const now = Date.now(), hour = 3_600_000;
  /* A day with a phone that is lost and comes back, a tablet, and a page that flaps. */
  const row = (platform, device, ...stretches) => stretches.map(([status, ago, cause], at) => {
    const next = stretches[at + 1];
    const end = next ? { to: now - next[1] * hour, end_cause: next[2], end_change: `0-${at}-1`, end_evidence: at } : { to: null, end_cause: null, end_change: null, end_evidence: null };
    return { user: 'bob', platform, device, status, from: now - ago * hour, cause, change: `0-${at}-0`, evidence: at, ...end };
  });
  const flaps = Array.from({ length: 12 }, (_, at) => [at % 2 ? 'offline' : 'online', 6 - at * 0.1, at % 2 ? 'closed' : 'resume']);
  const intervals = [
    ...row(null, null, ['online', 22, 'login'], ['push_online', 15, 'timeout'], ['offline', 10, 'push_expired'], ['online', 8, 'login']),
    ...row('android', 'phone', ['online', 22, 'login'], ['push_online', 15, 'timeout'], ['offline', 10, 'push_expired'], ['online', 8, 'login'], ['push_online', 1, 'gateway_lost']),
    ...row('ipad', 'tablet', ['online', 4, 'login']),
    ...row('web', 'a-tab-with-a-rather-long-name', ...flaps),
  ];
  await page.route('**/history*', (route) => route.fulfill({ json: { intervals } }));
  await page.getByLabel('How far back the timeline goes').selectOption('1 day');
  await page.waitForFunction(standFor, intervals.length);
  const causes = await page.locator('#past text.c').allTextContents();
  for (const cause of ['heartbeats stopped', 'gateway lost']) assert.ok(causes.includes(cause), `${cause}: ${causes}`);
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const width of [1280, 360]) {
      await page.setViewportSize({ width, height: 1100 });
      const fits = () => {
        const most = document.getElementById('past').clientWidth;
        return [...document.querySelectorAll('#past .bar')].every((bar) => bar.getBBox().x + bar.getBBox().width <= most + 3);
      };
      await page.waitForFunction(fits);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wide <= 0, `the user's panel in ${colorScheme} is ${wide} px wider than ${width}`);
      await page.screenshot({ path: path.join(directory, `user-${colorScheme}-${width}.png`), fullPage: width < 1000 });
      await page.locator('.past').screenshot({ path: path.join(directory, `timeline-${colorScheme}-${width}.png`) });
    }
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: 'light' });
  await page.unrouteAll({ behavior: 'wait' });
}

async function totals(page) {
  await openTab(page, 'Watch');
  await page.getByRole('button', { name: 'Compare with now' }).click();
  await page.locator('#at-table').waitFor();
  const rows = await page.locator('#at-rows tr').evaluateAll((list) => list.map((row) => [...row.children].map((cell) => cell.textContent)));
  assert.deepEqual(rows.slice(0, 3).map((row) => row[0]), ['Users online', 'Users push online', 'Users offline']);
  assert.match(rows[0][1], /^\d+$/);
  assert.notEqual(rows[0][2], '0');
  // The time that is offered is not before the process, and so not before the log.
  const offered = await page.evaluate(() => new Date(document.getElementById('at-time').value).getTime());
  const { samples } = await (await page.request.get(new URL('v1/stats/history', url).href)).json();
  assert.ok(samples.length === 0 || offered >= samples[0].at, `${offered} is before ${samples[0]?.at}`);
  const message = 'the log begins later';
  await page.route('**/v1/at?*', (route) => route.fulfill({ status: 410, json: { error: { code: 'gone', message } } }));
  await page.getByRole('button', { name: 'Compare with now' }).click();
  await page.locator('#at-note', { hasText: message }).waitFor();
  await page.unrouteAll({ behavior: 'wait' });
}

/** If the log is replaced while the page is open, nothing of the old one stays. */
async function replaced(page) {
  await openTab(page, 'Watch');
  await page.evaluate(() => document.querySelector('#rows li').setAttribute('data-old', ''));
  await pretendThat(page, (stats) => {
    stats.partitions.forEach((partition) => { partition.log_end += 1_000_000; });
    stats.users.online += 195;
  });
  await page.waitForFunction(() => Number(document.getElementById('n-online').textContent) >= 195);
  await page.unrouteAll({ behavior: 'wait' });
  await page.locator('#replaced', { hasText: /^The server has another log since .+ is gone\.$/ }).waitFor();
  await page.waitForFunction(() => Number(document.getElementById('n-online').textContent) < 195);
  assert.equal(await page.locator('#rows [data-old]').count(), 0);
  assert.doesNotMatch(await page.locator('#d-online').innerText(), /−/);
  // The new log's changes are there.
  await page.locator('#rows .row').first().waitFor();
}

/** Opens a tab with the keyboard. */
async function openTab(page, name) {
  const tab = page.getByRole('tab', { name });
  if ((await tab.getAttribute('aria-selected')) === 'true') return;
  await page.locator('[role=tab][aria-selected=true]').focus();
  await page.keyboard.press(name === 'Try it' ? 'ArrowRight' : 'ArrowLeft');
  assert.equal(await tab.getAttribute('aria-selected'), 'true');
}

/** Waits until the engine reports the status. The page does not ask, since an unknown user would be an error there. */
async function stands(page, user, wanted) {
  const until = Date.now() + PATIENCE_MS;
  for (;;) {
    const answer = await page.request.get(new URL(`v1/users/${user}`, url).href);
    const said = answer.ok() ? (await answer.json()).status : answer.status();
    if (said === wanted) return;
    if (Date.now() > until) throw new Error(`${user} is not ${wanted} within a minute, but ${said}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function devices(page) {
  await openTab(page, 'Try it');
  const phone = new Device(page, 1);
  await page.locator('#try-about', { hasText: /client of the gateway at ws:\/\/127\.0\.0\.1:\d+:/ }).waitFor();
  await phone.is('closed');
  await phone.field('User').fill('tess');
  await phone.field('Platform').selectOption('android');
  await phone.field('Device').fill('phone');
  await phone.field('Device').press('Enter');
  await phone.is('online');
  await phone.tells('hello', 'user tess, gateway serve, epoch ');
  assert.match(await phone.panel.locator('.kv').innerText(), /serve, epoch \d+, connection \d+/);
  await stands(page, 'tess', 'online');
  await phone.press('Look up');
  await page.locator('#look .big', { hasText: 'online' }).waitFor();
  await page.locator('#look .dev.online', { hasText: 'phone' }).waitFor();
  await page.getByRole('button', { name: 'Close the look-up' }).click();

  // The policy of a new log allows one phone of a person at a time.
  await page.getByRole('button', { name: 'Add another device' }).click();
  const second = new Device(page, 2);
  assert.deepEqual(
    [await second.field('User').inputValue(), await second.field('Platform').inputValue()],
    ['tess', 'android'],
  );
  await second.field('Device').fill('other-phone');
  await second.press('Connect');
  await second.is('online');
  await phone.is('closed');
  await phone.tells('kicked', 'displaced: a login elsewhere displaced it. The client may not reconnect by itself.');
  await phone.tells('closed', '4002 displaced');
  await phone.panel.locator('.note', { hasText: 'Kicked, displaced' }).waitFor();
  await stands(page, 'tess', 'online');
  // A reconnect by itself is refused, and the page shows this again.
  await phone.press('Come back');
  await phone.panel.locator('.evs li[data-kind=kicked]').nth(1).waitFor();
  await phone.is('closed');

  await openTab(page, 'Watch');
  const kick = page.locator('#kicks .row', { hasText: 'phone on serve: a login elsewhere displaced it' }).last();
  await kick.waitFor();
  assert.deepEqual(
    [await kick.locator('.u').innerText(), await kick.locator('.tr').innerText()],
    ['tess', 'displaced'],
  );
  assert.match(await kick.locator('time').getAttribute('datetime'), /^\d{4}-\d\d-\d\dT/);
  assert.match(await kick.locator('.pos').innerText(), /^serve\/\d+$/);
  await page.locator('#rows .row', { hasText: 'logged in on android (serve)' }).first().waitFor();

  await openTab(page, 'Try it');
  await second.field('Watch a user').fill('tom');
  await second.press('Subscribe');
  await second.tells('standing', 'tom is not known yet');
  await page.getByRole('button', { name: 'Add another device' }).click();
  const tom = new Device(page, 3);
  await tom.field('User').fill('tom');
  await tom.field('Platform').selectOption('iphone');
  await tom.press('Connect');
  await second.tells('change', 'tom is online (login)');
  await tom.field('Custom status').fill('at lunch');
  await tom.press('Set');
  await tom.tells('done', 'Custom status');
  await second.tells('change', 'tom is online, “at lunch” (custom_status)');
  await tom.press('Background');
  await tom.tells('done', 'Background');
  await tom.press('Foreground');
  await tom.tells('done', 'Foreground');
  await tom.press('Drop');
  await tom.is('closed');
  await second.tells('change', 'tom is push online (closed)');
  await tom.press('Come back');
  await tom.is('online');
  await second.tells('change', 'tom is online (resume)');

  await second.press('Log out');
  await second.is('closed');
  await second.tells('closed', '1000 logged_out');
  await stands(page, 'tess', 'offline');
  await second.press('Look up');
  await page.locator('#look .big', { hasText: 'offline' }).waitFor();
  await page.getByRole('button', { name: 'Close the look-up' }).click();
}

/** Every control has an accessible name. */
async function named(page) {
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll('button, input, select, [tabindex="0"]')]
      .filter((element) => {
        if (element.hidden) return false;
        const labels = [...(element.labels ?? [])].map((label) => label.textContent);
        const by = element.getAttribute('aria-labelledby');
        const name = [element.getAttribute('aria-label'), by && document.getElementById(by)?.textContent, ...labels];
        if (element.tagName === 'BUTTON') name.push(element.textContent.replace('×', ''));
        return !name.some((part) => part?.trim());
      })
      .map((element) => element.outerHTML.slice(0, 120)),
  );
  assert.deepEqual(nameless, []);
}

/** Both tabs, in both colour schemes and both widths; nothing is wider than the screen. */
async function looks(page) {
  const grounds = new Set();
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const width of [1280, 360]) {
      await page.setViewportSize({ width, height: 900 });
      for (const name of ['Watch', 'Try it']) {
        await openTab(page, name);
        await page.evaluate(() => scrollTo(0, 0));
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `${name} in ${colorScheme} is ${wide} px wider than ${width}`);
        const file = `${name.toLowerCase().replace(' ', '-')}-${colorScheme}-${width}.png`;
        await page.screenshot({ path: path.join(directory, file), fullPage: true });
      }
    }
    grounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
  }
  assert.equal(grounds.size, 2, 'dark looks like light');
}

/** The page's simulated gateway, which works without a real one. */
async function ownGateway(page) {
  const gateway = page.getByRole('region', { name: 'Simulated gateway' });
  const press = (name) => gateway.getByRole('button', { name, exact: true }).click();
  const log = (kind, what) => gateway.locator(`.evs li[data-kind=${kind}]`, { hasText: what }).first().waitFor();
  await gateway.getByLabel('User').fill('bob');
  await press('Start the gateway');
  await log('event', '"type":"lease"');
  await press('Connect');
  await log('change', 'offline → online (login): logged in on web');
  await press('Come back');
  await log('event', '"conn":2,"intent":"resume"');
  await press('Late disconnect');
  await log('event', '"type":"disconnect","user":"bob","platform":"web","device":"tab-1"');
  await stands(page, 'bob', 'online');
  await press('Cut the network');
  await gateway.locator('.st', { hasText: 'its client’s network is cut' }).waitFor();
  await stands(page, 'bob', 'online');
  await press('Come back');
  await press('Kill this gateway');
  await gateway.locator('.st', { hasText: /dead$/ }).waitFor();
  await press('Restart the gateway');
  await log('change', 'online → offline (gateway_lost)');
  await stands(page, 'bob', 'offline');
}

/** An operator sees the event before it is published. */
async function operator(page) {
  await openTab(page, 'Watch');
  // Records from before the page was opened are shown at once.
  await page.locator('#rows .row', { hasText: 'logged in on web (g1)' }).first().waitFor();
  await page.locator('#t-gw tr', { hasText: 'gone' }).locator('td', { hasText: /^dead$/ }).waitFor();
  await page.locator('#t-gw tr', { hasText: 'gone' }).locator('td', { hasText: /^ended/ }).waitFor();
  await page.locator('#who').fill('alice');
  await page.locator('#who').press('Enter');
  const look = page.locator('#look');
  await look.getByRole('button', { name: 'Kick…' }).click();
  const event = '[{"type":"kick","user":"alice"}]';
  assert.match(await look.locator('.ops pre').innerText(), /^curl 'http:\/\/127\.0\.0\.1:\d+\/v1\/events' -d '\[\{"type":"kick"/);
  assert.ok((await look.locator('.ops pre').innerText()).endsWith(`'${event}'`));
  await look.getByRole('button', { name: 'Kick alice' }).click();
  await look.locator('.ops', { hasText: /Published at partition \d, offset \d+/ }).waitFor();
  await stands(page, 'alice', 'offline');
  await look.locator('.hist', { hasText: 'was kicked by an operator' }).waitFor();
  await page.getByRole('button', { name: 'Close the look-up' }).click();
}

/** A gateway that died with its devices is an incident with exact counts. */
async function incidents(page) {
  await openTab(page, 'Watch');
  const list = page.locator('#incidents > li');
  const summary = list.first().locator('summary');
  await summary.filter({ hasText: '200 devices left at once' }).waitFor();
  assert.equal(await list.count(), 1);
  assert.match(await summary.innerText(), /100 % on edge-9$/);
  await summary.focus();
  await page.keyboard.press('Enter');
  const cells = () => list.first().locator('tbody tr').evaluateAll((rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent)));
  assert.deepEqual(await cells(), [['Cause', 'gateway_lost', '200', '100 %'], ['Gateway', 'edge-9', '200', '100 %'], ['Platform', 'web', '200', '100 %'], ['Client', 'app/5.1', '200', '100 %']]);
  assert.match(await list.first().locator('.foot').innerText(), /^200 departures of 200 devices; 0 were online 10 s before\. Incident 1-\d+\.$/);
  // It stays open when the list is drawn again, with more of them.
  const { incidents: [real] } = await (await page.request.get(new URL('v1/incidents', url).href)).json();
  const large = {
    ...real, id: '1-1', to: real.from + 4000, departures: 12_431, devices: 12_400, online_before: 61_904, causes: { gateway_lost: 12_101, closed: 330 },
    gateways: { 'edge-7.eu-central-1.example.com': 12_182, 'edge-1': 200, 'edge-2': 40, 'edge-3': 6, 'edge-4': 3 },
    platforms: { android: 8_020, iphone: 4_411 }, clients: { '203.0.113.7 Acme Messenger/5.1.0 (Android 16; SM-S938B; de-DE)': 9_000, 'app/5.0': 3_000, '(unknown)': 431 },
  };
  await page.route('**/v1/incidents', (route) => route.fulfill({ json: { incidents: [large, real], looked_up_to: Date.now() - 6000 } }));
  await list.nth(1).waitFor();
  assert.equal(await list.nth(1).locator('details').getAttribute('open'), '');
  await list.first().locator('summary').click();
  const rows = await cells();
  assert.deepEqual(rows[2], ['Gateway', 'edge-7.eu-central-1.example.com', '12,182', '97 %']);
  assert.deepEqual(rows[5], ['Gateway', '2 more', '9', '< 1 %']);
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const width of [1280, 360]) {
      await page.setViewportSize({ width, height: 1100 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wide <= 0, `incidents in ${colorScheme} are ${wide} px wider than ${width}`);
      await page.getByRole('region', { name: 'Incidents' }).screenshot({ path: path.join(directory, `incidents-${colorScheme}-${width}.png`) });
    }
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: 'light' });
  await page.unrouteAll({ behavior: 'wait' });
}

/** On Kafka partitions have nodes, and a gateway is started in another way. */
async function onKafka(page) {
  assert.equal(await page.locator('#t-part .own').first().isVisible(), false);
  await pretendThat(page, (stats) => stats.partitions.forEach((partition) => Object.assign(partition, { owner: `http://node-${partition.partition % 2}:8080` })));
  const node = page.locator('#t-part tr').nth(1).locator('td.own', { hasText: /^node-1:8080$/ });
  await node.waitFor();
  assert.ok(await node.isVisible());
  await page.locator('#psum', { hasText: /^2 nodes · / }).waitFor();
  await openTab(page, 'Try it');
  await page.locator('#try-about', { hasText: /rollcall gateway --engine http:\/\/127\.0\.0\.1:\d+ --listen/ }).waitFor();
  await page.unrouteAll({ behavior: 'wait' });
}

const SCENES = {
  async everything(page) {
    await figures(page);
    await waiting(page);
    await malformed(page);
    await past(page);
    await devices(page);
    await named(page);
    await looks(page);
  },

  async 'no gateway'(page) {
    await page.locator('#n-online', { hasText: /^1$/ }).waitFor();
    await openTab(page, 'Try it');
    await page.locator('#try-about', { hasText: 'rollcall serve --gateway 127.0.0.1:8090 --gateway-insecure' }).waitFor();
    assert.equal(await page.locator('#try-add').isVisible(), false);
    assert.equal(await page.locator('#tries .try').count(), 0);
    await ownGateway(page);
    await timeline(page, 'bob');
    await timelineLooks(page);
    await page.getByRole('button', { name: 'Close the look-up' }).click();
    await totals(page);
    await replaced(page);
    await operator(page);
    await incidents(page);
    await onKafka(page);
  },

  /** The gateway requires a token, which names the user. */
  async token(page) {
    await page.goto(`${url}#try`);
    const device = new Device(page, 1);
    await device.is('closed');
    assert.equal(await device.field('User').count(), 0);
    await device.field('Token').fill('none.of.ours');
    await device.press('Connect');
    await device.tells('closed', '4010 unauthorized');
    await device.is('closed');
    await device.field('Token').fill(token);
    await device.press('Connect');
    await device.tells('hello', 'user tess,');
    await stands(page, 'tess', 'online');
    await device.press('Look up');
    await page.locator('#look .big', { hasText: 'online' }).waitFor();
  },

  async 'long history'(page) {
    await people.longHistory(page, url, directory);
  },

  /** Ids and names that are hard to show or to ask for. */
  async names(page) {
    await people.longNamesFit(page, directory);
    await people.namesAreKeptApart(page);
    await people.everyIdCanBeAskedFor(page);
    await people.nothingIsSaidUnasked(page);
  },

  async tokens(page) {
    await people.tokens(page, JSON.parse(token));
  },
};

/** Answers that a scene is about, which the browser logs as errors. */
const EXPECTED = { 'no gateway': /status of 410/, names: /status of 404/, tokens: /status of 40[13]/ };

async function main() {
  const executablePath = browser();
  const [major] = process.versions.node.split('.');
  if (major < 18) throw new Error(`the console is tested with Node 18 or later and this is ${process.version}; install a newer one`);
  const { chromium } = require(`${modules}/node_modules/playwright-core`);
  // Tests run as root in containers, where its sandbox does not start.
  const launched = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  const complaints = [];
  try {
    const page = await open(launched, { viewport: { width: 1280, height: 900 }, colorScheme: 'light' }, complaints);
    try {
      await SCENES[scene](page);
    } catch (error) {
      // A screenshot shows more than the name of the missing element.
      await page.screenshot({ path: path.join(directory, 'failed.png'), fullPage: true });
      error.message += `\nthe page said: ${JSON.stringify(complaints)}; see failed.png in ${directory}`;
      throw error;
    }
    const expected = EXPECTED[scene];
    assert.deepEqual(complaints.filter((one) => !expected?.test(one)), []);
  } finally {
    await launched.close();
  }
}

main().catch((error) => {
  console.error(error.stack ?? String(error));
  process.exitCode = 1;
});
