/** The page's words in the reader's language: one file a language, the same keys in each; fetched when it is spoken. */

import { EN } from "./words/en.js";

/** @type {Record<string, {name: string, load: () => Promise<Record<string, string>>}>} */
export const LANGUAGES = {
  en: { name: "English", load: async () => EN },
  de: { name: "Deutsch", load: async () => (await import("./words/de.js")).DE },
};

let now = "en";
let words = EN;

/** @type {Set<() => void>} */
const listeners = new Set();

/** Be told when another language is spoken. @param {() => void} call */
export const onSpoken = (call) => { listeners.add(call); };

/** @returns {string} the language that is spoken */
export const speaking = () => now;

/** Speak a language from here on. @param {string|null} language a tag such as "de-CH"; one that has no file changes nothing */
export async function speak(language) {
  const tag = (language ?? "").toLowerCase().split("-")[0];
  if (!Object.hasOwn(LANGUAGES, tag) || tag === now) return;
  const found = await LANGUAGES[tag].load();
  if (tag === now) return; // it was asked for twice
  [words, now] = [found, tag];
  if (typeof document !== "undefined") document.documentElement.lang = tag;
  for (const call of listeners) call();
}

/** A sentence, its {fields} filled in. @param {string} key @param {Record<string, any>} [fields] @returns {string} */
export function say(key, fields = {}) {
  const text = words[key] ?? EN[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in fields ? String(fields[name]) : whole));
}
