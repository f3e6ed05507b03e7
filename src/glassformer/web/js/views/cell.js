/** One attention cell, from query · key to its effect on a logit, with the real numbers. */

import { h, number, percent, put, s, shown } from "../dom.js";
import { signed } from "../colour.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { fork, grid, track } from "../ui.js";
import { inQuotes, say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const body = h("div", { class: "steps" });
  element.append(body);
  live(body, state, ["text", "model", "edits", "layer", "head", "query", "key", "token", "count"], async (signal) => {
    const [query, key, head] = ["query", "key", "head"].map((k) => state.get(k));
    if (query === null || key === null || head === null || Math.max(query, key) >= state.get("count")) {
      put(body, h("p", { class: "soft small" }, say("cell.choose")));
      return null;
    }
    return source.get("cell", {
      text: state.get("text"), model: state.get("model"), edits: state.get("edits"), layer: state.get("layer"), head, query, key,
    }, { signal });
  }, (data) => { held = data; draw(data); });
  /** @type {any} */
  let held = null;
  // The matrices come after the numbers; a report leaves them out.
  const matrices = h("div", {});
  element.append(matrices);
  /** @type {any} */
  let maps = null;
  if (source.live) {
    live(matrices, state, ["text", "model", "edits", "layer", "head", "query", "key", "count"], async (signal) => {
      const [query, key, head] = ["query", "key", "head"].map((k) => state.get(k));
      maps = null;
      if (query === null || key === null || head === null || Math.max(query, key) >= state.get("count")) return null;
      return source.get("maps", { text: state.get("text"), model: state.get("model"), edits: state.get("edits"), layer: state.get("layer"), head, query, key }, { signal }).catch(() => null);
    }, (found) => { maps = found; if (held) draw(held); }, { always: true });
  }

  /** @param {any} d */
  function draw(d) {
    const tokens = state.get("tokens");
    const who = (/** @type {number} */ i) => inQuotes(shown(tokens[i] ?? ""));
    const half = d.turns.length;
    const angle = (Math.acos(Math.max(-1, Math.min(1, d.cosine))) * 180) / Math.PI;
    put(body,
      h("h3", {}, say("cell.looks", { query: who(d.query), key: who(d.key), layer: d.layer, head: d.head })),
      step(say("cell.columns"), `× W_Q, × W_K: ${d.q.length} × ${d.columns.width}`, "",
        fits(d) ? h("div", { class: "products" }, through(who(d.query), maps.query, "W_Q", "query"), through(who(d.key), maps.key, "W_K", "key"))
          : [line(who(d.query), d.columns.query, d.columns.dims, "× W_Q =", d.q, "query"), line(who(d.key), d.columns.key, d.columns.dims, "× W_K =", d.k, "key")],
        d.columns.dims.length < d.columns.width ? say("cell.drawn", { n: d.columns.dims.length, all: d.columns.width }) : ""),
      half ? h("p", { class: "soft small" }, say("cell.turned", { far: d.query - d.key, from: number(d.turns[0]), to: number(d.turns[half - 1]) })) : null,
      step(say("cell.dot"), "|q| |k| cos angle = Σᵢ qᵢ kᵢ", number(d.dot), h("div", { class: "two cell-two" }, arrows(d, angle), running(d)),
        `${number(d.norms.q)} × ${number(d.norms.k)} × cos ${angle.toFixed(1)}° = ${number(d.norms.q * d.norms.k * d.cosine)}`),
      step(say("cell.softmax"), `${number(d.dot)} × ${number(d.scale)}${d.softcap ? say("cell.capped", { cap: d.softcap }) : ""} = ${d.visible ? number(d.score) : "−∞"}; exp(${d.visible ? number(d.score) : "−∞"} − ${number(d.log_normaliser)})`, percent(d.weight, 2), row(d, tokens),
        d.row_rank === 0 ? say("cell.largest") : say("cell.rank", { n: d.row_rank + 1 })),
      step(say("cell.value"), say("cell.share", { p: percent(d.weight, 2), key: who(d.key) }), say("cell.norm", { x: number(d.write_norm) }), [strip(d.value), strip(d.handed, Math.max(...d.value.map(Math.abs), 1e-12))]),
      step(say("cell.addition"), say("cell.to", { query: who(d.query) }), `${number(d.stream.before)} → ${number(d.stream.after)}`, d.stream.columns ? added(d.stream.columns, d.columns.dims) : null, say("cell.stream", { before: number(d.stream.before), after: number(d.stream.after), angle: ((Math.acos(Math.min(1, d.stream.turned)) * 180) / Math.PI).toFixed(2) })),
      step(say("cell.effectof"), say("cell.logit", { word: who(d.position), unit: d.unit }), `${d.effect >= 0 ? "+" : "−"}${number(Math.abs(d.effect))}`, strip(d.effects)),
    );
  }

  /** A column, what it is multiplied with, and what comes of it. @param {string} name @param {number[]} column @param {number[]} dims @param {string} by @param {number[]} out @param {string} what */
  function line(name, column, dims, by, out, what) {
    return h("div", { class: "product" }, h("span", { class: "mono small" }, name), strip(column, 0, dims), h("span", { class: "mono" }, by), strip(out), h("span", { class: "small soft" }, what));
  }

  /** Whether the matrices that came are this cell's. @param {any} d */
  const fits = (d) => maps && maps.layer === d.layer && maps.head === d.head && state.get("query") === d.query && state.get("key") === d.key;

  /** A column, its matrix, and what comes of it. @param {string} name @param {any} side @param {string} by @param {string} what */
  function through(name, side, by, what) {
    const { shape, data } = unpack(side.matrix);
    const matrix = grid(/** @type {Float32Array} */ (data), shape[0], shape[1], say("cell.matrix", { by, n: shape[0], width: maps.width }));
    matrix.classList.add("map");
    return h("div", { class: "through", "data-apart": side.apart }, h("span", { class: "small strong" }, name), upright(side.stream, maps.dims), h("span", {}, "×"), h("figure", {}, matrix, h("figcaption", { class: "soft small" }, by)), h("span", {}, "="), upright(side.value), h("span", { class: "small soft" }, what));
  }

  /** A column as one. @param {number[]} values @param {number[]|null} [dims] @param {number} [scale] */
  function upright(values, dims = null, scale = 0) {
    const out = strip(values, scale, dims);
    out.classList.add("upright");
    return out;
  }

  /** The stream before, what is added, the stream after: one scale for all three. @param {any} columns @param {number[]} dims */
  function added(columns, dims) {
    const scale = Math.max(...columns.before.map(Math.abs), ...columns.after.map(Math.abs), 1e-12);
    const one = (/** @type {string} */ name, /** @type {number[]} */ values) => h("figure", {}, upright(values, dims, scale), h("figcaption", { class: "soft small" }, name));
    return h("div", { class: "through added" }, one(say("cell.before"), columns.before), h("span", {}, "+"), one(say("cell.this"), columns.write), h("span", {}, "="), one(say("cell.after"), columns.after));
  }

  /** The two arrows in the plane they span. @param {any} d @param {number} angle */
  function arrows(d, angle) {
    const long = 100 / Math.max(d.norms.q, d.norms.k, 1e-9);
    const [x0, y0] = [130, 120];
    const tip = (/** @type {number} */ norm, /** @type {number} */ degrees) => [x0 + norm * long * Math.cos((degrees * Math.PI) / 180), y0 - norm * long * Math.sin((degrees * Math.PI) / 180)];
    const [q, k] = [tip(d.norms.q, 0), tip(d.norms.k, angle)];
    const one = (/** @type {number[]} */ [x, y], /** @type {string} */ name, /** @type {string} */ text) => s("g", { class: name }, s("line", { x1: x0, y1: y0, x2: x, y2: y }), s("circle", { cx: x, cy: y, r: 4 }), s("text", { x: x + (x < x0 ? -6 : 6), y: y - 8, "text-anchor": x < x0 ? "end" : "start" }, text));
    const arc = tip(28 / long, angle);
    return s("svg", { viewBox: "0 0 280 140", class: "arrows", role: "img", "aria-label": say("cell.stand", { angle: angle.toFixed(1) }), "data-angle": angle },
      s("path", { class: "arc", d: `M ${x0 + 28} ${y0} A 28 28 0 0 0 ${arc[0]} ${arc[1]}` }), s("text", { class: "tick", x: x0 + 20, y: y0 + 14 }, `${angle.toFixed(1)}°`),
      one(q, "of-query", `q ${number(d.norms.q)}`), one(k, "of-key", `k ${number(d.norms.k)}`));
  }

  /** The products, added up one after the other. @param {any} d */
  function running(d) {
    let sum = 0;
    const sums = [0, ...d.products.map((/** @type {number} */ p) => (sum += p))];
    const [low, high] = [Math.min(...sums), Math.max(...sums)];
    const y = (/** @type {number} */ v) => 122 - (100 * (v - low)) / (high - low || 1);
    const wide = 260 / d.products.length;
    return s("svg", { viewBox: "0 0 280 140", class: "running", role: "img", "aria-label": say("cell.addup", { n: d.products.length, sum: number(d.dot) }), "data-sum": sum },
      d.products.map((/** @type {number} */ p, /** @type {number} */ i) => s("rect", { x: 8 + i * wide, width: Math.max(0.7, wide - 0.6), y: Math.min(y(sums[i]), y(sums[i + 1])), height: Math.max(1, Math.abs(y(sums[i]) - y(sums[i + 1]))), fill: signed(p >= 0 ? 1 : -1) })),
      s("line", { class: "zero", x1: 4, x2: 272, y1: y(0), y2: y(0) }), s("text", { class: "tick", x: 8, y: 14 }, say("cell.sum", { n: d.products.length, sum: number(sum) })));
  }

  /** The row, from scores to shares. @param {any} d @param {string[]} tokens */
  function row(d, tokens) {
    const { keys, scores, weights, others, rest, later } = d.row;
    const most = Math.max(...scores.map((/** @type {number|null} */ v) => Math.abs(v ?? 0)), 1e-9);
    return h("div", { class: "score-row", role: "list" }, keys.map((/** @type {number} */ key, /** @type {number} */ i) => h("div", { class: key === d.key ? "score this" : "score", role: "listitem", "data-weight": weights[i] },
      h("span", { class: "what mono small" }, shown(tokens[key] ?? "")), fork((scores[i] ?? 0) / most), h("span", { class: "num small" }, scores[i] === null ? "−∞" : number(scores[i])), track(weights[i]), h("span", { class: "num small" }, percent(weights[i])))),
    h("p", { class: "soft small" }, [others ? say("cell.rest", { n: others, p: percent(rest) }) : "", later ? say("cell.masked", { n: later }) : ""].filter(Boolean).join("; ")));
  }

  /** @param {string} name @param {string} formula @param {string} value @param {any} [detail] @param {string} [remark] */
  function step(name, formula, value, detail, remark) {
    return h("div", { class: "step" }, h("div", { class: "row spread" }, h("strong", {}, name), h("span", { class: "mono soft" }, formula), h("span", { class: "num value" }, value)),
      remark ? h("span", { class: "soft small" }, remark) : null, detail ?? null);
  }

  /** One box for each dimension, blue for more and orange for less. @param {number[]} values @param {number} [scale] @param {number[]|null} [dims] */
  function strip(values, scale = 0, dims = null) {
    const largest = scale || Math.max(...values.map(Math.abs), 1e-12);
    const out = h("div", { class: "strip", role: "img", "aria-label": say("cell.dims", { n: values.length, x: number(largest) }) });
    values.forEach((v, i) => {
      const box = h("span", { title: say("cell.dim", { i: dims ? dims[i] : i, x: number(v) }) });
      box.style.setProperty("background", signed(v / largest));
      out.append(box);
    });
    return out;
  }
}
