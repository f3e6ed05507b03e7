/** The arithmetic of sampling, on the model's own logits: what the sliders change needs no new forward. */

/**
 * From raw logits to the distribution that is sampled from.
 * @param {Float32Array} logits
 * @param {{temperature: number, top_k: number, top_p: number, min_p: number}} how 0, 1 and 0 switch the cuts off
 * @returns {{raw: Float64Array, tempered: Float64Array, final: Float64Array, kept: number, mass: number, order: Uint32Array}}
 */
export function sampling(logits, how) {
  const raw = softmax(logits, 1);
  const order = sorted(logits);
  const tempered = how.temperature === 1 ? raw : how.temperature > 0 ? softmax(logits, how.temperature) : onlyFirst(raw.length, order[0]);
  let kept = raw.length;
  if (how.top_k > 0) kept = Math.min(kept, how.top_k);
  if (how.top_p < 1) {
    let sum = 0;
    let count = 0;
    let whole = 0;
    for (let i = 0; i < kept; i++) whole += tempered[order[i]];
    while (count < kept && sum < how.top_p * whole) sum += tempered[order[count++]];
    kept = Math.max(1, count);
  }
  if (how.min_p > 0) {
    const least = how.min_p * tempered[order[0]];
    let count = 0;
    while (count < kept && tempered[order[count]] >= least) count++;
    kept = Math.max(1, count);
  }
  let mass = 0;
  for (let i = 0; i < kept; i++) mass += tempered[order[i]];
  const final = new Float64Array(raw.length);
  for (let i = 0; i < kept; i++) final[order[i]] = tempered[order[i]] / mass;
  return { raw, tempered, final, kept, mass, order };
}

/** @param {ArrayLike<number>} logits @param {number} temperature */
export function softmax(logits, temperature) {
  let top = -Infinity;
  for (let i = 0; i < logits.length; i++) if (logits[i] > top) top = logits[i];
  const out = new Float64Array(logits.length);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += out[i] = Math.exp((logits[i] - top) / temperature);
  for (let i = 0; i < out.length; i++) out[i] /= sum;
  return out;
}

/** Ids, the largest logit first; of equals the smaller id first. @param {ArrayLike<number>} logits */
export function sorted(logits) {
  const bits = new Uint32Array(Float32Array.from(logits).buffer);
  // One number that sorts as both do, by the machine's own order: the logit's bits, turned so that they fall, then the id.
  const keys = new Float64Array(bits.length);
  for (let i = 0; i < bits.length; i++) keys[i] = (bits[i] >>> 31 ? bits[i] : ~bits[i] & 0x7fffffff) * IDS + i;
  keys.sort();
  return Uint32Array.from(keys, (key) => key % IDS);
}

/** More tokens than any vocabulary has; a logit's 32 bits and one of them fit into a number. */
const IDS = 2 ** 21;

/** @param {number} length @param {number} id */
function onlyFirst(length, id) {
  const out = new Float64Array(length);
  out[id] = 1;
  return out;
}

/** In nats. @param {Float64Array} p */
export function entropy(p) {
  let sum = 0;
  for (const x of p) if (x > 0) sum -= x * Math.log(x);
  return sum;
}

/**
 * Places for the texts of a picture, none over another: what fits is kept free from then on.
 * @param {number} width of the picture @param {number} height
 */
export function labels(width, height) {
  /** @type {[number, number, number, number][]} */
  const taken = [];
  /** Places that lines pass: kept free where there is room elsewhere. @type {[number, number][]} */
  const passed = [];
  const meets = (/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ w, /** @type {number} */ h) => taken.some(([a, b, c, d]) => x < a + c && a < x + w && y < b + d && b < y + h);
  /** Whether a box is free; it is taken then. @param {number} x its left edge @param {number} y its upper edge @param {number} w @param {number} h */
  const fits = (x, y, w, h) => !meets(x, y, w, h) && Boolean(taken.push([x, y, w, h]));
  /** A line through points, which names do not lie on. @param {number[][]} points */
  const line = (points) => points.slice(1).forEach(([x2, y2], i) => {
    const [x1, y1] = points[i];
    const steps = Math.max(1, Math.ceil(Math.hypot(x2 - x1, y2 - y1) / 3));
    for (let k = 0; k <= steps; k++) passed.push([x1 + ((x2 - x1) * k) / steps, y1 + ((y2 - y1) * k) / steps]);
  });
  /** The middle of the free box that is nearest to a point outside a circle round it. @param {number} x @param {number} y @param {number} radius @param {number} w @param {number} h @returns {[number, number]} */
  const near = (x, y, radius, w, h) => {
    for (const aside of passed.length ? [true, false] : [false]) {
      for (let far = radius; far < radius + 90; far += 6) {
        for (const turn of [0, 4, 6, 2, 7, 1, 5, 3]) {
          const [dx, dy] = [Math.cos((turn * Math.PI) / 4), Math.sin((turn * Math.PI) / 4)];
          const [cx, cy] = [x + dx * (far + w / 2), y + dy * (far + h / 2)];
          if (cx < w / 2 || cx > width - w / 2 || cy < h / 2 || cy > height - h / 2) continue;
          if (aside && passed.some(([a, b]) => Math.abs(a - cx) < w / 2 + 1 && Math.abs(b - cy) < h / 2 + 1)) continue;
          if (fits(cx - w / 2, cy - h / 2, w, h)) return [cx, cy];
        }
      }
    }
    return [Math.max(w / 2, Math.min(width - w / 2, x)), Math.max(h / 2, Math.min(height - h / 2, y))];
  };
  return { fits, line, near };
}
