// What the openai package gets from a server: node client.cjs BASE_URL KEY PICTURE
"use strict";

const assert = require("node:assert");
const { readFileSync } = require("node:fs");
const { OpenAI, BadRequestError, AuthenticationError, toFile } = require("openai");

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

  const likely = await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 });
  assert.strictEqual(likely.choices[0].logprobs.content.map(({ token }) => token).join("").trim(), "two");
  const schema = { type: "object", properties: { count: { type: "integer", minimum: 0, maximum: 99 } }, required: ["count"], additionalProperties: false };
  const formed = await client.chat.completions.create({ ...ask, response_format: { type: "json_schema", json_schema: { name: "count", schema } } });
  assert.deepStrictEqual(Object.keys(JSON.parse(formed.choices[0].message.content)), ["count"]);

  const row = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body: ask };
  const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(row)), "rows.jsonl"), purpose: "batch" });
  let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
  for (let tries = 0; tries < 600 && batch.status !== "completed"; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  const output = await (await client.files.content(batch.output_file_id)).text();
  assert.strictEqual(JSON.parse(output).response.body.choices[0].message.content, "two");

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
