/** The numbers of an answer as a table of commas or as arrays for NumPy. */

import { unpack } from "./source.js";
import { say } from "./words.js";

/** NumPy's name of what an array holds. */
const TYPES = { "<f4": Float32Array, "<f8": Float64Array, "|i1": Int8Array, "|u1": Uint8Array, "<u2": Uint16Array, "<i4": Int32Array };

/** The shape of lists in lists, or null where they are of several lengths. @param {any} value @returns {number[]|null} */
function shapeOf(value) {
  if (!Array.isArray(value)) return [];
  const inner = value.map(shapeOf);
  return value.length && inner.every((one) => one && one.join() === inner[0]?.join()) ? [value.length, .../** @type {number[]} */ (inner[0])] : null;
}

/** The same lists with a field of each record in its place. @param {any} value @param {string} key @returns {any} */
const pluck = (value, key) => (Array.isArray(value) ? value.map((one) => pluck(one, key)) : value[key]);

/** Every packed array and every list of an answer by its place; a list of records is one array a field. Of what is no number the type is "text". @param {any} value @param {string} [at] @returns {[string, number[], ArrayLike<any>, string][]} */
export function arrays(value, at = "") {
  const name = at || "array";
  if (value?.base64 !== undefined || value?.data instanceof Float32Array) {
    const { shape, data } = unpack(value);
    return [[name, shape, data, Object.entries(TYPES).find(([, of]) => data instanceof of)?.[0] ?? "<f8"]];
  }
  const inside = (/** @type {string} */ key) => (at ? `${at}.${key}` : key);
  if (Array.isArray(value)) {
    const shape = shapeOf(value);
    const leaves = shape && value.flat(Infinity);
    if (!value.length) return [];
    if (!leaves) return [[name, [value.length], value, "text"]];
    if (leaves.every((x) => typeof x === "number" || x === null)) return leaves.some((x) => x !== null) ? [[name, shape, leaves.map((x) => x ?? NaN), "<f8"]] : [];
    if (leaves.every((x) => x && typeof x === "object" && x.base64 === undefined)) return Object.keys(leaves[0]).flatMap((key) => arrays(pluck(value, key), inside(key)));
    return [[name, shape, leaves, "text"]];
  }
  return value && typeof value === "object" ? Object.entries(value).flatMap(([key, inner]) => arrays(inner, inside(key))) : [];
}

/** @param {any} value */
const cellOf = (value) => {
  const text = value === null || value === undefined || Number.isNaN(value) ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

/** Columns of one list, and rows, that a table takes at most; arrays take all. */
const [WIDE, LONG] = [300, 10_000];

/** An answer as a table: a matrix with the tokens beside it, the cells of the lens, the tokens' surprise, a circuit's edges, a graph's nodes, or those of its lists that are as long as one another and hold most numbers. @param {any} found @param {string[]} tokens */
export function table(found, tokens) {
  /** @type {any[][]} */
  let rows = [];
  if (found.tile) {
    const { data, shape } = unpack(found.tile);
    rows = [["", ...Array.from({ length: shape[1] }, (_, i) => tokens[found.k0 + i])], ...Array.from({ length: shape[0] }, (_, i) => [tokens[found.q0 + i], ...data.slice(i * shape[1], (i + 1) * shape[1])])];
  } else if (found.rows?.[0]?.cells) {
    rows = [["place", "position", "token", "first", "probability", "entropy"], ...found.rows.flatMap((/** @type {any} */ r) => r.cells.map((/** @type {any} */ c, /** @type {number} */ i) => [r.place, found.positions[i], tokens[found.positions[i]], c.top[0].token, c.top[0].probability, c.entropy]))];
  } else if (found.losses) {
    rows = [["position", "token", "nats"], ...found.losses.map((/** @type {number} */ loss, /** @type {number} */ i) => [i + 1, tokens[i + 1], loss])];
  } else {
    /** @type {Map<number, [string, number, ArrayLike<any>, string][]>} */
    const byLength = new Map();
    const main = found.circuit?.edges ?? (found.nodes?.[0]?.effect === undefined ? found : found.nodes);
    for (const [name, [n, ...rest], data, type] of arrays(main)) {
      const width = rest.reduce((x, y) => x * y, 1);
      // Small vectors are bytes that a scale belongs to: no numbers of their own.
      if (!/\.q$/.test(name) && width <= WIDE && n <= LONG) byLength.set(n, [...(byLength.get(n) ?? []), [name, width, data, type]]);
    }
    const held = (/** @type {[string, number, ArrayLike<any>, string][]} */ lists) => lists.reduce((sum, [, , data, type]) => sum + (type === "text" ? 0.01 : 1) * data.length, 0);
    const most = [...byLength].sort(([, a], [, b]) => held(b) - held(a))[0];
    if (most) {
      const [n, lists] = most;
      const short = (/** @type {string} */ name) => name.replace(/^[^.]*\./, "");
      const names = lists.map(([name]) => (lists.filter(([other]) => short(other) === short(name)).length > 1 ? name : short(name)));
      rows = [lists.flatMap(([, width], k) => (width > 1 ? Array.from({ length: width }, (_, j) => `${names[k]}.${j}`) : [names[k]])), ...Array.from({ length: n }, (_, i) => lists.flatMap(([, width, data]) => Array.from({ length: width }, (_, j) => data[i * width + j])))];
    } else rows = Object.entries(found).filter(([, v]) => typeof v !== "object");
  }
  return rows.map((row) => row.map(cellOf).join(",")).join("\r\n") + "\r\n";
}

/** An answer's numbers as a NumPy archive: each array an .npy file, stored in a zip. @param {any} found */
export function npz(found) {
  const list = arrays(found).filter(([, , , type]) => type !== "text");
  if (!list.length) throw new Error(say("take.nothing"));
  const enc = new TextEncoder();
  const crcs = Uint32Array.from({ length: 256 }, (_, n) => { let c = n; for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1; return c; });
  const crc = (/** @type {Uint8Array} */ bytes) => { let c = ~0; for (const b of bytes) c = crcs[(c ^ b) & 255] ^ (c >>> 8); return ~c >>> 0; };
  const numbers = (/** @type {[number, number][]} */ ...fields) => { const out = new DataView(new ArrayBuffer(fields.reduce((s, [, size]) => s + size, 0))); let at = 0; for (const [v, size] of fields) { if (size === 2) out.setUint16(at, v, true); else out.setUint32(at, v, true); at += size; } return new Uint8Array(out.buffer); };
  /** @type {Uint8Array[]} */
  const parts = [];
  /** @type {Uint8Array[]} */
  const central = [];
  let at = 0;
  for (const [name, shape, data, type] of list) {
    let head = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
    head = head.padEnd(Math.ceil((head.length + 11) / 64) * 64 - 11) + "\n";
    const body = new Uint8Array(TYPES[/** @type {"<f4"} */ (type)].from(/** @type {any} */ (data)).buffer);
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
