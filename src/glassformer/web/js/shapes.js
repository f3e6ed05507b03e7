/** What each field of an address must be: one table, looked into to the last value. Knows nothing of the page. */

/** @typedef {(value: any) => boolean} Shape */

/** @type {Shape} */
const text = (value) => typeof value === "string";
/** Shapes whose values stand in an address as they are; the others stand there as JSON. */
const bare = new Set([text]);
/** @type {Shape} */
const yes = (value) => typeof value === "boolean";
/** @type {Shape} */
const finite = (value) => typeof value === "number" && Number.isFinite(value);
/** @type {Shape} */
const count = (value) => Number.isSafeInteger(value) && value >= 0;
/** @param {number} low @param {number} high @returns {Shape} */
const between = (low, high) => (value) => finite(value) && value >= low && value <= high;
/** @param {...any} values @returns {Shape} */
function among(...values) {
  const shape = (/** @type {any} */ value) => values.includes(value);
  bare.add(shape);
  return shape;
}
/** @param {Shape} shape @returns {Shape} */
const given = (shape) => (value) => value === undefined || shape(value);
/** @param {Shape} shape @returns {Shape} */
const maybe = (shape) => given((value) => value === null || shape(value));
/** @param {Shape} shape @param {number} [least] @returns {Shape} */
const list = (shape, least = 0) => (value) => Array.isArray(value) && value.length >= least && value.every(shape);
/** @type {Shape} */
const object = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** An object of these fields and no others. @param {Record<string, Shape>} fields @returns {Shape} */
const record = (fields) => (value) => object(value) && Object.keys(value).every((key) => Object.hasOwn(fields, key)) && Object.entries(fields).every(([key, shape]) => shape(Object.hasOwn(value, key) ? value[key] : undefined));
/** An object of any names. @param {Shape} shape @returns {Shape} */
const names = (shape) => (value) => object(value) && Object.values(value).every(shape);
/** A record whose other fields depend on one of them. @param {string} by @param {Record<string, Record<string, Shape>>} kinds @returns {Shape} */
const kind = (by, kinds) => (value) => object(value) && text(value[by]) && Object.hasOwn(kinds, value[by]) && record({ [by]: text, ...kinds[value[by]] })(value);

const place = { layer: count, position: maybe(count) };
const turned = { kind: text, by: between(0, 4), position: maybe(count) };
const places = list(count, 1);
const ofUnit = { ...turned, layer: count, unit: count, source: maybe(list(count)) };
const ofLayer = { ...turned, layer: count, unit: maybe(count), source: maybe(list(count)) };

const scale = kind("part", {
  layer: ofLayer, attention: ofLayer, feed_forward: ofLayer, head: ofUnit, neuron: ofUnit, expert: ofUnit,
  read: { ...ofUnit, source: places }, word: { ...turned, layer: maybe(count), unit: maybe(count), source: places },
});
const others = kind("kind", {
  ablate_head: { ...place, head: count }, ablate_read: { ...place, head: count, source: count, position: count },
  ablate_attn: place, ablate_mlp: place, ablate_neuron: { ...place, neuron: count }, ablate_expert: { ...place, expert: count },
  knockout: { source: places, queries: maybe(list(count)), layer: maybe(count), head: maybe(count) },
  steer: { ...place, vector: list(finite, 1), strength: finite },
});
/** @type {Shape} */
const edit = (value) => (value?.kind === "scale" ? scale : others)(value);

const marks = { names: given(names(text)), groups: given(list(list(text))), pinned: given(list(text)) };
const seen = {
  text, model: maybe(text), tab: text, layer: maybe(count), head: maybe(count), query: maybe(count), key: maybe(count), position: maybe(count), scene: maybe(text), zoom: maybe(text),
  token: maybe(text), against: maybe(text), edits: list(edit),
};

/** Fields that a shared address restores, in the order in which it says them. @type {Record<string, Shape>} */
export const SHAPES = {
  text, model: text, position: count, layer: count, head: count, query: count, key: count, tab: text, edits: list(edit),
  temperature: between(0, 2), top_k: count, top_p: between(0, 1), min_p: between(0, 1), token: text, against: text,
  unit: among("tokens", "words"), chips: among("tokens", "words"), mode: among("matrix", "arcs"), sort: among("layer", "role"),
  what: among("next", "lens", "attention", "patch"), place: among("stream", "attention", "feed_forward", "heads"),
  other: record({ text: maybe(text), model: maybe(text) }), word: text, contexts: list(text), run: text, plane: (value) => list(text)(value) && [0, 3].includes(value.length),
  beside: text, split: finite, sum: text, marks: record(marks), task: text,
  nodes: record({ ...marks, groups: maybe(list(list(text))), asked: given(yes), share: given(between(0, 1)), by: given(between(0, 2)) }),
  notes: list(record({ at: record(seen), says: text })),
  directions: list(record({ name: text, words: maybe(text), positive: maybe(list(text)), negative: maybe(list(text)), layer: maybe(count), method: maybe(text), position: maybe(text) })),
  table: record({ texts: list(text), metric: among("probability", "logit_difference", "rank", "entropy", "surprise"), token: maybe(text), against: maybe(text) }),
  through: text, lay: list(text), scene: text, zoom: text, lang: text,
};

/** Whether a field stands in an address as it is. @param {string} key */
export const isBare = (key) => bare.has(SHAPES[key]);
