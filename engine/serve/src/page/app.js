"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};

let model = null;
let messages = [];
let pictures = [];
let running = null;

const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
};

// An error's own words, whatever came.
const wrong = async (response) => {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `HTTP ${response.status}`);
};

const bytes = (count) => {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${unit ? count.toFixed(count < 10 ? 1 : 0) : count} ${units[unit]}`;
};
const number = (count) => Number(count).toLocaleString("en");

async function describe() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw await wrong(response);
    model = (await response.json()).data[0];
  } catch (error) {
    $("model").textContent = error.message;
    return;
  }
  const { details = {} } = model;
  $("model").textContent = `${model.id} · ${details.backend ?? ""} · ${details.dtype ?? ""}`;
  const facts = [
    ["name", model.id], ["family", details.family], ["gives", details.gives],
    ["device", details.device], ["backend", `${details.backend}, ${details.isa}, ${details.threads} threads`],
    ["type of activations", details.dtype], ["layers", details.layers], ["width", details.d_model],
    ["vocabulary", details.vocab && number(details.vocab)],
    ["longest prompt and answer", model.max_model_len && `${number(model.max_model_len)} tokens`],
    ["keys and values kept", details.kv_tokens && `${number(details.kv_tokens)} tokens`],
    ["answers at once", details.max_running && `${details.max_running}, and ${details.max_queue} that wait`],
    ["pictures", details.max_images && `${details.max_images} in a request, ${number(details.max_pixels)} pixels together`],
  ].filter(([, value]) => value !== undefined && value !== null);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  $("parts").tBodies[0].replaceChildren(...(details.parts ?? []).map((part) => make("tr", {},
    make("th", { scope: "row", textContent: part.name }), make("td", { textContent: number(part.parameters) }),
    make("td", { textContent: bytes(part.bytes) }),
    make("td", { textContent: part.formats.map(([format, count]) => `${count} × ${format}`).join(", ") }))));
  $("to-search").hidden = !details.search;
  if (details.gives === "vectors") {
    document.querySelector(".empty").textContent = "This model gives vectors: ask /v1/embeddings.";
    $("prompt").disabled = $("send").disabled = $("choose").disabled = true;
  }
}

// How the model runs here, once somebody wants to see it.
let planned = false;
async function showPlan() {
  if (planned) return;
  planned = true;
  try {
    const response = await fetch("plan", { headers: headers() });
    if (!response.ok) throw await wrong(response);
    const { plan, quantization, refused } = await response.json();
    if (quantization) $("facts").append(make("dt", { textContent: "quantization" }), make("dd", { textContent: quantization }));
    if (!plan) throw new Error(refused?.join("; ") || "there is no plan");
    const names = { weights: "weights", kv_cache: "keys and values", image_features: "features of pictures", activations: "activations at their peak", total: "in all" };
    $("memory").tBodies[0].replaceChildren(...Object.entries(names).map(([key, name]) => make("tr", {},
      make("th", { scope: "row", textContent: name }), make("td", { textContent: bytes(plan.memory[key]) }))));
    $("phases").replaceChildren(...plan.phases.map((phase) => make("details", {},
      make("summary", { textContent: `${phase.name}: ${number(phase.steps.reduce((sum, step) => sum + step.count, 0))} kernels, ${(phase.flops / 1e9).toFixed(2)} Gflop, ${bytes(phase.bytes)}` }),
      make("table", {}, make("thead", {}, make("tr", {}, ...["module", "op", "kernel", "times"].map((name) => make("th", { scope: "col", textContent: name })))),
        make("tbody", {}, ...phase.steps.map((step) => make("tr", {},
          make("th", { scope: "row", textContent: step.module }), make("td", { textContent: step.op, title: step.spec }),
          make("td", { textContent: step.variant ?? step.refused ?? "" }), make("td", { textContent: step.count }))))))));
  } catch (error) {
    planned = false;
    $("phases").replaceChildren(make("p", { textContent: error.message }));
  }
}

const address = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function add(files) {
  for (const file of files) {
    if (file.type.startsWith("image/")) pictures.push({ name: file.name || "picture", url: await address(file) });
  }
  showPictures();
  $("prompt").focus();
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((picture, place) => {
    const remove = make("button", { type: "button", textContent: "×", ariaLabel: `Remove ${picture.name}` });
    remove.onclick = () => { pictures.splice(place, 1); showPictures(); $("prompt").focus(); };
    return make("li", {}, make("img", { src: picture.url, alt: picture.name }), remove);
  }));
}

function turn(role, text = "", shown = []) {
  document.querySelector(".empty")?.remove();
  const body = make("div", { className: "text", textContent: text });
  const node = make("article", { className: `turn ${role}` }, make("h2", { textContent: role === "user" ? "You" : model?.id ?? "Answer" }));
  if (shown.length) {
    node.append(make("ul", { className: "shown" }, ...shown.map((picture) => make("li", {}, make("img", { src: picture.url, alt: picture.name })))));
  }
  node.append(body);
  $("log").append(node);
  node.scrollIntoView({ block: "end" });
  return { node, body };
}

function times(node, timings, usage, seen) {
  const ms = (value) => (value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${value.toFixed(value < 10 ? 1 : 0)} ms`);
  const parts = [
    ["reading pictures", ms(timings.pictures_ms)], ["resizing, laying out", ms(timings.prepare_ms)],
    ["queue, tower, prompt", ms(timings.first_token_ms)], ["answer", ms(timings.decode_ms)],
    ["in all", ms(timings.total_ms)], ["seen here after", ms(seen)],
    ["tokens", `${usage.prompt_tokens} + ${usage.completion_tokens}`],
  ];
  if (timings.tokens_per_s) parts.push(["tokens a second", timings.tokens_per_s.toFixed(1)]);
  node.append(make("ul", { className: "times", ariaLabel: "Timings" },
    ...parts.map(([name, value]) => make("li", {}, `${name} `, make("b", { textContent: value })))));
}

// The objects of a stream of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(text) {
  const shown = pictures;
  const content = [...shown.map(({ url }) => ({ type: "image_url", image_url: { url } }))];
  if (text) content.push({ type: "text", text });
  pictures = [];
  showPictures();
  turn("user", text, shown);
  messages.push({ role: "user", content });
  const { node, body } = turn("assistant");
  node.classList.add("waiting");
  running = new AbortController();
  $("send").textContent = "Stop";
  const start = performance.now();
  let answer = "", thoughts = null, seen = 0;
  try {
    const system = $("system").value.trim();
    const request = {
      model: model?.id, stream: true, stream_options: { include_usage: true },
      temperature: Number($("temperature").value) || 0,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    };
    if ($("max-tokens").value) request.max_completion_tokens = Number($("max-tokens").value);
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request), signal: running.signal });
    if (!response.ok) throw await wrong(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) seen ||= performance.now() - start;
      if (delta.reasoning_content) {
        if (!thoughts) {
          thoughts = make("div");
          body.before(make("details", { className: "thoughts" }, make("summary", { textContent: "Thoughts" }), thoughts));
        }
        thoughts.append(delta.reasoning_content);
      }
      if (delta.content) {
        answer += delta.content;
        body.textContent = answer;
        $("log").scrollTop = $("log").scrollHeight;
      }
      if (event.usage && event.timings) times(node, event.timings, event.usage, seen);
    }
    messages.push({ role: "assistant", content: answer });
  } catch (error) {
    if (error.name === "AbortError") {
      messages.push({ role: "assistant", content: answer });
    } else {
      messages.pop();
      node.classList.add("error");
      body.textContent = `${answer}${answer && "\n"}${error.message}`;
    }
  } finally {
    node.classList.remove("waiting");
    node.scrollIntoView({ block: "end" });
    running = null;
    $("send").textContent = "Send";
    $("prompt").focus();
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("prompt").value.trim();
  if (!text && !pictures.length) return;
  $("prompt").value = "";
  ask(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("prompt").addEventListener("input", ({ target }) => {
  target.style.height = "auto";
  target.style.height = `${target.scrollHeight + 2}px`;
});
$("choose").onclick = () => $("files").click();
$("files").onchange = ({ target }) => { add(target.files); };
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("drop"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("drop"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  add(event.dataTransfer.files);
});
for (const [button, panel] of [["show-model", "about"], ["show-settings", "settings"]]) {
  $(button).onclick = () => {
    $(panel).hidden = !$(panel).hidden;
    $(button).ariaExpanded = String(!$(panel).hidden);
    if (panel === "about" && !$(panel).hidden) showPlan();
  };
}
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").onchange = () => { sessionStorage.setItem("key", $("key").value); describe(); };
$("clear").onclick = () => {
  running?.abort();
  messages = [];
  $("log").replaceChildren();
  $("prompt").focus();
};
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
};
describe();
