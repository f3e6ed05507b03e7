/** A view's cycle: ask when seen, show that it works, cancel what is no longer wanted, say what went wrong. */

import { h, put } from "./dom.js";

/** Those whose answer everything else waits for: what comes next is drawn before the rest is asked. @type {Set<Promise<void>>} */
const urgent = new Set();

/** Once what comes first is answered and drawn; at once where nothing is asked. */
export async function afterFirst() {
  if (!urgent.size) return;
  await Promise.all(urgent);
  // A page out of sight draws nothing.
  await Promise.race([new Promise((done) => requestAnimationFrame(() => setTimeout(done))), new Promise((done) => setTimeout(done, 200))]);
}

/**
 * @param {HTMLElement} element what shows the data
 * @param {import("./store.js").Store} state
 * @param {string[]} keys fields it depends on
 * @param {(signal: AbortSignal, begun: () => void) => Promise<any>} ask `begun` takes away what went wrong before, where work goes on for long
 * @param {(data: any) => void} draw
 * @param {{clear?: () => void, always?: boolean, first?: boolean}} [options] `clear` is called when there is no text any more; with `always` an empty text is asked for too; what is `first` is answered before all others ask
 * @returns {{refresh: (quiet?: boolean) => void, stop: () => void}}
 */
export function live(element, state, keys, ask, draw, { clear, always = false, first = false } = {}) {
  /** @type {AbortController|null} */
  let current = null;
  let seen = false;
  let stale = true;
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  element.before(problem);

  async function run(quiet = false) {
    stale = true;
    current?.abort();
    if (keys.includes("text") && !always && !state.get("text")) {
      // Nothing of a text that is gone stays on the page.
      stale = false;
      problem.hidden = true;
      element.removeAttribute("aria-busy");
      put(element);
      clear?.();
      return;
    }
    if (!seen) {
      problem.hidden = true; // it was of what is no longer asked
      return;
    }
    stale = false;
    const mine = (current = new AbortController());
    if (!quiet) element.setAttribute("aria-busy", "true");
    let answered = () => {};
    const answer = new Promise((/** @type {(value?: any) => void} */ done) => { answered = done; });
    if (first) urgent.add(answer);
    try {
      if (!first && !quiet) {
        await null; // who is first may be told of the change after this one
        await afterFirst();
        if (mine.signal.aborted) return;
      }
      const data = await ask(mine.signal, () => { problem.hidden = true; });
      if (mine.signal.aborted) return;
      problem.hidden = true;
      if (data !== null) draw(data);
    } catch (error) {
      if (mine.signal.aborted) return;
      problem.textContent = error instanceof Error ? error.message : String(error);
      problem.hidden = false;
      stale = true;
      // The server may come back, at this address and with the same key: the text and the view are still here.
      if (["Gone", "authentication_error"].includes(/** @type {any} */ (error).kind)) setTimeout(() => mine === current && run(), 2000);
    } finally {
      urgent.delete(answer);
      answered();
      if (mine === current) element.removeAttribute("aria-busy");
    }
  }

  const off = state.on(keys, () => run());
  const watcher = new IntersectionObserver((entries) => {
    seen = entries[entries.length - 1].isIntersecting;
    if (seen && stale) run();
  }, { rootMargin: "900px" }); // what is below is ready when it is scrolled to
  watcher.observe(element);
  return {
    refresh: run,
    stop() {
      off();
      watcher.disconnect();
      current?.abort();
    },
  };
}
