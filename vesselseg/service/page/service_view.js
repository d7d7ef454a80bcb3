// The image view: one model, two side by side, or two with a divider.
import { canvasOf } from "./browse_stage.js";
import { revert, stroke } from "./service_mask.js";
import { opacityOf, paint } from "./service_paint.js";
import { Pane } from "./service_pane.js";
import { comparing, currentMask, resultOf, state, touched, visibleLayers } from "./service_state.js";

const MAX_CACHED = 6; // decoded images

/** The shown frame as a canvas, or null if the browser cannot decode it. */
export async function pictureOf(item, cache) {
  const decoded = item.pictures.get(item.frame);
  if (!decoded && item.frame > 0) return null;
  const key = `${item.id} ${decoded ? item.frame : "as dropped"}`;
  if (cache.has(key)) return cache.get(key);
  let picture = null;
  const bitmap = await createImageBitmap(decoded ?? item.file).catch(() => null);
  if (bitmap) {
    picture = canvasOf(bitmap.width, bitmap.height);
    picture.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  }
  cache.set(key, picture);
  if (cache.size > MAX_CACHED) cache.delete(cache.keys().next().value);
  return picture;
}

export class View {
  /** row: contains two stages. on: {zoom(scale), stroke(): a correction changed, window(level, width): added to both, refuse(text)}. */
  constructor(row, on) {
    Object.assign(this, { row, on, cache: new Map(), overlays: [], split: 0.5, syncing: false, space: false,
      calls: 0 });
    const tools = {
      drawing: () => state.tool !== "move" && !this.space,
      size: () => state.size,
      start: (pane, point, erase) => this.start(pane, point, erase),
      draw: (points) => this.draw(points),
      end: () => this.end(),
      cancel: () => this.cancel(),
    };
    this.panes = [...row.querySelectorAll(".stage")].map((element) => (
      new Pane(element, element.querySelector(".layers"), (pane) => this.placed(pane), tools)));
    this.divider = row.querySelector(".divider");
    this.listenDivider();
  }

  get first() {
    return this.panes[0];
  }

  placed(pane) {
    if (pane === this.first) this.on.zoom(pane.scale);
    if (!this.syncing && state.view === "side") {
      this.syncing = true;
      this.panes.filter((other) => other !== pane && other.width).forEach((other) => other.follow(pane));
      this.syncing = false;
    }
    if (pane === this.first) this.placeDivider();
  }

  fit() {
    this.first.fit();
  }

  zoom(factor) {
    this.first.zoom(factor);
  }

  actualSize() {
    this.first.actualSize();
  }

  /** Update everything. -> whether there is an image; null if a later call has replaced this one. */
  async show() {
    const { item } = state;
    const call = ++this.calls;
    const picture = item ? await pictureOf(item, this.cache) : null;
    if (call !== this.calls) return null; // an image that decodes slowly must not replace a later one
    const side = comparing() && state.view === "side";
    this.row.classList.toggle("side", side);
    this.panes[1].element.hidden = !side;
    this.divider.hidden = !(comparing() && state.view === "swipe" && picture);
    this.picture = picture;
    this.results = comparing() ? [resultOf(item), resultOf(item, state.other)] : [resultOf(item)];
    this.overlays = this.results.map((result) => (picture && result ? canvasOf(result.width, result.height) : null));
    const under = side ? [[this.overlays[0]], [this.overlays[1]]] : [this.overlays, []];
    this.panes.forEach((pane, place) => {
      const group = document.createElement("div");
      group.className = "overlays";
      group.append(...under[place].filter(Boolean));
      const shown = place === 0 || side ? picture : null;
      pane.show(place === 0 ? shown : shown && copyOf(shown), shown ? group : null);
    });
    if (!picture) {
      this.panes.forEach((pane) => { pane.width = 0; });
      this.on.zoom(null);
    }
    this.repaint();
    if (side) this.placed(this.first);
    return Boolean(picture);
  }

  /** Update the masks only; box: where they changed, result: which one changed. */
  repaint(box = null, result = null) {
    this.overlays.forEach((overlay, place) => {
      if (!overlay || (result && this.results[place] !== result)) return;
      overlay.hidden = !state.shown;
      overlay.style.opacity = opacityOf(state.kind, state.opacity);
      if (state.shown) paint(overlay, visibleLayers(this.results[place]), state.kind, box);
    });
    this.placeDivider();
  }

  // --- the divider ---------------------------------------------------------------------------------------------------

  placeDivider() {
    const { overlays, first } = this;
    const swipe = comparing() && state.view === "swipe";
    const across = this.split * first.element.clientWidth;
    this.divider.style.left = `${across}px`;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * this.split));
    if (!first.width) return;
    const at = Math.min(first.width, Math.max(0, (across - first.x) / first.scale));
    if (overlays[0]) overlays[0].style.clipPath = swipe ? `inset(0 ${first.width - at}px 0 0)` : "";
    if (overlays[1]) overlays[1].style.clipPath = swipe ? `inset(0 0 0 ${at}px)` : "";
  }

  swipeTo(split) {
    this.split = Math.min(0.98, Math.max(0.02, split));
    this.placeDivider();
  }

  listenDivider() {
    const { divider } = this;
    divider.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      divider.setPointerCapture(event.pointerId);
    });
    divider.addEventListener("pointermove", (event) => {
      if (!divider.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      const box = this.first.element.getBoundingClientRect();
      this.swipeTo((event.clientX - box.left) / box.width);
    });
    divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      this.swipeTo(this.split + step);
    });
  }

  // --- corrections ---------------------------------------------------------------------------------------------------

  /** The result under a point of a pane. */
  resultAt(pane, point) {
    if (!comparing()) return this.results[0];
    if (state.view === "side") return this.results[this.panes.indexOf(pane)];
    const across = this.split * this.first.element.clientWidth;
    return this.results[point[0] * pane.scale + pane.x < across ? 0 : 1];
  }

  start(pane, point, erase) {
    if (state.tool === "window") {
      this.windowing = { pane, last: point };
      return true;
    }
    const result = this.resultAt(pane, point);
    const layer = result?.layers.get(state.active);
    const why = !layer ? "Predict first: there is no mask to correct." : !state.shown ? "The masks are hidden: press M."
      : state.phrases.find((entry) => entry.phrase === state.active).visible ? "" : `“${state.active}” is hidden: show it first.`;
    if (why) {
      this.on.refuse(why);
      return true; // handled: a refused stroke does not pan
    }
    const step = result.history.begin(layer, erase || state.tool === "eraser");
    this.stroke = { result, layer, step, last: point };
    this.draw([point]);
    return true;
  }

  draw(points) {
    if (this.windowing) return this.window(points.at(-1));
    if (!this.stroke) return;
    const { result, layer, step } = this.stroke;
    for (const point of points) {
      const before = step.places.length;
      const box = stroke(step, this.stroke.last, point, state.size);
      this.stroke.last = point;
      const { mask } = currentMask(result, layer);
      for (const place of step.places.slice(before)) mask[place] = layer.edits[place] & 1;
      if (box) this.repaint(box, result);
    }
  }

  /** As in DICOM viewers: to the right widens the window, down raises its level, which darkens. */
  window(point) {
    const { pane, last } = this.windowing;
    const [across, down] = [0, 1].map((axis) => ((point[axis] - last[axis]) * pane.scale * 100) / pane.element.clientHeight);
    this.windowing.last = point;
    this.on.window(down, across);
  }

  end() {
    this.windowing = null;
    if (!this.stroke) return;
    const { result, layer, step } = this.stroke;
    this.stroke = null;
    if (!result.history.keep(step)) return;
    this.changed(result, layer);
  }

  cancel() {
    this.windowing = null;
    if (!this.stroke) return;
    const { result, layer, step } = this.stroke;
    this.stroke = null;
    revert(step);
    touched(layer);
    this.repaint(null, result);
  }

  changed(result, layer) {
    touched(layer);
    layer.unsaved = true;
    this.repaint(null, result);
    this.on.stroke();
  }

  /** Undo or redo the latest correction among the shown models. */
  history(which) {
    const result = this.latest(which);
    if (!result) return;
    const { layer } = result.history.next(which);
    result.history[which]();
    this.changed(result, layer);
  }

  /** The shown result with the latest correction to undo or redo. */
  latest(which) {
    const able = (this.results ?? []).filter((result) => result?.history.next(which));
    return able.sort((a, b) => b.history.next(which).time - a.history.next(which).time)[0];
  }

  clear(result) {
    const layer = result?.layers.get(state.active);
    if (layer && result.history.clear(layer)) this.changed(result, layer);
  }
}

function copyOf(canvas) {
  const copy = canvasOf(canvas.width, canvas.height);
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}
