// Keeps relative times true, and puts in the parts of the page that changed. Without it the page is as it was loaded.
"use strict";
(() => {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const words = (seconds) => {
    for (let index = 0; index < units.length; index++) {
      const [size, unit] = units[index];
      const whole = Math.floor(seconds / size);
      if (whole) {
        const lower = units[index + 1];
        const rest = lower && whole < 10 ? Math.floor((seconds % size) / lower[0]) : 0;
        return `${whole} ${unit}` + (rest ? ` ${rest} ${lower[1]}` : "");
      }
    }
    return "0 s";
  };
  const skew = Date.parse(document.body.dataset.now) - Date.now() || 0;
  const tell = () => {
    for (const each of document.getElementsByTagName("time")) {
      const apart = (Date.now() + skew - Date.parse(each.dateTime)) / 1000;
      const text = Math.abs(apart) < 1 ? "now" : apart > 0 ? `${words(apart)} ago` : `in ${words(-apart)}`;
      if (each.textContent !== text) each.textContent = text;
    }
  };

  const waiting = new Map();
  const busy = (part) => {
    const chosen = getSelection();
    const typing = document.activeElement;
    return (!chosen.isCollapsed && part.contains(chosen.anchorNode))
      || (part.contains(typing) && /^(INPUT|SELECT|TEXTAREA)$/.test(typing.tagName));
  };
  const place = (part, html) => {
    const focus = part.contains(document.activeElement) ? document.activeElement : null;
    const kind = focus && ["href", "formaction"].find((name) => focus.hasAttribute(name));
    const open = [...part.querySelectorAll("details")].map((each) => each.open);
    const across = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    part.innerHTML = html; // made by the server, which escapes what is in it
    part.querySelectorAll("details").forEach((each, index) => { if (open[index] !== undefined) each.open = open[index]; });
    part.querySelectorAll(".scroll").forEach((each, index) => { each.scrollLeft = across[index] || 0; });
    if (kind) {
      const again = [...part.querySelectorAll(`[${kind}]`)]
        .find((each) => each.getAttribute(kind) === focus.getAttribute(kind));
      if (again) again.focus({ preventScroll: true });
    }
  };
  const update = () => {
    for (const [name, html] of waiting) {
      const part = document.getElementById(name);
      if (part && busy(part)) continue;
      waiting.delete(name);
      if (part) place(part, html);
    }
    tell();
  };

  const address = document.body.dataset.live;
  const sign = document.getElementById("live");
  let source = null;
  const show = (on) => { if (sign) { sign.hidden = false; sign.classList.toggle("on", on); sign.textContent = on ? "live" : "not connected"; } };
  const listen = () => {
    if (!address || source || document.hidden) return;
    source = new EventSource(address);
    source.onopen = () => show(true);
    source.onmessage = (message) => {
      for (const [name, html] of Object.entries(JSON.parse(message.data))) waiting.set(name, html);
      update();
    };
    source.addEventListener("over", () => { source.close(); location.reload(); });
    source.onerror = () => {
      show(false);
      if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(listen, 5000); }
    };
  };
  const rest = () => { if (source) { source.close(); source = null; } };
  document.addEventListener("visibilitychange", () => { if (document.hidden) rest(); else { update(); listen(); } });
  addEventListener("pagehide", rest);
  addEventListener("pageshow", listen);
  setInterval(() => { if (!document.hidden) update(); }, 1000);
  tell();
  listen();
})();
