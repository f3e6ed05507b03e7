/** The page's words in the reader's language: one file a language, the same keys in each; fetched when it is spoken. */

import { EN } from "./words/en.js";

/** @type {Record<string, {name: string, load: () => Promise<Record<string, string>>}>} */
export const LANGUAGES = {
  en: { name: "English", load: async () => EN },
  de: { name: "Deutsch", load: async () => (await import("./words/de.js")).DE },
};

let now = "en";
let words = EN;

/** @returns {string} the language that is spoken */
export const speaking = () => now;

/** Speak a language from here on. @param {string|null} language a tag such as "de-CH"; one that has no file changes nothing @returns {Promise<boolean>} whether another is spoken now */
export async function speak(language) {
  const tag = (language ?? "").toLowerCase().split("-")[0];
  if (!Object.hasOwn(LANGUAGES, tag) || tag === now) return false;
  words = await LANGUAGES[tag].load();
  now = tag;
  return true;
}

/** A sentence, its {fields} filled in. @param {string} key @param {Record<string, any>} [fields] @returns {string} */
export function say(key, fields = {}) {
  const text = words[key] ?? EN[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in fields ? String(fields[name]) : whole));
}
