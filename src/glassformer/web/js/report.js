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
    if (found === null && args.edits && view !== "effects" && !same(args.edits, this.data.edits)) {
      throw new SourceProblem("With parts switched off, this report holds the change of the prediction alone (in Why); switch them on again to see this.", "NotHere");
    }
    if (found === null) throw new SourceProblem(ABSENT[/** @type {"cell"} */ (view)] ?? "This report does not hold that; open the text in Glassformer to see it.", "NotHere");
    if (found.problem) throw new SourceProblem(found.problem, "NotHere");
    return found;
  }

  /** @param {string} view @param {any} args @returns {any} */
  find(view, args) {
    const d = this.data;
    // What was not computed with a part switched off is not shown as if it were.
    if (view !== "effects" && args.edits && !same(args.edits, d.edits)) return null;
    const position = (args.position ?? -1) < 0 ? this.last : args.position;
    const explained = position === d.explained;
    switch (view) {
      case "next": return d.next[position] ?? null;
      case "vocab": return null;
      case "words": return explained ? d.words : null;
      // What was asked when the report was written (a token, another to compare it with) is what it can answer.
      case "why": case "neurons": return explained && (args.token ?? null) === (d.state.token ?? null) && (args.against ?? null) === (d.state.against ?? null) ? d[view] : null;
      case "effects": return explained ? d.effects?.find((/** @type {any} */ e) => same(e.edits, args.edits)) ?? null : null;
      case "attention": return this.pattern(args);
      case "cell": return d.cells[[args.layer, args.head, args.query, args.key].join(",")] ?? null;
      case "journey": return d.journeys[position] ?? null;
      case "size": return d.size[args.name ?? ""] ?? null;
      case "lens": return this.lens(args.start ?? 0, args.stop ?? this.last + 1);
      case "compare": return this.compare(args);
      case "patch": return d.compare?.patch?.[args.what] ?? null;
      default: return d[view] ?? null;
    }
  }

  /** Each token's text is kept once. @param {number} from @param {number} to */
  lens(from, to) {
    const { rows, texts, positions, ...rest } = this.data.lens;
    const cell = (/** @type {number[]} */ [followed, rank, entropy, ...tops]) => ({
      followed, rank, entropy, top: tops.filter((_, i) => i % 2 === 0).map((id, i) => ({ id, token: texts[id], probability: tops[2 * i + 1] })),
    });
    return { ...rest, positions: positions.slice(from, to), rows: rows.map((/** @type {any} */ row) => ({ place: row.place, cells: row.cells.slice(from, to).map(cell) })) };
  }

  /** @param {any} args */
  compare({ a, b, what, layer, head }) {
    const held = this.data.compare;
    if (!held || !same(a.edits ?? [], this.data.edits) || b.text !== held.other.text) return null;
    const found = held[what] ?? null;
    if (what !== "attention" || found === null || found.problem) return found;
    return { ...found, difference: held.differences[`${layer},${head}`], drawn: Object.keys(held.differences).length };
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

/** @param {any} a @param {any} b */
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

const ABSENT = {
  cell: "This report takes apart the cells in which the last token looks hardest, in the heads that matter most; open the text in Glassformer for any other.",
  attention: "This report holds the heads on which the prediction depends most; open the text in Glassformer for this one.",
  journey: "This report follows one token; open the text in Glassformer to follow another.",
  words: "This report does not hold the whole words for this place; open the text in Glassformer to see them.",
  why: "This report explains one prediction; open the text in Glassformer for another.",
  neurons: "This report explains one prediction; open the text in Glassformer for another.",
  patch: "This report holds patching of the stream and of the heads; open the texts in Glassformer for the other places.",
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
  const state = begin({ ...data, state: {
    ...(first ? { layer: first[0], head: first[1] } : {}), ...(data.compare ? { other: data.compare.other } : {}), ...(data.run ? { run: data.run.name } : {}),
    ...data.state, position: data.explained === source.last ? null : data.explained,
  } });
  state.set({ text: data.text, model: null });
  build(/** @type {any} */ (document.getElementById("app")), source, state);
  if (data.look) setTimeout(() => document.querySelector(data.look)?.scrollIntoView(), 400);
}

/** Begin inside a notebook. */
export function embed() {
  const data = held();
  build(/** @type {any} */ (document.getElementById("app")), new MessageSource(data), begin(data));
}
