// Downloads: masks, one or many, the image with its overlay, LabelMe polygons.
import { canvasOf } from "./browse_stage.js";
import { opacityOf, paint } from "./service_paint.js";
import { toBase64, writeGrey } from "./service_png.js";
import { currentMask, resultsOf, state, visibleLayers } from "./service_state.js";
import { zipOf } from "./service_zip.js";

function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const phrasePart = (phrase) => phrase.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
const bytesOf = (mask) => mask.map((value) => 255 * value);

/** The visible layers, independent of the drawing style. */
const chosen = (result) => visibleLayers(result, "fill");

/** The masks of the visible phrases of a result: [{name, blob, phrase, layer}]. */
function masksOf(result) {
  const layers = chosen(result);
  return Promise.all(layers.map(async ({ phrase, layer, mask }) => ({
    phrase, layer, name: `${result.stem}${layers.length > 1 ? `_${phrasePart(phrase)}` : ""}_mask`,
    blob: await writeGrey(result.width, result.height, bytesOf(mask)) })));
}

/** One grey PNG per visible phrase, 255 is vessel. -> names. */
export async function saveMasks(result) {
  const masks = await masksOf(result);
  for (const { name, blob, layer } of masks) {
    offer(blob, `${name}.png`);
    layer.unsaved = false;
  }
  return masks.map(({ name }) => `${name}.png`);
}

const COLUMNS = ["mask", "file", "frame", "phrase", "model", "threshold", "pixels", "corrected"];
const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;

/**
 * The masks of all predicted frames of these images as one zip file. masks.csv in it says which file, frame, phrase and
 * threshold each comes from. -> number of masks.
 */
export async function saveZip(items, name) {
  const [entries, rows, used, saved] = [[], [COLUMNS], new Set(), []];
  for (const item of items) {
    for (const result of resultsOf(item)) {
      for (const mask of await masksOf(result)) {
        const path = `${unused(mask.name, used)}.png`;
        entries.push({ name: path, bytes: new Uint8Array(await mask.blob.arrayBuffer()) });
        rows.push([path, item.name, item.frames > 1 ? result.frame + 1 : "", mask.phrase, result.model, result.threshold,
          currentMask(result, mask.layer).pixels, mask.layer.edits.some(Boolean) ? "yes" : "no"]);
        saved.push(mask.layer);
      }
    }
  }
  if (!saved.length) return 0;
  const table = rows.map((row) => row.map(quoted).join(",")).join("\r\n");
  entries.push({ name: "masks.csv", bytes: new TextEncoder().encode(`${table}\r\n`) });
  offer(zipOf(entries), name);
  saved.forEach((layer) => { layer.unsaved = false; });
  return saved.length;
}

/** A name that no other mask has: a.png and a.dcm may both be in the list. */
function unused(name, used) {
  let free = name;
  for (let number = 2; used.has(free); number++) free = `${name}_${number}`;
  used.add(free);
  return free;
}

/** The image with the visible masks, at full resolution. */
export async function saveOverlay(result, picture) {
  const canvas = canvasOf(result.width, result.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  if (state.shown) {
    const over = canvasOf(result.width, result.height);
    paint(over, visibleLayers(result), state.kind);
    context.globalAlpha = opacityOf(state.kind, state.opacity);
    context.drawImage(over, 0, 0);
  }
  const name = `${result.stem}_overlay.png`;
  offer(await new Promise((done) => canvas.toBlob(done, "image/png")), name);
  return [name];
}

/** Polygons of the visible phrases, made by the service; with the embedded image if LabelMe cannot open the file. */
export async function saveLabelMe(item, result, api) {
  const layers = chosen(result);
  if (!layers.length) return [];
  const objects = await Promise.all(layers.map(async ({ phrase, mask }) => (
    { phrase, mask_png: await toBase64(await writeGrey(result.width, result.height, bytesOf(mask))) })));
  const picture = result.labelmeOpens ? { name: item.name }
    : { name: `${result.stem}.png`, picture_png: await toBase64(result.picture) };
  const content = await api.labelme({ ...picture, width: result.width, height: result.height, objects });
  const name = `${result.stem}.json`;
  offer(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }), name);
  layers.forEach(({ layer }) => { layer.unsaved = false; });
  return [name];
}
