/** The page without a server: in a report from the numbers inside it, in a notebook from the kernel beside it. */

import { START, build } from "./main.js";
import { SourceProblem, unpack } from "./source.js";
import { Store, fromFragment } from "./store.js";

/** Answers views from what a report holds. */
export class ReportSource {
  /** @param {any} data */
  constructor(data) {
    this.data = data;
    this.live = false;
    this.rooms = data.rooms;
    this.title = `${data.tokens.model}, ${data.tokens.precision}`;
    this.last = data.tokens.tokens.length - 1;
  }

  /** Whether a view would be answered. @param {string} view @param {any} args */
  holds(view, args) {
    return this.find(view, args) !== null;
  }

  /** @param {string} view @param {any} args @returns {Promise<any>} */
  async get(view, args) {
    const found = this.find(view, args);
    if (found === null && args.edits && view !== "effects" && JSON.stringify(args.edits) !== JSON.stringify(this.data.edits)) {
      throw new SourceProblem("With parts switched off, this report holds the change of the prediction alone (in Why); switch them on again to see this.", "NotHere");
    }
    if (found === null) throw new SourceProblem(ABSENT[/** @type {"cell"} */ (view)] ?? "This report does not hold that; open the text in Glassformer to see it.", "NotHere");
    return found;
  }

  /** @param {string} view @param {any} args @returns {any} */
  find(view, args) {
    const d = this.data;
    // What was not computed with a part switched off is not shown as if it were.
    if (view !== "effects" && args.edits && JSON.stringify(args.edits) !== JSON.stringify(d.edits)) return null;
    const position = (args.position ?? -1) < 0 ? this.last : args.position;
    if (view === "next") return d.next[position] ?? null;
    if (view === "vocab") return null;
    if (view === "words") return position === this.last ? d.words : null;
    if (view === "why" || view === "neurons") return position === this.last && !args.token && !args.against ? d[view] : null;
    if (view === "effects") return d.effects?.find((/** @type {any} */ e) => JSON.stringify(e.edits) === JSON.stringify(args.edits)) ?? null;
    if (view === "attention") return this.pattern(args);
    if (view === "cell") return d.cells[[args.layer, args.head, args.query, args.key].join(",")] ?? null;
    if (view === "journey") return d.journeys[position] ?? null;
    if (view === "size") return d.size[args.name ?? ""] ?? null;
    if (view === "lens") {
      const [from, to] = [args.start ?? 0, args.stop ?? this.last + 1];
      return { ...d.lens, positions: d.lens.positions.slice(from, to), rows: d.lens.rows.map((/** @type {any} */ row) => ({ ...row, cells: row.cells.slice(from, to) })) };
    }
    return d[view] ?? null;
  }

  /** @param {any} args */
  pattern({ layer, head, q0 = 0, q1, k0 = 0, k1 }) {
    const { size, heads } = this.data.attention;
    const names = head === null ? Array.from({ length: this.data.tokens.heads }, (_, h) => `${layer},${h}`) : [`${layer},${head}`];
    if (names.some((name) => !heads[name])) return null;
    const [qe, ke] = [Math.min(q1 ?? size, size), Math.min(k1 ?? size, size)];
    const tile = new Float32Array((qe - q0) * (ke - k0));
    for (const name of names) {
      const { data } = unpack({ shape: [], dtype: "uint16", base64: heads[name] });
      for (let q = q0; q < qe; q++) for (let k = k0; k < Math.min(ke, q + 1); k++) tile[(q - q0) * (ke - k0) + k - k0] += data[(q * (q + 1)) / 2 + k] / 65535 / names.length;
    }
    return { layer, head, q0, q1: qe, k0, k1: ke, stride: 1, tile: { shape: [qe - q0, ke - k0], data: tile } };
  }
}

const ABSENT = {
  cell: "This report takes apart the cells in which the last token looks hardest, in the heads that matter most; open the text in Glassformer for any other.",
  attention: "This report holds the heads on which the prediction depends most; open the text in Glassformer for this one.",
  journey: "This report follows the last token; open the text in Glassformer to follow another.",
  words: "This report has whole words after the last token only.",
  why: "This report explains the last prediction; open the text in Glassformer for another.",
  neurons: "This report explains the last prediction; open the text in Glassformer for another.",
};

/** Asks whoever embeds this page, by messages; a notebook passes them to its kernel. */
export class MessageSource {
  /** @param {any} data */
  constructor(data) {
    this.live = true;
    this.embedded = true;
    this.rooms = data.rooms;
    this.title = "";
    this.count = 0;
    /** @type {Map<number, {done: (data: any) => void, fail: (error: Error) => void}>} */
    this.waiting = new Map();
    addEventListener("message", (event) => {
      if (event.source !== parent || !event.data?.glassformer) return;
      const { id, data: found, error } = event.data;
      const entry = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) entry?.fail(new SourceProblem(error, "Error"));
      else entry?.done(found);
    });
  }

  /** @param {string} view @param {any} args @param {{signal?: AbortSignal}} [options] @returns {Promise<any>} */
  get(view, args, { signal } = {}) {
    const id = ++this.count;
    return new Promise((done, fail) => {
      this.waiting.set(id, { done, fail });
      signal?.addEventListener("abort", () => {
        this.waiting.delete(id);
        parent.postMessage({ glassformer: true, cancel: id }, "*");
        fail(new SourceProblem("No longer wanted.", "Cancelled"));
      });
      parent.postMessage({ glassformer: true, id, view, args }, "*");
    });
  }
}

/** @param {any} data */
function begin(data) {
  const state = { ...START, text: data.text, edits: data.edits ?? [], tab: data.rooms[0], ...data.state };
  return new Store({ ...state, ...fromFragment(location.hash) });
}

const held = () => JSON.parse(/** @type {any} */ (document.getElementById("data")).textContent);

/** Begin a report. */
export function start() {
  const data = held();
  const source = new ReportSource(data);
  const first = Object.keys(data.cells ?? {})[0]?.split(",").map(Number);
  const state = begin({ ...data, state: first ? { layer: first[0], head: first[1] } : {} });
  state.set({ text: data.text, model: null });
  build(/** @type {any} */ (document.getElementById("app")), source, state);
}

/** Begin inside a notebook. */
export function embed() {
  const data = held();
  build(/** @type {any} */ (document.getElementById("app")), new MessageSource(data), begin(data));
}
