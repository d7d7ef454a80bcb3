// Which prediction is asked for when, and what becomes of its answer.
import { Queue } from "./service_api.js";
import { thumbnailOf } from "./service_list.js";
import { missing, phrasesFor, shownModels, state, store } from "./service_state.js";

const AT_ONCE = 4; // the service puts what waits into one batch

const SPARE = 4000; // bytes of a request beside the image
const UNREADABLE = "The browser cannot read this: it is a folder, or the file has changed or gone. Drop it again.";
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** api: the service. on: {progress(item): waits, starts or ends, stored(item)}. */
export class Predictions {
  constructor(api, on) {
    Object.assign(this, { api, on, queue: new Queue(AT_ONCE), batch: null });
  }

  /** Predict the frame that is shown, with every shown model; what is there already is asked again if all is. */
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
      if (!phrases.length) throw new Error(`${model} knows none of these phrases; add one that it suggests.`);
      const most = state.limits.max_bytes - SPARE;
      if (item.file.size > most) throw new Error(`${megabytes(item.file.size)}; this service takes at most ${megabytes(most)}.`);
      // read here, where a failure can be told from one of the network
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
      failure = { words: error.message, requestId: error.requestId ?? "" };
    }
    if (item.jobs.get(model) === job) { // not cancelled
      item.jobs.delete(model);
      item.error = failure ?? item.error;
    }
    this.on.stored(item);
  }

  /** At once: what is asked next does not wait until a file is read or its turn has come. */
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
