/** What scenes and parts ask of a text: its words, and views of it. */

import { plain } from "../dom.js";
import { inQuotes } from "../words.js";

/** @typedef {import("./stage.js").Stage} Stage */

/** A token of the text as a word. @param {Stage} stage @param {number} i */
export const word = (stage, i) => plain(stage.data?.tokens[i]?.text ?? "");

/** Words in quotation marks, each once. @param {string[]} words @param {number} [most] */
export const quoted = (words, most = Infinity) => [...new Set(words.map(plain))].slice(0, most).map((one) => inQuotes(one)).join(", ");

/** Ask a view of the stage's text. @param {Stage} stage @param {string} view @param {Record<string, any>} [more] */
export const ask = (stage, view, more = {}) => stage.source.get(view, { text: stage.state.get("text"), model: stage.state.get("model"), edits: stage.state.get("edits"), ...more });

/** Positions that a scene has room for: the last so many. @param {number} upTo @param {number} most */
export const recent = (upTo, most) => Array.from({ length: Math.min(most, upTo + 1) }, (_, i) => Math.max(0, upTo + 1 - most) + i);
