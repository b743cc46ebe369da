// Two people chat in two browsers; the node is killed and started again; their pages
// find back by themselves, and the history is there.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from 'playwright-core';

const root = join(import.meta.dirname, '..', '..');
const scratch = mkdtempSync(join(tmpdir(), 'holdfast-browser-'));
const binary = join(scratch, 'node');
let address, node, browser;

before(async () => {
  execFileSync('go', ['build', '-o', binary, './cmd/node'], { cwd: root, stdio: 'inherit' });
  address = `127.0.0.1:${await freePort()}`;
  node = await startNode();
  browser = await chromium.launch({ executablePath: chromiumPath(), args: ['--no-sandbox'] });
});

after(async () => {
  await browser?.close();
  node?.kill('SIGKILL');
  rmSync(scratch, { recursive: true, force: true });
});

test('two people chat, and the room survives kill -9', async () => {
  const problems = [];
  const ada = await enter('ada', problems);
  const bob = await enter('bob', problems);
  await ada.getByRole('complementary', { name: 'Who is here' }).getByText('bob').waitFor({ state: 'attached' });

  await say(ada, 'Hello, Bob!');
  await hears(bob, 'Hello, Bob!');
  await say(bob, 'Hello, Ada! <b>not bold</b>');
  await hears(ada, 'Hello, Ada! <b>not bold</b>');

  node.kill('SIGKILL');
  await once(node, 'exit');
  await ada.getByRole('status').getByText('Offline').waitFor();
  node = await startNode();

  for (const page of [ada, bob]) {
    await page.getByRole('status').getByText('Connected', { exact: true }).waitFor();
    await hears(page, 'Hello, Bob!');
  }
  await say(ada, 'Are you still there?');
  await hears(bob, 'Are you still there?');

  const eve = await enter('eve', problems);
  for (const text of ['Hello, Bob!', 'Hello, Ada! <b>not bold</b>', 'Are you still there?']) {
    await hears(eve, text);
    assert.equal(await conversation(eve).getByText(text, { exact: true }).count(), 1, `${text} is there once`);
  }
  assert.deepEqual(problems.filter(p => !p.includes('ERR_CONNECTION') && !p.includes('WebSocket connection')), []);
});

test('the console shows the node and what runs on it', async () => {
  const problems = [];
  const page = await open(`http://${address}/`, problems);
  await page.getByText('chatroom').first().waitFor();
  assert.deepEqual(problems, []);
});

// enter opens the room's page as somebody.
async function enter(name, problems) {
  const page = await open(`http://${address}/objects/chatroom/lobby/`, problems);
  await page.getByLabel('Your name').fill(name);
  await page.getByRole('button', { name: 'Join' }).click();
  await page.getByRole('status').getByText('Connected', { exact: true }).waitFor();
  return page;
}

// open makes a browser profile of its own and collects what its page complains of.
async function open(url, problems) {
  const context = await browser.newContext();
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  page.on('console', m => { if (m.type() === 'error') problems.push(m.text()); });
  page.on('pageerror', e => problems.push(e.message));
  await page.goto(url);
  return page;
}

async function say(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.getByRole('button', { name: 'Send' }).click();
}

const conversation = page => page.getByRole('log', { name: 'Conversation' });

const hears = (page, text) => conversation(page).getByText(text, { exact: true }).waitFor();

async function startNode() {
  const process = spawn(binary, ['--listen', address, '--data', join(scratch, 'data')], { stdio: ['ignore', 'ignore', 'inherit'] });
  for (const deadline = Date.now() + 30_000; Date.now() < deadline; await sleep(20)) {
    assert.equal(process.exitCode, null, 'the node ended');
    const ready = await fetch(`http://${address}/readyz`).then(r => r.ok, () => false);
    if (ready) return process;
  }
  process.kill('SIGKILL');
  throw new Error('the node is not ready after 30 s');
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

function chromiumPath() {
  const path = [globalThis.process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(p => p && existsSync(p));
  assert.ok(path, 'there is no Chromium: install it, or name it in CHROMIUM');
  return path;
}
