"use strict";
const inflate = async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

/** The levels of all cells of a layer's heads: 0 ... 1 with one bit per cell, 0 ... 15 with four. */
const levelsOf = async (drawing, heads, place) => {
  const bytes = await inflate(drawing.cells[place]);
  const levels = new Uint8Array(heads * drawing.rows * drawing.columns);
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

/** Fills the card of the patterns: an overview of all heads, and a dialog with one of them. */
const showPatterns = async (patterns, { byId, element, pause }) => {
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
  const smallLevels = await Promise.all(layers.map((_, place) => levelsOf(small, heads, place)));
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
      const levels = await levelsOf(large, heads, wanted);
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
