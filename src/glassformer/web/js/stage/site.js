/** What a page without a model says of itself: what it holds and how exactly, what computes the rest, and a site's other texts. */

import { h } from "../dom.js";
import { said, say } from "../words.js";

/** @typedef {{here: string, pages: {file: string, text: string, about: string}[]}} Site */

/** @param {{title: string, rooms: string[], site: Site|null, held: Record<string, number>}} source @param {string} text */
export function about(source, text) {
  const { site, title, rooms, held } = source;
  const names = () => rooms.filter((room) => room !== "stage").map((room) => say(`room.${room}`)).join(", ");
  const others = (/** @type {Site} */ of) => [h("h2", {}, said("site.title")),
    h("ul", {}, of.pages.map((page) => h("li", {}, page.file === `${of.here}.html` ? h("strong", { "aria-current": "page" }, page.text) : h("a", { href: page.file }, page.text), page.about ? h("span", { class: "soft small" }, page.about) : null)))];
  return h("nav", { class: "panel site", "aria-label": said(site ? "site.page" : "site.report") },
    site ? others(site) : null, h("h2", {}, said(site ? "site.page" : "site.report")),
    h("p", { class: "soft" }, () => say("site.held", { model: title, rooms: names() }), " ", () => say("site.parts", held), " ", said("site.absent"), " ", h("code", {}, `glassformer open ${JSON.stringify(text)}`)));
}
