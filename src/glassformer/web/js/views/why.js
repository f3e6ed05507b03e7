/** Why: two plain sentences, the paths that carried the prediction, and a dial on everything. */

import { signed } from "../colour.js";
import { h, hint, number, percent, put, s, shown } from "../dom.js";
import { dialOn, editName, sameThing } from "../edits.js";
import { live } from "../live.js";
import { labels } from "../math.js";
import { mount as mountCircuit } from "./circuit.js";
import { mount as mountNodes } from "./prediction.js";
import { mount as mountSteering } from "./steering.js";
import { chance, fork, track, withSign } from "../ui.js";
import { say } from "../words.js";
import { dialOf } from "./turned.js";

/** @typedef {import("../store.js").Store} Store */

/** What is asked for, one after the other: claims at once, then what taking parts away changes, then words. */
const ROUNDS = [{ words: false, parts: 0 }, { words: false, parts: 80 }, { words: true, parts: 400 }];
const MEASURING = ["why.measuring.parts", "why.measuring.words"];

/** An account's gist in two plain sentences. @param {any} g */
function plainly(g) {
  const size = (/** @type {number} */ x) => Math.abs(x).toFixed(2);
  const what = say("why.comes", { token: shown(g.token), p: percent(g.probability) }) + (g.against === null ? "" : say(g.value >= 0 ? "why.more" : "why.fewer", { x: size(g.value), against: shown(g.against) })) + (g.rather === null ? "" : say("why.other", { token: shown(g.rather) }));
  const reads = g.head ? say(g.word ? "why.reads" : "why.most", { layer: g.head.layer, head: g.head.head, from: g.head.from, x: withSign(Number(g.head.adds.toFixed(2))), score: g.value.toFixed(2) }) : "";
  const why = g.word ? say(g.word.change >= 0 ? "why.fall" : "why.rise", { word: g.word.text, x: size(g.word.change) }) + reads : reads || say("why.nothing");
  return `${what}. ${why}.`;
}

/** @param {any} p */
const measured = (p) => p.total ?? p.direct;

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const form = h("form", { class: "row" });
  const token = h("input", { type: "text", size: "10", "aria-label": say("why.token"), placeholder: say("texts.first"), readonly: !source.live });
  const against = h("input", { type: "text", size: "10", "aria-label": say("why.against"), placeholder: say("why.against.say"), readonly: !source.live });
  put(form, h("label", { class: "small" }, say("why.ask"), token), h("label", { class: "small" }, say("why.rather"), against),
    source.live ? [h("button", { type: "submit" }, say("why.explain")), h("span", { class: "soft small" }, say("why.space"))] : null);
  const asked = () => {
    token.value = state.get("token") ?? "";
    against.value = state.get("against") ?? "";
  };
  state.on(["token", "against"], asked);
  asked();
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    state.set({ token: token.value || null, against: against.value || null });
  });
  const effect = h("div", { class: "effect" });
  const body = h("div", { class: "why" });
  const [circuit, steering, nodes] = [h("div", {}), h("div", {}), h("div", {})];
  const neurons = h("div", { class: "neurons", role: "list" });
  const absent = h("p", { class: "small soft", role: "status" });
  element.append(h("h2", {}, say("why.title")), form, h("div", { class: "switched" }, absent, effect), body, steering, nodes, circuit, h("h3", {}, say("why.neurons")),
    h("p", { class: "soft small" }, say("why.neurons.say")), neurons);

  if (source.live || source.holds("graph", { clean: state.get("text"), corrupted: state.get("other").text })) mountCircuit(circuit, source, state);
  if (source.live && !source.embedded) mountSteering(steering, source, state);
  if (source.live) mountNodes(nodes, source, state);

  /** @param {any} edit */
  function switchOff(edit) {
    const list = state.get("edits");
    const same = (/** @type {any} */ e) => sameThing(e, edit);
    const next = list.some(same) ? list.filter((/** @type {any} */ e) => !same(e)) : [...list.filter((/** @type {any} */ e) => !sameThing(e, { ...dialOf(edit), by: e.by })), edit];
    if (!source.live && next.length && !source.holds("effects", { position: state.get("position") ?? -1, edits: next })) {
      absent.textContent = say("why.notheld", { a: editName(edit, state.get("tokens")), command: `glassformer open ${JSON.stringify(state.get("text"))}` });
      return;
    }
    absent.textContent = "";
    state.set({ edits: next });
  }
  /** @param {any} edit what switches it off @param {any} [turned] */
  function knob(edit, turned = edit && dialOf(edit)) {
    if (!turned) return null;
    // A page without a model has the steps that were taken when it was written, of one thing at a time.
    const held = (/** @type {number} */ by) => source.holds("effects", { position: state.get("position") ?? -1, edits: [{ ...turned, by }] });
    if (!source.live && !(edit && held(2))) return null;
    const { input, reflect } = dialOn(state, turned, edit, source.live ? null : 0.5);
    knobs.push(reflect);
    return input;
  }
  /** @type {(() => void)[]} */
  let knobs = [];
  state.on(["edits"], () => { for (const turn of knobs) turn(); });

  const where = () => ({ text: state.get("text"), model: state.get("model"), position: state.get("position") ?? -1 });
  live(effect, state, ["text", "model", "position", "edits"], async (signal) => {
    if (!state.get("edits").length) {
      put(effect);
      return null;
    }
    return source.get("effects", { ...where(), edits: state.get("edits"), top: 8 }, { signal });
  }, (data) => {
    const side = (/** @type {string} */ name, /** @type {any} */ which) => h("div", {}, h("h3", {}, name),
      h("div", { role: "list", "aria-label": name }, which.tokens.slice(0, 8).map((/** @type {any} */ t) => chance(t.token, t.probability))));
    put(effect, h("div", { class: "two" }, side(say("why.before"), data.before), side(say("why.afterwards"), data.after)),
      h("p", { class: "small soft num" }, say("why.kl", { a: number(data.kl), b: data.changed.slice(0, 4).map((/** @type {any} */ c) => `${shown(c.token)} ${percent(c.before)} → ${percent(c.after)}`).join(", ") })));
  });

  // The neurons wait for the first drawing: they would only take its processor.
  /** @type {(value?: any) => void} */
  let begin = () => {};
  let begun = Promise.resolve();
  let most = 16;
  /** @type {any} */
  let held = null;
  live(body, state, ["text", "model", "position", "token", "against"], async (signal) => {
    const ask = { ...where(), token: state.get("token"), against: state.get("against") };
    begun = new Promise((done) => { begin = done; });
    try {
      if (!source.live) return await source.get("why", ask, { signal });
      // What is known first is drawn first.
      for (const [i, round] of ROUNDS.entries()) {
        const found = await source.get("why", { ...ask, ...round }, { signal });
        if (signal.aborted) return null;
        if (i === ROUNDS.length - 1) return found;
        draw(found, say(MEASURING[i]));
      }
      return null;
    } finally {
      begin();
    }
  }, (found) => draw(found), { clear: () => { held = null; begin(); } });

  /** @param {any} d @param {string} [pending] */
  function draw(d, pending = "") {
    held = d;
    begin();
    knobs = [];
    const { tokens } = d;
    const ranked = [...d.parts].sort((a, b) => Math.abs(measured(b)) - Math.abs(measured(a)));
    const largest = Math.max(...ranked.slice(0, 1).map((p) => Math.abs(measured(p))), 1e-9);
    const loudest = Math.max(...d.words.map((/** @type {any} */ w) => Math.abs(w.knocked_out ?? 0)), 1e-9);
    const picture = h("div", { class: "paths" });
    const share = h("output", { class: "small" });
    const many = h("input", { type: "range", min: 4, max: Math.min(25, ranked.length), step: 1, value: most, "aria-label": say("why.drawn"), oninput: () => { most = Number(many.value); paint(); } });
    function paint() {
      const chosen = ranked.slice(0, most);
      const sum = chosen.reduce((/** @type {number} */ x, p) => x + p.claimed, 0);
      const absolute = (/** @type {any[]} */ list) => list.reduce((x, p) => x + Math.abs(p.claimed), 0);
      share.textContent = say("why.share", { a: chosen.length, b: withSign(sum), c: number(d.value), d: percent(absolute(chosen) / Math.max(absolute(d.parts), 1e-9), 0), e: d.parts.length });
      put(picture, paths(d, chosen, largest, switchOff));
    }
    paint();
    put(body,
      h("p", { class: "sentence" }, d.gist ? plainly(d.gist) : d.sentence, " ", pending ? h("span", { class: "soft small", role: "status" }, pending) : null),
      h("div", { class: "halves" }, h("div", {},
      picture, h("div", { class: "row" }, many, share),
      d.words.length ? h("h3", {}, say("why.words")) : null,
      h("div", { class: "chips big" }, d.words.map((/** @type {any} */ w) => {
        const chip = h("button", { type: "button", class: "chip word", disabled: !w.edit, onclick: () => switchOff(w.edit) }, w.word, w.knocked_out === null ? null : h("span", { class: "num small" }, ` ${withSign(w.knocked_out)}`));
        chip.style.setProperty("background", signed((0.6 * (w.knocked_out ?? 0)) / loudest));
        return h("span", { class: "dialled" }, hint(chip, () => [
          w.replaced ? say("why.replaced", { a: number(w.replaced.median), b: number(w.replaced.low), c: number(w.replaced.high) }) : say("why.notreplaced"),
          w.sink ? say("why.sink") : "", say("why.unseen")].filter(Boolean).join("\n")), knob(w.edit));
      }))),
      h("div", {},
      h("h3", {}, say("why.parts")),
      h("div", { class: "waterfall", role: "list" }, ranked.slice(0, 24).map((p) => {
        const x = measured(p);
        return h("div", { role: "listitem", class: "dialled" }, hint(h("button", { type: "button", class: "part", disabled: !p.edit, onclick: () => switchOff(p.edit) },
          h("span", { class: "small" }, partName(p, tokens)), fork(x / largest), h("span", { class: "num small" }, withSign(x))), () => partHint(p, tokens)), knob(p.edit) ?? h("span", { class: "knob" }));
      })))),
      h("details", {}, h("summary", {}, say("why.sum")), fall(d, (layer, part) => knob(null, { kind: "scale", part, layer, position: null }))),
      h("details", { class: "receipt num" }, h("summary", {}, say("receipt")), h("p", {}, d.sentence),
        h("dl", {}, pair(say("why.explained"), `${number(d.value)} (${d.unit})`), pair(say("why.sumof"), number(d.sum)), pair(say("why.residual"), say("why.absolute", { a: d.residual.toExponential(1) })),
          pair(say("why.probability"), percent(d.probability, 2)), pair(say("precision"), d.precision),
          ...Object.entries(d.agreement).filter(([k, v]) => typeof v === "number" && k !== "part").map(([k, v]) => pair(k.replaceAll("_", " "), number(/** @type {number} */ (v)))))),
      h("p", { class: "soft small" }, say("why.count", { a: (d.part_count ?? d.parts.length).toLocaleString(), b: Math.min(24, ranked.length), c: d.words.length ? say("why.times", { a: d.replacements.count, b: d.replacements.seed }) : "" })),
    );
  }
  state.on(["theme", "large"], () => held && draw(held));

  live(neurons, state, ["text", "model", "position", "token", "against"], async (signal) => {
    await begun;
    return signal.aborted ? null : source.get("neurons", { ...where(), token: state.get("token"), against: state.get("against"), top: 12 }, { signal });
  }, (d) => {
    const size = (/** @type {any} */ n) => n.total ?? n.contribution; // a page of one verb holds what each adds
    const most = Math.max(...d.neurons.map((/** @type {any} */ n) => Math.abs(size(n))), 1e-9);
    put(neurons, d.neurons.map((/** @type {any} */ n) => h("div", { role: "listitem", class: "dialled" }, hint(h("button", {
      type: "button", class: "part neuron", disabled: !n.edit, onclick: () => switchOff(n.edit),
    }, h("span", { class: "small" }, say("at.neuronshort", { a: n.layer, b: n.index })), fork(size(n) / most), h("span", { class: "num small" }, withSign(size(n))), h("span", { class: "mono small writes" }, n.raises.map(shown).join(" "))),
    () => say("why.activation", { a: number(n.activation), b: withSign(n.contribution), c: n.raises.map(shown).join(", "), d: n.edit ? say("why.clickoff", { a: number(n.total) }) : "" })), knob(n.edit))),
    h("p", { class: "soft small" }, say("why.all", { a: withSign(d.all), b: number(d.value) })));
  });
  const pair = (/** @type {string} */ k, /** @type {string} */ v) => h("div", {}, h("dt", {}, k), h("dd", {}, v));
}

/** The parts by layer and position: what heads bring from earlier words, and what feed-forward layers add, into one stream. @param {any} d @param {any[]} chosen @param {number} largest @param {(edit: any) => void} act */
function paths(d, chosen, largest, act) {
  const sources = [...new Set([...chosen.map((p) => p.source).filter((x) => x !== null), d.position])].sort((a, b) => a - b);
  const layers = Math.max(1, ...d.layers.map((/** @type {any} */ l) => l.layer ?? 0)) + 1;
  const [width, height, left, bottom, top] = [Math.max(420, 96 * sources.length + 290), 380, 40, 38, 34];
  const home = width - 220;
  const x = (/** @type {number} */ position) => (position === d.position ? home : left + 60 + (sources.indexOf(position) * (home - left - 140)) / Math.max(1, sources.length - 2 || 1));
  const y = (/** @type {number} */ layer) => height - bottom - 14 - ((layer + 0.5) / layers) * (height - bottom - top - 20);
  const token = (/** @type {number} */ i) => { const text = shown(d.tokens[i] ?? ""); return text.length > 11 ? `${text.slice(0, 10)}…` : text; };
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "path-picture", role: "group", "aria-label": say("why.paths", { a: chosen.length, b: chosen[0] ? partName(chosen[0], d.tokens) : "–" }) });
  for (let i = 0; i < layers; i += Math.max(1, Math.ceil(layers / 8))) svg.append(s("text", { class: "tick", x: 8, y: y(i) + 4 }, i));
  svg.append(s("text", { class: "tick", x: 8, y: 16 }, say("stage.layer")));
  for (const position of sources) {
    svg.append(s("line", { class: position === d.position ? "lane-home" : "lane-word", x1: x(position), x2: x(position), y1: height - bottom, y2: top - 8 }),
      s("text", { class: "word", x: x(position), y: height - 12, "text-anchor": "middle" }, token(position)));
  }
  svg.append(s("text", { class: "word strong", x: home, y: 18, "text-anchor": "middle" }, `${shown(d.token)} ${percent(d.probability)}`));
  // The strongest are named first, and a name that would lie over another is left to the hint.
  const spots = labels(width, height);
  /** @type {Map<any, string>} */
  const labelled = new Map();
  for (const p of chosen) {
    const beside = p.source === null || p.source === d.position;
    const text = `${p.kind === "head" ? say("why.headname", { a: p.layer, b: p.head }) : p.kind === "feed_forward" ? say("why.ff", { a: p.layer }) : p.kind.replaceAll("_", " ")} ${withSign(measured(p))}`;
    const [from, wide] = beside ? [home + 86, 7.2 * text.length] : [x(p.source) - 3.6 * text.length, 7.2 * text.length];
    if (Math.abs(measured(p)) > 0.12 * largest && spots.fits(from, y(p.layer ?? -0.5) + (beside ? 8 : 1), wide, 15)) labelled.set(p, text);
  }
  // Thin ones first, so that thick ones lie over them.
  for (const p of [...chosen].reverse()) {
    const v = measured(p);
    const wide = 1 + 13 * Math.sqrt(Math.min(1, Math.abs(v) / largest));
    const layer = p.layer ?? -0.5;
    const from = p.source !== null && p.source !== d.position ? [x(p.source), y(layer) + 10] : [home + 74, y(layer) + 4];
    const to = [home, y(layer) - 6];
    const node = s("g", { class: v >= 0 ? "flow" : "flow against", tabindex: p.edit ? 0 : null, role: p.edit ? "button" : "img", "aria-label": say("why.flow", { a: partName(p, d.tokens), b: withSign(v), c: withSign(p.claimed), d: p.edit ? say("why.off") : "" }), "data-total": v, "data-claimed": p.claimed },
      s("path", { d: `M ${from[0]} ${from[1]} C ${(from[0] + to[0]) / 2} ${from[1]} ${(from[0] + 2 * to[0]) / 3} ${to[1]} ${to[0]} ${to[1]}`, "stroke-width": wide.toFixed(1) }),
      s("circle", { cx: from[0], cy: from[1], r: (3 + wide / 3).toFixed(1) }),
      labelled.has(p) ? s("text", { class: "tick", x: from[0] + (from[0] > home ? 12 : 0), y: from[1] - (from[0] > home ? -4 : 9), "text-anchor": from[0] > home ? "start" : "middle" }, labelled.get(p)) : null);
    if (p.edit) {
      node.addEventListener("click", () => act(p.edit));
      node.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(p.edit); } });
    }
    svg.append(hint(node, () => partHint(p, d.tokens)));
  }
  return svg;
}

/** @param {any} p @param {string[]} tokens */
function partHint(p, tokens) {
  const x = measured(p);
  const kind = p.percentile >= 99.95 ? say("why.largest") : say("why.larger", { a: Math.floor(p.percentile) });
  return say("why.part", { a: partName(p, tokens), b: withSign(p.claimed), c: withSign(p.direct), d: p.total === null ? say("why.notyet") : withSign(p.total), e: kind, f: p.edit ? say("why.click", { a: editName(p.edit, tokens), b: number(x) }) : "" });
}

/** @param {any} p @param {string[]} tokens */
function partName(p, tokens) {
  const from = p.source === null ? "" : say("why.from", { a: shown(tokens[p.source] ?? "") });
  if (p.kind === "head") return say("why.at", { a: p.layer, b: p.head, c: from });
  if (p.layer === null) return p.kind.replaceAll("_", "-") + from;
  return say("why.atpart", { a: p.layer, b: p.kind.replaceAll("_", "-"), c: from });
}

/** From nothing to the number explained: what each layer and each half of it adds, one under the other. @param {any} d @param {(layer: number, part: string) => HTMLElement|null} turn */
function fall(d, turn) {
  let sum = 0;
  const rows = d.layers.filter((/** @type {any} */ l) => l.claimed !== 0).map((/** @type {any} */ l) => ({ ...l, from: sum, to: (sum += l.claimed) }));
  const low = Math.min(0, ...rows.map((/** @type {any} */ r) => r.to));
  const high = Math.max(0, ...rows.map((/** @type {any} */ r) => r.to));
  const at = (/** @type {number} */ v) => (v - low) / (high - low || 1);
  const row = (/** @type {any} */ name, /** @type {number} */ from, /** @type {number} */ to, /** @type {HTMLElement|null} */ dial) => h("div", { class: "dialled", role: "listitem" }, hint(h("div", { class: "part" },
    name, track(Math.abs(at(to) - at(from)), Math.min(at(from), at(to)), signed(to >= from ? 1 : -1)), h("span", { class: "num small" }, withSign(to - from))), () => say("why.adds", { a: withSign(to - from), b: number(to) })), dial);
  return h("div", { class: "waterfall sum", role: "list" }, rows.flatMap((/** @type {any} */ r, /** @type {number} */ i) => {
    const half = row(h("span", { class: "small" }, `${r.layer === null ? "" : `${r.layer} · `}${r.kind.replaceAll("_", "-")}`), r.from, r.to, r.layer !== null && ["attention", "feed_forward"].includes(r.kind) ? turn(r.layer, r.kind) : null);
    if (r.layer === null || rows[i - 1]?.layer === r.layer) return [half];
    const last = rows.filter((/** @type {any} */ other) => other.layer === r.layer).pop();
    return [row(h("strong", { class: "small" }, say("zoom.layer", { layer: r.layer })), r.from, last.to, turn(r.layer, "layer")), half];
  }), h("div", { class: "part" }, h("strong", { class: "small" }, say("values.sum")), track(Math.abs(at(sum) - at(0)), Math.min(at(0), at(sum))), h("strong", { class: "num small" }, number(sum))));
}
