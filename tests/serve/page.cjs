// The page as a person uses it: node page.cjs CHROMIUM OUT_DIR URL PICTURE
"use strict";

const assert = require("node:assert");
const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
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
    const shot = (name) => page.screenshot({ path: join(out, `page-${name}.png`) });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
    await page.setViewport({ width: 1000, height: 800 });
    await page.goto(url);
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("demo"));
    await shot("empty");
    await (await page.$("#files")).uploadFile(picture);
    await page.waitForSelector("#pictures img");
    await page.type("#prompt", "Describe the picture.");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".times");
    const text = await page.$eval(".turn.assistant .text", (node) => node.textContent);
    assert.strictEqual(text, "a large orange cross to the left of a large green ring");
    await shot("answer");

    // By keys alone: the focus is at the prompt; all buttons can be reached and have names.
    assert.strictEqual(await page.evaluate(() => document.activeElement.id), "prompt");
    const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input:not([hidden]), textarea")]
      .filter((node) => !(node.ariaLabel || node.labels?.length || node.textContent.trim())).map((node) => node.outerHTML));
    assert.deepStrictEqual(nameless, []);
    for (let count = 0; count < 40; count += 1) {
      if (await page.evaluate(() => document.activeElement.id) === "show-model") break;
      await page.keyboard.down("Shift");
      await page.keyboard.press("Tab");
      await page.keyboard.up("Shift");
    }
    await page.keyboard.press("Enter");
    assert.ok(await page.$eval("#facts", (node) => node.textContent.includes("smolvlm")));
    assert.strictEqual(await page.$eval("#show-model", (node) => node.ariaExpanded), "true");
    await page.waitForSelector("#phases summary");
    const memory = await page.$$eval("#memory tbody tr", (rows) => rows.map((row) => row.textContent));
    assert.ok(memory.length === 5 && memory[0].startsWith("weights3.4 MB"), memory);
    const phases = await page.$$eval("#phases summary", (nodes) => nodes.map((node) => node.textContent.split(":")[0]));
    assert.deepStrictEqual(phases, ["vision", "prefill", "decode"]);
    await page.click("#phases summary");
    const kernels = await page.$$eval("#phases details:first-child tbody tr", (rows) => rows.map((row) => row.cells[2].textContent));
    assert.ok(kernels.length > 5 && kernels.every((name) => name), kernels);
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
    await shot("model-dark");

    // A picture that is broken is said to be.
    await page.evaluate(() => {
      const data = new DataTransfer();
      data.items.add(new File(["not a picture"], "broken.png", { type: "image/png" }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
    });
    await page.waitForSelector("#pictures img");
    await page.focus("#prompt");
    await page.keyboard.type("What?");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".turn.error");
    assert.match(await page.$eval(".turn.error .text", (node) => node.textContent), /not a PNG/);
    await page.setViewport({ width: 390, height: 800 });
    await shot("error-narrow");
    // The browser itself notes the answer 400.
    assert.deepStrictEqual(wrong.filter((text) => !text.includes("400")), []);
    console.log("ok");
  } finally {
    await browser.close();
    rmSync(userDataDir, { recursive: true, force: true });
  }
}

main().catch((error) => { console.error(error); process.exitCode = 1; });
