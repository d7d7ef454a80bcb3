// A picture that zooms, moves and is drawn on: mouse, pen and fingers.
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

  /** Where another pane of the same size is. */
  follow(other) {
    Object.assign(this, { scale: other.scale, x: other.x, y: other.y, fitted: other.fitted });
    this.place();
  }

  /** One pixel of the picture on one of the screen. */
  actualSize() {
    this.zoom(1 / this.scale);
  }

  /** Listens before the stage does, and keeps from it what draws. */
  listen() {
    const { element } = this;
    this.pen = false; // once a pen was seen, fingers move the picture
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
    if (event.target.closest(".divider")) return; // listens itself
    if (event.target.closest("button, .message, .welcome")) return void event.stopImmediatePropagation();
    if (event.pointerType === "pen") this.pen = true;
    if (this.stroking !== undefined) {
      if (event.pointerType !== "touch") return void event.stopImmediatePropagation();
      // a second finger: it was to be a pinch
      this.tools.cancel();
      this.pointers.set(this.stroking, this.lastAt);
      this.stroking = undefined;
      return;
    }
    const moves = event.button === 1 || this.pointers.size || (event.pointerType === "touch" && this.pen);
    if (moves || !this.tools.drawing()) return;
    const erase = event.button === 2 || event.button === 5; // right button, a pen's other end
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
