/** The page put together: header, text, next word, and the rooms beside it. */

import { h, put } from "./dom.js";
import { keys } from "./keys.js";
import { HttpSource } from "./source.js";
import { Store, fromFragment } from "./store.js";
import { mount as attention } from "./views/attention.js";
import { mount as depth } from "./views/depth.js";
import { mount as next } from "./views/next.js";
import { mount as size } from "./views/size.js";
import { mount as tokens } from "./views/tokens.js";
import { mount as why } from "./views/why.js";

export const EXAMPLES = [
  ["Capital", "The capital of France is"],
  ["Mole", "The American shrew mole is a small"],
  ["Avogadro", "One mole of carbon dioxide contains about"],
  ["Bank", "She sat on the bank of the"],
  ["Mary and John", "When Mary and John went to the store, John gave a drink to"],
  ["Repeated", "seven blue window garden kite seven blue window garden"],
  ["Code", "def add(a, b):\n    return"],
];

export const ROOMS = [
  ["attention", "Attention", attention],
  ["depth", "Depth", depth],
  ["why", "Why", why],
  ["size", "Size", size],
];

export const START = {
  text: EXAMPLES[0][1], model: null, position: null, layer: 0, head: 0, query: null, key: null, tab: "attention", edits: [],
  temperature: 1, top_k: 0, top_p: 1, min_p: 0, unit: "tokens", mode: "matrix", token: null, against: null,
  tokens: [], words: [], count: 0, layers: 0, heads: 0, hover: null, prediction: null, theme: "auto",
};

/** @param {HTMLElement} root @param {any} source @param {Store} state */
export function build(root, source, state) {
  const theme = h("button", { type: "button", onclick: () => {
    const order = ["auto", "light", "dark"];
    state.set({ theme: order[(order.indexOf(state.get("theme")) + 1) % 3] });
  } });
  const large = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    const on = document.documentElement.dataset.large !== "true";
    document.documentElement.dataset.large = String(on);
    large.setAttribute("aria-pressed", String(on));
  } }, "Large type");
  const said = h("span", { class: "visually-hidden", role: "status" });
  const share = h("button", { type: "button", onclick: async () => {
    history.replaceState(null, "", state.fragment());
    await navigator.clipboard?.writeText(location.href).catch(() => null);
    share.textContent = "Link copied";
    said.textContent = "A link to this view is in the address bar and on the clipboard.";
    setTimeout(() => (share.textContent = "Share"), 1500);
  } }, "Share");
  const help = h("button", { type: "button", "aria-label": "Keyboard", onclick: () => dialog.showModal() }, "?");
  const dialog = keys(state);
  const reflect = () => {
    const chosen = state.get("theme");
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    theme.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[/** @type {"auto"} */ (chosen)];
    theme.setAttribute("aria-label", `Theme: ${theme.textContent}`);
  };
  state.on(["theme"], reflect);
  reflect();

  const composer = h("section", { class: "panel", "aria-label": "Words in" });
  const left = h("section", { class: "panel left", "aria-label": "Next word" });
  const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Rooms" });
  const right = h("section", { class: "panel", "aria-label": "Inside" }, tabs);
  put(root,
    h("header", { class: "top" }, h("span", { class: "brand" }, h("img", { src: "/web/icon.svg", alt: "" }), h("h1", { class: "brand" }, "Glassformer")), theme, large, share, help, said),
    h("main", {}, composer, h("div", { class: "layout" }, left, right)), dialog);
  composer.append(h("div", { class: "row examples", role: "group", "aria-label": "Examples" }, EXAMPLES.map(([name, text]) =>
    h("button", { type: "button", class: "small", onclick: () => state.set({ text, position: null, edits: [], query: null, key: null, token: null, against: null }) }, name))));
  tokens(composer, source, state);
  next(left, source, state);
  /** @type {Map<string, any>} */
  const panels = new Map();
  for (const [name, label, mount] of ROOMS) {
    tabs.append(h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `room-${name}`, "data-room": name, onclick: () => state.set({ tab: name }) }, label));
    const panel = h("div", { role: "tabpanel", id: `room-${name}`, "aria-labelledby": `tab-${name}`, hidden: true });
    right.append(panel);
    panels.set(/** @type {string} */ (name), { panel, mount, mounted: false });
  }
  tabs.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = ROOMS.map(([n]) => n);
    const to = names[(names.indexOf(state.get("tab")) + step + names.length) % names.length];
    state.set({ tab: to });
    /** @type {any} */ (tabs.querySelector(`[data-room="${to}"]`)).focus();
  });
  const choose = () => {
    for (const button of /** @type {any} */ (tabs.children)) {
      const here = button.dataset.room === state.get("tab");
      button.setAttribute("aria-selected", String(here));
      button.tabIndex = here ? 0 : -1;
    }
    for (const [name, room] of panels) {
      room.panel.hidden = name !== state.get("tab");
      if (!room.panel.hidden && !room.mounted) {
        room.mounted = true;
        room.mount(room.panel, source, state);
      }
    }
  };
  state.on(["tab"], choose);
  choose();
}

const app = document.getElementById("app");
if (app) {
  const state = new Store({ ...START, ...fromFragment(location.hash) });
  build(app, new HttpSource(), state);
  addEventListener("hashchange", () => state.set(fromFragment(location.hash)));
}
