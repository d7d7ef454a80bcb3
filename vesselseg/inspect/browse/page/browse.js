// The page of vesselseg browse: state, address, keys. All data come from its own server.
import { List, choose } from "./browse_list.js";
import {
  aboutDataset, aboutFindings, aboutImage, aboutModel, aboutObjects, aboutObservers, coloursOf, count, element,
} from "./browse_panels.js";
import { Stage, canvasOf, fetchBitmap, tint } from "./browse_stage.js";

const $ = (id) => document.getElementById(id);
const FILTERS = ["search", "split", "group", "phrase", "finding", "sort"];
const MODES = ["image", "square", "tiles"];
const KEPT = 12; // decoded images in the cache
const OBSERVERS = ["#ffffff", "#ffe680", "#b9f2ff"]; // outlines of further observers

const state = { number: null, mode: "image", epoch: 0, hidden: new Set(), seen: null };
let dataset, settings, shown = [];
const loaded = new Map();

const stage = new Stage($("stage"), $("layers"), (scale) => { $("zoom").textContent = `${Math.round(100 * scale)} %`; });
const list = new List($("list"), $("rows"), (number) => go(number));

async function getJson(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** An LRU cache of promises; one that fails is removed at once. */
function remember(key, make) {
  const value = loaded.get(key) ?? make();
  loaded.delete(key);
  loaded.set(key, value);
  value.catch(() => loaded.delete(key));
  while (loaded.size > 3 * KEPT) loaded.delete(loaded.keys().next().value);
  return value;
}

const detailsOf = (number) => remember(`details ${number}`, () => getJson(`api/images/${number}`));
const seenOf = (number, epoch) => remember(`seen ${number} ${epoch}`, async () => {
  const seen = await getJson(`api/images/${number}/seen/${epoch}`);
  if (seen.state === "loading") loaded.delete(`seen ${number} ${epoch}`);
  return seen;
});

/** {picture, masks: [{place, fill, outline}]} of an image in a mode. */
function layersOf(number, mode, epoch) {
  return remember(`layers ${number} ${mode} ${mode === "image" ? "" : epoch}`, async () => {
    const details = await detailsOf(number);
    if (details.problem) throw new Error(details.problem);
    const colours = coloursOf(details.objects.map((found) => found.phrase), dataset.phrases);
    if (mode === "image") {
      const masks = details.objects.flatMap((_, place) => [
        masked(`images/${number}/mask-0-${place}.png`, place, colours[place]),
        ...details.observers.map((_, other) =>
          masked(`images/${number}/mask-${other + 1}-${place}.png`, `observer ${other}`, OBSERVERS[other % OBSERVERS.length])),
      ]);
      return { picture: onCanvas(await fetchBitmap(`images/${number}.png`)), masks: await Promise.all(masks) };
    }
    const [seen, base] = [await seenOf(number, epoch), `images/${number}/seen/${epoch}`];
    if (mode === "tiles") return { picture: await mosaic(seen, base), masks: [] };
    const masks = seen.objects.filter((asked) => asked.object < colours.length).map((asked, place) =>
      masked(`${base}/mask-${place}.png`, asked.object, colours[asked.object]));
    return { picture: onCanvas(await fetchBitmap(`${base}/square.png`)), masks: await Promise.all(masks) };
  });
}

async function masked(url, place, colour) {
  return { place, ...tint(await fetchBitmap(url), colour) };
}

function onCanvas(bitmap) {
  const canvas = canvasOf(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas;
}

/** The tiles at their positions in the image, with the thumbnail to the right. */
async function mosaic(seen, base) {
  const tiles = await Promise.all(Array.from({ length: seen.tiles }, (_, place) => fetchBitmap(`${base}/tile-${place}.png`)));
  const gap = Math.ceil(seen.tile / 40);
  const step = seen.tile + gap;
  const canvas = canvasOf((seen.columns + (seen.thumbnail ? 1 : 0)) * step + (seen.thumbnail ? gap : -gap), seen.rows * step - gap);
  const context = canvas.getContext("2d");
  tiles.forEach((tile, place) => {
    const last = seen.thumbnail && place === tiles.length - 1;
    const [column, row] = last ? [seen.columns, 0] : [place % seen.columns, Math.floor(place / seen.columns)];
    context.drawImage(tile, column * step + (last ? 2 * gap : 0), row * step);
  });
  return canvas;
}

/** Show an image. address: whether to update the address bar. */
async function go(number, address = true) {
  if (number !== state.number) state.hidden.clear();
  state.number = number;
  list.select(number);
  if (address) writeAddress();
  const place = shown.findIndex((image) => image.number === number);
  $("position").textContent = place < 0 ? "not in the filtered list" : `${count(place + 1)} of ${count(shown.length)}`;
  $("previous").disabled = place <= 0;
  $("next").disabled = place >= shown.length - 1;
  await draw();
  for (const neighbour of [shown[place + 1], shown[place - 1]]) {
    if (neighbour && !neighbour.problem && state.number === number && state.mode === "image") {
      layersOf(neighbour.number, "image", 0).catch(() => {});
    }
  }
}

/** Draw image and panel of the current state; responses for an earlier state are dropped. */
async function draw() {
  const { number, mode, epoch } = state;
  const late = () => number !== state.number || mode !== state.mode || epoch !== state.epoch;
  if (number === null) return;
  try {
    const details = await detailsOf(number);
    if (late()) return;
    if (state.seen?.key !== `${number} ${epoch}`) state.seen = null;
    panel(details);
    if (details.problem) return fail(details.problem);
    if (mode !== "image") {
      const seen = await seenOf(number, epoch);
      if (late()) return;
      if (seen.state === "loading") {
        fail("Reading the config: a few seconds…", true);
        return void setTimeout(() => !late() && draw(), 600);
      }
      if (seen.state !== "ready") return fail(seen.problem);
    }
    const layers = await layersOf(number, mode, epoch);
    if (late()) return;
    $("message").hidden = true;
    state.layers = layers;
    paint();
    setTimeout(() => !late() && follow(details), 120); // not while the user browses on
  } catch (error) {
    if (!late()) fail(error instanceof TypeError ? "The server does not respond: it may have been stopped." : error.message);
  }
}

/** The lower half of the panel: the model's view, fetched after the image. */
async function follow(details) {
  const { number, epoch } = state;
  const seen = await seenOf(number, epoch).catch((error) => ({ state: "failed", problem: error.message }));
  if (number !== state.number || epoch !== state.epoch) return;
  if (!settings || settings.state === "loading") settings = await getJson("api/model");
  state.seen = { key: `${number} ${epoch}`, ...seen };
  panel(details);
  if (seen.state === "loading") setTimeout(() => number === state.number && epoch === state.epoch && follow(details), 700);
}

function paint() {
  const { picture, masks } = state.layers;
  let over = null;
  if ($("mask").checked && masks.length) {
    const kind = document.querySelector("input[name=drawn]:checked").value;
    over = canvasOf(masks[0].fill.width, masks[0].fill.height);
    const context = over.getContext("2d");
    const drawnBy = (mask) => (typeof mask.place === "string" ? "outline" : kind); // further observers as outlines, so that fills do not cover each other
    masks.filter((mask) => !state.hidden.has(mask.place)).sort((a, b) => (typeof a.place > typeof b.place) - 0.5)
      .forEach((mask) => context.drawImage(mask[drawnBy(mask)], 0, 0));
    over.dataset.layer = "masks";
    setOpacity(over);
  }
  stage.show(picture, over);
  const name = dataset.images[state.number].name;
  const what = { image: "stored image", square: `SAM2's square in epoch ${state.epoch}`, tiles: "InternVL's tiles" }[state.mode];
  $("stage").setAttribute("aria-label", `${name}, ${what}, ${over ? "masks shown" : "no masks shown"}`);
}

/** Thin outlines need a higher opacity than areas to be visible. */
function setOpacity(over) {
  const outline = document.querySelector("input[name=drawn]:checked").value === "outline";
  over.style.opacity = Math.min(1, ($("opacity").value / 100) * (outline ? 1.8 : 1));
}

function fail(problem, quiet = false) {
  stage.show(null, null);
  $("message").textContent = problem;
  $("message").classList.toggle("quiet", quiet);
  $("message").hidden = false;
  $("stage").setAttribute("aria-label", problem);
}

/** Redraw the whole panel for another image, else only the model's view, so that controls in use keep their state. */
function panel(details) {
  const colours = coloursOf(details.objects.map((found) => found.phrase), dataset.phrases);
  if (state.panelOf === details) return void $("model")?.replaceWith(aboutModel(state.seen, settings, colours));
  state.panelOf = details;
  const toggle = (place, show) => {
    if (show) state.hidden.delete(place);
    else state.hidden.add(place);
    paint();
  };
  const sections = [aboutImage(details)];
  if (!details.problem) sections.push(aboutObjects(details, colours, state.hidden, toggle));
  if (details.observers.length) sections.push(aboutObservers(details, OBSERVERS, state.hidden, toggle));
  sections.push(aboutFindings(details.notes));
  if (!details.problem) sections.push(aboutModel(state.seen, settings, colours));
  $("panel").replaceChildren(element("div", { class: "sections" }, sections));
  $("panel").scrollTop = 0;
}

function filter(keep = true) {
  const wanted = Object.fromEntries(FILTERS.map((name) => [name, $(name).value]));
  shown = choose(dataset.images, wanted);
  list.show(shown, Math.max(...dataset.images.map((image) => image.share ?? 0)));
  const all = dataset.images.length;
  $("count").textContent = shown.length === all ? `${count(all)} images` : `${count(shown.length)} of ${count(all)} images`;
  $("clear").hidden = FILTERS.every((name) => !wanted[name]);
  for (const name of FILTERS) $(name).classList.toggle("set", Boolean(wanted[name]));
  const here = shown.some((image) => image.number === state.number);
  if (!keep) return;
  if (shown.length && !here) go(shown[0].number);
  else if (state.number !== null) go(state.number);
}

function fillFilters() {
  const tally = (values) => values.reduce((counts, value) => counts.set(value, (counts.get(value) ?? 0) + 1), new Map());
  const add = (id, first, entries) => $(id).replaceChildren(new Option(first, ""),
    ...entries.map(([value, words, number]) => new Option(`${words} (${count(number)})`, value)));
  const { images, kinds } = dataset;
  const splits = tally(images.map((image) => image.split));
  add("split", "All splits", ["train", "val", "test", "none"].filter((name) => splits.has(name))
    .map((name) => [name, name === "none" ? "in no split" : name, splits.get(name)]));
  const groups = [...tally(images.map((image) => image.group).filter(Boolean))].sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }));
  add("group", "All groups", groups.map(([name, number]) => [name, name, number]));
  $("group").disabled = !groups.length;
  const phrases = tally(images.flatMap((image) => (image.phrases.length ? image.phrases : ["(none)"])));
  add("phrase", "All phrases", [...phrases].map(([name, number]) => [name, name === "(none)" ? "no object" : name, number]));
  const codes = tally(images.flatMap((image) => image.codes));
  const having = (test) => images.filter(test).length;
  add("finding", "All images", [
    ["(any)", "any finding", having((image) => image.codes.length)],
    ["(none)", "no finding", having((image) => !image.codes.length && !image.problem)],
    ["(broken)", "unreadable", having((image) => image.problem)],
    ...[...codes].map(([code, number]) => [code, kinds[code], number]),
  ].filter(([, , number]) => number));
}

// --- the address: #image=NAME&view=square&epoch=3 and the filters that are set --------------------------------------

function writeAddress() {
  const parts = new URLSearchParams();
  if (state.number !== null) parts.set("image", dataset.images[state.number].name);
  if (state.mode !== "image") parts.set("view", state.mode);
  if (state.epoch) parts.set("epoch", state.epoch);
  for (const name of FILTERS) if ($(name).value) parts.set(name, $(name).value);
  history.replaceState(null, "", `#${parts}`);
  document.title = `${dataset.images[state.number]?.name ?? dataset.name} · vesselseg`;
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const name of FILTERS) {
    $(name).value = parts.get(name) ?? "";
    if ($(name).selectedIndex === -1) $(name).value = ""; // a value that this dataset does not have
  }
  state.mode = MODES.includes(parts.get("view")) ? parts.get("view") : "image";
  state.epoch = cleanEpoch(parts.get("epoch"));
  showMode();
  filter(false);
  const named = dataset.images.find((image) => image.name === parts.get("image"));
  const first = named ?? shown[0] ?? dataset.images[0];
  const missing = named ? null : parts.get("image"); // shown after the first image is drawn, which would hide the message
  if (first) go(first.number).then(() => missing && state.number === first.number && fail(`This dataset has no image ${missing}.`));
  else fail("The dataset folder contains no image.");
}

const cleanEpoch = (value) => Math.min(9999999, Math.max(0, Math.floor(Number(value)) || 0));

// --- user actions ----------------------------------------------------------------------------------------------------

function stepBy(step) {
  const place = shown.findIndex((image) => image.number === state.number);
  const next = place < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, place + step));
  if (shown[next] && shown[next].number !== state.number) go(shown[next].number);
}

function showMode() {
  document.querySelector(`input[name=mode][value=${state.mode}]`).checked = true;
  $("epoch").value = state.epoch;
  // InternVL gets no masks
  document.querySelectorAll(".masks input").forEach((box) => { box.disabled = state.mode === "tiles"; });
}

function setMode(mode) {
  state.mode = mode;
  showMode();
  writeAddress();
  draw();
}

/** Change the epoch; the stored image does not depend on it, so switch to SAM2's view. */
function setEpoch(epoch) {
  state.epoch = cleanEpoch(epoch);
  setMode(state.mode === "image" ? "square" : state.mode);
}

function toggleMasks() {
  if ($("mask").disabled) return;
  $("mask").checked = !$("mask").checked;
  $("mask").dispatchEvent(new Event("change"));
}

function changeDrawn() {
  const other = document.querySelector("input[name=drawn]:not(:checked)");
  other.checked = true;
  paint();
}

const KEYS = {
  ArrowRight: () => stepBy(1), ArrowDown: () => stepBy(1), ArrowLeft: () => stepBy(-1), ArrowUp: () => stepBy(-1),
  Home: () => stepBy(-Infinity), End: () => stepBy(Infinity), PageDown: () => stepBy(8), PageUp: () => stepBy(-8),
  m: toggleMasks, o: changeDrawn, 1: () => setMode("image"), 2: () => setMode("square"), 3: () => setMode("tiles"),
  e: () => setEpoch(state.epoch + (state.mode === "image" ? 0 : 1)), E: () => setEpoch(state.epoch - 1),
  "+": () => stage.zoom(1.25), "=": () => stage.zoom(1.25), "-": () => stage.zoom(0.8), 0: () => stage.fit(),
  "/": () => $("search").focus(), "?": () => $("help").showModal(),
};

/** Whether a form field handles a key itself. */
function keeps(field, key) {
  if (field.matches("select")) return !"/?".includes(key);
  if (field.matches("[type=checkbox], [type=radio], [type=range]")) return key.length > 1 || key === " ";
  return true;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && field) {
    event.preventDefault(); // Escape would clear a search field
    return void field.blur();
  }
  if (field && keeps(field, event.key)) return;
  const action = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
}

function listen() {
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", readAddress);
  // after a click on a radio button, arrow keys must change the image, not the selection
  document.querySelector(".toolbar").addEventListener("pointerup", () => setTimeout(() => {
    if (document.activeElement.matches("[type=radio]")) $("stage").focus({ preventScroll: true, focusVisible: false });
  }));
  for (const name of FILTERS) {
    $(name).addEventListener(name === "search" ? "input" : "change", () => {
      if (name === "sort") state.number = null; // a new order starts with its first image
      filter();
      writeAddress();
    });
  }
  $("search").addEventListener("keydown", (event) => event.key === "Enter" && $("list").focus());
  $("clear").addEventListener("click", () => {
    for (const name of FILTERS) $(name).value = "";
    filter();
    writeAddress();
  });
  document.querySelectorAll("input[name=mode]").forEach((box) => box.addEventListener("change", () => setMode(box.value)));
  document.querySelectorAll("input[name=drawn]").forEach((box) => box.addEventListener("change", paint));
  $("mask").addEventListener("change", () => { list.tint($("mask").checked); if (state.layers) paint(); });
  $("opacity").addEventListener("input", () => {
    const over = $("layers").querySelector("[data-layer=masks]");
    if (over) setOpacity(over);
  });
  $("epoch").addEventListener("change", () => setEpoch($("epoch").value));
  $("epoch-next").addEventListener("click", () => setEpoch(state.epoch + 1));
  $("epoch-back").addEventListener("click", () => setEpoch(state.epoch - 1));
  $("previous").addEventListener("click", () => stepBy(-1));
  $("next").addEventListener("click", () => stepBy(1));
  $("zoom-in").addEventListener("click", () => stage.zoom(1.25));
  $("zoom-out").addEventListener("click", () => stage.zoom(0.8));
  $("zoom-fit").addEventListener("click", () => stage.fit());
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("about-open").addEventListener("click", async () => {
    settings = await getJson("api/model");
    $("about-content").replaceChildren(...aboutDataset(dataset, settings));
    $("about").showModal();
  });
}

async function start() {
  dataset = await getJson("api/dataset");
  const { images } = dataset;
  const groups = new Set(images.map((image) => image.group || image.name)).size;
  const found = images.filter((image) => image.codes.length || image.problem).length;
  $("totals").textContent = [`${count(images.length)} images`, `${count(groups)} groups`,
    `${count(found)} with findings`].join(" · ");
  fillFilters();
  listen();
  readAddress();
}

start().catch((error) => fail(`The dataset cannot be shown: ${error.message}`));
