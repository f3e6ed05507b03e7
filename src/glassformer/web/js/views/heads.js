/** Every head as a thumbnail, by layer or by what it does. */

import { h, hint, percent, put } from "../dom.js";
import { pixels } from "../colour.js";
import { live } from "../live.js";
import { unpack } from "../source.js";
import { segmented } from "../ui.js";
import { say } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** Signs for what heads do; what each does stands in the words' file. @type {Record<string, string>} */
const ROLES = {
  induction: "◆", duplicate: "◇", previous: "◐",
  first: "●", self: "○",
};

/** @param {HTMLElement} element @param {any} source @param {Store} state */
export function mount(element, source, state) {
  const field = h("div", { class: "field", role: "grid", "aria-label": say("heads.grid") });
  const order = segmented(say("heads.order"), [["layer", say("heads.bylayer")], ["role", say("heads.byrole")]], () => state.get("sort"), (name) => state.set({ sort: name }));
  const note = h("p", { class: "soft small", id: "heads-note" }, say("heads.legend.say"));
  element.append(h("div", { class: "row spread" }, h("h3", {}, say("heads.title")), order.element), field, note);

  /** @type {any} */
  let seen = null;
  /** @type {any} */
  let roles = null;
  let begin = () => {};
  /** @type {Promise<void>} */
  const drawn = new Promise((done) => { begin = done; });
  live(field, state, ["text", "model", "edits"], async (signal) => {
    if (!state.get("text")) return null;
    return source.get("thumbnails", { text: state.get("text"), model: state.get("model"), edits: state.get("edits") }, { signal });
  }, (data) => {
    seen = data;
    paint();
    arrange();
    begin();
  }, { clear: () => { seen = null; begin(); } });
  // What heads do is measured on texts of its own, which takes long: after what is looked at.
  live(note, state, ["model"], async (signal) => (await drawn, source.get("heads", { model: state.get("model") }, { signal }).catch(() => null)), (found) => {
    roles = found;
    legend();
    arrange();
  });
  const legend = () => roles && put(note, say("heads.legend.say"), Object.entries(ROLES).map(([name, sign]) => `${sign} ${say(`role.${name}`)}`).join(", "), ".", state.get("edits").length ? ` ${say("heads.unchanged")}` : "");
  state.on(["edits"], legend);

  // All squares are one picture, of which each shows its part: hundreds of canvases would each be a layer of the page.
  const sheet = h("canvas", {});
  let painted = 0;
  let shownAt = "";
  async function paint() {
    const { size, layers, heads } = seen;
    const { data: grey } = unpack(seen.data);
    const table = pixels();
    sheet.width = heads * (size + 2);
    sheet.height = layers * (size + 2);
    const context = sheet.getContext("2d");
    for (let i = 0; i < layers * heads; i++) {
      const image = context.createImageData(size, size);
      const out = new Uint32Array(image.data.buffer);
      for (let j = 0; j < size * size; j++) out[j] = table[grey[i * size * size + j]];
      context.putImageData(image, (i % heads) * (size + 2) + 1, Math.floor(i / heads) * (size + 2) + 1);
    }
    const mine = ++painted;
    /** @type {Blob|null} */
    const blob = await new Promise((done) => sheet.toBlob(done, "image/png"));
    if (!blob || mine !== painted) return;
    const url = URL.createObjectURL(blob);
    const image = new Image();
    image.src = url;
    await image.decode().catch(() => null); // shown when it can be drawn at once, so that nothing blinks
    if (mine !== painted) return URL.revokeObjectURL(url);
    field.style.setProperty("--sheet", `url("${url}")`);
    URL.revokeObjectURL(shownAt);
    shownAt = url;
  }

  /** What a head does, and how clearly. @param {number} layer @param {number} head @returns {[string|null, number]} */
  function role(layer, head) {
    // Marks are of one kind everywhere: measured on sequences of their own. Where that was not done there are none.
    if (!roles || roles.names.length !== seen.layers) return [null, 0];
    const name = roles.names[layer][head];
    return [name, name ? roles.scores[name][layer][head] : 0];
  }

  /** @param {number} layer @param {number} head */
  function thumb(layer, head) {
    const [name, score] = role(layer, head);
    const does = name ? say(`role.${name}`) : "";
    const button = h("button", {
      type: "button", role: "gridcell", class: "thumb", "data-layer": layer, "data-head": head, "aria-label": say("heads.one", { a: layer, b: head, c: does && `, ${does}` }),
      onclick: () => state.set({ layer, head, query: null, key: null }),
    }, name ? h("span", { class: "role", "aria-hidden": "true" }, ROLES[name] ?? "") : null);
    const part = (/** @type {number} */ i, /** @type {number} */ all) => `${(100 * (i * (seen.size + 2) + 1)) / (all * (seen.size + 2) - seen.size)}%`;
    button.style.setProperty("background-position", `${part(head, seen.heads)} ${part(layer, seen.layers)}`);
    return hint(button, () => [say("heads.hint", { a: layer, b: head }), does && `${does}${score && name ? `: ${percent(score)}${roles.null[name] ? say("heads.null", { a: percent(roles.null[name][layer][head]) }) : ""}` : ""}`].filter(Boolean).join("\n"));
  }

  function arrange() {
    if (!seen) return;
    order.reflect();
    const whole = (/** @type {number} */ n) => `${(100 * n * (seen.size + 2)) / seen.size}%`;
    field.style.setProperty("--heads", String(seen.heads));
    field.style.setProperty("--sheet-size", `${whole(seen.heads)} ${whole(seen.layers)}`);
    put(field, state.get("sort") === "role" ? byRole() : Array.from({ length: seen.layers }, (_, layer) => h("div", { role: "row", class: "field-row" },
      h("span", { class: "soft small num", role: "rowheader" }, layer), Array.from({ length: seen.heads }, (_, head) => thumb(layer, head)))));
    mark();
  }

  function byRole() {
    /** @type {Map<string, [number, number, number][]>} */
    const groups = new Map();
    for (let layer = 0; layer < seen.layers; layer++) {
      for (let head = 0; head < seen.heads; head++) {
        const [name, score] = role(layer, head);
        const key = name !== null && name in ROLES ? name : "";
        groups.set(key, [...(groups.get(key) ?? []), [layer, head, score]]);
      }
    }
    const rows = [];
    for (const name of [...Object.keys(ROLES), ""]) {
      const members = groups.get(name);
      if (!members) continue;
      members.sort((a, b) => b[2] - a[2]);
      rows.push(h("div", { role: "row", class: "field-title small" }, h("span", { role: "rowheader" }, `${name ? `${ROLES[name]} ${say(`role.${name}`)}` : say("heads.unclear")} (${members.length})`)));
      for (let i = 0; i < members.length; i += seen.heads) rows.push(h("div", { role: "row", class: "field-row" }, h("span", { "aria-hidden": "true" }), members.slice(i, i + seen.heads).map(([layer, head]) => thumb(layer, head))));
    }
    return rows;
  }

  function mark() {
    for (const one of /** @type {any} */ (field.querySelectorAll(".thumb"))) {
      const here = Number(one.dataset.layer) === state.get("layer") && Number(one.dataset.head) === state.get("head");
      one.setAttribute("aria-selected", String(here));
      one.tabIndex = here ? 0 : -1;
    }
    // With the average of a layer shown no head is chosen, and the field must still be reached by the keyboard.
    if (!field.querySelector(".thumb[tabindex='0']")) field.querySelector(".thumb")?.setAttribute("tabindex", "0");
  }
  field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || !state.get("layers")) return;
    event.preventDefault();
    const layer = Math.max(0, Math.min(state.get("layers") - 1, state.get("layer") + step[0]));
    const head = Math.max(0, Math.min(state.get("heads") - 1, (state.get("head") ?? 0) + step[1]));
    state.set({ layer, head, query: null, key: null });
    /** @type {any} */ (field.querySelector(`[data-layer="${layer}"][data-head="${head}"]`))?.focus();
  });
  state.on(["sort"], arrange);
  state.on(["layer", "head"], mark);
  const recolour = () => seen && paint();
  state.on(["theme"], recolour);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
}
