// State of the page: models, phrases, images and their results.
import { COLOURS } from "./browse_stage.js";
import { fromBase64, readGrey } from "./service_png.js";
import { History, maskOf, pixels } from "./service_mask.js";

export const state = {
  models: [], limits: null, problem: null, // problem: why the models could not be loaded
  model: null, other: null, // names; other: the model on the right, for comparison
  view: "single", // or "side", "swipe"
  phrases: [], // {phrase, colour, visible}: layers in painting order
  active: null, // the phrase being corrected
  items: [], item: null,
  kind: "fill", shown: true, opacity: 0.5,
  tool: "move", size: 10,
  window: { level: 50, width: 100 }, // of the displayed image, percent
};
let counter = 0;

/**
 * A new image. results: by frame and model. pictures: by frame, as the service decoded them. rate: frames per second, by
 * the file. loading: pictures being loaded, or null. error: {message, requestId} or null.
 */
export function newItem(file, name) {
  return { id: ++counter, file, name, frame: 0, frames: 1, rate: null, chosenRate: null, results: new Map(), pictures: new Map(),
    jobs: new Map(), loading: null, error: null, thumbnail: null };
}

/** What the service says of a file; header: the first line of its answer. */
export function describeClip(item, header) {
  item.frames = header.frames;
  item.rate = header.frame_rate;
}

export const pngOf = (text) => new Blob([fromBase64(text)], { type: "image/png" });

export const modelNamed = (name) => state.models.find((model) => model.name === name);
export const comparing = () => state.view !== "single" && state.other !== null;
export const shownModels = () => (comparing() ? [state.model, state.other] : [state.model]);
const keyOf = (frame, model) => `${frame} ${model}`;

/** A model's result for a frame, by default the shown one, or undefined. */
export function resultOf(item, model = state.model, frame = item?.frame) {
  return item?.results.get(keyOf(frame, model));
}

/** A model's results for all frames, in order. */
export const resultsOf = (item, model = state.model) => [...item.results.values()].filter((result) => result.model === model)
  .sort((a, b) => a.frame - b.frame);

/** Any result of the shown frame: all contain the same image. */
export function anyResult(item) {
  return [...(item?.results.values() ?? [])].find((result) => result.frame === item.frame);
}

export const isUnsaved = (result) => [...result.layers.values()].some((layer) => layer.unsaved);
export const hasUnsaved = (item) => [...item.results.values()].some(isUnsaved);

/** The chosen phrases that a model accepts. */
export function phrasesFor(model) {
  const known = modelNamed(model)?.phrases;
  return state.phrases.map((entry) => entry.phrase).filter((phrase) => !known || known.includes(phrase));
}

export const missing = (item, model, frame = item.frame) => phrasesFor(model)
  .filter((phrase) => !resultOf(item, model, frame)?.layers.has(phrase));

export function addPhrase(phrase) {
  const text = phrase.trim().replace(/\s+/g, " ");
  if (text && !state.phrases.some((entry) => entry.phrase === text)) {
    const used = new Set(state.phrases.map((entry) => entry.colour));
    const colour = COLOURS.find((one) => !used.has(one)) ?? COLOURS[state.phrases.length % COLOURS.length];
    state.phrases.push({ phrase: text, colour, visible: true });
  }
  if (text) state.active = text;
  return text;
}

/** Names of images with unsaved corrections of a phrase. */
export const unsavedWith = (phrase) => state.items
  .filter((item) => [...item.results.values()].some((result) => result.layers.get(phrase)?.unsaved)).map((item) => item.name);

export function removePhrase(phrase) {
  for (const result of state.items.flatMap((item) => [...item.results.values()])) {
    result.history.forget(result.layers.get(phrase));
    result.layers.delete(phrase);
  }
  state.phrases = state.phrases.filter((entry) => entry.phrase !== phrase);
  if (state.active === phrase) state.active = state.phrases.at(-1)?.phrase ?? null;
}

/** Store the service's response for phrases; earlier corrections of a phrase are kept. */
export async function store(item, model, phrases, answer) {
  const { width, height, frame } = answer;
  item.frames = answer.frames;
  const key = keyOf(frame, model);
  const before = item.results.get(key);
  const result = before ?? { model, frame, width, height, threshold: resultsOf(item, model)[0]?.threshold ?? modelNamed(model).start, layers: new Map(),
    history: new History() };
  const maps = await Promise.all(answer.objects.map((found) => readGrey(fromBase64(found.probability_png))));
  if (maps.length !== phrases.length || maps.some((map) => map.width !== width || map.height !== height)) {
    throw new Error("The service sent probability maps that do not match the request.");
  }
  maps.forEach(({ values }, place) => {
    const phrase = phrases[place];
    const layer = result.layers.get(phrase) ?? { phrase, width, height, edits: new Uint8Array(values.length) };
    result.layers.set(phrase, Object.assign(layer, { values, cache: null }));
  });
  if (answer.picture_png) item.pictures.set(frame, pngOf(answer.picture_png));
  result.picture = item.pictures.get(frame);
  Object.assign(result, { notes: answer.notes ?? [], seconds: answer.seconds, requestId: answer.request_id,
    stem: answer.stem, labelmeOpens: answer.labelme_opens });
  item.results.set(key, result);
  return result;
}

/** The mask of a layer at its result's threshold, cached until something changes. */
export function currentMask(result, layer) {
  if (layer.cache?.threshold !== result.threshold) {
    const mask = maskOf(layer, result.threshold);
    layer.cache = { threshold: result.threshold, mask, pixels: pixels(mask) };
  }
  return layer.cache;
}

/** Drop the cached mask after a correction. */
export function touched(layer) {
  layer.cache = null;
}

/** The visible layers of a result in painting order: [{phrase, colour, mask, layer}]. */
export function visibleLayers(result, kind = state.kind) {
  let chosen = state.phrases.filter((entry) => entry.visible && result.layers.has(entry.phrase));
  if (kind === "heat") chosen = chosen.filter((entry) => entry.phrase === state.active);
  return chosen.map((entry) => {
    const layer = result.layers.get(entry.phrase);
    return { ...entry, layer, mask: currentMask(result, layer).mask };
  });
}
