// Duplicates a tab in a headless Chromium: node tabs.js MODULES ENGINE GATEWAY CLIENT ends with 0 if both tabs stay online,
// each with its own device id. CLIENT is the path of rollcall.js.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const [modules, engine, gateway, client] = process.argv.slice(2);
const PATIENCE_MS = 60_000;
const NAMES = ['chromium', 'chromium-browser', 'google-chrome'];

function browser() {
  for (const folder of (process.env.PATH ?? '').split(path.delimiter)) {
    for (const name of NAMES) {
      const file = path.join(folder, name);
      if (folder && fs.existsSync(file)) return file;
    }
  }
  throw new Error(`there is none of ${NAMES.join(', ')} on the path; run scripts/setup`);
}

/** A page of a user, which logs in the first time and resumes later. */
const PAGE = `<!doctype html><title>tab</title><script type=module>
import { Rollcall } from "/rollcall.js";
window.copied = sessionStorage.getItem("rollcall.device");
window.me = new Rollcall({ url: ${JSON.stringify(gateway)}, platform: "web", user: "tabitha" });
window.kicked = [];
me.on("kicked", (kick) => kicked.push(kick.reason));
copied ? me.resume() : me.login();
</script>`;

async function main() {
  const { chromium } = require(path.join(modules, 'node_modules', 'playwright-core'));
  const server = http.createServer((request, response) => {
    const script = request.url === '/rollcall.js';
    response.setHeader('content-type', script ? 'text/javascript' : 'text/html');
    response.end(script ? fs.readFileSync(client) : PAGE);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const home = `http://127.0.0.1:${server.address().port}/`;
  const chrome = await chromium.launch({ executablePath: browser(), args: ['--no-sandbox'] });
  const context = await chrome.newContext();
  context.setDefaultTimeout(PATIENCE_MS);
  const online = (page) => page.waitForFunction(() => window.me?.state === 'online');
  const device = (page) => page.evaluate(() => window.me.device);

  const first = await context.newPage();
  await first.goto(home);
  await online(first);
  const id = await device(first);
  // As "Duplicate tab" does: the new tab begins with a copy of sessionStorage.
  const [second] = await Promise.all([context.waitForEvent('page'), first.evaluate(() => void window.open(location.href))]);
  await online(second);
  assert.equal(await second.evaluate(() => window.copied), id, 'the browser copied the id');
  const other = await device(second);
  assert.notEqual(other, id);
  assert.equal(await second.evaluate(() => sessionStorage.getItem('rollcall.device')), other);
  assert.equal(await device(first), id);

  // A reload is the same device again, at once.
  for (const [page, is] of [[second, other], [first, id], [second, other]]) {
    await page.reload();
    await online(page);
    assert.equal(await device(page), is, 'a page that is loaded again has the id it had');
  }
  for (const page of [first, second]) {
    assert.equal(await page.evaluate(() => window.me.state), 'online');
    assert.deepEqual(await page.evaluate(() => window.kicked), []);
  }
  // When one of them is closed, the other one stays online.
  await second.close();
  const until = Date.now() + PATIENCE_MS;
  for (;;) {
    const user = await (await fetch(`${engine}v1/users/tabitha`)).json();
    if (user.devices?.find((one) => one.device === other)?.status === 'offline') {
      assert.equal(user.status, 'online');
      break;
    }
    assert.ok(Date.now() < until, JSON.stringify(user));
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.equal(await first.evaluate(() => window.me.state), 'online');
  await chrome.close();
  server.close();
}

main().then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
