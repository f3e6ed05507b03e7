/** What a researcher takes away: the lines of Python, tables and arrays of numbers, pictures, and the whole session as a file. */

import { h } from "./dom.js";
import { grounded, save } from "./picture.js";
import { unpack } from "./source.js";
import { said as spoken, say } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

/** The views of each room whose numbers are taken, the last asked first. @type {Record<string, string[]>} */
const VIEWS = {
  stage: ["stage"], attention: ["reasons", "cell", "attention", "thumbnails"], depth: ["lens", "journey"], why: ["why", "neurons", "effects", "graph"], compare: ["compare", "patch"],
  texts: ["texts"],
  vectors: ["directions", "cloud", "sum", "sums"], meaning: ["meaning"], learning: ["run", "run_step"], size: ["size"],
};

/** Remember what was asked of a source and what it said, by view. @param {any} source */
export function listening(source) {
  const get = source.get.bind(source);
  source.heard = new Map();
  source.get = async (/** @type {string} */ view, /** @type {any} */ args, /** @type {any} */ options) => {
    const found = await get(view, args, options);
    source.heard.delete(view);
    source.heard.set(view, { args, found });
    return found;
  };
  return source;
}

/** The row of buttons over a room. @param {any} source @param {Store} state @param {() => HTMLElement} panel */
export function tools(source, state, panel) {
  const said = h("span", { class: "small", role: "status" });
  const now = () => {
    const names = VIEWS[state.get("tab")] ?? [];
    const heard = [...source.heard.keys()].reverse().filter((name) => names.includes(name));
    // All heads at once are what is looked at only while no one head is.
    const held = heard.find((name) => name !== "thumbnails") ?? heard[0];
    if (!held) throw new Error(say("take.nothing"));
    return { name: held, ...source.heard.get(held) };
  };
  const act = (/** @type {string|(() => string)} */ label, /** @type {() => string} */ title, /** @type {() => any} */ what) => h("button", { type: "button", class: "small", title, onclick: async () => {
    try {
      said.textContent = (await what()) ?? say("take.saved");
    } catch (error) {
      said.textContent = error instanceof Error ? error.message : String(error);
    }
  } }, label);
  const file = (/** @type {string} */ name, /** @type {string} */ end) => `glassformer-${name}.${end}`;
  return h("div", { class: "row tool-row", role: "group", "aria-label": spoken("take.title") },
    source.live && !source.embedded ? act(spoken("take.python"), spoken("take.python.say"), async () => {
      const { name, args } = now();
      const { lines } = await source.get("python", { name, arguments: args });
      await navigator.clipboard?.writeText(lines).catch(() => null);
      said.dataset.lines = lines;
      return say("take.copied", { a: name });
    }) : null,
    act("CSV", spoken("take.csv"), () => { const { name, found } = now(); save(new Blob([table(found, state.get("tokens"))], { type: "text/csv" }), file(name, "csv")); }),
    act("npz", spoken("take.npz"), () => { const { name, found } = now(); save(new Blob([npz(arrays(found))]), file(name, "npz")); }),
    act("SVG", spoken("take.svg"), async () => save(new Blob([(await grounded(panel())).text], { type: "image/svg+xml" }), file(state.get("tab"), "svg"))), said);
}

/** Every packed array and every list of numbers of an answer, by its place. @param {any} value @param {string} [at] @returns {[string, number[], ArrayLike<number>, string][]} */
export function arrays(value, at = "") {
  if (value?.base64 !== undefined || value?.data instanceof Float32Array) {
    const { shape, data } = unpack(value);
    return [[at || "array", shape, data, data instanceof Float32Array ? "<f4" : data.BYTES_PER_ELEMENT === 1 ? "|u1" : "<u2"]];
  }
  if (Array.isArray(value)) {
    if (value.length && value.every((x) => typeof x === "number" || x === null)) return [[at || "array", [value.length], value.map((x) => x ?? NaN), "<f8"]];
    const keys = value.length && value.every((x) => x && typeof x === "object" && !Array.isArray(x)) ? Object.keys(value[0]) : [];
    // A list of records is one array a field.
    return keys.flatMap((key) => (value.every((x) => typeof x[key] === "number" || x[key] === null) ? arrays(value.map((x) => x[key]), `${at}.${key}`.replace(/^\./, "")) : []));
  }
  if (value && typeof value === "object") return Object.entries(value).flatMap(([key, inner]) => arrays(inner, `${at}.${key}`.replace(/^\./, "")));
  return [];
}

/** @param {any} value */
const cellOf = (value) => {
  const text = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

/** An answer as a table: a matrix with the tokens beside it, the cells of the lens, or its longest list of records. @param {any} found @param {string[]} tokens */
export function table(found, tokens) {
  /** @type {any[][]} */
  let rows = [];
  if (found.tile) {
    const { data, shape } = unpack(found.tile);
    rows = [["", ...Array.from({ length: shape[1] }, (_, i) => tokens[found.k0 + i])], ...Array.from({ length: shape[0] }, (_, i) => [tokens[found.q0 + i], ...data.slice(i * shape[1], (i + 1) * shape[1])])];
  } else if (found.rows?.[0]?.cells) {
    rows = [["place", "position", "token", "first", "probability", "entropy"], ...found.rows.flatMap((/** @type {any} */ r) => r.cells.map((/** @type {any} */ c, /** @type {number} */ i) => [r.place, found.positions[i], tokens[found.positions[i]], c.top[0].token, c.top[0].probability, c.entropy]))];
  } else {
    const lists = Object.values(found).filter((v) => Array.isArray(v) && v.length && typeof v[0] === "object" && !Array.isArray(v[0]));
    const longest = /** @type {any[]} */ (lists.sort((a, b) => /** @type {any[]} */ (b).length - /** @type {any[]} */ (a).length)[0] ?? []);
    const keys = Object.keys(longest[0] ?? {});
    rows = longest.length ? [keys, ...longest.map((x) => keys.map((key) => x[key]))] : Object.entries(found).filter(([, v]) => typeof v !== "object");
  }
  return rows.map((row) => row.map(cellOf).join(",")).join("\r\n") + "\r\n";
}

/** A NumPy archive: each array an .npy file, stored in a zip. @param {[string, number[], ArrayLike<number>, string][]} list */
export function npz(list) {
  const enc = new TextEncoder();
  const crcs = Uint32Array.from({ length: 256 }, (_, n) => { let c = n; for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1; return c; });
  const crc = (/** @type {Uint8Array} */ bytes) => { let c = ~0; for (const b of bytes) c = crcs[(c ^ b) & 255] ^ (c >>> 8); return ~c >>> 0; };
  const numbers = (/** @type {[number, number][]} */ ...fields) => { const out = new DataView(new ArrayBuffer(fields.reduce((s, [, size]) => s + size, 0))); let at = 0; for (const [v, size] of fields) { if (size === 2) out.setUint16(at, v, true); else out.setUint32(at, v, true); at += size; } return new Uint8Array(out.buffer); };
  const types = { "<f4": Float32Array, "<f8": Float64Array, "|u1": Uint8Array, "<u2": Uint16Array };
  /** @type {Uint8Array[]} */
  const parts = [];
  /** @type {Uint8Array[]} */
  const central = [];
  let at = 0;
  for (const [name, shape, data, type] of list) {
    let head = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
    head = head.padEnd(Math.ceil((head.length + 11) / 64) * 64 - 11) + "\n";
    const body = new Uint8Array(types[/** @type {"<f4"} */ (type)].from(/** @type {any} */ (data)).buffer);
    const file = new Uint8Array(10 + head.length + body.length);
    file.set([0x93, 78, 85, 77, 80, 89, 1, 0, head.length & 255, head.length >> 8]);
    file.set(enc.encode(head), 10);
    file.set(body, 10 + head.length);
    const title = enc.encode(`${name}.npy`);
    const common = /** @type {[number, number][]} */ ([[20, 2], [0x800, 2], [0, 2], [0, 2], [33, 2], [crc(file), 4], [file.length, 4], [file.length, 4], [title.length, 2], [0, 2]]);
    central.push(numbers([0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [at, 4]), title);
    parts.push(numbers([0x04034b50, 4], ...common), title, file);
    at += 30 + title.length + file.length;
  }
  const size = central.reduce((s, c) => s + c.length, 0);
  const end = numbers([0x06054b50, 4], [0, 2], [0, 2], [list.length, 2], [list.length, 2], [size, 4], [at, 4], [0, 2]);
  const all = [...parts, ...central, end];
  const out = new Uint8Array(all.reduce((s, p) => s + p.length, 0));
  all.reduce((from, p) => { out.set(p, from); return from + p.length; }, 0);
  return out;
}

/** Undo, redo, and the session as one file. @param {Store} state @param {(fragment: string) => Record<string, any>} read */
export function history(state, read) {
  const back = h("button", { type: "button", id: "undo", "aria-label": spoken("session.undo"), title: spoken("session.undo.say"), onclick: () => state.undo() }, "↶");
  const forth = h("button", { type: "button", id: "redo", "aria-label": spoken("session.redo"), title: spoken("session.redo.say"), onclick: () => state.redo() }, "↷");
  const reflect = () => { back.disabled = !state.past.length; forth.disabled = !state.future.length; };
  state.on(null, reflect);
  reflect();
  const pick = h("input", { type: "file", accept: ".json,application/json", "aria-label": spoken("session.open.say"), class: "visually-hidden", tabindex: "-1", onchange: async () => {
    const [chosen] = pick.files;
    pick.value = "";
    if (!chosen) return;
    try {
      const held = JSON.parse(await chosen.text());
      if (held.glassformer !== 1 || typeof held.view !== "string") throw new Error("no session");
      state.set(read(held.view));
    } catch {
      alert(say("session.none", { a: chosen.name }));
    }
  } });
  return [back, forth,
    h("button", { type: "button", id: "save-session", title: spoken("session.save.say"), onclick: () => save(new Blob([JSON.stringify({ glassformer: 1, view: state.fragment() })], { type: "application/json" }), "glassformer-session.json") }, spoken("session.save")),
    h("button", { type: "button", id: "open-session", title: spoken("session.open.say"), onclick: () => pick.click() }, spoken("session.open")), pick];
}
