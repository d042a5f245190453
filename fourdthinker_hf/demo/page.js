// A mental image is shown by a tile in the text and by a mark on the timeline. Both are buttons: pressing one shows the
// panel of that mental image and moves the video there. Without JavaScript all panels are shown.
(() => {
  let shownImage = "1";
  const all = (selector) => document.querySelectorAll(selector);
  const one = (selector) => document.querySelector(selector);
  const player = () => one("#video video");
  const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  const setText = (element, text) => { if (element && element.textContent !== text) element.textContent = text; };
  const scrollTo = (element, block) => element?.scrollIntoView({ block, behavior: isStill() ? "auto" : "smooth" });

  const showImage = () => {
    const panels = [...all(".picture")];
    if (!panels.some((panel) => panel.dataset.picture === shownImage)) shownImage = "1";
    panels.forEach((panel) => { panel.hidden = panel.dataset.picture !== shownImage; });
    all("button[data-image]").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.image === shownImage);
    });
  };

  // Whether the page asks something else by now than what it shows the answer to. Then the answer is dimmed.
  const showStale = () => {
    const asked = one("#answer .asked"), notice = one("#stale");
    if (!asked || !notice) return;
    const [video, question, options] = JSON.parse(asked.dataset.asked);
    const lines = (one("#options textarea")?.value ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
    const isSame = decodeURIComponent(player()?.currentSrc || player()?.src || "").endsWith(video)
      && one("#question :is(textarea, input)")?.value === question && String(lines) === String(options);
    if (notice.hidden === isSame) return;
    notice.hidden = isSame;
    setText(notice, isSame ? "" : notice.dataset.text);
    [one("#answer-column"), one("#timeline")].forEach((part) => part?.classList.toggle("stale", !isSame));
  };

  // What a screen reader is told: what is happening, each sentence of the reasoning, and the answer.
  let numSaid = 0;
  const announce = () => {
    const words = (selector) => one(selector)?.innerText.replace(/\s+/g, " ").trim() ?? "";
    const waiting = words("#answer .waiting"), reasoning = words("#reasoning .reasoning");
    if (one("#answer .finished")) {
      setText(one("#announcer"), ["Answer:", ...["verdict", "how", "truth"].map((name) => words(`#answer .${name}`))].join(" "));
      numSaid = 0;
      return;
    }
    const end = Math.max(...[". ", "! ", "? "].map((mark) => reasoning.lastIndexOf(mark))) + 1;
    if (reasoning.length < numSaid) numSaid = 0;
    if (!waiting || end <= numSaid) return waiting && !reasoning && setText(one("#announcer"), waiting);
    setText(one("#announcer"), reasoning.slice(numSaid, end).trim());
    numSaid = end;
  };

  // After Ask the answer comes into view: what is happening, and once more the finished answer, because the parts above
  // it change their height meanwhile. A visitor who scrolls is left alone.
  let isAsked = false, shownWaiting = false;
  const showAnswer = () => {
    const isFinished = shownWaiting && one("#answer .finished, #answer .notice");
    if (!isAsked || !(isFinished || (!shownWaiting && one("#answer .waiting")))) return;
    isAsked = !isFinished;
    shownWaiting = true;
    const { top, bottom } = one("#answer").getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) one("#answer-column").scrollIntoView({ block: "start" });
  };
  const ask = () => { isAsked = true; shownWaiting = false; };
  ["wheel", "touchmove"].forEach((name) => document.addEventListener(name, () => { isAsked = false; }, { passive: true }));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.closest?.("#question")) ask();
    if (event.key === "Escape" && one("#answer .waiting, #comparison .waiting")) one("#stop")?.click();
  });
  document.addEventListener("input", showStale);

  const startPlayer = () => {
    if (!player() || player().dataset.started) return;
    player().dataset.started = "true";
    player().setAttribute("aria-label", "The video that is asked about");
    player().muted = true;  // browsers start no video with sound by themselves
    if (!isStill()) player().play().catch(() => {});
  };

  // Gradio draws parts of the page anew while an answer grows.
  new MutationObserver(() => [showImage, startPlayer, showStale, showAnswer, announce].forEach((show) => show()))
    .observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ["src"] });

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
    const button = event.target.closest("#ask, button[data-image], button[data-copy]");
    if (!button) return;
    if (button.id === "ask") return ask();
    if (button.dataset.copy !== undefined) {
      await copy(button.dataset.copy);
      button.textContent = "Copied";
      return;
    }
    shownImage = button.dataset.image;
    showImage();
    seek(Number(button.dataset.time));
    scrollTo(one(`.picture[data-picture="${shownImage}"]`), "nearest");
  });

  // A notice for videos that the browser cannot play.
  const setPlayable = (isPlayable) => {
    const notice = one("#unplayable");
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
    const timeline = one(".timeline");
    if (event.target !== player() || !timeline) return;
    const [start, end] = [Number(timeline.dataset.start), Number(timeline.dataset.end)];
    const fraction = (player().currentTime - start) / (end - start || 1);
    timeline.style.setProperty("--playhead", Math.min(1, Math.max(0, fraction)));
  }, true);
})();
