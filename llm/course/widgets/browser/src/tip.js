// The value under the pointer.
import { html } from "./dom.js";

/** Over `target`, show what `words(x, y)` says of a place (both 0 to 1); null hides it. `host` must be inside `.views`. */
export function tip(host, target, words) {
  const box = html("div", { class: "tip", hidden: true });
  target.addEventListener("pointermove", (event) => {
    const rect = target.getBoundingClientRect();
    const x = (event.clientX - rect.left) / rect.width, y = (event.clientY - rect.top) / rect.height;
    const said = x >= 0 && x < 1 && y >= 0 && y < 1 ? words(x, y) : null;
    box.hidden = said === null;
    if (said === null) return;
    box.textContent = said;
    const views = host.closest(".views"), frame = views.getBoundingClientRect();
    if (box.parentNode !== views) views.append(box);
    const left = event.clientX - frame.left + 12;
    box.style.left = `${Math.max(0, Math.min(left, frame.width - box.offsetWidth - 2))}px`;
    box.style.top = `${event.clientY - frame.top + 14}px`;
  });
  target.addEventListener("pointerleave", () => { box.hidden = true; });
}
