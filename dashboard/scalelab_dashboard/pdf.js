// A figure as a PDF of vectors and text, from what the browser has drawn; loaded when it is asked for.
//
// Plotly draws paths, rectangles, text and images. Each is written with the matrix, colours, dashes
// and clips that the browser computed. Text is in the Helvetica and Symbol of every PDF reader, as
// wide as the browser drew it; a character that neither has becomes "?".

const POINTS_PER_PX = 0.75;
const WINDOWS = { "–": 150, "—": 151, "‘": 145, "’": 146, "“": 147, "”": 148, "•": 149, "…": 133 };
const SYMBOLS = {
  "∝": 181, "≤": 163, "≥": 179, "−": 45, "∞": 165, "≈": 187, "≠": 185, "→": 174, "√": 214,
  "α": 97, "β": 98, "γ": 103, "δ": 100, "ε": 101, "η": 104, "θ": 113, "λ": 108, "μ": 109,
  "π": 112, "ρ": 114, "σ": 115, "τ": 116, "φ": 106, "Δ": 68, "Σ": 83,
};
const DRAWN = new Set(["path", "rect", "circle", "line", "text", "image"]);
const LEFT_OUT = new Set(["defs", "clipPath", "style", "title"]);

const short = value => (Math.abs(value) < 1e-6 ? "0" : String(+value.toFixed(4)));
const numbers = (...values) => values.map(short).join(" ");
const matrixOf = m => numbers(m.a, m.b, m.c, m.d, m.e, m.f);

// Return [red, green, blue, alpha], each from 0 to 1, or null for no colour.
const colourOf = text => {
  const found = /^rgba?\(([^)]+)\)$/.exec(text ?? "");
  if (!found) return null;
  const [red, green, blue, alpha = 1] = found[1].split(/[\s,/]+/).map(Number);
  return alpha > 0 ? [red / 255, green / 255, blue / 255, alpha] : null;
};

// Return the curves of an arc of an SVG path, which PDF does not have.
const arc = (x1, y1, rx, ry, turn, isLarge, isSwept, x2, y2) => {
  if (!rx || !ry || (x1 === x2 && y1 === y2)) return [["l", x2, y2]];
  const phi = (turn * Math.PI) / 180, cos = Math.cos(phi), sin = Math.sin(phi);
  const dx = (x1 - x2) / 2, dy = (y1 - y2) / 2;
  const u = cos * dx + sin * dy, v = cos * dy - sin * dx;
  const grow = Math.sqrt(Math.max(1, (u / rx) ** 2 + (v / ry) ** 2));
  [rx, ry] = [Math.abs(rx) * grow, Math.abs(ry) * grow];
  const under = (rx * ry) ** 2 / ((rx * v) ** 2 + (ry * u) ** 2) - 1;
  const k = Math.sqrt(Math.max(0, under)) * (isLarge === isSwept ? -1 : 1);
  const p = (k * rx * v) / ry, q = (-k * ry * u) / rx;
  const cx = cos * p - sin * q + (x1 + x2) / 2, cy = sin * p + cos * q + (y1 + y2) / 2;
  const start = Math.atan2((v - q) / ry, (u - p) / rx);
  let sweep = Math.atan2((-v - q) / ry, (-u - p) / rx) - start;
  if (isSwept && sweep < 0) sweep += 2 * Math.PI;
  if (!isSwept && sweep > 0) sweep -= 2 * Math.PI;
  const count = Math.ceil(Math.abs(sweep) / (Math.PI / 2) - 1e-9), step = sweep / count;
  const bend = (4 / 3) * Math.tan(step / 4);
  const at = (x, y) => [cx + cos * rx * x - sin * ry * y, cy + sin * rx * x + cos * ry * y];
  return Array.from({ length: count }, (_, i) => {
    const a = start + i * step, b = a + step;
    return [
      "c", ...at(Math.cos(a) - bend * Math.sin(a), Math.sin(a) + bend * Math.cos(a)),
      ...at(Math.cos(b) + bend * Math.sin(b), Math.sin(b) - bend * Math.cos(b)),
      ...at(Math.cos(b), Math.sin(b)),
    ];
  });
};

const LENGTHS = { M: 2, L: 2, H: 1, V: 1, C: 6, S: 4, Q: 4, A: 7, Z: 0 };
const TOKEN = /[a-zA-Z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?/gi;

// Return the parts of an SVG path as PDF writes them: m, l, c and h with absolute places.
const partsOf = text => {
  const tokens = text.match(TOKEN) ?? [], parts = [];
  let i = 0, name = "M", x = 0, y = 0, first = [0, 0], bend = null;
  while (i < tokens.length) {
    if (/[a-z]/i.test(tokens[i])) name = tokens[i++];
    const kind = name.toUpperCase(), is_relative = name !== kind;
    // The flags of an arc may stand together with the number behind them; Plotly parts them.
    const values = tokens.slice(i, i + LENGTHS[kind]).map(Number);
    i += LENGTHS[kind];
    const place = (k, ox = is_relative ? x : 0, oy = is_relative ? y : 0) =>
      [values[k] + ox, values[k + 1] + oy];
    let end = [x, y], next = null;
    if (kind === "Z") {
      parts.push(["h"]);
      end = first;
    } else if (kind === "M") {
      first = end = place(0);
      parts.push(["m", ...end]);
      name = is_relative ? "l" : "L";
    } else if (kind === "L") parts.push(["l", ...(end = place(0))]);
    else if (kind === "H") parts.push(["l", ...(end = [values[0] + (is_relative ? x : 0), y])]);
    else if (kind === "V") parts.push(["l", ...(end = [x, values[0] + (is_relative ? y : 0)])]);
    else if (kind === "C" || kind === "S") {
      const one = kind === "C" ? place(0) : bend ? [2 * x - bend[0], 2 * y - bend[1]] : [x, y];
      const k = kind === "C" ? 2 : 0;
      next = place(k);
      parts.push(["c", ...one, ...next, ...(end = place(k + 2))]);
    } else if (kind === "Q") {
      const [u, v] = place(0);
      end = place(2);
      parts.push(["c", x + (2 * (u - x)) / 3, y + (2 * (v - y)) / 3,
        end[0] + (2 * (u - end[0])) / 3, end[1] + (2 * (v - end[1])) / 3, ...end]);
    } else if (kind === "A") {
      end = place(5);
      parts.push(...arc(x, y, ...values.slice(0, 3), !!values[3], !!values[4], ...end));
    }
    [x, y] = end;
    bend = next;
  }
  return parts;
};

const boxOf = (x, y, width, height) =>
  [["m", x, y], ["l", x + width, y], ["l", x + width, y + height], ["l", x, y + height], ["h"]];

const outlineOf = node => {
  const get = name => node[name].baseVal.value;
  if (node.tagName === "path") return partsOf(node.getAttribute("d") ?? "");
  if (node.tagName === "rect") return boxOf(get("x"), get("y"), get("width"), get("height"));
  if (node.tagName === "line") return [["m", get("x1"), get("y1")], ["l", get("x2"), get("y2")]];
  const [x, y, r] = [get("cx"), get("cy"), get("r")];
  return partsOf(`M${x + r},${y}A${r},${r} 0 1 1 ${x - r},${y}A${r},${r} 0 1 1 ${x + r},${y}Z`);
};

const written = parts =>
  parts.map(([name, ...places]) => `${numbers(...places)} ${name}`.trim()).join("\n");

const moved = (parts, m) =>
  parts.map(([name, ...v]) => {
    const places = [];
    for (let i = 0; i < v.length; i += 2)
      places.push(m.a * v[i] + m.c * v[i + 1] + m.e, m.b * v[i] + m.d * v[i + 1] + m.f);
    return [name, ...places];
  });

// What a page needs beside its content: transparencies and images.
class Page {
  content = [];
  alphas = new Map();
  images = [];

  constructor(base) {
    this.base = base;
  }

  add(...lines) {
    this.content.push(...lines);
  }

  matrix(node) {
    return this.base.multiply(node.getScreenCTM());
  }

  alpha(fill, stroke) {
    const key = `/CA ${short(stroke)} /ca ${short(fill)}`;
    if (!this.alphas.has(key)) this.alphas.set(key, `G${this.alphas.size}`);
    this.add(`/${this.alphas.get(key)} gs`);
  }

  async walk(node, opacity) {
    if (node.nodeType !== 1 || LEFT_OUT.has(node.tagName)) return;
    const style = getComputedStyle(node);
    if (style.display === "none" || style.visibility === "hidden") return;
    opacity *= Number(style.opacity);
    if (!opacity || node.classList.contains("hoverlayer")) return;
    const clip = /url\("?[^"]*(#[^")]+)"?\)/.exec(node.getAttribute("clip-path") ?? "");
    const clipping = clip && document.getElementById(clip[1].slice(1));
    if (clipping) {
      const parts = [...clipping.children].flatMap(outlineOf);
      this.add("q", written(moved(parts, this.matrix(node))), "W n");
    }
    if (!DRAWN.has(node.tagName)) for (const each of node.childNodes) await this.walk(each, opacity);
    else if (node.tagName === "text") this.text(node, opacity);
    else if (node.tagName === "image") await this.image(node, opacity);
    else this.outline(node, style, opacity);
    if (clipping) this.add("Q");
  }

  outline(node, style, opacity) {
    let fill = colourOf(style.fill);
    const pattern = /url\("?[^"]*(#[^")]+)"?\)/.exec(style.fill);
    if (pattern) {
      // A hatched bar keeps the colour of its hatching.
      const hatch = document.querySelector(`${CSS.escape(pattern[1]).replace("\\#", "#")} path`);
      const its = hatch && getComputedStyle(hatch);
      fill = its && (colourOf(its.stroke) ?? colourOf(its.fill));
      if (fill) fill[3] *= 0.5;
    }
    const width = parseFloat(style.strokeWidth) || 0;
    const stroke = width > 0 ? colourOf(style.stroke) : null;
    if (!fill && !stroke) return;
    this.add("q", `${matrixOf(this.matrix(node))} cm`);
    this.alpha(
      (fill?.[3] ?? 1) * opacity * Number(style.fillOpacity),
      (stroke?.[3] ?? 1) * opacity * Number(style.strokeOpacity),
    );
    if (fill) this.add(`${numbers(...fill.slice(0, 3))} rg`);
    if (stroke) {
      const dashes = style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(/[\s,]+/);
      const cap = { butt: 0, round: 1, square: 2 }[style.strokeLinecap] ?? 0;
      const join = { miter: 0, round: 1, bevel: 2 }[style.strokeLinejoin] ?? 0;
      this.add(`${numbers(...stroke.slice(0, 3))} RG ${short(width)} w ${cap} J ${join} j`);
      this.add(`[${numbers(...dashes.map(parseFloat))}] 0 d`);
    }
    const rule = fill && style.fillRule === "evenodd" ? "*" : "";
    this.add(written(outlineOf(node)), fill && stroke ? `B${rule}` : fill ? `f${rule}` : "S", "Q");
  }

  text(node, opacity) {
    const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT), letters = [];
    while (walker.nextNode())
      for (const letter of walker.currentNode.data)
        for (let k = 0; k < letter.length; k++)
          letters.push([k ? "" : letter, walker.currentNode.parentElement]);
    const known = node.getNumberOfChars();
    this.add("q", `${matrixOf(this.matrix(node))} cm`);
    for (let i = 0; i < Math.min(letters.length, known); ) {
      const [letter, parent] = letters[i], isSymbol = letter in SYMBOLS;
      let end = i + 1;
      while (end < known && letters[end]?.[1] === parent && letters[end][0] in SYMBOLS === isSymbol) end++;
      const words = letters.slice(i, end).map(each => each[0]).join("").replaceAll("\u200b", "");
      if (words.trim()) this.words(node, words, i, end, getComputedStyle(parent), isSymbol, opacity);
      i = end;
    }
    this.add("Q");
  }

  words(node, words, start, end, style, isSymbol, opacity) {
    const fill = colourOf(style.fill);
    if (!fill) return;
    const isBold = Number(style.fontWeight) >= 600, size = parseFloat(style.fontSize);
    const at = node.getStartPositionOfChar(start), drawn = node.getSubStringLength(start, end - start);
    const ruler = (Page.ruler ??= document.createElement("canvas").getContext("2d"));
    ruler.font = `${isBold ? "bold " : ""}100px Helvetica, Arial, "Liberation Sans", sans-serif`;
    const usual = (ruler.measureText(words).width * size) / 100;
    const codes = Array.from(words, each => {
      const code = isSymbol ? SYMBOLS[each] : (WINDOWS[each] ?? each.codePointAt(0));
      return code < 256 ? code.toString(16).padStart(2, "0") : "3f";
    });
    this.alpha(fill[3] * opacity * Number(style.fillOpacity), 1);
    this.add(
      `${numbers(...fill.slice(0, 3))} rg BT /${isSymbol ? "FS" : isBold ? "FB" : "FR"} ${short(size)} Tf`,
      `${short(usual ? (100 * drawn) / usual : 100)} Tz 1 0 0 -1 ${numbers(at.x, at.y)} Tm`,
      `<${codes.join("")}> Tj ET`,
    );
  }

  async image(node, opacity) {
    const picture = new Image();
    picture.src = node.href.baseVal;
    await picture.decode();
    const canvas = document.createElement("canvas"), { naturalWidth: width, naturalHeight: height } = picture;
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, width, height).data;
    let colours = "", alphas = "";
    for (let i = 0; i < pixels.length; i += 4) {
      colours += String.fromCharCode(pixels[i], pixels[i + 1], pixels[i + 2]);
      alphas += String.fromCharCode(pixels[i + 3]);
    }
    const name = `I${this.images.length}`;
    this.images.push({ width, height, colours, alphas });
    const [x, y, w, h] = ["x", "y", "width", "height"].map(each => node[each].baseVal.value);
    this.add("q", `${matrixOf(this.matrix(node))} cm`);
    this.alpha(opacity, 1);
    this.add(`${numbers(w, 0, 0, -h, x, y + h)} cm /${name} Do`, "Q");
  }
}

// Return the file of numbered objects, each a string of one byte a character.
const fileOf = objects => {
  let file = "%PDF-1.4\n%\xe2\xe3\xcf\xd3\n";
  const places = objects.map((content, i) => {
    const place = file.length;
    file += `${i + 1} 0 obj\n${content}\nendobj\n`;
    return place;
  });
  const table = places.map(place => `${String(place).padStart(10, "0")} 00000 n \n`).join("");
  const start = file.length, count = objects.length + 1;
  file += `xref\n0 ${count}\n0000000000 65535 f \n${table}`;
  return `${file}trailer\n<< /Size ${count} /Root 1 0 R >>\nstartxref\n${start}\n%%EOF\n`;
};

const stream = (entries, content) =>
  `<< ${entries} /Length ${content.length} >>\nstream\n${content}\nendstream`;

// Return a Plotly figure as a Blob of one page.
export async function pdfOf(plot, title) {
  const layers = [...plot.querySelectorAll(".main-svg")];
  const { width, height } = layers[0].getBoundingClientRect();
  const page = new Page(layers[0].getScreenCTM().inverse());
  const scale = POINTS_PER_PX, paper = colourOf(getComputedStyle(layers[0]).backgroundColor);
  page.add(`${numbers(scale, 0, 0, -scale, 0, height * scale)} cm`);
  if (paper) page.add(`${numbers(...paper.slice(0, 3))} rg 0 0 ${numbers(width, height)} re f`);
  for (const layer of layers) await page.walk(layer, 1);
  const font = (name, coding = "/Encoding /WinAnsiEncoding ") =>
    `<< /Type /Font /Subtype /Type1 ${coding}/BaseFont /${name} >>`;
  const first = 9, images = page.images.flatMap(({ width: w, height: h, colours, alphas }, i) => {
    const about = `/Type /XObject /Subtype /Image /Width ${w} /Height ${h} /BitsPerComponent 8`;
    const mask = `/SMask ${first + 2 * i + 1} 0 R`;
    return [
      stream(`${about} /ColorSpace /DeviceRGB ${mask}`, colours),
      stream(`${about} /ColorSpace /DeviceGray`, alphas),
    ];
  });
  const states = [...page.alphas].map(([entries, name]) => `/${name} << ${entries} >>`).join(" ");
  const pictures = page.images.map((_, i) => `/I${i} ${first + 2 * i} 0 R`).join(" ");
  const words = Array.from(title, each => (each.charCodeAt(0) < 256 ? each : "?")).join("");
  const text = fileOf([
    "<< /Type /Catalog /Pages 2 0 R >>",
    "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    `<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${numbers(width * scale, height * scale)}] ` +
      `/Contents 4 0 R /Resources << /Font << /FR 5 0 R /FB 6 0 R /FS 7 0 R >> ` +
      `/ExtGState << ${states} >> /XObject << ${pictures} >> >> >>`,
    stream("", page.content.join("\n")),
    font("Helvetica"),
    font("Helvetica-Bold"),
    font("Symbol", ""),
    `<< /Title (${words.replace(/[\\()]/g, "\\$&")}) >>`,
    ...images,
  ]).replace("/Root 1 0 R", "/Root 1 0 R /Info 8 0 R");
  return new Blob([Uint8Array.from(text, each => each.charCodeAt(0))], { type: "application/pdf" });
}
