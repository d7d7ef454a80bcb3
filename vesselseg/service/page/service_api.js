// Calls of the service: token, error messages, and a queue for predictions.

const STORED = "vesselseg token";
const RETRIES = 4; // when the service is busy
let asking = null;

/** An error with the message of the service. requestId: as in the log of the service; may be empty. */
export class ServiceError extends Error {
  constructor(text, requestId = "", code = "") {
    super(text);
    Object.assign(this, { requestId, code });
  }
}

/** Move #token=... from the address to the session storage, so that it is not in the history or on the screen. */
export function takeToken() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const token = parts.get("token");
  if (token === null) return;
  parts.delete("token");
  sessionStorage.setItem(STORED, token.trim());
  history.replaceState(null, "", `${location.pathname}${location.search}${parts.size ? `#${parts}` : ""}`);
}

/** Ask the user once, even if several calls need the token. */
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
  const content = await answer.json().catch(() => null);
  const error = content?.error;
  if (error?.message) return new ServiceError(error.message, error.request_id ?? requestId, error.code);
  const messages = { 413: "The file is larger than the service accepts.", 429: "Too many requests: wait a moment.",
    503: "The service is busy or still loading its model." };
  return new ServiceError(messages[answer.status] ?? `The service returned error ${answer.status}.`, requestId);
}

function formOf(file, name, fields, phrases = []) {
  const form = new FormData();
  form.append("image", file, name);
  for (const [field, value] of Object.entries(fields)) form.append(field, value);
  for (const phrase of phrases) form.append("phrase", phrase);
  return form;
}

/** The objects of a response with one JSON object per line, as they arrive. */
async function* linesOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ServiceError("The connection to the service was lost.");
      });
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield JSON.parse(line);
    }
  } finally {
    reader.cancel().catch(() => null); // ends the work of the service
  }
}

export class Api {
  /** ask(refused): a promise of the token that the user types, or of null; refused: whether a token was refused. */
  constructor(ask) {
    this.ask = ask;
  }

  /** The JSON of a response. */
  async call(path, options) {
    return (await this.respond(path, options)).json();
  }

  /** Calls act(first line, line) for every further line of a response, one after another. */
  async lines(path, options, act) {
    const answer = await this.respond(path, options);
    let [header, seen] = [null, 0];
    for await (const line of linesOf(answer)) {
      if (line.error) throw new ServiceError(line.error.message, line.error.request_id, line.error.code);
      if (header) await act(header, line);
      else header = line;
      seen++;
    }
    if (seen !== header?.count + 1) throw new ServiceError(`The connection ended after ${Math.max(0, seen - 1)} frames.`, header?.request_id);
  }

  /** An accepted response. Asks the user for a token if needed, and retries if the service is busy. */
  async respond(path, options = {}) {
    for (let attempt = 0; ; attempt++) {
      const token = sessionStorage.getItem(STORED);
      const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
      const answer = await fetch(path, { ...options, headers, cache: "no-store" }).catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ServiceError("The service does not respond: it may have been stopped, or the network is down.");
      });
      if (answer.ok) return answer;
      if (answer.status === 401) {
        if (token === sessionStorage.getItem(STORED)) {
          sessionStorage.removeItem(STORED);
          if (!(await askToken(this.ask, Boolean(token)))) throw new ServiceError("The service requires a token.", answer.headers.get("X-Request-ID") ?? "");
        }
        attempt--;
      } else if ([429, 503].includes(answer.status) && attempt < RETRIES && Number(answer.headers.get("Retry-After"))) {
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
    return this.call("predict", { method: "POST", body: formOf(file, name, { frame, model }, phrases), signal });
  }

  /** Decoded frames; act(header, line) per frame. */
  frames({ file, name, first, count, signal }, act) {
    return this.lines("frames", { method: "POST", body: formOf(file, name, { first, count }), signal }, act);
  }

  /** Predictions of many frames; act(header, line) per frame. */
  clip({ file, name, first, count, pictures, phrases, model, signal }, act) {
    const body = formOf(file, name, { first, count, pictures, model }, phrases);
    return this.lines("clip", { method: "POST", body, signal }, act);
  }

  labelme(content) {
    return this.call("labelme", { method: "POST", body: JSON.stringify(content), headers: { "Content-Type": "application/json" } });
  }
}

/** Runs at most `slots` tasks at once, in order. */
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
