// Calls of the service: the token, errors in words, and the queue of predictions.

const STORED = "vesselseg token";
const PATIENCE = 4; // times that a busy service is asked again
let asking = null;

/** What went wrong, in the service's words. requestId: to find it in the service's log; may be empty. */
export class ServiceError extends Error {
  constructor(words, requestId = "", code = "") {
    super(words);
    Object.assign(this, { requestId, code });
  }
}

/** Take #token=... out of the address, where it would stay in the history and on the screen. */
export function takeToken() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const token = parts.get("token");
  if (token === null) return;
  parts.delete("token");
  sessionStorage.setItem(STORED, token.trim());
  history.replaceState(null, "", `${location.pathname}${location.search}${parts.size ? `#${parts}` : ""}`);
}

/** One question to the user, however many calls wait for its answer. */
async function askToken(ask, refused) {
  asking ??= ask(refused).finally(() => { asking = null; });
  const token = await asking;
  if (token) sessionStorage.setItem(STORED, token);
  return Boolean(token);
}

const wait = (milliseconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, milliseconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
});

async function problemOf(answer) {
  const requestId = answer.headers.get("X-Request-ID") ?? "";
  const said = await answer.json().catch(() => null);
  const error = said?.error;
  if (error?.message) return new ServiceError(error.message, error.request_id ?? requestId, error.code);
  const words = { 413: "The file is larger than the service takes.", 429: "Too many requests: wait a little.",
    503: "The service is busy or still loading its model." };
  return new ServiceError(words[answer.status] ?? `The service answered with error ${answer.status}.`, requestId);
}

export class Api {
  /** ask(refused): a promise of a token that the user types, or of null; refused: whether one was tried. */
  constructor(ask) {
    this.ask = ask;
  }

  /** An answer's JSON. Asks for a token where one is wanted, and again later where the service is busy. */
  async call(path, options = {}) {
    for (let attempt = 0; ; attempt++) {
      const token = sessionStorage.getItem(STORED);
      const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
      const answer = await fetch(path, { ...options, headers, cache: "no-store" }).catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ServiceError("The service does not answer: it may have been stopped, or the network is down.");
      });
      if (answer.ok) return answer.json();
      if (answer.status === 401) {
        if (token === sessionStorage.getItem(STORED)) {
          sessionStorage.removeItem(STORED);
          if (!(await askToken(this.ask, Boolean(token)))) throw new ServiceError("The service wants a token.", answer.headers.get("X-Request-ID") ?? "");
        }
        attempt--;
      } else if ([429, 503].includes(answer.status) && attempt < PATIENCE && Number(answer.headers.get("Retry-After"))) {
        await wait(1000 * Math.min(20, Number(answer.headers.get("Retry-After"))), options.signal);
      } else {
        throw await problemOf(answer);
      }
    }
  }

  /** {models, limits}. */
  models() {
    return this.call("models");
  }

  predict({ file, name, frame, phrases, model, signal }) {
    const form = new FormData();
    form.append("image", file, name);
    form.append("frame", frame);
    form.append("model", model);
    for (const phrase of phrases) form.append("phrase", phrase);
    return this.call("predict", { method: "POST", body: form, signal });
  }

  labelme(content) {
    return this.call("labelme", { method: "POST", body: JSON.stringify(content), headers: { "Content-Type": "application/json" } });
  }
}

/** At most `slots` pieces of work at once, the others in their order. */
export class Queue {
  constructor(slots) {
    Object.assign(this, { free: slots, waiting: [] });
  }

  async run(work, signal) {
    if (this.free) this.free--;
    else await new Promise((start) => this.waiting.push(start));
    try {
      signal?.throwIfAborted();
      return await work();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }
}
