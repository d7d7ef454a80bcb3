// Schedules predictions and stores their results.
import { Queue } from "./service_api.js";
import { thumbnailOf } from "./service_list.js";
import { describeClip, missing, phrasesFor, shownModels, state, store } from "./service_state.js";

const CONCURRENT = 4; // the service combines waiting requests into batches

const FORM_BYTES = 4000; // of a request in addition to the image
const UNREADABLE = "The browser cannot read this: it is a folder, or the file was changed or deleted. Add it again.";
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** The bytes of a file, read here so that a read error can be distinguished from a network error. */
export async function contentOf(item) {
  const most = state.limits.max_bytes - FORM_BYTES;
  if (item.file.size > most) throw new Error(`${megabytes(item.file.size)}; this service accepts at most ${megabytes(most)}.`);
  return new Blob([await item.file.arrayBuffer().catch(() => { throw new Error(UNREADABLE); })]);
}

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
    const phrases = missing(item, model).length ? missing(item, model) : phrasesFor(model);
    const { frame } = item;
    await this.run(item, model, phrases, {}, async (request) => {
      const result = await store(item, model, phrases, await this.api.predict({ ...request, frame }));
      item.thumbnail ??= thumbnailOf(await createImageBitmap(result.picture));
    });
  }

  /** Predict every frame of a clip with every shown model: missing frames, or all again if none is missing. */
  async clip(item) {
    this.cancelFrame(item);
    item.error = null;
    await Promise.all(shownModels().map((model) => this.framesOf(item, model)));
  }

  async framesOf(item, model) {
    const phrases = phrasesFor(model);
    const all = Array.from({ length: item.frames }, (_, frame) => frame);
    const lacking = all.filter((frame) => missing(item, model, frame).length);
    const frames = lacking.length ? lacking : all;
    const [first, end] = [frames[0], frames.at(-1) + 1];
    const job = { done: 0, count: end - first };
    await this.run(item, model, phrases, job, async (request) => {
      for (let at = first; at < end; at += state.limits.clip_frames) {
        const count = Math.min(state.limits.clip_frames, end - at);
        const pictures = all.slice(at, at + count).some((frame) => !item.pictures.has(frame));
        await this.api.clip({ ...request, first: at, count, pictures }, async (header, line) => {
          describeClip(item, header);
          await store(item, model, phrases, { ...header, ...line });
          job.done++;
          if (line.frame === item.frame) this.on.stored(item);
          this.on.progress(item);
        });
      }
    });
  }

  /** Run a job: {abort, started, and for a clip done and count of frames}. */
  async run(item, model, phrases, job, work) {
    if (item.jobs.has(model)) return;
    Object.assign(job, { abort: new AbortController(), started: 0 });
    item.jobs.set(model, job);
    this.on.progress(item);
    let failure = null;
    try {
      if (!phrases.length) throw new Error(`${model} accepts none of these phrases; add one from its list.`);
      const file = await contentOf(item);
      const { signal } = job.abort;
      await this.queue.run(() => {
        job.started = performance.now();
        this.on.progress(item);
        return work({ file, name: item.name, phrases, model, signal });
      }, signal);
    } catch (error) {
      failure = { message: error.message, requestId: error.requestId ?? "" };
    }
    if (item.jobs.get(model) === job) { // not cancelled
      item.jobs.delete(model);
      item.error = failure ?? item.error;
    }
    this.on.stored(item);
  }

  /** Cancel the shown frame, but not a whole clip. */
  cancelFrame(item) {
    const single = [...item.jobs].filter(([, job]) => !job.count);
    for (const [model, job] of single) {
      job.abort.abort(new DOMException("cancelled", "AbortError"));
      item.jobs.delete(model);
    }
    if (single.length) this.on.stored(item);
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
