// Clips: pictures that only the service can decode, playing, and the controls under the image.
import { contentOf } from "./service_predict.js";
import { thumbnailOf } from "./service_list.js";
import { describeClip, pngOf, state } from "./service_state.js";

const USUAL_RATE = 15; // frames per second in coronary angiography, for files that do not state a rate
const HOLD_MS = 40; // between looks for a frame that is still being loaded
const $ = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, Math.max(0, milliseconds)));

export const rateOf = (item) => item.chosenRate ?? item.rate ?? USUAL_RATE;

export class Clips {
  /**
   * on: {arrived(item, frame): a picture was loaded, failed(item, error, preview), show(item, frame): a promise of the
   * frame being drawn, paused()}.
   */
  constructor(api, on) {
    Object.assign(this, { api, on, playing: null });
  }

  /** The first frame of a file that the browser cannot decode. */
  preview(item) {
    return this.fetch(item, 0, 1, true);
  }

  /** All missing pictures of a clip, in one request unless there are very many. */
  async load(item) {
    while (!item.loading && state.items.includes(item)) {
      const frames = Array.from({ length: item.frames }, (_, frame) => frame).filter((frame) => !item.pictures.has(frame));
      if (!frames.length) return;
      const count = Math.min(frames.at(-1) - frames[0] + 1, state.limits.clip_frames);
      if (!(await this.fetch(item, frames[0], count, false))) return;
    }
  }

  async fetch(item, first, count, preview) {
    const loading = { abort: new AbortController(), count };
    item.loading = loading;
    this.render();
    let failure = null;
    try {
      const file = await contentOf(item);
      const { signal } = loading.abort;
      await this.api.frames({ file, name: item.name, first, count, signal }, async (header, line) => {
        describeClip(item, header);
        const picture = pngOf(line.picture_png);
        if (!item.pictures.has(line.frame)) item.pictures.set(line.frame, picture);
        item.thumbnail ??= thumbnailOf(await createImageBitmap(picture));
        if (item === state.item) this.render();
        if (line.frame === item.frame) this.on.arrived(item);
      });
    } catch (error) {
      failure = error;
    }
    item.loading = null;
    if (failure && failure.name !== "AbortError") this.on.failed(item, failure, preview);
    if (item === state.item) this.render();
    return !failure;
  }

  // --- playing -------------------------------------------------------------------------------------------------------

  toggle() {
    if (this.playing) this.pause();
    else if (state.item?.frames > 1) this.play(state.item);
  }

  pause() {
    if (!this.playing) return;
    this.playing = null;
    this.render();
    this.on.paused();
  }

  /** Every frame in turn, over and over. A frame that is not there yet is waited for, never skipped. */
  async play(item) {
    const run = { item };
    this.playing = run;
    this.load(item);
    this.render();
    let due = performance.now();
    while (this.playing === run) {
      due = Math.max(performance.now(), due + 1000 / rateOf(item));
      await pause(due - performance.now());
      const next = (item.frame + 1) % item.frames;
      while (this.playing === run && !item.pictures.has(next) && item.loading) await pause(HOLD_MS);
      if (this.playing !== run) return;
      if (state.item !== item || !item.pictures.has(next)) return this.pause();
      await this.on.show(item, next);
    }
  }

  // --- controls ------------------------------------------------------------------------------------------------------

  /** The controls of the shown clip; hidden for an image. */
  render() {
    const { item } = state;
    $("frames").hidden = $("predict-clip").hidden = $("save-clip").hidden = !(item?.frames > 1);
    if (!(item?.frames > 1)) return;
    const playing = this.playing?.item === item;
    $("play").textContent = playing ? "❚❚" : "▶";
    $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    $("play").title = `${playing ? "Pause" : "Play"} (K)`;
    $("frame-slider").max = $("frame").max = item.frames;
    $("frame-slider").value = item.frame + 1;
    if (document.activeElement !== $("frame") || playing) $("frame").value = item.frame + 1;
    const { loading } = item;
    $("frame-count").textContent = `of ${item.frames}${loading?.count > 1 ? `, ${item.pictures.size} loaded` : ""}`;
    $("frame-back").disabled = item.frame === 0;
    $("frame-next").disabled = item.frame === item.frames - 1;
    if (document.activeElement !== $("rate")) $("rate").value = Math.round(100 * rateOf(item)) / 100;
    $("frame-note").textContent = item.chosenRate ? "chosen" : item.rate ? "from the file" : "the file states none";
  }

  setRate(value) {
    if (Number(value) > 0) state.item.chosenRate = Math.min(60, Math.max(0.5, Number(value)));
    this.render();
  }
}
