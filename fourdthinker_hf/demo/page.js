// A mental image is a tile in the text and a mark on the timeline, both buttons; choosing one shows its picture and
// moves the video there. Without scripts all pictures are shown.
(() => {
  let shown = "1";
  const all = (selector) => document.querySelectorAll(selector);
  const film = () => document.querySelector("#video video");
  const apply = () => {  // after whatever Gradio drew anew
    const pictures = [...all(".picture")];
    if (!pictures.some((p) => p.dataset.picture === shown)) shown = "1";
    pictures.forEach((p) => { p.hidden = p.dataset.picture !== shown; });
    all("button[data-image]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.image === shown));
  };
  const seek = (time) => { if (film()?.duration) { film().pause(); film().currentTime = time; } };
  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.body.appendChild(document.createElement("textarea"));  // pages served without TLS
    area.value = text; area.select(); document.execCommand("copy"); area.remove();
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-image], button[data-copy]");
    if (!button) return;
    if (button.dataset.copy !== undefined) { await copy(button.dataset.copy); button.textContent = "Copied"; return; }
    shown = button.dataset.image; apply(); seek(Number(button.dataset.time));
  });
  const playable = (yes) => {
    const notice = document.querySelector("#unplayable");
    if (notice) { notice.hidden = yes; notice.textContent = yes ? "" : notice.dataset.text; }
  };
  document.addEventListener("error", (event) => { if (event.target === film()) playable(false); }, true);
  document.addEventListener("loadedmetadata", (event) => {
    if (event.target === film()) playable(film().videoWidth > 0);
  }, true);
  document.addEventListener("timeupdate", (event) => {
    const line = document.querySelector(".timeline");
    if (event.target !== film() || !line) return;
    const [from, to] = [Number(line.dataset.start), Number(line.dataset.end)];
    const now = Math.min(1, Math.max(0, (film().currentTime - from) / (to - from || 1)));
    line.style.setProperty("--now", now);
  }, true);
  new MutationObserver(apply).observe(document.documentElement, { childList: true, subtree: true });
})();
