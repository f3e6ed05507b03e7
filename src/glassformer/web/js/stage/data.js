/** The stage's data layer: what the `stage` view sent, as numbers one can ask for. Everything drawn is read here. */

import { unpack } from "../source.js";

/** Quantised vectors: signed 8-bit numbers, one scale a vector. */
export class Vectors {
  /** @param {any} packed */
  constructor(packed) {
    const { shape, data } = unpack(packed.q);
    this.cells = shape[shape.length - 1] ?? 0;
    this.q = /** @type {Int8Array} */ (data);
    this.scale = /** @type {Float32Array} */ (unpack(packed.scale).data);
    this.norm = typeof packed.norm === "object" ? /** @type {Float32Array} */ (unpack(packed.norm).data) : new Float32Array([packed.norm ?? NaN]);
  }

  /** One vector's numbers. @param {number} i @returns {Float32Array} */
  row(i) {
    return Float32Array.from(this.q.subarray(i * this.cells, (i + 1) * this.cells), (v) => v * this.scale[i]);
  }

  /** The largest error of its numbers. @param {number} i */
  error(i) {
    return this.scale[i] / 2;
  }
}

const NONE = { shape: [0] };
const NO_VECTORS = { q: NONE, scale: NONE, norm: NONE };

/** What a drawing holds before the layers have run. */
const NOTHING = {
  lanes: NO_VECTORS, added: NO_VECTORS, carried: NO_VECTORS, final: NO_VECTORS, unembedding: NO_VECTORS, products: { ...NO_VECTORS, dot: NONE }, next: [], rest: 0, temperatures: [],
  arcs: { count: 0, threshold: 0, layer: NONE, head: NONE, query: NONE, key: NONE, share: NONE }, neurons: { count: 0, layer: NONE, position: NONE, index: NONE, share: NONE, output: NONE },
};

export class StageData {
  /** @param {any} d the answer of the `stage` view */
  constructor(d) {
    /** Whether only the words' columns are here yet. */
    this.early = d.lanes === undefined;
    if (this.early) d = { ...NOTHING, ...d, arcs: { ...NOTHING.arcs, heads: Array(d.layers).fill(0) } };
    this.raw = d;
    this.model = /** @type {string} */ (d.model);
    this.layers = /** @type {number} */ (d.layers);
    this.width = /** @type {number} */ (d.d_model);
    this.vocab = /** @type {number} */ (d.vocab);
    this.position = /** @type {number} */ (d.position);
    /** @type {{id: number, text: string}[]} */
    this.tokens = d.tokens;
    this.count = d.tokens.length;
    /** @type {number[]} */
    this.dims = d.dims;
    this.embedding = new Vectors(d.embedding);
    this.lanes = new Vectors(d.lanes);
    if (this.early) this.lanes.cells = this.embedding.cells;
    this.added = new Vectors(d.added);
    this.carried = new Vectors(d.carried);
    this.final = new Vectors(d.final);
    this.unembedding = new Vectors(d.unembedding);
    this.products = new Vectors(d.products);
    this.dot = unpack(d.products.dot).data;
    /** @type {{id: number, token: string, logit: number, probability: number}[]} */
    this.next = d.next;
    this.rest = d.rest;
    /** @type {{temperature: number, probabilities: number[]}[]} */
    this.temperatures = d.temperatures;
    this.heads = Math.max(0, ...d.arcs.heads);
    this.threshold = d.arcs.threshold;
    const [layer, head, query, key, share] = ["layer", "head", "query", "key", "share"].map((name) => unpack(d.arcs[name]).data);
    /** Strongest first. @type {Arc[]} */
    this.arcs = Array.from({ length: d.arcs.count }, (_, i) => ({ index: i, layer: layer[i], head: head[i], query: query[i], key: key[i], share: share[i] }));
    const n = d.neurons;
    const [nl, np, ni, ns, no] = ["layer", "position", "index", "share", "output"].map((name) => unpack(n[name]).data);
    /** @type {Neuron[]} */
    this.neurons = Array.from({ length: n.count }, (_, i) => ({ layer: nl[i], position: np[i], index: ni[i], share: ns[i], output: no[i] }));
    /** @type {Arc[][]} */
    this.arcsOf = Array.from({ length: this.layers }, () => []);
    for (const arc of this.arcs) this.arcsOf[arc.layer].push(arc);
    /** @type {Neuron[][]} */
    this.neuronsOf = Array.from({ length: this.layers }, () => []);
    for (const neuron of this.neurons) this.neuronsOf[neuron.layer].push(neuron);
  }

  /** Places of the stream: before the first layer, then after each half of each layer. */
  get places() {
    return 2 * this.layers + 1;
  }

  /** Index of a lane's vector. @param {number} place @param {number} token */
  lane(place, token) {
    return place * this.count + token;
  }

  /** Index of what a half layer added. @param {number} layer @param {0|1} half 0 the mixer, 1 the feed-forward @param {number} token */
  add(layer, half, token) {
    return (2 * layer + half) * this.count + token;
  }

  /** How long what a half layer added is, beside the stream it was added to. @param {number} layer @param {0|1} half @param {number} token */
  weight(layer, half, token) {
    return this.added.norm[this.add(layer, half, token)] / (this.lanes.norm[this.lane(2 * layer + half, token)] || 1);
  }

  /** The arcs that end at a word, strongest first. @param {number} token */
  into(token) {
    return this.arcs.filter((arc) => arc.query === token);
  }

  /** The head that the scenes look at: the strongest arc into the last word, not from the first where heads rest if there is another. @returns {Arc|null} */
  get telling() {
    const here = this.into(this.position);
    return here.find((arc) => arc.key > 0) ?? here[0] ?? this.arcs[0] ?? null;
  }
}

/** @typedef {{index: number, layer: number, head: number, query: number, key: number, share: number}} Arc */
/** @typedef {{layer: number, position: number, index: number, share: number, output: number}} Neuron */
