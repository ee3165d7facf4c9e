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
    if (target.matches("select") || target.closest(".scroll, #prompt, #heads")) return;
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

  const inflate = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  /** The levels of all cells of a layer's heads: 0 ... 1 with one bit per cell, 0 ... 15 with four. */
  const levelsOf = async (drawing, place) => {
    const bytes = await inflate(drawing.cells[place]);
    const levels = new Uint8Array(patterns.heads * drawing.rows * drawing.columns);
    const perByte = 8 / drawing.bits;
    const mask = 2 ** drawing.bits - 1;
    for (let i = 0; i < levels.length; i++) {
      levels[i] = (bytes[Math.floor(i / perByte)] >> (8 - drawing.bits * (1 + (i % perByte)))) & mask;
    }
    return levels;
  };

  /** A picture of one head, a pixel per cell, its opacity the level. */
  const picture = (drawing, levels, head) => {
    const { rows, columns, bits } = drawing;
    const made = new OffscreenCanvas(columns, rows);
    const pixels = made.getContext("2d", { willReadFrequently: true });
    pixels.fillStyle = getComputedStyle(document.body).getPropertyValue("--cell");
    pixels.fillRect(0, 0, 1, 1);
    const [red, green, blue] = pixels.getImageData(0, 0, 1, 1).data;
    const image = new ImageData(columns, rows);
    const start = head * rows * columns;
    const opacity = 255 / (2 ** bits - 1);
    for (let i = 0; i < rows * columns; i++) image.data.set([red, green, blue, opacity * levels[start + i]], 4 * i);
    pixels.putImageData(image, 0, 0);
    return made;
  };

  const showPatterns = async () => {
    const { layers, heads, large, small } = patterns;
    const blockTokens = patterns.blockSize;
    const title = (place, head) => `Layer ${layers[place]}, head ${head}`;
    const density = (place, head) => patterns.densities[place][head].toFixed(2);

    let chosen = [0, 0]; // place of the layer, head

    // The overview: one canvas with all heads below a grid of buttons. The grid has one stop of the Tab key.
    const grid = byId("heads");
    const gap = 2;
    const size = Math.round(Math.min(Math.max(1000 / heads, 24), Math.max(720 / layers.length, 24), 120)) - gap;
    grid.style.setProperty("--size", `${size}px`);
    grid.style.gridTemplateColumns = `max-content repeat(${heads}, ${size}px)`;
    const overview = element("canvas");
    overview.ariaHidden = "true";
    overview.style.gridArea = `2 / 2 / span ${layers.length} / span ${heads}`;
    const numbered = (count) => (i) => count <= 16 || i % 4 === 0;
    const [nameHead, nameLayer] = [numbered(heads), numbered(layers.length)];
    const row = (...cells) => {
      const made = element("div", {}, ...cells);
      made.role = "row";
      return made;
    };
    const label = (role, text, shown, line, column) => {
      const made = element("span", { className: column > 1 ? "label column" : "label", textContent: shown });
      made.role = role;
      made.ariaLabel = text;
      made.style.gridArea = `${line} / ${column}`;
      return made;
    };
    const corner = label("columnheader", "layer", "layer / head", 1, 1);
    const columnHeaders = [...Array(heads).keys()].map((head) =>
      label("columnheader", `head ${head}`, nameHead(head) ? head : "", 1, head + 2),
    );
    const buttons = layers.map((layer, place) =>
      [...Array(heads).keys()].map((head) => {
        const button = element("button", { type: "button", className: "head", tabIndex: -1 });
        button.role = "gridcell";
        button.ariaLabel = `${title(place, head)}, density ${density(place, head)}: open`;
        button.style.gridArea = `${place + 2} / ${head + 2}`;
        button.addEventListener("click", () => open(place, head));
        button.addEventListener("focus", () => choose(place, head));
        button.addEventListener("pointerenter", () => describeHead(place, head));
        return button;
      }),
    );
    const rows = layers.map((layer, place) =>
      row(label("rowheader", `layer ${layer}`, nameLayer(place) ? layer : "", place + 2, 1), ...buttons[place]),
    );
    grid.append(overview, row(corner, ...columnHeaders), ...rows);
    const describeHead = (place, head) => {
      byId("head").textContent = `${title(place, head)}: density ${density(place, head)} (share of the key blocks that are computed)`;
    };
    /** Makes a head the one that the Tab key reaches. */
    const choose = (place, head) => {
      grid.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
      buttons[place][head].tabIndex = 0;
      grid.querySelector(".chosen")?.classList.remove("chosen");
      buttons[place][head].classList.add("chosen");
      chosen = [place, head];
      describeHead(place, head);
    };
    buttons[0][0].tabIndex = 0;
    const smallLevels = await Promise.all(layers.map((_, place) => levelsOf(small, place)));
    const drawOverview = () => {
      const scale = Math.max(1, Math.min(window.devicePixelRatio || 1, 2));
      const pitch = size + gap;
      overview.width = Math.round((heads * pitch - gap) * scale);
      overview.height = Math.round((layers.length * pitch - gap) * scale);
      const context = overview.getContext("2d");
      context.scale(scale, scale);
      context.imageSmoothingEnabled = size * scale < small.columns; // pictures that shrink are smoothed
      const style = getComputedStyle(document.body);
      const end = (size * patterns.promptLength) / (blockTokens * small.factor * small.columns);
      layers.forEach((_, place) => {
        for (let head = 0; head < heads; head++) {
          const [x, y] = [head * pitch, place * pitch];
          context.fillStyle = style.getPropertyValue("--tile");
          context.fillRect(x, y, size, size);
          context.drawImage(picture(small, smallLevels[place], head), x, y, size, size);
          context.fillStyle = style.getPropertyValue("--mark");
          if (end > 0 && end < size) {
            context.fillRect(x + end - 0.5, y, 1, size);
            context.fillRect(x, y + end - 0.5, size, 1);
          }
        }
      });
    };
    drawOverview();
    byId("patterns").hidden = false;

    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    grid.addEventListener("keydown", (event) => {
      const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
      let [place, head] = chosen;
      if (event.key in moves) {
        place = inside(place + moves[event.key][0], layers.length);
        head = inside(head + moves[event.key][1], heads);
      } else if (event.key === "Home") head = 0;
      else if (event.key === "End") head = heads - 1;
      else if (event.key === "PageUp") place = inside(place - 8, layers.length);
      else if (event.key === "PageDown") place = inside(place + 8, layers.length);
      else return;
      event.preventDefault();
      event.stopPropagation();
      buttons[place][head].focus();
    });

    // One head, large.
    let place = 0;
    let head = 0;
    let opened = { place: -1, levels: null }; // the layer whose cells are unpacked
    const canvas = byId("large-canvas");
    const drawLarge = () => {
      const scale = Math.max(1, Math.floor(900 / Math.max(large.rows, large.columns)));
      canvas.width = large.columns * scale;
      canvas.height = large.rows * scale;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(picture(large, opened.levels, head), 0, 0, canvas.width, canvas.height);
      context.fillStyle = getComputedStyle(document.body).getPropertyValue("--mark");
      const end = (scale * patterns.promptLength) / (blockTokens * large.factor);
      const width = scale > 2 ? Math.round(scale / 6) : Math.ceil(canvas.width / 70);
      if (end > 0 && end < canvas.width) {
        context.fillRect(Math.round(end - width / 2), 0, width, canvas.height);
        context.fillRect(0, Math.round(end - width / 2), canvas.width, width);
      }
      canvas.dataset.drawn = title(place, head);
    };
    const open = async (newPlace, newHead) => {
      place = (newPlace + layers.length) % layers.length;
      head = (newHead + heads) % heads;
      choose(place, head);
      byId("large-title").textContent = title(place, head);
      byId("cell").textContent = `density ${density(place, head)}; query blocks downwards, key blocks to the right; lines: end of the prompt`;
      canvas.ariaLabel = `${title(place, head)}: key blocks that each query block attends to, density ${density(place, head)}`;
      if (!byId("large").open) {
        pause();
        byId("large").showModal();
      }
      if (opened.place !== place) {
        const wanted = place;
        const levels = await levelsOf(large, wanted);
        if (wanted !== place) return; // another layer was asked for meanwhile
        opened = { place: wanted, levels };
      }
      drawLarge();
    };
    byId("large").addEventListener("keydown", (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      open(place + moves[event.key][0], head + moves[event.key][1]);
    });
    byId("large").addEventListener("close", () => buttons[place][head].focus());
    byId("head-back").addEventListener("click", () => open(place, head - 1));
    byId("head-next").addEventListener("click", () => open(place, head + 1));
    byId("layer-back").addEventListener("click", () => open(place - 1, head));
    byId("layer-next").addEventListener("click", () => open(place + 1, head));
    byId("close").addEventListener("click", () => byId("large").close());
    byId("large").addEventListener("click", (event) => event.target === byId("large") && byId("large").close());

    const span = (cell, length) => {
      const tokens = large.factor * blockTokens;
      return `tokens ${cell * tokens} \u2026 ${Math.min((cell + 1) * tokens, length) - 1}`;
    };
    canvas.addEventListener("pointermove", (event) => {
      if (opened.place !== place) return;
      const inside = (offset, shown, count) => Math.min(Math.max(Math.floor((count * offset) / shown), 0), count - 1);
      const x = inside(event.offsetX, canvas.clientWidth, large.columns);
      const y = inside(event.offsetY, canvas.clientHeight, large.rows);
      const level = opened.levels[(head * large.rows + y) * large.columns + x];
      const full = 2 ** large.bits - 1;
      const share = Math.round((100 * (level - 0.5)) / (full - 1));
      const state = level === full ? "selected" : level ? `about ${share} % selected` : "not selected";
      byId("cell").textContent = `queries: ${span(y, patterns.qLen)}; keys: ${span(x, patterns.kvLen)}: ${state}`;
    });
    const redraw = () => {
      drawOverview();
      if (byId("large").open && opened.place === place) drawLarge();
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
