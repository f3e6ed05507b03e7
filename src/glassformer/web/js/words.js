/** The page's words in the reader's language: one folder a language, the same files and keys in each; a room's come with it. */

import { WORDS as PAGE } from "./words/en/page.js";
import { WORDS as STAGE } from "./words/en/stage.js";

/** @typedef {Record<string, string>} Words */

/** @type {Record<string, {name: string, parts: Record<string, () => Promise<Words>>}>} */
export const LANGUAGES = {
  en: { name: "English", parts: {
    page: async () => PAGE,
    stage: async () => STAGE,
    inside: async () => (await import("./words/en/inside.js")).WORDS,
    beside: async () => (await import("./words/en/beside.js")).WORDS,
    learning: async () => (await import("./words/en/learning.js")).WORDS,
    terms: async () => (await import("./words/en/terms.js")).WORDS,
    tour: async () => (await import("./words/en/tour.js")).WORDS,
  } },
  de: { name: "Deutsch", parts: {
    page: async () => (await import("./words/de/page.js")).WORDS,
    stage: async () => (await import("./words/de/stage.js")).WORDS,
    inside: async () => (await import("./words/de/inside.js")).WORDS,
    beside: async () => (await import("./words/de/beside.js")).WORDS,
    learning: async () => (await import("./words/de/learning.js")).WORDS,
    terms: async () => (await import("./words/de/terms.js")).WORDS,
    tour: async () => (await import("./words/de/tour.js")).WORDS,
  } },
};

/** What of each language is here. @type {Record<string, Words>} */
const here = { en: { ...PAGE, ...STAGE } };
const needed = new Set(["page", "stage"]);

let now = "en";

/** @type {Set<() => void>} */
const listeners = new Set();

/** Be told when another language is spoken. @param {() => void} call */
export const onSpoken = (call) => { listeners.add(call); };

/** @returns {string} the language that is spoken */
export const speaking = () => now;

/** The words that are needed, in a language. @param {string} tag */
async function fetched(tag) {
  const { parts } = LANGUAGES[tag];
  const found = await Promise.all([...needed].map((part) => parts[part]()));
  here[tag] = Object.assign({}, here[tag], ...found);
}

/** Have the words of a part of the page. @param {string} part */
export async function need(part) {
  needed.add(part);
  await fetched(now);
}

/** Speak a language from here on. @param {string|null} language a tag such as "de-CH"; one that has no files changes nothing */
export async function speak(language) {
  const tag = (language ?? "").toLowerCase().split("-")[0];
  if (!Object.hasOwn(LANGUAGES, tag) || tag === now) return;
  await fetched(tag);
  if (tag === now) return; // it was asked for twice
  now = tag;
  if (typeof document !== "undefined") document.documentElement.lang = tag;
  for (const call of listeners) call();
}

/** A sentence, its {fields} filled in; {n|one|many} is the former where the field is 1. @param {string} key @param {Record<string, any>} [fields] @returns {string} */
export function say(key, fields = {}) {
  const text = here[now][key] ?? here.en[key] ?? key;
  return text.replace(/\{(\w+)(?:\|([^|}]*)\|([^}]*))?\}/g, (whole, name, one, many) => (!(name in fields) ? whole : many === undefined ? String(fields[name]) : String(fields[name]) === "1" ? one : many));
}

/** A word in the language's quotation marks. @param {string} word */
export const inQuotes = (word) => say("quoted", { word });

/** A sentence that is said again in another language: what `h` takes for a text or an attribute. @param {string} key @param {Record<string, any>} [fields] */
export const said = (key, fields) => () => say(key, fields);
