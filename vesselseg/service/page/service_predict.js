// Schedules predictions and stores their results.
import { Queue } from "./service_api.js";
import { thumbnailOf } from "./service_list.js";
import { missing, phrasesFor, shownModels, state, store } from "./service_state.js";

const CONCURRENT = 4; // the service combines waiting requests into batches

const FORM_BYTES = 4000; // of a request in addition to the image
const UNREADABLE = "The browser cannot read this: it is a folder, or the file was changed or deleted. Add it again.";
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** on: {progress(item): a job was queued, started or finished, stored(item)}. */
export class Predictions {
  constructor(api, on) {
    Object.assign(this, { api, on, queue: new Queue(CONCURRENT), batch: null });
  }

  /** Predict the shown frame with every shown model: missing results, or all again if none is missing. */
  async item(item) {
    item.error = null;
    const wanted = shownModels().filter((model) => missing(item, model).length);
    await Promise.all((wanted.length ? wanted : shownModels()).map((model) => this.one(item, model)));
  }

  async one(item, model) {
    if (item.jobs.has(model)) return;
    const phrases = missing(item, model).length ? missing(item, model) : phrasesFor(model);
    const job = { abort: new AbortController(), started: 0, frame: item.frame };
    item.jobs.set(model, job);
    this.on.progress(item);
    let failure = null;
    try {
      if (!phrases.length) throw new Error(`${model} accepts none of these phrases; add one from its list.`);
      const most = state.limits.max_bytes - FORM_BYTES;
      if (item.file.size > most) throw new Error(`${megabytes(item.file.size)}; this service accepts at most ${megabytes(most)}.`);
      // Read here, so that a read error can be distinguished from a network error.
      const content = await item.file.arrayBuffer().catch(() => { throw new Error(UNREADABLE); });
      const { signal } = job.abort;
      const answer = await this.queue.run(() => {
        job.started = performance.now();
        this.on.progress(item);
        return this.api.predict({ file: new Blob([content]), name: item.name, frame: job.frame, phrases, model, signal });
      }, signal);
      const result = await store(item, model, phrases, answer);
      item.thumbnail ??= thumbnailOf(await createImageBitmap(result.picture));
    } catch (error) {
      failure = { message: error.message, requestId: error.requestId ?? "" };
    }
    if (item.jobs.get(model) === job) { // not cancelled
      item.jobs.delete(model);
      item.error = failure ?? item.error;
    }
    this.on.stored(item);
  }

  /** Takes effect immediately, even while the file is being read or the job is queued. */
  cancel(item) {
    if (!item.jobs.size) return;
    for (const job of item.jobs.values()) job.abort.abort(new DOMException("cancelled", "AbortError"));
    item.jobs.clear();
    this.on.stored(item);
  }

  /** Predict all images that lack a mask. */
  async all() {
    const waiting = state.items.filter((item) => shownModels().some((model) => missing(item, model).length));
    if (this.batch || !waiting.length) return;
    this.batch = { items: waiting, done: 0 };
    this.on.progress(null);
    await Promise.all(waiting.map((item) => this.item(item).then(() => {
      this.batch.done++;
      this.on.progress(null);
    })));
    this.batch = null;
    this.on.progress(null);
  }

  stop() {
    this.batch?.items.forEach((item) => this.cancel(item));
  }
}
