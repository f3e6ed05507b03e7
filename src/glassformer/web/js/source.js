/** Where views get their data: over HTTP in the app; reports and notebooks bring sources of their own. */

import { say } from "./words.js";

export class SourceProblem extends Error {
  /** @param {string} message @param {string} kind */
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

export class HttpSource {
  constructor() {
    this.live = true;
  }

  /** @param {string} view @param {Record<string, any>} args @param {{signal?: AbortSignal}} [options] @returns {Promise<any>} */
  async get(view, args, { signal } = {}) {
    return (await this.#post(`/api/view/${view}`, args, signal)).json();
  }

  /** A view that takes its time: told how far it is while it works, and what it found early. @param {string} view @param {Record<string, any>} args @param {(at: {done: number, total: number, what: string, early?: any}) => void} tell @param {{signal?: AbortSignal}} [options] @returns {Promise<any>} */
  async watch(view, args, tell, { signal } = {}) {
    for await (const event of this.stream(`/api/watch/${view}`, args, { signal })) {
      if (event.found) return event.found;
      tell(event);
    }
    throw new SourceProblem(say("source.gone"), "Gone");
  }

  /** Ask for something to be done. @param {string} path @param {Record<string, any>} args @returns {Promise<any>} */
  async send(path, args) {
    return (await this.#post(path, args)).json();
  }

  /** @param {string} path @param {Record<string, any>} args @param {AbortSignal} [signal] */
  async #post(path, args, signal) {
    let answer;
    try {
      answer = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(args), signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new SourceProblem(say("source.gone"), "Gone");
    }
    if (!answer.ok) {
      const data = await answer.json().catch(() => null);
      throw new SourceProblem(data?.error?.message ?? say("source.status", { a: answer.status }), data?.error?.kind ?? data?.error?.type ?? "Error");
    }
    return answer;
  }

  /** Server-sent events as they come. @param {string} path @param {Record<string, any>} args @param {{signal?: AbortSignal}} [options] */
  async *stream(path, args, { signal } = {}) {
    const answer = await this.#post(path, args, signal);
    if (!answer.body) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const events = rest.split("\n\n");
      rest = events.pop() ?? "";
      for (const event of events) {
        const data = JSON.parse(event.replace(/^data: /, ""));
        if (data.error) throw new SourceProblem(data.error.message, data.error.kind);
        yield data;
      }
    }
  }

  /** @param {Record<string, any>} args */
  async report(args) {
    return (await this.#post("/api/report", args)).blob();
  }
}

const ARRAYS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, int8: Int8Array, int32: Int32Array };

/**
 * Numbers sent as base64, or as they are.
 * @param {{shape: number[], dtype?: string, base64?: string, data?: Float32Array}} packed
 * @returns {{shape: number[], data: Float32Array|Uint8Array|Uint16Array|Int8Array|Int32Array}}
 */
export function unpack(packed) {
  if (packed.base64 === undefined) return { shape: packed.shape, data: packed.data ?? new Float32Array() };
  const text = atob(packed.base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return { shape: packed.shape, data: new ARRAYS[/** @type {"uint8"} */ (packed.dtype)](bytes.buffer) };
}
