// An image that can be zoomed, panned and drawn on, by mouse, pen and touch.
import { Stage } from "./browse_stage.js";

/**
 * tools: {drawing(): whether one pointer draws; start(pane, point, erase): whether a stroke began;
 * draw(points), end(), cancel(); size(): the brush's diameter in image pixels}. Points are in image pixels.
 */
export class Pane extends Stage {
  constructor(element, layers, onPlace, tools) {
    super(element, layers, () => onPlace(this));
    this.tools = tools;
    this.ring = element.querySelector(".ring");
  }

  point(event) {
    const box = this.element.getBoundingClientRect();
    return [(event.clientX - box.left - this.x) / this.scale, (event.clientY - box.top - this.y) / this.scale];
  }

  /** Take over zoom and position of another pane of the same size. */
  follow(other) {
    Object.assign(this, { scale: other.scale, x: other.x, y: other.y, fitted: other.fitted });
    this.place();
  }

  /** One image pixel per screen pixel. */
  actualSize() {
    this.zoom(1 / this.scale);
  }

  /** Receives events before the stage does, and withholds those that draw. */
  listen() {
    const { element } = this;
    this.pen = false; // after a pen was used, fingers pan instead of drawing
    const on = (name, act) => element.addEventListener(name, act, { capture: true });
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.moved(event));
    on("pointerup", (event) => this.up(event, "end"));
    on("pointercancel", (event) => this.up(event, "cancel"));
    on("pointerleave", () => this.showRing(null));
    on("dblclick", (event) => this.tools.drawing() && event.stopImmediatePropagation());
    on("contextmenu", (event) => this.tools.drawing() && event.preventDefault());
    super.listen();
  }

  down(event) {
    if (event.target.closest(".divider")) return; // has its own handlers
    if (event.target.closest("button, .message, .welcome")) return void event.stopImmediatePropagation();
    if (event.pointerType === "pen") this.pen = true;
    if (this.stroking !== undefined) {
      if (event.pointerType !== "touch") return void event.stopImmediatePropagation();
      // A second finger: the first one began a pinch, not a stroke.
      this.tools.cancel();
      this.pointers.set(this.stroking, this.lastAt);
      this.stroking = undefined;
      return;
    }
    const moves = event.button === 1 || this.pointers.size || (event.pointerType === "touch" && this.pen);
    if (moves || !this.tools.drawing()) return;
    const erase = event.button === 2 || event.button === 5; // right mouse button, or the eraser end of a pen
    if (!this.tools.start(this, this.point(event), erase)) return;
    event.stopImmediatePropagation();
    this.element.setPointerCapture(event.pointerId);
    this.stroking = event.pointerId;
    this.remember(event);
  }

  moved(event) {
    this.showRing(event);
    if (event.pointerId !== this.stroking) return;
    event.stopImmediatePropagation();
    const all = event.getCoalescedEvents?.() ?? [];
    this.tools.draw((all.length ? all : [event]).map((each) => this.point(each)));
    this.remember(event);
  }

  up(event, how) {
    if (event.pointerId !== this.stroking) return;
    event.stopImmediatePropagation();
    this.stroking = undefined;
    this.tools[how]();
  }

  remember(event) {
    const box = this.element.getBoundingClientRect();
    this.lastAt = [event.clientX - box.left, event.clientY - box.top];
  }

  /** The brush's outline under the pointer. */
  showRing(event) {
    const shown = event && this.width && this.tools.drawing() && event.pointerType !== "touch";
    this.ring.hidden = !shown;
    if (!shown) return;
    const box = this.element.getBoundingClientRect();
    const size = Math.max(3, this.tools.size() * this.scale);
    Object.assign(this.ring.style, { width: `${size}px`, height: `${size}px`,
      transform: `translate(${event.clientX - box.left - size / 2}px, ${event.clientY - box.top - size / 2}px)` });
  }
}
