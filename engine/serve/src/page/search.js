"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};

let picture = null;
let running = null;

const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
};

// An error's own words, whatever came.
const wrong = async (response) => {
  if (response.status === 401) $("key-field").hidden = false;
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `HTTP ${response.status}`);
};

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", bad);
}

async function describe() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw await wrong(response);
    const [{ id, details = {} }] = (await response.json()).data;
    const { search } = details;
    if (!search) {
      $("model").textContent = id;
      say("There is no index here: start the server with --index.", true);
      return;
    }
    const kind = search.kind === "pooled_tower" ? "pooled tower features" : "dual encoder";
    $("model").textContent = `${id} · ${Number(search.pictures).toLocaleString("en")} pictures · ${kind}`;
    if (search.kind === "pooled_tower") {
      $("query").disabled = true;
      $("query").placeholder = "This model's index is asked by pictures alone";
      say("Drop, paste or choose a picture; others like it are found.");
    }
  } catch (error) {
    say(error.message, true);
  }
}

const address = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function take(files) {
  const file = [...files].find(({ type }) => type.startsWith("image/"));
  if (!file) return;
  picture = { name: file.name || "picture", url: await address(file) };
  showSample();
  find();
}

function showSample() {
  $("asked").hidden = !picture;
  $("sample").src = picture?.url ?? "data:,";
  $("sample").alt = picture ? "the picture that others are to be like" : "";
  $("sample-name").textContent = picture?.name ?? "";
}

function card({ path, score, width, height, thumbnail }) {
  const shown = thumbnail ? make("img", { src: thumbnail, alt: "" }) : make("div", { className: "none", textContent: "cannot be read now" });
  return make("li", {}, shown, make("div", { className: "path", textContent: path }),
    make("div", { className: "facts", textContent: `${score.toFixed(4)} · ${width} × ${height}` }));
}

async function find() {
  const query = $("query").value.trim();
  if (!picture && !query) return say("Say what you look for, or choose a picture.", true);
  running?.abort();
  const mine = running = new AbortController();
  say("Searching…");
  try {
    const body = { k: Number($("k").value) || 24, thumbnails: 240, ...(picture ? { image_url: picture.url } : { query }) };
    const response = await fetch("v1/search", { method: "POST", headers: headers(), body: JSON.stringify(body), signal: mine.signal });
    if (!response.ok) throw await wrong(response);
    const { data, pictures } = await response.json();
    $("results").replaceChildren(...data.map(card));
    say(`${data.length} of ${Number(pictures).toLocaleString("en")} pictures, ${picture ? `like ${picture.name}` : `for “${query}”`}, the nearest first.`);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("results").replaceChildren();
    say(error.message, true);
  } finally {
    if (running === mine) running = null;
  }
}

$("search").addEventListener("submit", (event) => { event.preventDefault(); find(); });
$("query").addEventListener("input", () => { if (picture) { picture = null; showSample(); } });
$("choose").onclick = () => $("file").click();
$("file").onchange = ({ target }) => { take(target.files); };
$("drop").onclick = () => { picture = null; $("file").value = ""; showSample(); $("choose").focus(); };
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("drop"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("drop"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  take(event.dataTransfer.files);
});
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").onchange = () => { sessionStorage.setItem("key", $("key").value); describe(); };
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
};
describe();
