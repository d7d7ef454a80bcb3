// The settings panel: phrases, models, thresholds, facts.
import { element, percent, count } from "./browse_panels.js";
import { dice } from "./service_mask.js";
import { anyResult, comparing, currentMask, isUnsaved, modelNamed, phrasesFor, resultOf, resultsOf, shownModels, state } from "./service_state.js";

const SUGGESTED = ["blood vessel", "coronary artery", "lymphatic vessel", "catheter", "guide wire", "stent"];
const $ = (id) => document.getElementById(id);

/** on: {phrase(): colour or visibility changed, active(), remove(phrase), threshold(model, value), everywhere(model)}. */
export class Panel {
  constructor(on) {
    this.on = on;
  }

  /** Render everything; `numbers` alone keeps a slider that is being dragged. */
  render() {
    this.models();
    this.phrases();
    this.thresholds();
    this.numbers();
  }

  models() {
    const options = state.models.map((model) => new Option(model.name, model.name));
    $("model").replaceChildren(...options);
    $("model").value = state.model ?? "";
    $("other").replaceChildren(...state.models.filter((model) => model.name !== state.model).map((model) => new Option(model.name, model.name)));
    $("other").value = state.other ?? "";
    $("other-row").hidden = state.view === "single";
    const known = modelNamed(state.model)?.phrases ?? SUGGESTED;
    $("suggestions").replaceChildren(...known.filter((phrase) => !state.phrases.some((entry) => entry.phrase === phrase))
      .map((phrase) => new Option(phrase)));
  }

  phrases() {
    const focused = document.activeElement?.dataset?.keep;
    $("phrases").replaceChildren(...state.phrases.map((entry) => this.phrase(entry)));
    if (focused) document.querySelector(`[data-keep="${CSS.escape(focused)}"]`)?.focus();
  }

  phrase(entry) {
    const { phrase } = entry;
    const active = element("input", { type: "radio", name: "active", value: phrase, "data-keep": `active ${phrase}`, "aria-label": `Correct ${phrase}` });
    active.checked = state.active === phrase;
    active.addEventListener("change", () => { state.active = phrase; this.on.active(); });
    const colour = element("input", { type: "color", value: entry.colour, "aria-label": `Colour of ${phrase}`, title: "Colour" });
    colour.addEventListener("input", () => { entry.colour = colour.value; this.on.phrase(); });
    const eye = element("input", { type: "checkbox", "data-keep": `show ${phrase}`, "aria-label": `Show ${phrase}`, title: "Show" });
    eye.checked = entry.visible;
    eye.addEventListener("change", () => { entry.visible = eye.checked; this.on.phrase(); });
    const remove = element("button", { type: "button", class: "plain", "aria-label": `Remove the phrase ${phrase}`, title: "Remove" }, "×");
    remove.addEventListener("click", () => this.on.remove(phrase));
    return element("li", { class: "phrase", "data-phrase": phrase }, colour,
      element("label", { class: "name" }, active, element("span", {}, phrase, element("small", { class: "share" }))),
      element("label", { class: "eye" }, eye), remove);
  }

  /** A slider for every shown model. */
  thresholds() {
    $("thresholds").replaceChildren(...shownModels().filter(Boolean).map((name) => this.threshold(name)));
  }

  threshold(name) {
    const model = modelNamed(name);
    const value = resultOf(state.item, name)?.threshold ?? model.start;
    const range = { min: 0.01, max: 0.99, step: 0.01, value: value.toFixed(2) };
    const slider = element("input", { type: "range", ...range, "aria-label": `Threshold of ${name}`, class: "threshold" });
    const number = element("input", { type: "number", ...range, "aria-label": `Threshold of ${name} as a number`, class: "number" });
    const reset = element("button", { type: "button", class: "link" }, `Model's own: ${model.threshold.toFixed(2)}`);
    const everywhere = element("button", { type: "button", class: "link", hidden: state.items.length < 2 }, "Use for all images");
    const set = (wanted) => {
      const clean = Math.min(0.99, Math.max(0.01, Number(wanted) || Number(slider.value)));
      slider.value = clean;
      if (document.activeElement !== number) number.value = clean.toFixed(2);
      this.on.threshold(name, clean);
    };
    slider.addEventListener("input", () => set(slider.value));
    number.addEventListener("input", () => Number(number.value) > 0 && Number(number.value) < 1 && set(number.value));
    number.addEventListener("change", () => { number.blur(); set(number.value); number.value = Number(slider.value).toFixed(2); });
    reset.addEventListener("click", () => set(model.threshold));
    everywhere.addEventListener("click", () => this.on.everywhere(name));
    return element("div", { class: "threshold-row", "data-model": name },
      comparing() ? element("strong", {}, name) : "", element("div", { class: "line" }, slider, number),
      element("div", { class: "line small" }, reset, everywhere));
  }

  /** Values that change while a slider or the brush moves. */
  numbers() {
    const { item } = state;
    const result = resultOf(item);
    const known = phrasesFor(state.model);
    for (const row of $("phrases").children) {
      const { phrase } = row.dataset;
      const layer = result?.layers.get(phrase);
      row.classList.toggle("active", state.active === phrase);
      row.querySelector(".share").textContent = layer ? shareText(result, layer)
        : !known.includes(phrase) ? "unknown to this model" : item ? "not predicted yet" : "";
    }
    this.agreement();
    const able = Boolean(result?.layers.size);
    for (const id of ["save-mask", "save-overlay", "save-labelme"]) $(id).disabled = !able;
    $("save-clip").disabled = !(item && resultsOf(item).length);
    $("save-all").hidden = state.items.length < 2;
    $("save-all").disabled = !state.items.some((one) => resultsOf(one).length);
    const unsaved = able && isUnsaved(result);
    $("clear").hidden = !result?.layers.get(state.active)?.edits.some(Boolean);
    $("save-note").textContent = [able && comparing() ? `Saves the result of ${state.model}, the left model.` : "",
      unsaved ? "Corrections are not saved yet." : ""].filter(Boolean).join(" ");
    $("save-note").classList.toggle("warn", unsaved);
  }

  agreement() {
    const [one, other] = [resultOf(state.item), resultOf(state.item, state.other)];
    const layers = comparing() ? [one?.layers.get(state.active), other?.layers.get(state.active)] : [];
    $("agreement").hidden = !(layers[0] && layers[1]);
    if ($("agreement").hidden) return;
    const value = dice(currentMask(one, layers[0]).mask, currentMask(other, layers[1]).mask);
    $("agreement").replaceChildren(...(value === null ? ["Both masks are empty."]
      : ["Agreement: ", element("strong", {}, `Dice ${value.toFixed(3)}`)]));
  }

  facts() {
    const { item } = state;
    const result = anyResult(item);
    $("about").hidden = !result;
    if (!result) return;
    const own = resultOf(item) ?? result;
    const pairs = [["File", item.name], ["Size", `${result.width} × ${result.height}`],
      ...(item.frames > 1 ? [["Frame", `${item.frame + 1} of ${item.frames}`],
        ["Rate", item.rate ? `${Math.round(100 * item.rate) / 100} per second` : "not stated"]] : []),
      ["Time", `${own.seconds.toFixed(own.seconds < 10 ? 2 : 0)} s`], ["Request", own.requestId]];
    $("facts").replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    $("notes").replaceChildren(...own.notes.map((note) => element("li", {}, note)));
  }
}

function shareText(result, layer) {
  const { pixels } = currentMask(result, layer);
  return `${percent(pixels / (result.width * result.height))} · ${count(pixels)} px`;
}
