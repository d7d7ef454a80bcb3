// The image and its masks: layers of canvases that zoom and move together.

export const COLOURS = ["#ff5a4d", "#38a9ff", "#35d07f", "#ffc42e", "#c583ff", "#16d5d9", "#ff8fc2", "#b6e34b"];
const LARGEST = 40;
const SHARP_FROM = 2; // screen pixels per image pixel above which pixels are drawn as squares

/** Fetch and decode an image. */
export async function fetchBitmap(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(await answer.text());
  return createImageBitmap(await answer.blob());
}

export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Width in pixels of an outline in an image of this size. */
export const lineWidth = (width, height) => Math.max(1, Math.round(Math.max(width, height) / 700));

/** "#rrggbb" as three numbers. */
export const channelsOf = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** A mask as two canvases in its colour: {fill, outline}. */
export function tint(bitmap, colour) {
  const { width, height } = bitmap;
  const read = canvasOf(width, height).getContext("2d", { willReadFrequently: true });
  read.drawImage(bitmap, 0, 0);
  const grey = read.getImageData(0, 0, width, height).data;
  const inside = new Uint8Array(width * height);
  for (let i = 0; i < inside.length; i++) inside[i] = grey[4 * i] > 127 ? 1 : 0;
  const thick = lineWidth(width, height);
  return {
    fill: paint(inside, width, height, colour),
    outline: paint(rim(inside, width, height, thick), width, height, colour),
  };
}

/** The pixels of a mask within `thick` steps of its border; the edge of the image does not count as border. */
function rim(inside, width, height, thick) {
  let core = inside;
  for (let step = 0; step < thick; step++) {
    const next = core.slice();
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (!core[i]) continue;
        const open = (x > 0 && !core[i - 1]) || (x < width - 1 && !core[i + 1])
          || (y > 0 && !core[i - width]) || (y < height - 1 && !core[i + width]);
        if (open) next[i] = 0;
      }
    }
    core = next;
  }
  return inside.map((value, i) => (value && !core[i] ? 1 : 0));
}

function paint(inside, width, height, colour) {
  const [red, green, blue] = channelsOf(colour);
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < inside.length; i++) {
    if (inside[i]) image.data.set([red, green, blue, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** element: receives gestures. layers: contains the canvases. onZoom: called with screen pixels per image pixel. */
export class Stage {
  constructor(element, layers, onZoom) {
    Object.assign(this, { element, layers, onZoom, scale: 1, x: 0, y: 0, fitted: true, width: 0, height: 0 });
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => this.fitted && this.fit()).observe(element);
  }

  /** picture: a canvas, or null for none. masks: a canvas laid over all of it, or null. Keeps the zoom if the size is unchanged. */
  show(picture, masks) {
    this.layers.replaceChildren(...[picture, masks].filter(Boolean));
    if (!picture) return;
    if (masks) Object.assign(masks.style, { width: `${picture.width}px`, height: `${picture.height}px` });
    const same = picture.width === this.width && picture.height === this.height;
    [this.width, this.height] = [picture.width, picture.height];
    if (same && !this.fitted) this.place();
    else this.fit();
  }

  fit() {
    if (!this.width) return;
    const { clientWidth, clientHeight } = this.element;
    this.scale = Math.max(0.01, Math.min((clientWidth - 20) / this.width, (clientHeight - 20) / this.height));
    this.x = (clientWidth - this.width * this.scale) / 2;
    this.y = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.place();
  }

  /** Zoom by a factor around the point (x, y) of the stage, by default its centre. */
  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    if (!this.width) return;
    const scale = Math.min(LARGEST, Math.max(0.05, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.place();
  }

  move(dx, dy) {
    // part of the image always stays visible
    const within = (value, size, room) => Math.min(room - 40, Math.max(40 - size, value));
    this.x = within(this.x + dx, this.width * this.scale, this.element.clientWidth);
    this.y = within(this.y + dy, this.height * this.scale, this.element.clientHeight);
    this.fitted = false;
    this.place();
  }

  place() {
    this.layers.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.layers.classList.toggle("sharp", this.scale * devicePixelRatio >= SHARP_FROM);
    this.onZoom(this.scale);
  }

  listen() {
    const { element, pointers } = this;
    const at = (event) => {
      const box = element.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      this.zoom(Math.exp(-event.deltaY * lines * 0.0016), ...at(event));
    }, { passive: false });
    element.addEventListener("dblclick", () => this.fit());
    element.addEventListener("pointerdown", (event) => {
      if (event.target.closest(".message")) return;
      element.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
    });
    element.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const [before, now] = [pointers.get(event.pointerId), at(event)];
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      pointers.set(event.pointerId, now);
      if (!other) return this.move(now[0] - before[0], now[1] - before[1]);
      const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      this.zoom(distance(now) / Math.max(1, distance(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      element.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
  }
}
