// What the save buttons do, and what the user is told.
import { saveLabelMe, saveMasks, saveOverlay, saveZip } from "./service_downloads.js";
import { resultOf, resultsOf, state } from "./service_state.js";
import { pictureOf } from "./service_view.js";

const $ = (id) => document.getElementById(id);

/** on: {toast(text), saved()}. -> {mask, overlay, labelme, clip, all}: functions. */
export function savesOf(api, view, on) {
  async function save(work) {
    const { item } = state;
    const result = resultOf(item);
    if (!result?.layers.size) return;
    try {
      const names = await work(item, result);
      if (!names.length) return on.toast("All phrases are hidden: show one to save it.");
      on.toast(`Saved ${names.join(", ")}`);
    } catch (error) {
      on.toast(`Not saved: ${error.message}${error.requestId ? ` (request ${error.requestId})` : ""}`);
    }
    on.saved();
  }

  async function saveAll(items, name) {
    $("save-clip").disabled = $("save-all").disabled = true;
    try {
      const masks = await saveZip(items, name);
      const without = items.reduce((sum, item) => sum + item.frames - resultsOf(item).length, 0);
      on.toast(masks ? `Saved ${masks} masks in ${name}${without ? `; ${without} images or frames are not predicted` : ""}.`
        : "All phrases are hidden: show one to save it.");
    } catch (error) {
      on.toast(`Not saved: ${error.message}`);
    }
    on.saved();
  }

  return {
    mask: () => save((item, result) => saveMasks(result)),
    overlay: () => save(async (item, result) => saveOverlay(result, await pictureOf(item, view.cache))),
    labelme: () => save((item, result) => saveLabelMe(item, result, api)),
    clip: () => saveAll([state.item], `${state.item.name.replace(/\.\w+$/, "")}_masks.zip`),
    all: () => saveAll(state.items, "masks.zip"),
  };
}
