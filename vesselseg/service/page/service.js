// The page of vesselseg serve: drop images, predict, choose a threshold, correct, save.
import { Api, Queue, takeToken } from "./service_api.js";
import { Clips } from "./service_clips.js";
import { askToken, confirmRemoval } from "./service_dialogs.js";
import { listenFiles } from "./service_files.js";
import { listenKeys } from "./service_keys.js";
import { List, thumbnailOf } from "./service_list.js";
import { paintLegend } from "./service_paint.js";
import { Panel } from "./service_panel.js";
import { Predictions } from "./service_predict.js";
import { savesOf } from "./service_saves.js";
import { addPhrase, anyResult, comparing, hasUnsaved, modelNamed, missing, newItem, removePhrase, resultOf, resultsOf, shownModels, state, unsavedWith } from "./service_state.js";
import { View } from "./service_view.js";
import { listenWindow, moveWindow } from "./service_window.js";

const $ = (id) => document.getElementById(id);
const boxes = (name) => [...document.querySelectorAll(`input[name=${name}]`)];
let busyTimer = null;
let repaintScheduled = false;

const api = new Api(askToken);
const thumbnails = new Queue(2); // limits memory: a decoded image is much larger than its file
const predictions = new Predictions(api, { progress, stored });
const clips = new Clips(api, { arrived, failed, show: showFrame, paused: () => changed() });
const list = new List($("list"), { choose: go, remove: removeItem });
const panel = new Panel({
  phrase: repaint,
  active: () => { list.render(); repaint(); },
  remove: dropPhrase,
  threshold: setThreshold,
  everywhere: useEverywhere,
});
const view = new View($("row"), {
  zoom: (scale) => { $("zoom").textContent = scale ? `${Math.round(100 * scale)} %` : "–"; },
  stroke: () => numbers(),
  window: moveWindow,
  refuse: toast,
});
const saves = savesOf(api, view, { toast, saved: () => { list.render(); numbers(); } });

// --- display ----------------------------------------------------------------------------------------------------

/** Update everything; sliders and strokes use `repaint` instead. */
async function changed() {
  panel.render();
  list.render();
  position();
  offerPredict(); // before the image is decoded, so that P works immediately after a drop
  const drawn = await view.show();
  if (drawn === null) return;
  panel.facts();
  $("size").max = Math.max(80, Math.round(Math.max(view.picture?.width ?? 0, view.picture?.height ?? 0) / 8));
  setSize(state.size);
  numbers();
  message(drawn);
}

/** Update colours, thresholds and masks, at most once per animation frame. */
function repaint() {
  if (repaintScheduled) return;
  repaintScheduled = true;
  requestAnimationFrame(() => {
    repaintScheduled = false;
    view.repaint();
    numbers();
  });
}

function numbers() {
  panel.numbers();
  if (state.item) list.update(state.item);
  $("undo").disabled = !view.latest("undo");
  $("redo").disabled = !view.latest("redo");
  $("legend").hidden = !(state.kind === "heat" && state.shown && resultOf(state.item) && view.picture);
  describe();
}

/** Model names over the stages, and descriptions for screen readers. */
function describe() {
  const { item } = state;
  const names = shownModels();
  const tabs = { left: $("stage").querySelector(".left"), right: $("stage").querySelector(".right"), second: $("stage-2").querySelector(".left") };
  tabs.left.hidden = !comparing() || !item;
  tabs.right.hidden = tabs.left.hidden || state.view !== "swipe";
  tabs.second.hidden = tabs.left.hidden;
  tabs.left.textContent = names[0] ?? "";
  tabs.right.textContent = tabs.second.textContent = names[1] ?? "";
  [$("stage"), $("stage-2")].forEach((stage, place) => {
    const found = state.phrases.filter((entry) => entry.visible && resultOf(item, names[place])?.layers.has(entry.phrase));
    const text = !state.shown || !found.length ? "no mask shown" : `masks: ${found.map((entry) => entry.phrase).join(", ")}`;
    const frame = item?.frames > 1 ? `, frame ${item.frame + 1}` : "";
    stage.setAttribute("aria-label", item ? `${item.name}${frame}, ${names[place] ?? ""}, ${text}` : "No picture yet");
  });
}

function message(drawn) {
  const { item } = state;
  const busy = Boolean(item?.jobs.size);
  $("welcome").hidden = Boolean(item || state.problem);
  const text = state.problem ?? (busy || !item ? "" : item.error ? `${item.name}: ${item.error.message}` : drawn ? "" : item.loading ? "Loading the image…" : "This image is not loaded yet.");
  $("message").hidden = !text;
  $("message").classList.toggle("quiet", !item?.error && !state.problem);
  $("message").classList.toggle("below", drawn);
  if (text !== $("message-words").textContent) $("message-words").textContent = text;
  $("message-id").hidden = !item?.error?.requestId;
  $("message-id").querySelector("code").textContent = item?.error?.requestId ?? "";
  $("retry").hidden = Boolean(item?.loading);
  $("retry").textContent = item?.error || state.problem ? "Try again" : "Predict";
  $("busy").hidden = !busy;
  offerPredict();
  clearInterval(busyTimer);
  if (busy) busyTimer = setInterval(showElapsed, 200);
  showElapsed();
}

function offerPredict() {
  const { item } = state;
  $("predict").disabled = !item || item.jobs.size > 0 || !state.phrases.length || !state.model;
  $("predict-clip").disabled = !item || !state.phrases.length || !state.model || [...item.jobs.values()].some((job) => job.count);
  $("predict").classList.toggle("primary", Boolean(item) && (shownModels().some((model) => model && missing(item, model).length) || Boolean(item.error)));
}

function showElapsed() {
  const jobs = [...(state.item?.jobs.values() ?? [])];
  const job = jobs.find((one) => one.started) ?? null;
  const sum = (name) => jobs.reduce((total, one) => total + (one[name] ?? 0), 0);
  const text = job && (job.count ? `${sum("done")} of ${sum("count")} frames,` : "Segmenting…");
  $("busy-words").textContent = job ? `${text} ${((performance.now() - job.started) / 1000).toFixed(0)} s` : "Waiting…";
  Object.assign($("busy-bar"), { hidden: !job?.count, max: sum("count") || 1, value: sum("done") });
}

function position() {
  const { item, items } = state;
  const place = items.indexOf(item);
  $("position").textContent = items.length ? `${place + 1} of ${items.length}` : "No image";
  $("previous").disabled = place <= 0;
  $("next").disabled = place < 0 || place === items.length - 1;
  $("predict-all").hidden = items.length < 2;
  clips.render();
  document.title = item ? `${item.name} · vesselseg` : "vesselseg";
}

function toast(text) {
  $("toast").textContent = text;
  clearTimeout($("toast").timer);
  $("toast").timer = setTimeout(() => { $("toast").textContent = ""; }, 4000);
}

// --- predictions ---------------------------------------------------------------------------------------------------

function progress(item) {
  const { batch } = predictions;
  $("batch").hidden = !batch;
  $("predict-all").disabled = Boolean(batch);
  if (batch) {
    Object.assign($("batch-bar"), { max: batch.items.length, value: batch.done });
    $("batch-words").textContent = `${batch.done} of ${batch.items.length} done`;
  }
  if (item) list.update(item);
  if (item === state.item) message(Boolean(view.picture));
}

function stored(item) {
  if (!state.items.includes(item)) return;
  if (item === state.item) changed();
  else list.render();
}

function predict() {
  if (!$("predict").disabled) predictions.item(state.item);
}

function predictClip() {
  if (!$("predict-clip").hidden && !$("predict-clip").disabled) predictions.clip(state.item);
}

// --- images --------------------------------------------------------------------------------------------------------

async function addFiles(files) {
  const first = state.items.length;
  for (const file of files) {
    const item = newItem(file, file.name || "image");
    state.items.push(item);
    makeThumbnail(item);
  }
  if (state.items.length > first) go(state.items[first]);
}

/** A thumbnail, by the browser if it can decode the file, else by the service. */
function makeThumbnail(item) {
  return thumbnails.run(async () => {
    const picture = await createImageBitmap(item.file).catch(() => null);
    if (picture) item.thumbnail = thumbnailOf(picture);
    else if (state.limits && state.items.includes(item)) await clips.preview(item);
    picture?.close();
    if (state.items.includes(item)) list.update(item);
  });
}

/** The shown frame of a clip, or the preview of a file, has been loaded. */
function arrived(item) {
  if (item === state.item) changed();
  else list.render();
}

function failed(item, error, preview) {
  const failure = { message: error.message, requestId: error.requestId ?? "" };
  if (preview && !item.results.size && !item.jobs.size) item.error = failure;
  else if (!preview) toast(`Not all frames were loaded: ${error.message}`);
  if (state.items.includes(item)) stored(item);
}

/** While a clip plays: only what changes with the frame. */
async function showFrame(item, frame) {
  predictions.cancelFrame(item);
  item.frame = frame;
  await view.show();
  clips.render();
  numbers();
}

function go(item) {
  if (item !== state.item) clips.pause();
  state.item = item;
  changed();
  list.reveal();
}

function leaf(step) {
  const next = state.items[state.items.indexOf(state.item) + step];
  if (next) go(next);
}

async function removeItem(item) {
  if (hasUnsaved(item) && !(await confirmRemoval(`${item.name} has unsaved corrections.`, "Remove the image?"))) return;
  predictions.cancel(item);
  item.loading?.abort.abort(new DOMException("removed", "AbortError"));
  const place = state.items.indexOf(item);
  state.items.splice(place, 1);
  if (state.item === item) state.item = state.items[Math.min(place, state.items.length - 1)] ?? null;
  changed();
}

async function dropPhrase(phrase) {
  const names = unsavedWith(phrase);
  if (names.length && !(await confirmRemoval(`“${phrase}” has unsaved corrections in ${names.join(", ")}.`, "Remove the phrase?"))) return;
  removePhrase(phrase);
  changed();
}

/** Show a frame. In a clip with predictions it is predicted, too. */
function setFrame(frame) {
  const { item } = state;
  if (!item) return;
  const wanted = Math.min(item.frames - 1, Math.max(0, Math.round(frame) || 0));
  clips.pause();
  if (wanted === item.frame) return position();
  predictions.cancelFrame(item);
  Object.assign(item, { frame: wanted, error: null });
  if (!item.pictures.has(wanted)) clips.load(item);
  changed();
  clearTimeout(setFrame.timer);
  setFrame.timer = setTimeout(() => {
    if (item === state.item && item.frame === wanted && item.results.size && !anyResult(item)) predictions.item(item);
  }, 250); // a slider passes many frames
}

// --- settings ------------------------------------------------------------------------------------------------------

function setThreshold(name, value) {
  const results = state.item ? resultsOf(state.item, name) : [];
  for (const result of results) result.threshold = value;
  if (!results.length) modelNamed(name).start = value;
  repaint();
}

function useEverywhere(name) {
  const value = resultOf(state.item, name)?.threshold ?? modelNamed(name).start;
  modelNamed(name).start = value;
  for (const item of state.items) {
    for (const result of item.results.values()) if (result.model === name) result.threshold = value;
  }
  list.render();
  toast(`Threshold ${value.toFixed(2)} for all images.`);
}

function setModel(name) {
  if (state.other === name) state.other = state.model;
  state.model = name;
  changed();
}

function setView(mode) {
  if (mode !== "single" && state.models.length < 2) {
    toast("Comparing needs two models: start the service with both, vesselseg serve MODEL MODEL.");
    mode = "single";
  }
  state.view = mode;
  boxes("view").forEach((box) => { box.checked = box.value === mode; });
  changed();
  if (state.item && comparing() && !resultOf(state.item, state.other) && resultOf(state.item)) predictions.item(state.item);
}

function setTool(tool) {
  state.tool = tool;
  boxes("tool").forEach((box) => { box.checked = box.value === tool; });
  const drawing = tool === "brush" || tool === "eraser";
  $("size-row").hidden = !drawing;
  $("row").classList.toggle("drawing", drawing);
  $("row").classList.toggle("windowing", tool === "window");
}

function setSize(size) {
  state.size = Math.min(Number($("size").max), Math.max(1, size));
  $("size").value = $("size-shown").value = state.size;
}

function setKind(kind) {
  state.kind = kind;
  boxes("kind").forEach((box) => { box.checked = box.value === kind; });
  repaint();
}

function setShown(shown) {
  state.shown = $("shown").checked = shown;
  repaint();
}

// --- events ----------------------------------------------------------------------------------------------------

function listen() {
  const clicks = { predict, "predict-all": () => predictions.all(), "predict-clip": predictClip, play: () => clips.toggle(), "batch-stop": () => predictions.stop(), retry, cancel: () => predictions.cancel(state.item),
    undo: () => view.history("undo"), redo: () => view.history("redo"), clear: () => view.clear(resultOf(state.item)),
    previous: () => leaf(-1), next: () => leaf(1), "frame-back": () => setFrame(state.item.frame - 1), "frame-next": () => setFrame(state.item.frame + 1),
    "zoom-out": () => view.zoom(0.8), "zoom-in": () => view.zoom(1.25), "zoom-fit": () => view.fit(), "zoom-actual": () => view.actualSize(),
    "save-mask": saves.mask, "save-overlay": saves.overlay, "save-labelme": saves.labelme, "save-clip": saves.clip, "save-all": saves.all, "help-open": () => $("help").showModal() };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  for (const [name, act] of Object.entries({ tool: setTool, view: setView, kind: setKind })) {
    boxes(name).forEach((box) => box.addEventListener("change", () => act(box.value)));
  }
  $("size").addEventListener("input", () => setSize(Number($("size").value)));
  $("shown").addEventListener("change", () => setShown($("shown").checked));
  $("opacity").addEventListener("input", () => {
    state.opacity = $("opacity").value / 100;
    $("opacity-shown").value = `${$("opacity").value} %`;
    repaint();
  });
  $("model").addEventListener("change", () => setModel($("model").value));
  $("other").addEventListener("change", () => { state.other = $("other").value; setView(state.view); });
  $("frame-slider").addEventListener("input", () => setFrame($("frame-slider").value - 1));
  $("frame").addEventListener("change", () => setFrame($("frame").value - 1));
  $("rate").addEventListener("change", () => clips.setRate($("rate").value));
  $("phrase-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!addPhrase($("phrase").value)) return;
    $("phrase").value = "";
    changed();
  });
  addEventListener("beforeunload", (event) => state.items.some(hasUnsaved) && event.preventDefault());
}

function retry() {
  if (state.models.length) predict();
  else start();
}

async function start() {
  try {
    const { models, limits } = await api.models();
    state.models = models.map((model) => ({ ...model, start: model.threshold }));
    Object.assign(state, { limits, problem: null });
  } catch (error) {
    state.problem = error.message;
    return void changed();
  }
  [state.model, state.other] = [state.models[0]?.name ?? null, state.models[1]?.name ?? null];
  addPhrase(state.models[0]?.phrases?.[0] ?? "blood vessel");
  changed();
}

takeToken();
paintLegend($("legend").querySelector("canvas"));
listenFiles(addFiles);
listen();
listenWindow();
listenKeys({ predict, all: () => predictions.all(), clip: predictClip, play: () => clips.toggle(), leaf,
  frame: (step) => setFrame((state.item?.frame ?? 0) + step), toFrame: (frame) => setFrame(Math.min(frame, state.item?.frames ?? 0)), view, saves, setTool, setSize, setView, setKind, setShown });
start();
