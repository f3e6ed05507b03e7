/** The page without a server: in a report from the numbers inside it, in a notebook from the kernel beside it. */

import { START, build } from "./main.js";
import { SourceProblem, unpack } from "./source.js";
import { Store, fromFragment } from "./store.js";
import { say } from "./words.js";

/** Answers views from what a report holds. */
export class ReportSource {
  /** @param {any} data */
  constructor(data) {
    this.data = data;
    this.live = false;
    this.rooms = data.rooms;
    this.site = data.site ?? null;
    this.title = `${data.tokens.model}, ${data.tokens.precision}`;
    this.end = data.tokens.tokens.length - 1;
    /** How much of what there is a lot of stands in the page. */
    this.held = { heads: Object.keys(data.attention?.heads ?? {}).length, cells: (data.answers.cell ?? []).length, effects: (data.answers.effects ?? []).length };
  }

  /** Whether a view would be answered. @param {string} view @param {any} args */
  holds(view, args) {
    return this.find(view, args) !== null;
  }

  /** @param {string} view @param {any} args @returns {Promise<any>} */
  async get(view, args) {
    const found = this.find(view, args);
    if (found === null && args.edits && view !== "effects" && !same(args.edits, this.data.edits)) {
      throw new SourceProblem(say("report.switched"), "NotHere");
    }
    if (found === null) throw new SourceProblem(`${say(ABSENT[view] ? `absent.${ABSENT[view]}` : "report.absent")} ${say("report.how", { command: `glassformer open ${JSON.stringify(this.data.text)}` })}`, "NotHere");
    if (found.problem) throw new SourceProblem(found.problem, "NotHere");
    return found;
  }

  /** @param {string} view @param {any} args @returns {any} */
  find(view, args) {
    const d = this.data;
    // What was not computed with a part switched off is not shown as if it were.
    const elsewhere = args.edits && !same(args.edits, d.edits);
    if (view === "attention") return elsewhere ? null : this.pattern(args);
    if (view === "lens") return elsewhere || !d.lens ? null : this.lens(args.start ?? 0, args.stop ?? this.end + 1);
    if (view === "compare" && args.layer !== undefined) {
      const { layer, head, ...rest } = args;
      const all = /** @type {any[]} */ (d.answers.compare ?? []).filter(([kept]) => kept.layer !== undefined);
      return this.answer(view, args) ?? { ...this.answer(view, rest), drawn: all.length };
    }
    if (view === "tokens") return d.tokens;
    // What follows with a part turned is known where its effect is.
    const turned = view === "next" && elsewhere ? this.answer("effects", args) : null;
    if (turned) return { ...this.answer("next", { ...args, edits: d.edits }), ...turned.after, logits: null };
    return this.answer(view, args);
  }

  /** The kept answer whose parameters are these; what only shortens an answer does not count. @param {string} view @param {any} args */
  answer(view, args) {
    const keys = this.data.keys[view] ?? {};
    const of = (/** @type {any} */ from) => stable(Object.fromEntries(Object.entries(keys).map(([key, usual]) => [key, this.#plain(key, from[key] ?? usual)])));
    const wanted = of(args);
    return /** @type {any[]} */ (this.data.answers[view] ?? []).find(([kept]) => of(kept) === wanted)?.[1] ?? null;
  }

  /** A parameter in one spelling: positions from the start, and the report's own text and model left out. @param {string} key @param {any} value */
  #plain(key, value) {
    if (key === "position" && value < 0) return this.end + 1 + value;
    if (key === "a") return { edits: value.edits };
    if (key === "b") return { text: value.text, model: value.model };
    return value;
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
const same = (a, b) => stable(a) === stable(b);

/** JSON with its keys in order, without what says nothing. @param {any} value @returns {string} */
function stable(value) {
  return JSON.stringify(value, (_, x) => {
    if (x === null || (Array.isArray(x) && !x.length)) return undefined;
    return x && typeof x === "object" && !Array.isArray(x) ? Object.fromEntries(Object.entries(x).sort(([a], [b]) => (a < b ? -1 : 1))) : x;
  });
}

/** Views of which a report holds a part, and says which. @type {Record<string, string>} */
const ABSENT = { cell: "cell", attention: "attention", journey: "journey", words: "words", why: "why", neurons: "why", patch: "patch" };

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
        fail(new SourceProblem(say("report.unwanted"), "Cancelled"));
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
  const first = data.answers.cell?.[0]?.[0];
  const state = begin({ ...data, state: {
    ...(first ? { layer: first.layer, head: first.head } : {}), ...(data.other ? { other: data.other } : {}), ...(data.answers.run?.length ? { run: data.answers.run[0][0].name } : {}),
    ...data.state, position: data.explained === source.end ? null : data.explained,
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
