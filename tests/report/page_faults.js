// What a reader would find wrong with a page as it stands in this window, each fault a sentence.
"use strict";

const READ = "main.bd-main, .bd-sidebar-primary, .bd-header-article";
const ENOUGH = 4.5; // contrast of text, by WCAG 2.2; of large text, and of lines, 3
const SMALLEST = 11; // pixels of type

const grounds = new Map(); // what is behind an element
const opacities = new Map();

function layoutFaults() {
  return [...sideways(), ...cut(), ...images(), ...small()];
}

function colourFaults() {
  grounds.clear();
  opacities.clear();
  return faint();
}

// Everything is looked at: folds are open, and nothing fades from one colour to another.
function prepare() {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const image of document.images) image.loading = "eager";
  document.head.appendChild(document.createElement("style")).textContent = "* { transition: none !important; }";
  return loaded();
}

// In another window other sources of a picture may be chosen, and those take a moment to come.
async function loaded() {
  await new Promise((done) => setTimeout(done, 50));
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
  return true;
}

function sideways() {
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide <= 1) return [];
  const beyond = [...document.body.querySelectorAll("*")].filter(
    (element) => element.getBoundingClientRect().right > innerWidth + 1 && shown(element) && !scroller(element),
  );
  return [`the page scrolls sideways by ${wide} px: ${beyond.slice(-1).map(named)}`];
}

// What does not fit scrolls inside itself, and shows so: a shadow is drawn at its edge.
function cut() {
  const faults = [];
  for (const element of document.querySelectorAll("main.bd-main *")) {
    if (element.scrollWidth <= element.clientWidth + 1 || !element.clientWidth || !shown(element)) continue;
    if (element.matches("mjx-container *, span.math:has(mjx-container)")) continue; // words for screen readers are clipped
    const style = getComputedStyle(element);
    if (style.overflowX === "visible" || style.display === "inline") continue;
    const more = `${element.scrollWidth} of ${element.clientWidth} px`;
    if (!["auto", "scroll"].includes(style.overflowX)) faults.push(`${named(element)} is cut: ${more}`);
    else if (!style.backgroundImage.includes("gradient")) faults.push(`${named(element)} scrolls without a hint: ${more}`);
  }
  return faults;
}

function images() {
  const broken = [...document.images].filter((image) => shown(image) && !(image.complete && image.naturalWidth));
  return broken.map((image) => `an image is not there: ${image.src.slice(0, 200)}`);
}

function faint() {
  const faults = new Set();
  for (const element of withText()) {
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGElement;
    const outlined = drawn && style.stroke !== "none" && style.paintOrder.startsWith("stroke");
    const disc = element.closest("g.unit")?.querySelector("circle"); // on which the letter of a unit stands
    const behind = outlined ? colour(style.stroke) : disc ? colour(disc.getAttribute("fill")) : ground(element);
    const ratio = contrast(seen(colour(drawn ? style.fill : style.color), opacity(element), behind), behind);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : ENOUGH) - 0.01) faults.add(`${named(element)} has a contrast of ${ratio.toFixed(1)}`);
  }
  for (const line of document.querySelectorAll("svg .curve")) {
    const behind = ground(line);
    const ratio = contrast(seen(colour(getComputedStyle(line).stroke), opacity(line), behind), behind);
    if (shown(line) && ratio < 2.99) faults.add(`a line has a contrast of ${ratio.toFixed(1)}`);
  }
  return [...faults];
}

function small() {
  const faults = new Set();
  for (const element of withText()) {
    const scale = element instanceof SVGElement ? element.getScreenCTM().a : 1;
    const size = parseFloat(getComputedStyle(element).fontSize) * scale;
    if (size < SMALLEST - 0.05) faults.add(`${named(element)} is set in ${size.toFixed(1)} px`);
  }
  return [...faults];
}

// The elements that hold words of their own and are seen.
function withText() {
  const elements = new Set();
  for (const part of document.querySelectorAll(READ)) {
    const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) if (walker.currentNode.data.trim()) elements.add(walker.currentNode.parentElement);
  }
  return [...elements].filter((element) => shown(element) && !element.closest("sup, sub, mjx-container"));
}

function shown(element) {
  if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) return false;
  const box = element.getBoundingClientRect();
  return box.width > 1 && box.height > 1;
}

function scroller(element) {
  for (let box = element; box; box = box.parentElement) {
    if (getComputedStyle(box).overflowX !== "visible" || getComputedStyle(box).position === "fixed") return true;
  }
  return false;
}

function named(element) {
  const words = element.textContent.trim().replace(/\s+/g, " ").slice(0, 50);
  const kind = element.getAttribute("class");
  return `<${element.localName}${kind ? ` class="${kind}"` : ""}> (${words})`;
}

// Colours as red, green, blue and opacity, by drawing them.
const brush = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const known = new Map();

function colour(written) {
  if (!known.has(written)) {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = written;
    brush.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
    known.set(written, [red, green, blue, alpha / 255]);
  }
  return known.get(written);
}

// A colour so opaque, on another.
function seen([red, green, blue, alpha], share, behind) {
  const part = alpha * share;
  return [red, green, blue].map((value, index) => part * value + (1 - part) * behind[index]);
}

function ground(element) {
  if (!element) return [255, 255, 255];
  if (!grounds.has(element)) {
    const layer = colour(getComputedStyle(element).backgroundColor);
    grounds.set(element, layer[3] === 1 ? layer.slice(0, 3) : seen(layer, 1, ground(element.parentElement)));
  }
  return grounds.get(element);
}

function opacity(element) {
  if (!element) return 1;
  if (!opacities.has(element)) {
    opacities.set(element, Number(getComputedStyle(element).opacity) * opacity(element.parentElement));
  }
  return opacities.get(element);
}

function luminance(parts) {
  const [red, green, blue] = parts.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(first, second) {
  const [dark, light] = [luminance(first), luminance(second)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}
