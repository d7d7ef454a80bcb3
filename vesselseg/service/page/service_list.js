// The list of images: thumbnail, name and state.
import { element, percent } from "./browse_panels.js";
import { canvasOf } from "./browse_stage.js";
import { anyResult, currentMask, hasUnsaved, resultOf, resultsOf, state } from "./service_state.js";

const SIZE = 96; // pixels of a thumbnail, displayed at half size

/** A thumbnail, cropped to a square. */
export function thumbnailOf(picture) {
  const canvas = canvasOf(SIZE, SIZE);
  const scale = SIZE / Math.min(picture.width, picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  canvas.getContext("2d").drawImage(picture, (SIZE - width) / 2, (SIZE - height) / 2, width, height);
  return canvas;
}

/** [CSS class, text] of an image's row. */
function stateOf(item) {
  const jobs = [...item.jobs.values()].filter((job) => job.started);
  if (jobs.length) return ["busy", jobs[0].count ? `${jobs[0].done} of ${jobs[0].count} frames` : "segmenting…"];
  if (item.jobs.size) return ["waiting", "waiting"];
  if (item.error) return ["bad", "failed"];
  if (hasUnsaved(item)) return ["warn", "not saved"];
  const result = resultOf(item) ?? anyResult(item);
  const predicted = resultsOf(item).length;
  if (!result) return ["", predicted ? `${predicted} of ${item.frames} frames` : "not predicted"];
  const layer = result.layers.get(state.active) ?? [...result.layers.values()][0];
  return ["good", layer ? `${percent(currentMask(result, layer).pixels / (result.width * result.height))} found` : "predicted"];
}

/** on: {choose(item), remove(item)}. */
export class List {
  constructor(root, on) {
    Object.assign(this, { root, on, rows: new Map() });
  }

  render() {
    for (const [item, row] of this.rows) {
      if (state.items.includes(item)) continue;
      row.remove();
      this.rows.delete(item);
    }
    for (const item of state.items) {
      if (!this.rows.has(item)) this.rows.set(item, this.row(item));
      this.update(item);
    }
  }

  row(item) {
    const choose = element("button", { type: "button", class: "row" }, element("span", { class: "thumbnail" }),
      element("span", { class: "text" }, element("span", { class: "name" }, item.name), element("span", { class: "sub" })));
    const remove = element("button", { type: "button", class: "plain remove", "aria-label": `Remove ${item.name}`, title: "Remove" }, "×");
    choose.addEventListener("click", () => this.on.choose(item));
    remove.addEventListener("click", () => this.on.remove(item));
    const row = element("li", {}, choose, remove);
    this.root.append(row);
    return row;
  }

  update(item) {
    const row = this.rows.get(item);
    const [tone, text] = stateOf(item);
    row.className = tone;
    row.querySelector(".sub").textContent = text;
    row.querySelector(".row").setAttribute("aria-current", item === state.item);
    const place = row.querySelector(".thumbnail");
    if (item.thumbnail && place.firstChild !== item.thumbnail) place.replaceChildren(item.thumbnail);
    else if (!item.thumbnail && !place.textContent) place.textContent = (item.name.match(/\.(\w{1,4})$/)?.[1] ?? "file").toUpperCase();
  }

  reveal() {
    this.rows.get(state.item)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
