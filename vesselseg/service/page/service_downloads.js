// Downloads: masks, the image with its overlay, LabelMe polygons.
import { canvasOf } from "./browse_stage.js";
import { opacityOf, paint } from "./service_paint.js";
import { toBase64, writeGrey } from "./service_png.js";
import { state, visibleLayers } from "./service_state.js";

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

/** One grey PNG per visible phrase, 255 is vessel. -> names. */
export async function saveMasks(result) {
  const layers = chosen(result);
  const names = [];
  for (const { phrase, mask } of layers) {
    const name = `${result.stem}${layers.length > 1 ? `_${phrasePart(phrase)}` : ""}_mask.png`;
    offer(await writeGrey(result.width, result.height, bytesOf(mask)), name);
    names.push(name);
  }
  layers.forEach(({ layer }) => { layer.unsaved = false; });
  return names;
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
