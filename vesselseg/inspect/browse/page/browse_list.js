// The filtered, sorted list of images; only visible rows exist as elements.
import { element, percent, splitTag } from "./browse_panels.js";

const HEIGHT = 72; // of a row, as in browse.css
const SPARE = 4; // rows rendered above and below the visible ones

/** The images that match the filters, in order. wanted: {search, split, group, phrase, finding, sort}. */
export function choose(images, wanted) {
  const words = wanted.search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (image) => [image.name, image.group, image.split, ...image.phrases].join(" ").toLowerCase();
  const kept = images.filter((image) =>
    (!wanted.split || image.split === wanted.split)
    && (!wanted.group || image.group === wanted.group)
    && (!wanted.phrase || (wanted.phrase === "(none)" ? !image.phrases.length : image.phrases.includes(wanted.phrase)))
    && passesFinding(image, wanted.finding)
    && words.every((word) => text(image).includes(word)));
  const by = {
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    most: (a, b) => (b.share ?? -1) - (a.share ?? -1),
    least: (a, b) => (a.share ?? 2) - (b.share ?? 2),
  }[wanted.sort];
  return by ? kept.sort(by) : kept;
}

function passesFinding(image, wanted) {
  if (!wanted) return true;
  if (wanted === "(any)") return image.codes.length > 0;
  if (wanted === "(none)") return image.codes.length === 0 && !image.problem;
  if (wanted === "(broken)") return Boolean(image.problem);
  return image.codes.includes(wanted);
}

/** box: the scrolling element. rows: the element inside it with the height of all rows. */
export class List {
  constructor(box, rows, onChoose) {
    Object.assign(this, { box, rows, onChoose, images: [], number: null, tinted: true, shown: new Map() });
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  show(images, most) {
    this.images = images;
    this.most = Math.max(most, 1e-6);
    this.clear();
    this.rows.style.height = `${images.length * HEIGHT}px`;
    if (!images.length) this.rows.append(element("p", { class: "empty" }, "No image matches these filters."));
    this.draw();
  }

  tint(tinted) {
    this.tinted = tinted;
    this.clear();
    this.draw();
  }

  /** Select an image and scroll to its row. */
  select(number) {
    this.number = number;
    const place = this.images.findIndex((image) => image.number === number);
    if (place >= 0) {
      const top = place * HEIGHT;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      if (top + HEIGHT > this.box.scrollTop + this.box.clientHeight) {
        this.box.scrollTop = top + HEIGHT - this.box.clientHeight;
      }
    }
    this.draw();
    for (const [shown, row] of this.shown) row.setAttribute("aria-selected", String(shown === number));
    if (this.shown.has(number)) this.box.setAttribute("aria-activedescendant", `row-${number}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  clear() {
    this.rows.replaceChildren();
    this.shown.clear();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / HEIGHT) - SPARE);
    const last = Math.ceil((this.box.scrollTop + this.box.clientHeight) / HEIGHT) + SPARE;
    const wanted = new Map(this.images.slice(first, last).map((image, offset) => [image.number, [image, first + offset]]));
    for (const [number, row] of this.shown) {
      if (!wanted.has(number)) {
        row.remove();
        this.shown.delete(number);
      }
    }
    for (const [number, [image, place]] of wanted) {
      if (!this.shown.has(number)) {
        const row = this.row(image, place);
        this.shown.set(number, row);
        this.rows.append(row);
      }
    }
  }

  row(image, place) {
    const share = element("i");
    share.style.width = `${(100 * (image.share ?? 0)) / this.most}%`;
    const found = image.notes + (image.problem ? 1 : 0);
    const words = image.problem ? "unreadable" : found === 1 ? "1 finding" : `${found} findings`;
    const badge = found ? element("span", { class: image.problem ? "badge bad" : "badge", title: words, "aria-label": words }, String(found)) : "";
    const row = element("div", {
      class: "row", role: "option", id: `row-${image.number}`, "aria-selected": String(image.number === this.number),
      "aria-setsize": this.images.length, "aria-posinset": place + 1, title: image.name,
    },
    element("img", { src: `images/${image.number}/thumb${this.tinted ? "-tinted" : ""}.jpg`, alt: "", draggable: "false" }),
    element("div", {},
      element("div", { class: "line" }, element("span", { class: "name" }, image.name), badge),
      element("div", { class: "sub" },
        [splitTag(image.split), image.group, image.problem ? "unreadable" : percent(image.share)].filter(Boolean).join(" · ")),
      element("div", { class: "bar" }, share)));
    row.style.top = `${place * HEIGHT}px`;
    row.addEventListener("click", () => this.onChoose(image.number));
    return row;
  }
}
