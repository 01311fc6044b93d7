// The page of search as a person uses it, with an index of pooled features: node search.cjs CHROMIUM OUT_DIR URL PICTURE
"use strict";

const assert = require("node:assert");
const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { basename, join } = require("node:path");
const { launch } = require("puppeteer-core");

async function main() {
  const [executablePath, out, url, picture] = process.argv.slice(2);
  const userDataDir = mkdtempSync(join(tmpdir(), "ocelli-page-"));
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"];
  const browser = await launch({ executablePath, userDataDir, args });
  try {
    const page = await browser.newPage();
    const wrong = [];
    page.on("pageerror", (error) => wrong.push(error.message));
    page.on("console", (message) => { if (message.type() === "error") wrong.push(message.text()); });
    page.on("request", (request) => { if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) wrong.push(request.url()); });
    const shot = (name) => page.screenshot({ path: join(out, `search-${name}.png`) });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
    await page.setViewport({ width: 1000, height: 800 });
    // From the chat to the search by its link.
    await page.goto(url);
    await page.waitForSelector("#to-search:not([hidden])");
    await Promise.all([page.waitForNavigation(), page.click("#to-search")]);
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("12 pictures"));
    assert.match(await page.$eval("#model", (node) => node.textContent), /pooled tower features/);
    assert.ok(await page.$eval("#query", (node) => node.disabled));
    const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input:not([hidden])")]
      .filter((node) => !(node.ariaLabel || node.labels?.length || node.textContent.trim())).map((node) => node.outerHTML));
    assert.deepStrictEqual(nameless, []);
    await (await page.$("#file")).uploadFile(picture);
    await page.waitForSelector("#results li");
    assert.strictEqual(await page.$eval("#results li .path", (node) => node.textContent), basename(picture));
    assert.match(await page.$eval("#status", (node) => node.textContent), /^12 of 12 pictures, like /);
    assert.strictEqual((await page.$$("#results img")).length, 12);
    await shot("found");
    // By keys alone: fewer, then without the picture.
    await page.focus("#k");
    await page.keyboard.down("Control");
    await page.keyboard.press("a");
    await page.keyboard.up("Control");
    await page.keyboard.type("3");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelectorAll("#results li").length === 3);
    await page.focus("#drop");
    await page.keyboard.press("Enter");
    assert.strictEqual(await page.evaluate(() => document.activeElement.id), "choose");
    await page.focus("#send");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#status.error");
    // A picture that is broken is said to be.
    await page.evaluate(() => {
      const data = new DataTransfer();
      data.items.add(new File(["not a picture"], "broken.png", { type: "image/png" }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
    });
    await page.waitForFunction(() => /not a PNG/.test(document.getElementById("status").textContent));
    assert.strictEqual((await page.$$("#results li")).length, 0);
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
    await (await page.$("#file")).uploadFile(picture);
    await page.waitForSelector("#results li");
    await page.setViewport({ width: 390, height: 800 });
    await shot("dark-narrow");
    // The browser itself notes the answer 400.
    assert.deepStrictEqual(wrong.filter((text) => !text.includes("400")), []);
    console.log("ok");
  } finally {
    await browser.close();
    rmSync(userDataDir, { recursive: true, force: true });
  }
}

main().catch((error) => { console.error(error); process.exitCode = 1; });
