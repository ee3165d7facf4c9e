"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const total = data.steps.length;
  const seconds = (value) => (value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(2)} s`);
  const elapsed = [0];
  const filled = [0];
  for (const step of data.steps) {
    elapsed.push(elapsed.at(-1) + step.seconds);
    filled.push(filled.at(-1));
  }
  for (const token of data.tokens) {
    if (token.step >= 0) for (let k = token.step + 1; k <= total; k++) filled[k]++;
  }

  // --- the text ----------------------------------------------------------------------------------------------------

  /** A span per token; white space before a word stands outside of it. */
  const spans = data.tokens.map((token, index) => {
    const word = token.text.trimStart();
    const space = token.text.slice(0, token.text.length - word.length);
    const sign = word || (token.text === "" ? "\u00b7" : token.text.includes("\n") ? "\u21b5" : "\u2423");
    const span = element("span", { className: word && !token.special ? "token" : "token mark", textContent: sign });
    span.dataset.index = index;
    span.style.setProperty("--shade", token.shade);
    span.style.setProperty("--order", total > 1 ? Math.max(token.step, 0) / (total - 1) : 0);
    // A line break stands behind its sign, a space before its word.
    byId("text").append(...(word ? [space, span] : [span, space]));
    if (token.special) byId("text").append(element("wbr"));
    return span;
  });

  const describe = (index) => {
    const token = data.tokens[index];
    const when = token.step < 0 ? "still open" : `step ${token.step}, confidence ${token.confidence?.toFixed(3) ?? "unknown"}`;
    return `Token ${index} (id ${token.id}) ${JSON.stringify(token.text)}: ${when}`;
  };
  const chooseToken = (event) => {
    const span = event.target.closest(".token");
    if (!span) return;
    document.querySelector(".token.chosen")?.classList.remove("chosen");
    span.classList.add("chosen");
    byId("token").textContent = describe(Number(span.dataset.index));
  };
  byId("text").addEventListener("pointerover", chooseToken);
  byId("text").addEventListener("click", chooseToken);

  // --- the steps ---------------------------------------------------------------------------------------------------

  const slider = byId("slider");
  const bars = byId("bars");
  let now = total; // steps done: 0 ... total
  let timer = null;

  const longest = Math.max(...data.steps.map((step) => step.seconds), 1e-9);
  bars.setAttribute("viewBox", `0 0 ${Math.max(total, 1)} 100`);
  const rectangles = data.steps.map((step, index) => {
    const height = Math.max((97 * step.seconds) / longest, 2);
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: index + 0.06, y: 100 - height, width: 0.88, height, fill: data.colours[step.phase] };
    for (const [name, value] of Object.entries(place)) bar.setAttribute(name, value);
    bars.append(bar);
    return bar;
  });

  /** Scrolls the text so far that the newest token is in sight. */
  const followNew = () => {
    const text = byId("text");
    const newest = [...text.querySelectorAll(".token.new")].at(-1);
    if (!newest) return;
    const top = newest.offsetTop - text.offsetTop;
    if (top < text.scrollTop || top + newest.offsetHeight > text.scrollTop + text.clientHeight) {
      text.scrollTop = top - text.clientHeight / 2;
    }
  };

  const show = (k, announce = false) => {
    now = Math.min(Math.max(k, 0), total);
    const step = data.steps[now - 1];
    slider.value = now;
    data.tokens.forEach((token, i) => {
      const open = token.step < 0 || token.step >= now;
      spans[i].classList.toggle("open", open);
      spans[i].classList.toggle("new", !open && token.step === now - 1 && (now < total || timer !== null));
      spans[i].ariaHidden = open ? "true" : null;
    });
    if (timer !== null) followNew();
    rectangles.forEach((bar, i) => bar.classList.toggle("rest", i >= now));
    const phase = step ? step.phase : "start";
    byId("phase").textContent = phase;
    byId("phase").style.setProperty("--phase", data.colours[phase] ?? "var(--line)");
    byId("step").textContent = step ? `Step ${now - 1}` : "Before step 0";
    const parts = step ? [seconds(step.seconds), `density ${step.density.toFixed(2)}`] : [];
    parts.push(`${filled[now]} of ${data.tokens.length} tokens`, `${elapsed[now].toFixed(2)} of ${elapsed[total].toFixed(2)} s`);
    byId("detail").textContent = parts.join(" \u00b7 ");
    slider.ariaValueText = `${byId("step").textContent}, ${phase}, ${parts.join(", ")}`;
    if (announce) byId("announce").textContent = slider.ariaValueText;
    notePatterns(phase);
  };

  const interval = () => {
    const speed = byId("speed").value;
    if (speed === "real") return 1000 * (data.steps[now]?.seconds ?? 0);
    const normal = Math.min(Math.max(9000 / total, 30), 500);
    return normal * { slow: 3, normal: 1, fast: 0.3 }[speed];
  };
  const tick = () => {
    show(now + 1);
    if (now < total) timer = setTimeout(tick, interval());
    else pause();
  };
  const play = () => {
    if (now >= total) show(0);
    document.body.classList.add("playing");
    byId("play-name").textContent = "Pause";
    timer = setTimeout(tick, Math.min(interval(), 500));
  };
  const pause = () => {
    clearTimeout(timer);
    timer = null;
    document.body.classList.remove("playing");
    byId("play-name").textContent = "Play";
  };
  const toggle = () => (timer === null ? play() : pause());
  const go = (k) => {
    pause();
    show(k, true);
  };

  slider.max = total;
  slider.addEventListener("input", () => go(Number(slider.value)));
  bars.addEventListener("pointerdown", (event) => {
    const box = bars.getBoundingClientRect();
    go(Math.ceil((total * (event.clientX - box.left)) / box.width));
  });
  byId("play").addEventListener("click", toggle);
  byId("first").addEventListener("click", () => go(0));
  byId("back").addEventListener("click", () => go(now - 1));
  byId("next").addEventListener("click", () => go(now + 1));
  byId("last").addEventListener("click", () => go(total));
  byId("colour").addEventListener("change", () => {
    const byOrder = byId("colour").value === "order";
    document.body.classList.toggle("by-order", byOrder);
    byId("scale-low").textContent = byOrder ? "early" : "unsure";
    byId("scale-high").textContent = byOrder ? "late" : "sure";
  });
  byId("colour").dispatchEvent(new Event("change"));

  const keys = {
    ArrowLeft: () => go(now - 1),
    ArrowRight: () => go(now + 1),
    Home: () => go(0),
    End: () => go(total),
    Escape: pause,
    " ": toggle,
  };
  document.addEventListener("keydown", (event) => {
    if (byId("large").open || event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
    const target = event.target;
    if (target.matches("select") || target.closest(".scroll, #prompt")) return;
    if (event.key === " " && target.matches("button, summary")) return;
    event.preventDefault();
    keys[event.key]();
  });

  // --- the patterns ------------------------------------------------------------------------------------------------

  const patterns = data.patterns;
  const notePatterns = (phase) => {
    if (!patterns) return;
    const notes = {
      start: "selected once, reused in the steps after",
      dense: "a dense step: every block is computed",
      select: "selected in this step",
      sparse: "in use in this step: only these blocks are computed",
    };
    byId("patterns-note").textContent = notes[phase] ?? "";
    byId("patterns").classList.toggle("unused", phase === "dense");
  };

  /** Draws a head, a cell as `scale` x `scale` pixels, its opacity the share that is selected. */
  const draw = (canvas, cells, scale) => {
    const { rows, columns } = patterns;
    const style = getComputedStyle(document.body);
    const small = new OffscreenCanvas(columns, rows);
    const pixels = small.getContext("2d", { willReadFrequently: true });
    pixels.fillStyle = style.getPropertyValue("--cell");
    pixels.fillRect(0, 0, 1, 1);
    const [red, green, blue] = pixels.getImageData(0, 0, 1, 1).data;
    const image = new ImageData(columns, rows);
    cells.forEach((share, i) => image.data.set([red, green, blue, share], 4 * i));
    pixels.putImageData(image, 0, 0);
    canvas.width = columns * scale;
    canvas.height = rows * scale;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    context.fillStyle = style.getPropertyValue("--mark");
    const end = patterns.promptBlocks * scale;
    const width = scale > 2 ? Math.round(scale / 6) : Math.ceil(canvas.width / 70);
    if (end > 0 && end < canvas.width) {
      context.fillRect(Math.round(end - width / 2), 0, width, canvas.height);
      context.fillRect(0, Math.round(end - width / 2), canvas.width, width);
    }
  };

  const inflate = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const showPatterns = async () => {
    const all = await inflate(patterns.cells);
    const { layers, heads, rows, columns } = patterns;
    const size = rows * columns;
    const cellsOf = (place, head) => all.subarray((place * heads + head) * size, (place * heads + head + 1) * size);
    const drawings = new Map(); // canvas -> what draws it
    const drawn = new Set(); // the canvases that came into sight
    const sight = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          sight.unobserve(target);
          drawn.add(target);
          drawings.get(target)();
        }
      },
      { rootMargin: "400px" },
    );
    byId("layers").style.setProperty("--heads", heads);
    if (heads > 8) byId("layers").style.setProperty("--side", "3.6rem");
    layers.forEach((layer, place) => {
      const thumbs = element("div", { className: "thumbs" });
      for (let head = 0; head < heads; head++) {
        const canvas = element("canvas");
        canvas.ariaHidden = "true";
        const button = element("button", { type: "button", className: "thumb" }, canvas, heads > 8 ? `${head}` : `head ${head}`);
        button.ariaLabel = `Layer ${layer}, head ${head}: open large`;
        button.addEventListener("click", () => open(place, head));
        drawings.set(canvas, () => draw(canvas, cellsOf(place, head), columns > 100 ? 1 : 2));
        sight.observe(canvas);
        thumbs.append(button);
      }
      byId("layers").append(element("div", {}, element("h3", { textContent: `Layer ${layer}` }), thumbs));
    });
    byId("patterns").hidden = false;

    let place = 0;
    let head = 0;
    const canvas = byId("large-canvas");
    const open = (newPlace, newHead) => {
      place = (newPlace + layers.length) % layers.length;
      head = (newHead + heads) % heads;
      draw(canvas, cellsOf(place, head), Math.max(1, Math.floor(900 / Math.max(rows, columns))));
      const title = `Layer ${layers[place]}, head ${head}`;
      byId("large-title").textContent = title;
      const density = patterns.densities[place][head].toFixed(2);
      byId("cell").textContent = `density ${density}; query blocks downwards, key blocks to the right; lines: end of the prompt`;
      canvas.ariaLabel = `${title}: key blocks that each query block attends to, density ${density}`;
      if (!byId("large").open) {
        pause();
        byId("large").showModal();
      }
    };
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    byId("large").addEventListener("keydown", (event) => {
      if (!(event.key in move)) return;
      event.preventDefault();
      open(place + move[event.key][0], head + move[event.key][1]);
    });
    byId("head-back").addEventListener("click", () => open(place, head - 1));
    byId("head-next").addEventListener("click", () => open(place, head + 1));
    byId("layer-back").addEventListener("click", () => open(place - 1, head));
    byId("layer-next").addEventListener("click", () => open(place + 1, head));
    byId("close").addEventListener("click", () => byId("large").close());
    byId("large").addEventListener("click", (event) => event.target === byId("large") && byId("large").close());

    const span = (cell, cells, blocks, length) => {
      const first = Math.floor((cell * blocks) / cells) * patterns.blockSize;
      const end = Math.min(Math.floor(((cell + 1) * blocks) / cells) * patterns.blockSize, length);
      return `tokens ${first} \u2026 ${end - 1}`;
    };
    canvas.addEventListener("pointermove", (event) => {
      const x = Math.min(Math.max(Math.floor((columns * event.offsetX) / canvas.clientWidth), 0), columns - 1);
      const y = Math.min(Math.max(Math.floor((rows * event.offsetY) / canvas.clientHeight), 0), rows - 1);
      const share = cellsOf(place, head)[y * columns + x];
      const state = share === 255 ? "selected" : share ? `${Math.round(share / 2.55)} % selected` : "not selected";
      const queries = span(y, rows, patterns.qBlocks, patterns.qLen);
      byId("cell").textContent = `queries: ${queries}; keys: ${span(x, columns, patterns.kvBlocks, patterns.kvLen)}: ${state}`;
    });
    const redraw = () => {
      drawn.forEach((canvas) => drawings.get(canvas)());
      if (byId("large").open) open(place, head);
    };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  };

  // --- what does not move ------------------------------------------------------------------------------------------

  for (const [name, value] of data.facts) {
    byId("facts").append(element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })));
  }
  for (const phase of Object.keys(data.colours)) {
    const own = data.steps.filter((step) => step.phase === phase);
    if (!own.length) continue;
    const sum = own.reduce((before, step) => before + step.seconds, 0);
    const count = own.length === 1 ? "1 step" : `${own.length} steps`;
    const item = element("li", { textContent: `${phase}: ${count}, ${seconds(sum)}, ${seconds(sum / own.length)} each` });
    item.style.setProperty("--phase", data.colours[phase]);
    byId("phases").append(item);
  }
  byId("tokens").addEventListener("toggle", () => {
    const place = byId("tokens").querySelector(".scroll");
    if (place.firstChild) return;
    const row = (cell, values) => element("tr", {}, ...values.map((value) => element(cell, { textContent: value })));
    const rows = data.tokens.map((token, i) => {
      const step = token.step < 0 ? "open" : token.step;
      return row("td", [i, JSON.stringify(token.text), token.id, step, token.confidence?.toFixed(3) ?? ""]);
    });
    const head = element("thead", {}, row("th", ["position", "token", "id", "step", "confidence"]));
    place.append(element("table", {}, head, element("tbody", {}, ...rows)));
  });
  byId("prompt").textContent = data.prompt;
  byId("prompt-title").textContent = `Prompt (${data.promptTokens} tokens)`;

  show(total);
  if (patterns) showPatterns();
})();
