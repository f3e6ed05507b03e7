/** The page's words in the reader's language: one file a language, the same keys in each. */

import { DE } from "./words/de.js";
import { EN } from "./words/en.js";

/** @type {Record<string, {name: string, words: Record<string, string>}>} */
export const LANGUAGES = { en: { name: "English", words: EN }, de: { name: "Deutsch", words: DE } };

let now = "en";

/** @param {string|null} language a tag such as "de-CH"; one that has no file is passed over @returns {string} the one chosen */
export function speak(language) {
  const tag = (language ?? "").toLowerCase().split("-")[0];
  if (Object.hasOwn(LANGUAGES, tag)) now = tag;
  return now;
}

/** A sentence, its {fields} filled in. @param {string} key @param {Record<string, any>} [fields] @returns {string} */
export function say(key, fields = {}) {
  const text = LANGUAGES[now].words[key] ?? EN[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in fields ? String(fields[name]) : whole));
}
