// Keyboard shortcuts; service.html.j2 lists them for users.
import { state } from "./service_state.js";

const $ = (id) => document.getElementById(id);
const KINDS = ["fill", "outline", "heat"];

/** Whether a field handles a key itself. */
function handlesKey(field, key) {
  if (field.matches("select")) return key.length === 1 || key.startsWith("Arrow");
  if (field.matches("[type=checkbox], [type=radio], [type=range], [type=color]")) return key.length > 1 || key === " ";
  return true;
}

/** act: {predict, all, clip, play, leaf, frame, toFrame, view, saves, setTool, setSize, setView, setKind, setShown}. */
export function listenKeys(act) {
  const { view, saves } = act;
  const keys = {
    a: () => $("files").click(), p: act.predict, P: act.all, c: act.clip,
    ArrowLeft: () => act.leaf(-1), ArrowRight: () => act.leaf(1), ArrowUp: () => act.leaf(-1), ArrowDown: () => act.leaf(1),
    ",": () => act.frame(-1), ".": () => act.frame(1), "<": () => act.frame(-10), ">": () => act.frame(10),
    k: act.play, Home: () => act.toFrame(0), End: () => act.toFrame(Infinity),
    t: () => document.querySelector(".threshold")?.focus(),
    m: () => act.setShown(!state.shown), o: () => act.setKind(KINDS[(KINDS.indexOf(state.kind) + 1) % KINDS.length]),
    v: () => act.setTool("move"), b: () => act.setTool("brush"), e: () => act.setTool("eraser"), w: () => act.setTool("window"),
    "[": () => act.setSize(state.size - Math.ceil(state.size / 8)), "]": () => act.setSize(state.size + Math.ceil(state.size / 8)),
    1: () => act.setView("single"), 2: () => act.setView("side"), 3: () => act.setView("swipe"),
    "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8), 0: () => view.fit(), z: () => view.actualSize(),
    s: saves.mask, S: saves.overlay, l: saves.labelme, "?": () => $("help").showModal(),
  };

  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.altKey) return;
    const field = event.target.closest("input, select, textarea");
    if (event.key === "Escape") {
      field?.blur();
      return view.cancel();
    }
    if (event.ctrlKey || event.metaKey) return undoKey(event, field);
    if (field && handlesKey(field, event.key)) return;
    if (event.key === " " && !event.target.closest("button")) {
      event.preventDefault();
      view.space = true;
      return;
    }
    const action = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("keyup", (event) => { if (event.key === " ") view.space = false; });
  addEventListener("blur", () => { view.space = false; });

  function undoKey(event, field) {
    if (field?.matches("[type=text], [type=number], [type=password], :not([type])")) return; // text fields have their own undo
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    view.history(key === "y" || event.shiftKey ? "redo" : "undo");
  }

  // After a click on a switch the stage gets the focus, because a focused switch would handle some shortcut keys.
  for (const place of document.querySelectorAll(".segments")) {
    place.addEventListener("pointerup", () => setTimeout(() => {
      if (place.contains(document.activeElement)) $("stage").focus({ preventScroll: true, focusVisible: false });
    }));
  }
}
