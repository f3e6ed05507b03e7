/** A page of a site: the others, what the folder holds and how exactly, and what computes the rest. */

import { h } from "../dom.js";
import { say } from "../words.js";

/** @param {{here: string, pages: {file: string, text: string, about: string}[]}} site @param {string} model @param {string} text */
export function gallery(site, model, text) {
  return h("nav", { class: "panel site", "aria-labelledby": "site-title" },
    h("h2", { id: "site-title" }, say("site.title")),
    h("ul", {}, site.pages.map((page) => h("li", {}, page.file === `${site.here}.html` ? h("strong", { "aria-current": "page" }, page.text) : h("a", { href: page.file }, page.text), page.about ? h("span", { class: "soft small" }, page.about) : null))),
    h("p", { class: "soft" }, say("site.held", { model })),
    h("p", { class: "soft" }, say("site.absent"), " ", h("code", {}, `glassformer open ${JSON.stringify(text)}`)));
}
