// Probability map -> mask, and the corrections of a mask.
// A layer is {phrase, width, height, values: probability * 255, edits: one byte per pixel}.

const ADDED = 1;
const REMOVED = 2;

/** The mask of a layer, width * height bytes: 1 if the probability is above the threshold, unless corrected. */
export function maskOf(layer, threshold) {
  const { values, edits } = layer;
  const cut = Math.floor(255 * threshold + 1e-9);
  const mask = new Uint8Array(values.length);
  for (let i = 0; i < mask.length; i++) mask[i] = edits[i] ? edits[i] & ADDED : values[i] > cut ? 1 : 0;
  return mask;
}

export function pixels(mask) {
  let sum = 0;
  for (let i = 0; i < mask.length; i++) sum += mask[i];
  return sum;
}

/** Dice coefficient 2 |A and B| / (|A| + |B|); null if both masks are empty. */
export function dice(one, other) {
  let [both, all] = [0, 0];
  for (let i = 0; i < one.length; i++) {
    both += one[i] & other[i];
    all += one[i] + other[i];
  }
  return all ? (2 * both) / all : null;
}

/** Corrections in order. A step sets some pixels of one layer's edits to one value. */
export class History {
  constructor() {
    Object.assign(this, { done: [], undone: [] });
  }

  /** Begin a stroke; erase: removes vessel instead of adding it. */
  begin(layer, erase) {
    return { layer, value: erase ? REMOVED : ADDED, places: [], before: [] };
  }

  keep(step) {
    if (!step.places.length) return false;
    step.time = performance.now();
    this.done.push(step);
    this.undone = [];
    return true;
  }

  /** Remove all corrections of a layer; this step can be undone too. */
  clear(layer) {
    const step = { layer, value: 0, places: [], before: [] };
    layer.edits.forEach((value, place) => value && note(step, place));
    return this.keep(step);
  }

  undo() {
    const step = this.done.pop();
    revert(step);
    this.undone.push(step);
  }

  redo() {
    const step = this.undone.pop();
    for (const place of step.places) step.layer.edits[place] = step.value;
    this.done.push(step);
  }

  /** Drop the steps of a removed layer. */
  forget(layer) {
    this.done = this.done.filter((step) => step.layer !== layer);
    this.undone = this.undone.filter((step) => step.layer !== layer);
  }

  /** The step that "undo" or "redo" would apply, or undefined. */
  next(which) {
    return (which === "undo" ? this.done : this.undone).at(-1);
  }
}

export function revert(step) {
  step.places.forEach((place, i) => { step.layer.edits[place] = step.before[i]; });
}

function note(step, place) {
  const { edits } = step.layer;
  if (edits[place] === step.value) return;
  step.places.push(place);
  step.before.push(edits[place]);
  edits[place] = step.value;
}

/** Draw a line between two points, in image pixels, with a round brush. -> the bounding box of the change, or null. */
export function stroke(step, from, to, diameter) {
  const { width, height } = step.layer;
  const radius = Math.max(0.5, diameter / 2);
  const box = {
    left: Math.max(0, Math.floor(Math.min(from[0], to[0]) - radius)),
    top: Math.max(0, Math.floor(Math.min(from[1], to[1]) - radius)),
    right: Math.min(width, Math.ceil(Math.max(from[0], to[0]) + radius)),
    bottom: Math.min(height, Math.ceil(Math.max(from[1], to[1]) + radius)),
  };
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = dx * dx + dy * dy;
  for (let y = box.top; y < box.bottom; y++) {
    for (let x = box.left; x < box.right; x++) {
      const [px, py] = [x + 0.5 - from[0], y + 0.5 - from[1]]; // from the start to the centre of the pixel
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) note(step, y * width + x);
    }
  }
  // A brush of one pixel may contain no pixel centre.
  const [x, y] = to.map(Math.floor);
  if (x >= 0 && y >= 0 && x < width && y < height) note(step, y * width + x);
  return box.right > box.left && box.bottom > box.top ? box : null;
}
