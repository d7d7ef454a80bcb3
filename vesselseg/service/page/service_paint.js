// Masks and probabilities as coloured pixels over the image.
import { channelsOf, lineWidth } from "./browse_stage.js";

const HEAT_STOPS = [[20, 11, 52], [87, 16, 110], [140, 41, 129], [188, 55, 84], [227, 89, 51], [249, 142, 9], [249, 203, 53], [252, 255, 164]];
const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

const packed = (red, green, blue, alpha) => (LITTLE
  ? ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0
  : ((red << 24) | (green << 16) | (blue << 8) | alpha) >>> 0);

/** 256 colours for the probabilities 0..1, from transparent to bright. */
const HEAT = Uint32Array.from({ length: 256 }, (_, value) => {
  const at = (value / 255) * (HEAT_STOPS.length - 1);
  const [low, rest] = [Math.min(HEAT_STOPS.length - 2, Math.floor(at)), at % 1];
  const mixed = HEAT_STOPS[low].map((part, i) => Math.round(part + (HEAT_STOPS[low + 1][i] - part) * (at >= HEAT_STOPS.length - 1 ? 1 : rest)));
  return packed(...mixed, Math.min(255, value * 5));
});

const colourValue = (colour) => packed(...channelsOf(colour), 255);

/** Whether a mask pixel is within `thick` pixels of the mask's border; the image edge does not count as one. */
function onRim(mask, width, height, x, y, thick) {
  const place = y * width + x;
  for (let step = 1; step <= thick; step++) {
    if ((x >= step && !mask[place - step]) || (x + step < width && !mask[place + step])
      || (y >= step && !mask[place - step * width]) || (y + step < height && !mask[place + step * width])) return true;
  }
  return false;
}

/**
 * Paint layers on a canvas of the image's size, the last one on top.
 * layers: [{mask, colour, layer}]. kind: "fill", "outline" or "heat" (the probabilities of the last layer under the
 * outline of its mask). box: the region to repaint; by default everything.
 */
export function paint(canvas, layers, kind, box = null) {
  const { width, height } = canvas;
  const thick = lineWidth(width, height);
  const left = Math.max(0, (box?.left ?? 0) - thick);
  const top = Math.max(0, (box?.top ?? 0) - thick);
  const right = Math.min(width, (box?.right ?? width) + thick);
  const bottom = Math.min(height, (box?.bottom ?? height) + thick);
  const context = canvas.getContext("2d");
  const image = context.createImageData(right - left, bottom - top);
  const colours = new Uint32Array(image.data.buffer);
  const shown = kind === "heat" ? layers.slice(-1) : layers;
  for (const { mask, colour, layer } of shown) {
    const own = kind === "heat" ? packed(255, 255, 255, 255) : colourValue(colour);
    for (let y = top, at = 0; y < bottom; y++) {
      for (let x = left, place = y * width + left; x < right; x++, place++, at++) {
        if (kind === "heat") colours[at] = HEAT[layer.values[place]];
        if (mask[place] && (kind === "fill" || onRim(mask, width, height, x, y, thick))) colours[at] = own;
      }
    }
  }
  context.putImageData(image, left, top);
}

/** Thin lines and the heat map need more opacity than areas to be visible. */
export const opacityOf = (kind, opacity) => Math.min(1, opacity * (kind === "outline" ? 1.8 : kind === "heat" ? 1.4 : 1));

/** The colour bar of the heat map. */
export function paintLegend(canvas) {
  const context = canvas.getContext("2d");
  for (let y = 0; y < canvas.height; y++) {
    const [red, green, blue] = new Uint8Array(new Uint32Array([HEAT[Math.round(255 * (1 - y / (canvas.height - 1)))]]).buffer);
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(0, y, canvas.width, 1);
  }
}
