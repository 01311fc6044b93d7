// What the openai package gets from a server: node client.cjs BASE_URL KEY PICTURE
"use strict";

const assert = require("node:assert");
const { readFileSync } = require("node:fs");
const { OpenAI, BadRequestError, AuthenticationError } = require("openai");

async function main() {
  const [baseURL, apiKey, picture] = process.argv.slice(2);
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
  const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: "How many objects are there?" }];
  const ask = { model: "demo", messages: [{ role: "user", content }], temperature: 0 };

  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.deepStrictEqual(models, ["demo"]);

  const answer = await client.chat.completions.create(ask);
  assert.strictEqual(answer.choices[0].message.content, "two");

  let text = "", usage = null;
  const parts = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
  for await (const part of parts) {
    text += part.choices[0]?.delta.content ?? "";
    usage = part.usage ?? usage;
  }
  assert.strictEqual(text, "two");
  assert.deepStrictEqual(usage, answer.usage);

  // One that is not read to its end.
  const endless = await client.chat.completions.create({ ...ask, stream: true, ignore_eos: true, max_tokens: 1500 });
  for await (const part of endless) {
    if (part.choices[0].delta.content) break;
  }

  await assert.rejects(client.chat.completions.create({ ...ask, tools: [{ type: "function", function: { name: "f" } }] }), (error) => {
    assert.ok(error instanceof BadRequestError);
    return error.param === "tools" && error.code === "unsupported_parameter";
  });
  await assert.rejects(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list(), AuthenticationError);
  console.log("openai: ok");
}

main();
