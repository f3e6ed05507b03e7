/** The page put together: header, text, next word, and the rooms beside it. */

import { h, put } from "./dom.js";
import { bar, carried, editName } from "./edits.js";
import { keys } from "./keys.js";
import { chooser } from "./models.js";
import { notes } from "./notes.js";
import { HttpSource } from "./source.js";
import { about } from "./stage/site.js";
import { mount as mountStage } from "./stage/stage.js";
import { Store, fromFragment } from "./store.js";
import { history as pastAndFile, listening, tools } from "./tools.js";
import { segmented } from "./ui.js";
import { need, onSpoken, said as spoken, say, speak } from "./words.js";
import { mount as next } from "./views/next.js";
import { mount as tokens } from "./views/tokens.js";

/** @type {[string, string][]} */
export const EXAMPLES = [
  ["capital", "The capital of France is"],
  ["mole", "The American shrew mole is a small"],
  ["avogadro", "One mole of carbon dioxide contains about"],
  ["bank", "She sat on the bank of the"],
  ["mary", "When Mary and John went to the store, John gave a drink to"],
  ["repeated", "seven blue window garden kite seven blue window garden"],
  ["code", "def add(a, b):\n    return"],
];

/** The rooms and whose words they speak; what draws one is fetched when it is opened. @type {[string, string, () => Promise<(element: HTMLElement, source: any, state: Store) => void>][]} */
export const ROOMS = [
  ["attention", "inside", async () => (await import("./views/attention.js")).mount],
  ["depth", "inside", async () => (await import("./views/depth.js")).mount],
  ["why", "inside", async () => (await import("./views/why.js")).mount],
  ["facts", "inside", async () => (await import("./views/facts.js")).mount],
  ["compare", "beside", async () => (await import("./views/compare.js")).mount],
  ["texts", "beside", async () => (await import("./views/texts.js")).mount],
  ["vectors", "beside", async () => (await import("./views/vectors.js")).mount],
  ["meaning", "beside", async () => (await import("./views/meaning.js")).mount],
  ["learning", "learning", async () => (await import("./views/learning.js")).mount],
  ["size", "beside", async () => (await import("./views/size.js")).mount],
];

export const START = {
  text: EXAMPLES[0][1], model: null, modelName: null, position: null, layer: 0, head: 0, query: null, key: null, tab: "attention", edits: [],
  temperature: 1, top_k: 0, top_p: 1, min_p: 0, unit: "tokens", chips: "tokens", mode: "matrix", sort: "layer", token: null, against: null,
  tokens: [], words: [], ends: [], count: 0, layers: 0, heads: 0, experts: [], hover: null, hoverQuery: null, prediction: null, theme: "auto", large: false, tour: null,
  other: { text: "The capital of Italy is", model: null }, what: "next", place: "stream",
  word: "mole", contexts: ["The American shrew mole", "One mole of carbon dioxide", "Take a biopsy of the mole"], run: null, stepAsked: 0, beside: null, split: 0.5, plane: [], sum: "king - man + woman",
  scene: null, zoom: null, marks: null, task: null, nodes: null, circuitAsked: false, reasonAgainst: null, notes: [], kept: true, directions: [],
  table: { texts: ["The capital of France is", "The capital of Italy is", "The capital of Japan is", "The capital of Spain is"], metric: "entropy", token: null, against: null }, lang: null, stageShare: 0.1,
};

/** What makes pictures and saves files, fetched when the first is wanted. */
const pictures = async () => await import("./picture.js");

/** Milliseconds that a room waits for the stage at most: that of a long text takes its time. */
const PATIENCE = 2500;

/** @param {HTMLElement} root @param {any} source @param {Store} state */
export function build(root, source, state) {
  const language = () => speak(state.get("lang") ?? navigator.language);
  state.on(["lang"], language);
  language();
  const alone = source.live && !source.embedded;
  listening(source);
  const rooms = ROOMS.filter(([name]) => (source.rooms ? source.rooms.includes(name) : true));
  if (!rooms.some(([name]) => name === state.get("tab"))) state.set({ tab: rooms[0][0] });
  const said = h("span", { class: "visually-hidden", role: "status" });
  const { button: model, dialog: models, checkpoints } = chooser(source, state);
  /** @type {Promise<{start: () => void, card: HTMLElement}>|null} */
  let walk = null;
  const walked = async () => {
    const [{ tour }] = [await import("./tour.js"), await need("tour")];
    const found = tour(state);
    root.append(found.card);
    return found;
  };
  const dialog = keys(state, rooms.map(([name]) => name));
  const theme = segmented(spoken("head.theme"), [["auto", spoken("head.auto")], ["light", spoken("head.light")], ["dark", spoken("head.dark")]], () => state.get("theme"), (name) => state.set({ theme: name }));
  const large = h("button", { type: "button", onclick: () => state.set({ large: !state.get("large") }) }, spoken("head.large"));
  const share = h("button", { type: "button", onclick: async () => {
    history.replaceState(null, "", state.fragment());
    await navigator.clipboard?.writeText(location.href).catch(() => null);
    tell(share, say("head.copied"), say("head.copied.say"));
  } }, spoken("head.copy"));
  const image = h("button", { type: "button", onclick: async () => {
    const panel = /** @type {HTMLElement} */ (panels.get(state.get("tab")).panel);
    try {
      const edits = state.get("edits").map((/** @type {any} */ edit) => editName(edit, state.get("tokens")));
      const { picture, save } = await pictures();
      save(await picture(panel, edits.length ? say("head.changed", { a: edits.join("; ") }) : ""), `glassformer-${state.get("tab")}.png`);
      tell(image, say("head.imaged"), say("head.imaged.say"));
    } catch (error) {
      refuse(image, say("head.noimage"), error);
    }
  } }, spoken("head.image"));
  const report = h("button", { type: "button", onclick: async () => {
    report.setAttribute("aria-busy", "true");
    try {
      const { save } = await pictures();
      save(await source.report(wished()), "glassformer-report.html");
      tell(report, say("head.reported"), say("head.reported.say"));
    } catch (error) {
      refuse(report, say("head.noreport"), error);
    }
    report.removeAttribute("aria-busy");
  } }, spoken("head.report"));
  /** The text, and what was laid beside it in the rooms that were opened. */
  function wished() {
    const [other, position] = [state.get("other"), state.get("position")];
    const seen = (/** @type {string} */ room) => panels.get(room)?.mounted;
    return {
      text: state.get("text"), model: state.get("model"), edits: state.get("edits"), position: position ?? -1, token: state.get("token"), against: state.get("against"),
      other: seen("compare") && (other.text !== state.get("text") || other.model) ? other : null,
      word: seen("meaning") && state.get("contexts").length > 1 ? state.get("word") : null, contexts: state.get("contexts"), learning: seen("learning"),
      state: { tab: state.get("tab"), layer: state.get("layer"), head: state.get("head"), sort: state.get("sort"), what: state.get("what"), place: state.get("place") },
    };
  }
  /** What buttons are called that say something else for a moment. @type {Map<HTMLElement, Node[]>} */
  const labels = new Map();
  /** @param {HTMLElement} button @param {string} short @param {string} long */
  function tell(button, short, long) {
    const before = labels.get(button) ?? [...button.childNodes];
    labels.set(button, before);
    button.textContent = short;
    said.textContent = long;
    setTimeout(() => button.replaceChildren(...before), 1800);
  }
  const notice = h("p", { class: "problem", role: "alert", hidden: true });
  /** @param {HTMLElement} button @param {string} short @param {unknown} error */
  function refuse(button, short, error) {
    tell(button, short, "");
    notice.textContent = `${short}: ${error instanceof Error ? error.message : error}`;
    notice.hidden = false;
    setTimeout(() => (notice.hidden = true), 15_000);
  }
  /** @type {HTMLDialogElement|null} */
  let found = null;
  const find = h("button", { type: "button", id: "find", title: spoken("head.find.say"), onclick: async () => {
    found ??= (await import("./finder.js")).finder(source, state);
    if (!found.isConnected) root.append(found);
    found.dispatchEvent(new Event("begin"));
    found.showModal();
  } }, spoken("head.find"));
  const noted = notes(state);
  const help = h("button", { type: "button", "aria-label": spoken("keys.title"), onclick: () => dialog.showModal() }, "?");
  const tourButton = h("button", { type: "button", id: "take-tour", onclick: async () => (await (walk ??= walked())).start() }, spoken("head.tour"));
  const reflect = () => {
    const chosen = state.get("theme");
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    document.documentElement.dataset.large = String(state.get("large"));
    large.setAttribute("aria-pressed", String(state.get("large")));
    theme.reflect();
  };
  state.on(["theme", "large"], reflect);
  reflect();

  const composer = h("section", { class: "panel words", "aria-label": spoken("head.words") });
  const left = h("section", { class: "panel left", "aria-label": spoken("next.title") });
  // A report or a notebook has a stage where its source holds one.
  const stage = !source.rooms || source.rooms.includes("stage") ? h("section", { class: "panel stage-room" }) : null;
  const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": spoken("head.rooms") });
  const beside = h("select", { "aria-label": spoken("head.second"), onchange: () => state.set({ beside: beside.value || null }) },
    h("option", { value: "" }, spoken("head.nothing")), rooms.map(([name]) => h("option", { value: name }, spoken(`room.${name}`))));
  const shelf = h("div", { class: "rooms" });
  shelf.append(splitter(state, shelf));
  const right = h("section", { class: "panel", "aria-label": spoken("head.inside") }, tabs, h("div", { class: "tool-rows" }, h("div", { class: "row tool-row" }, h("label", { class: "small" }, spoken("head.beside"), beside), noted.button), tools(source, state, () => panels.get(state.get("tab")).panel)), noted.list);
  put(root,
    h("header", { class: "top" }, h("div", { class: "brand" }, logo(), h("h1", {}, "Glassformer")), alone ? [checkpoints, model] : h("span", { class: "soft" }, source.title ?? ""),
      h("div", { class: "row tools" }, alone ? [tourButton, find] : null, alone ? [pastAndFile(state, fromFragment), share] : null, image, alone ? report : null, theme.element, large, help), said), notice,
    bar(source, state),
    h("main", {}, composer, stage, source.held ? about(source, state.get("text")) : null, h("div", { class: "layout" }, left, right)), dialog, alone ? models : null);
  if (alone) {
    composer.append(h("div", { class: "row examples", role: "group", "aria-label": spoken("head.examples") }, EXAMPLES.map(([name, text]) =>
      h("button", { type: "button", class: "small", onclick: () => state.set({ text, position: null, edits: carried(state.get("edits")), query: null, key: null, token: null, against: null }) }, spoken(`example.${name}`)))));
  }
  tokens(composer, source, state);
  const drawn = stage ? mountStage(stage, source, state, { rooms: rooms.map(([name]) => name) }).first : Promise.resolve();
  next(left, source, state);
  /** @type {Map<string, any>} */
  const panels = new Map();
  for (const [name, words, drawing] of rooms) {
    const fetched = async () => (await Promise.all([drawing(), need(words)]))[0];
    const near = () => { fetched().catch(() => null); }; // it is here by the time of the click
    tabs.append(h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `room-${name}`, "data-room": name, onclick: () => state.set({ tab: name }), onpointerenter: near, onfocus: near }, spoken(`room.${name}`)));
    const panel = h("div", { role: "tabpanel", id: `room-${name}`, "aria-labelledby": `tab-${name}`, hidden: true });
    shelf.append(panel);
    panels.set(name, { panel, fetched, mounted: false, end: null });
  }
  right.append(shelf);
  tabs.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = rooms.map(([n]) => n);
    const to = names[(names.indexOf(state.get("tab")) + step + names.length) % names.length];
    state.set({ tab: to });
    /** @type {any} */ (tabs.querySelector(`[data-room="${to}"]`)).focus();
  });
  /** Fetch what draws a room, and draw it. @param {any} room */
  async function furnish(room) {
    room.mounted = true;
    room.panel.setAttribute("aria-busy", "true");
    try {
      const [mount] = await Promise.all([room.fetched(), language()]);
      await Promise.race([drawn, new Promise((done) => setTimeout(done, PATIENCE))]); // the first picture has the processor to itself
      put(room.panel);
      room.end = state.together(() => mount(room.panel, source, state));
      await seen(); // it is busy until its views have been told that they are in sight
    } catch (error) {
      room.mounted = false;
      put(room.panel, h("p", { class: "problem", role: "alert" }, say("head.unfetched", { a: error instanceof Error ? error.message : error })));
    }
    room.panel.removeAttribute("aria-busy");
  }
  const choose = () => {
    if (!panels.has(state.get("tab"))) return state.set({ tab: rooms[0][0] });
    for (const button of /** @type {any} */ (tabs.children)) {
      const here = button.dataset.room === state.get("tab");
      button.setAttribute("aria-selected", String(here));
      button.tabIndex = here ? 0 : -1;
    }
    beside.value = state.get("beside") ?? "";
    shelf.classList.toggle("beside", panels.has(state.get("beside")) && state.get("beside") !== state.get("tab"));
    for (const [name, room] of panels) {
      const second = name === state.get("beside") && name !== state.get("tab");
      room.panel.hidden = name !== state.get("tab") && !second;
      room.panel.classList.toggle("second", second);
      if (second) shelf.append(room.panel); // after the one that was chosen
      if (!room.panel.hidden && !room.mounted) furnish(room);
    }
  };
  state.on(["tab", "beside"], choose);
  choose();
  drawn.then(async () => (await import("./terms.js")).explain(root, dialog)).catch(() => null); // the page is whole without them
  onSpoken(() => {
    for (const room of panels.values()) {
      if (!room.end) continue; // not drawn yet: it will speak the language that is spoken then
      room.end();
      [room.end, room.mounted] = [null, false];
    }
    choose();
  });
}

/** What stands between two rooms and is drawn to one side, or moved by the arrow keys. @param {Store} state @param {HTMLElement} shelf */
function splitter(state, shelf) {
  const to = (/** @type {number} */ share) => state.set({ split: Math.round(100 * Math.max(0.2, Math.min(0.8, share))) / 100 });
  const bar = h("div", { class: "splitter", role: "separator", tabindex: "0", "aria-orientation": "vertical", "aria-valuemin": 20, "aria-valuemax": 80, "aria-label": spoken("head.split"),
    onpointerdown: (/** @type {PointerEvent} */ event) => bar.setPointerCapture(event.pointerId),
    onpointermove: (/** @type {PointerEvent} */ event) => {
      if (!bar.hasPointerCapture(event.pointerId)) return;
      const box = shelf.getBoundingClientRect();
      to((event.clientX - box.left) / box.width);
    },
    ondblclick: () => to(0.5),
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      const by = { ArrowLeft: -0.05, ArrowRight: 0.05 }[event.key];
      if (!by) return;
      event.preventDefault();
      to(state.get("split") + by);
    } });
  const reflect = () => {
    const share = Math.max(0.2, Math.min(0.8, state.get("split") ?? 0.5));
    bar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    shelf.style.setProperty("--first", `${share}fr`);
    shelf.style.setProperty("--second", `${1 - share}fr`);
  };
  state.on(["split"], reflect);
  reflect();
  return bar;
}

/** After the next two frames, or soon where none is drawn. */
const seen = () => new Promise((done) => { setTimeout(done, 200); requestAnimationFrame(() => requestAnimationFrame(done)); });

/** The mark: a small field of attention. */
function logo() {
  const mark = h("span", { class: "logo", "aria-hidden": "true" });
  for (let i = 0; i < 9; i++) mark.append(h("span", {}));
  return mark;
}

const KEPT = "glassformer";

/** What this tab showed before it was loaded again. @returns {string|null} */
function remembered() {
  try {
    const held = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    return typeof held?.view === "string" && (held.address === location.hash || !location.hash) ? held.view : null;
  } catch {
    return null; // a browser that keeps nothing for the page
  }
}

/** The app in the page that the server sends. */
export function app() {
  const root = document.getElementById("app");
  if (!root) return;
  const state = new Store({ ...START, ...fromFragment(remembered() ?? location.hash) });
  build(root, new HttpSource(), state);
  addEventListener("hashchange", () => state.set(fromFragment(location.hash)));
  // Loaded again, the page shows what it showed, unless its address was changed.
  let timer = 0;
  state.on(null, () => {
    clearTimeout(timer);
    timer = window.setTimeout(() => {
      try {
        sessionStorage.setItem(KEPT, JSON.stringify({ address: location.hash, view: state.fragment() }));
        state.set({ kept: true });
      } catch {
        state.set({ kept: false }); // forbidden, or longer than the browser keeps
      }
    }, 150);
  });
}
