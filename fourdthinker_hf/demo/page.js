// A mental image is shown by a tile in the text and by a mark on the timeline. Both are buttons: pressing one shows the
// panel of that mental image and moves the video there. Without JavaScript all panels are shown.
(() => {
  let shownImage = "1";
  const all = (selector) => document.querySelectorAll(selector);
  const player = () => document.querySelector("#video video");

  const showImage = () => {
    const panels = [...all(".picture")];
    if (!panels.some((panel) => panel.dataset.picture === shownImage)) shownImage = "1";
    panels.forEach((panel) => { panel.hidden = panel.dataset.picture !== shownImage; });
    all("button[data-image]").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.image === shownImage);
    });
  };
  // Gradio draws parts of the page anew while an answer grows.
  new MutationObserver(showImage).observe(document.documentElement, { childList: true, subtree: true });

  const seek = (seconds) => {
    if (!player()?.duration) return;
    player().pause();
    player().currentTime = seconds;
  };

  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.body.appendChild(document.createElement("textarea"));  // for pages served without TLS
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-image], button[data-copy]");
    if (!button) return;
    if (button.dataset.copy !== undefined) {
      await copy(button.dataset.copy);
      button.textContent = "Copied";
      return;
    }
    shownImage = button.dataset.image;
    showImage();
    seek(Number(button.dataset.time));
  });

  // A notice for videos that the browser cannot play.
  const setPlayable = (isPlayable) => {
    const notice = document.querySelector("#unplayable");
    if (!notice) return;
    notice.hidden = isPlayable;
    notice.textContent = isPlayable ? "" : notice.dataset.text;
  };
  document.addEventListener("error", (event) => {
    if (event.target === player()) setPlayable(false);
  }, true);
  document.addEventListener("loadedmetadata", (event) => {
    if (event.target === player()) setPlayable(player().videoWidth > 0);
  }, true);

  // The line on the timeline that follows the player.
  document.addEventListener("timeupdate", (event) => {
    const timeline = document.querySelector(".timeline");
    if (event.target !== player() || !timeline) return;
    const [start, end] = [Number(timeline.dataset.start), Number(timeline.dataset.end)];
    const fraction = (player().currentTime - start) / (end - start || 1);
    timeline.style.setProperty("--playhead", Math.min(1, Math.max(0, fraction)));
  }, true);
})();
